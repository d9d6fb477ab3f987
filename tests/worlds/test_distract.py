"""Distractors cover what they should, cannot be foreseen, and leave the rest as it was."""

import numpy as np
import pytest

from sora_jax.data import pipeline, registry
from sora_jax.errors import UserError
from sora_jax.worlds import WorldSource
from sora_jax.worlds.distract import BRIGHTEST, CELL, DARKEST, Distracted, distracted
from sora_jax.worlds.impossible import ImpossiblePairs

FORM = dict(frames=3, height=32, width=32)


@pytest.mark.parametrize(("share", "rows"), [(0.0, 0), (0.25, 8), (0.5, 16), (0.3, 10)])
def test_bands_cover_their_share(rng, share, rows):
  clip = rng.integers(0, 60, (6, 64, 48, 3), np.uint8)
  made = distracted(clip, share, rng)
  assert made.shape == clip.shape and made.dtype == np.uint8
  np.testing.assert_array_equal(made[:, rows : 64 - rows], clip[:, rows : 64 - rows])
  for band in (made[:, :rows], made[:, 64 - rows :]):
    assert band.size == 0 or DARKEST <= band.min() and band.max() <= BRIGHTEST
    assert (band == band[..., :1]).all(), "it has no hue"


def test_they_cannot_be_foreseen(rng):
  """A frame says nothing of the next one."""
  bands = distracted(np.zeros((200, 64, 64, 3), np.uint8), 0.25, rng)[:, :8:CELL, ::CELL, 0]
  x = bands.reshape(200, -1).astype(float)
  x -= x.mean(0)
  links = (x[1:] * x[:-1]).mean(0) / x.var(0)
  assert np.abs(links).mean() < 0.1 and x.std() > 30


def test_what_happens_on_the_floor_stays_in_sight():
  """The pairs of the bench differ outside of the bands of half the picture."""
  pairs = ImpossiblePairs(16, 3, 17, kinds=("hidden_colour", "hidden_shape", "open_place"))
  for i in range(3):
    gap = (pairs[i].possible != pairs[i].impossible).any(axis=(0, 3))
    assert gap[16:48].sum() > 0.9 * gap.sum()


def test_a_source_with_distractors_is_the_source(rng):
  plain, noisy = (
    registry.open_sources({"worlds": dict(count=4, seed=2, distractor=share, **FORM)})[0][0]
    for share in (0.0, 0.5)
  )
  assert isinstance(plain, WorldSource) and isinstance(noisy, Distracted) and len(noisy) == 4
  middle = np.s_[:, 8:24]
  np.testing.assert_array_equal(noisy[1]["video"][middle], plain[1]["video"][middle])
  assert (noisy[1]["video"][:, :8] != plain[1]["video"][:, :8]).mean() > 0.9
  np.testing.assert_array_equal(noisy[-3]["video"], noisy[1]["video"])
  assert noisy[1]["caption"] == plain[1]["caption"] and repr(noisy) != repr(plain)
  again = noisy.clip(1, rng, frames=3, size=(32, 32))["video"]
  np.testing.assert_array_equal(again[middle], plain[1]["video"][middle])
  assert (again != noisy[1]["video"]).any()
  assert not hasattr(Distracted([], 0.5), "clip")
  batch = next(pipeline.make(noisy, 2, 0, frames=3, size=(32, 32), threads=0))
  assert (batch["video"][:, :, :8] >= DARKEST).all() and (batch["video"][:, :, 24:] >= 96).all()


def test_too_much_is_refused():
  for share in (-0.1, 0.9, float("nan")):
    with pytest.raises(UserError, match="must cover 0 to 0.8"):
      registry.open_sources({"worlds": dict(count=1, seed=0, distractor=share)})
