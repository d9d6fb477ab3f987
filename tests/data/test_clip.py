"""Clips as people write them."""

import pytest

from sora_jax.data.clip import Clip
from sora_jax.errors import UserError


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    ("480p5s", (121, 480, 832, 24.0)),
    ("1080p60s", (1441, 1080, 1920, 24.0)),
    ("60s@1080p24", (1441, 1080, 1920, 24.0)),
    ("720p2.5s@30", (77, 720, 1280, 30.0)),
    ("81x720x1280", (81, 720, 1280, 24.0)),
    ("80x48x64@16", (81, 48, 64, 16.0)),
    ("1x96x96", (1, 96, 96, 24.0)),
  ],
)
def test_forms(text, expected):
  clip = Clip.parse(text)
  assert (clip.frames, clip.height, clip.width, clip.fps) == expected


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("", "is no clip; write it like 480p5s"),
    ("720p", "is no clip"),
    ("5s", "is no clip"),
    ("500p5s", "no 500p here; there are 360, 480"),
    ("0x64x64", "nothing in the clip"),
    ("480p0.01s", "nothing in the clip"),
    ("17x64x64@0", "nothing in the clip"),
  ],
)
def test_others_are_refused(text, message):
  with pytest.raises(UserError, match=message):
    Clip.parse(text)


def test_tokens_are_those_of_the_published_models():
  assert Clip.parse("81x720x1280").tokens((4, 8), (1, 2, 2)) == 75_600  # Wan 2.1
  assert Clip.parse("81x480x832").tokens((4, 8), (1, 2, 2)) == 32_760
  assert Clip.parse("1080p60s").tokens((4, 16), (1, 2, 2)) == 361 * 34 * 60  # odd rows: padded
