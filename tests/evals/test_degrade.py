"""Controls are what they claim to be, and mild damage is mild."""

import numpy as np
import pytest

from sora_jax.evals import degrade


@pytest.fixture
def clip(rng) -> np.ndarray:
  """A square crossing a smooth texture, and where it is."""
  texture = np.cumsum(np.cumsum(rng.normal(size=(64, 64, 3)), 0), 1)
  texture = 60 + 60 * (texture - texture.min()) / np.ptp(texture)
  video = np.repeat(texture[None], 17, axis=0)
  masks = np.zeros(video.shape[:3], bool)
  for t in range(17):
    masks[t, 30:42, 2 * t : 2 * t + 12] = True
  video[masks] = (200, 30, 40)
  return video.astype(np.uint8)


@pytest.fixture
def masks(clip) -> np.ndarray:
  return (clip == (200, 30, 40)).all(-1)


def test_mild_damage_keeps_the_clip(clip):
  errors = []
  for seed in range(20):
    out = degrade.mild(clip, np.random.default_rng(seed))
    assert out.shape == clip.shape and out.dtype == np.uint8
    errors.append(np.mean((out.astype(float) - clip) ** 2))
  assert -10 * np.log10(max(errors) / 255**2) > 18
  assert len(set(errors)) > 15


@pytest.mark.parametrize("name", degrade.CONTROLS)
def test_every_control_does_damage_by_its_seed_alone(clip, masks, rng, name):
  other = rng.integers(0, 256, clip.shape, dtype=np.uint8)
  damage = degrade.CONTROLS[name]
  first, again, another = (
    damage(clip, masks, other, np.random.default_rng(seed)) for seed in (1, 1, 2)
  )
  assert first.shape == clip.shape and first.dtype == np.uint8
  np.testing.assert_array_equal(first, again)
  assert (first != another).any()
  assert np.mean(np.abs(first.astype(float) - clip)) > 1


def test_doubled_shows_the_object_twice_and_nothing_else_changed(clip, masks):
  out = degrade.doubled(clip, masks, np.random.default_rng(3))
  red = (out == (200, 30, 40)).all(-1)
  assert (red & masks).sum() == masks.sum()
  assert red.sum() > 1.5 * masks.sum()
  np.testing.assert_array_equal(out[~red], clip[~red])


def test_frozen_shuffled_and_spliced_use_only_given_frames(clip, rng):
  assert np.ptp(degrade.frozen(clip, rng), axis=0).max() == 0
  shuffled = degrade.shuffled(clip, rng)
  assert sorted(f.tobytes() for f in shuffled) == sorted(f.tobytes() for f in clip)
  spliced = degrade.spliced(clip, 255 - clip, rng)
  np.testing.assert_array_equal(spliced[:5], clip[:5])
  np.testing.assert_array_equal(spliced[-5:], 255 - clip[-5:])
