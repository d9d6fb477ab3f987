import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sora_jax.data import transforms


def sample(rng, frames=6, height=20, width=30):
  video = rng.integers(0, 256, (frames, height, width, 3), dtype=np.uint8)
  return {"video": video, "caption": "a ball rolls Left", "fps": 8.0, "id": "a"}


@pytest.mark.parametrize("array", [np.asarray, jnp.asarray])
def test_floats_round_trip_and_fill_the_range(array):
  levels = array(np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1))
  floats = transforms.to_float(levels)
  assert floats.dtype == np.float32 and float(floats.min()) == -1 and float(floats.max()) == 1
  assert (transforms.to_uint8(floats) == np.asarray(levels)).all()
  assert (transforms.to_uint8(np.array([-3.0, 3.0])) == [0, 255]).all()


@settings(max_examples=200)
@given(
  count=st.integers(1, 60),
  fps=st.sampled_from([8.0, 12.0, 24.0, 29.97, 60.0]),
  frames=st.integers(1, 20),
  target=st.sampled_from([None, 4.0, 8.0, 30.0]),
  seed=st.integers(0, 9),
)
def test_windows_keep_time(count, fps, frames, target, seed):
  """Indices are in range, in order, and at the wanted times to half a source frame."""
  found = transforms.window(count, fps, frames, target, np.random.default_rng(seed))
  seconds = (frames - 1) / (target or fps)
  if found is None:
    assert seconds > (count - 1 + 0.5) / fps - 1e-9
    return
  assert len(found) == frames and found.min() >= 0 and found.max() < count
  error = (found - found[0]) / fps - np.arange(frames) / (target or fps)
  assert np.abs(error).max() <= 0.5 / fps + 1e-9


def test_every_window_is_drawn(rng):
  starts = {int(transforms.window(20, 8.0, 17, 8.0, rng)[0]) for _ in range(99)}
  assert starts == {0, 1, 2, 3}


def test_short_clips_are_refused_or_held(rng):
  video = sample(rng)["video"]
  assert transforms.take(video, 8.0, 9, None, rng) is None
  held = transforms.take(video, 8.0, 9, None, rng, short="repeat")
  assert (held[:6] == video).all() and (held[6:] == video[-1]).all()
  assert (transforms.take(video[:1], 8.0, 3, 4.0, rng, "repeat") == video[:1]).all()


def test_crop_cuts_one_window_out_of_all_frames(rng):
  original = sample(rng)
  corners = set()
  for _ in range(60):
    crop = transforms.RandomCrop(16, 24)(original, rng)["video"]
    windows = np.lib.stride_tricks.sliding_window_view(original["video"], (16, 24), (1, 2))
    found = (windows == np.moveaxis(crop, -1, 1)[:, None, None]).all(axis=(0, 3, 4, 5))
    assert found.sum() == 1
    corners.add(tuple(np.argwhere(found)[0]))
    assert not np.shares_memory(crop, original["video"])  # or whole frames would be read ahead
  rows, columns = zip(*corners, strict=True)
  assert (min(rows), max(rows), min(columns), max(columns)) == (0, 4, 0, 6)
  assert transforms.RandomCrop(64, 32)(original, rng)["video"].shape == (6, 64, 32, 3)
