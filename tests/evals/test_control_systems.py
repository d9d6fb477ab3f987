"""The controls do what their names say, on pictures whose future is known."""

import numpy as np
import pytest

from sora_jax.evals.control_systems import Frozen, Linear, Nearest, Shuffled, Truth
from sora_jax.evals.systems import Continuer, Surprised

FRAMES, SIZE, KNOWN = 12, 48, 5


@pytest.fixture
def moving(rng):
  """Discs that move evenly over a place with a slope of grey, and where they are."""
  rows, columns = np.mgrid[:SIZE, :SIZE]
  clips = []
  for start, way in (((20, 8), (0, 3)), ((8, 24), (2.5, 0)), ((30, 34), (-1.5, -2))):
    clip = np.repeat((90 + columns)[None, ..., None], FRAMES, axis=0).astype(np.float32)
    clip = np.repeat(clip, 3, axis=-1)
    for t in range(FRAMES):
      y, x = (s + t * w for s, w in zip(start, way, strict=True))
      clip[t, (rows - y) ** 2 + (columns - x) ** 2 < 36] = (200, 20, 20)
    clips.append(clip)
  return np.stack(clips).astype(np.uint8)


def carried_on(system, clips, frames=FRAMES):
  return system.continued(clips[:, :KNOWN], [""] * len(clips), seed=3, frames=frames)


def test_all_answer_and_begin_with_what_they_are_given(moving):
  others = Nearest(lambda: iter(moving[::-1]))
  for system in (Frozen(), Linear(), Truth(moving), Shuffled(moving), others):
    assert isinstance(system, Continuer)
    made = carried_on(system, moving)
    assert made.shape == moving.shape and made.dtype == np.uint8
    np.testing.assert_array_equal(made[:, :KNOWN], moving[:, :KNOWN])
    assert isinstance(system, Surprised) == (system is not others)


def test_frozen_holds_and_truth_is_true(moving):
  made = carried_on(Frozen(), moving)
  assert (made[:, KNOWN:] == moving[:, KNOWN - 1 : KNOWN]).all()
  np.testing.assert_array_equal(carried_on(Truth(moving), moving), moving)
  with pytest.raises(KeyError):
    carried_on(Truth(moving[:1]), moving)


def test_what_moves_evenly_moves_on(moving):
  made = carried_on(Linear(), moving).astype(int)
  red = lambda clips: clips[..., 0].astype(int) - clips[..., 1] > 60  # noqa: E731
  for clip, true in zip(made, moving, strict=True):
    for t in range(KNOWN, FRAMES):
      there, wanted = (np.argwhere(red(x[t])) for x in (clip, true))
      assert np.abs(there.mean(0) - wanted.mean(0)).max() < 1.2
      assert 0.8 < len(there) / len(wanted) < 1.2
  # A place that nobody was shown has the colour of what is beside it.
  assert np.abs(made - moving).mean() < 2


def test_nothing_to_go_by_is_held(moving, rng):
  """One frame, a place where nothing moves, and a camera that moves."""
  noise = rng.integers(0, 256, (1, KNOWN, SIZE, SIZE, 3), np.uint8)
  for known in (moving[:1, :1], moving[:1, [0] * KNOWN], noise):
    made = Linear().continued(known, [""], seed=0, frames=8)
    assert (made[:, known.shape[1] :] == known[:, -1:]).all()


def test_shuffled_frames_are_the_true_ones(moving):
  made = carried_on(Shuffled(moving), moving)
  for clip, true in zip(made, moving, strict=True):
    frames = {frame.tobytes() for frame in true[KNOWN:]}
    assert {frame.tobytes() for frame in clip[KNOWN:]} == frames and (clip != true).any()
  np.testing.assert_array_equal(carried_on(Shuffled(moving), moving), made)


def test_the_nearest_clip_is_the_nearest(moving, rng):
  pool = rng.integers(0, 256, (20, *moving.shape[1:]), np.uint8)
  noisy = np.clip(moving + rng.normal(0, 3, moving.shape), 0, 255).astype(np.uint8)
  order = rng.permutation(23)
  pool = np.concatenate([pool, noisy])[order]
  made = carried_on(Nearest(lambda: iter(pool)), moving, 9)
  np.testing.assert_array_equal(made[:, KNOWN:], noisy[:, KNOWN:9])


def test_surprise_is_what_was_not_expected(moving):
  """The held frame is wrong by each step; linear motion by none but the first; the truth never."""
  steps = np.abs(np.diff(moving.astype(float), axis=1)).mean(axis=(2, 3, 4))
  np.testing.assert_allclose(Frozen().surprise(moving), steps, rtol=1e-6)
  linear = Linear().surprise(moving)
  np.testing.assert_allclose(linear[:, 0], steps[:, 0], rtol=1e-6)
  assert linear[:, 4:].mean() < 0.3 * steps[:, 4:].mean()
  assert not Truth(moving).surprise(moving).any()
  changed = moving.copy()
  changed[1, 7:] = 255 - changed[1, 7:]
  found = Truth(moving).surprise(changed)
  assert not found[[0, 2]].any() and not found[1, :6].any() and (found[1, 6:] > 20).all()
