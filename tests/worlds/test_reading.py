"""Reading a caption is the inverse of writing it."""

import pytest

from sora_jax.worlds import WorldSource
from sora_jax.worlds.captions import WORDINGS
from sora_jax.worlds.reading import read


@pytest.mark.parametrize("wording", WORDINGS)
@pytest.mark.parametrize("split", ("train", "heldout"))
def test_what_is_written_is_read(wording, split):
  source = WorldSource(150, 3, split, wording=wording)
  for index in range(len(source)):
    spec = source.spec(index)
    caption = source.caption(index, spec)
    stated = {key: spec.labels[key] for key in ("colour", "shape", "motion")}
    assert read(caption) == stated, caption


@pytest.mark.parametrize("caption", ("", "a dog runs", "a red ball", "the ball rolls to the left"))
def test_other_captions_are_not(caption):
  assert read(caption) is None
