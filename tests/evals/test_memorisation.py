"""The search for training clips on sets of which it is known who copied whom."""

import numpy as np
import pytest

from sora_jax.evals import memorisation
from sora_jax.evals.memorisation import Memorisation, content, motion


def _clips(rng, count, frames=9, side=32):
  """Smooth random fields drifting at random."""
  from scipy import ndimage

  fields = ndimage.gaussian_filter(rng.normal(size=(count, side, side, 3)), (0, 3, 3, 0))
  fields = 128 + 90 * fields / np.abs(fields).max(axis=(1, 2, 3), keepdims=True)
  speed = rng.integers(-3, 4, size=(count, 2))
  clips = np.stack(
    [[np.roll(f, t * v, (0, 1)) for t in range(frames)] for f, v in zip(fields, speed, strict=True)]
  )
  return np.clip(clips, 0, 255).round().astype(np.uint8)


def _rows(clips):
  return content(clips), motion(clips)


def test_descriptors_are_averages_over_cells(rng):
  clip = rng.integers(0, 256, size=(2, 17, 32, 48, 3), dtype=np.uint8)
  cells = content(clip).reshape(2, 5, 8, 8, 3)
  np.testing.assert_allclose(cells[1, 2, 3, 4], clip[1, 8, 12:16, 24:30].mean((0, 1)), rtol=1e-5)
  luma = clip.astype(float) @ (0.299, 0.587, 0.114)
  step = luma[0, 16, 30:, 45:].mean() - luma[0, 14, 30:, 45:].mean()
  np.testing.assert_allclose(motion(clip).reshape(2, 8, 16, 16)[0, 7, 15, 15], step, rtol=1e-3)
  assert memorisation.size(motion(np.repeat(clip[:, :1], 9, axis=1))).max() == 0


def test_search_finds_the_nearest_whatever_the_batches(rng):
  queries, rows = rng.normal(5, 3, size=(7, 40)), rng.normal(5, 3, size=(50, 40))
  rows[31] = queries[4]
  gaps = np.sqrt(np.square(queries[:, None] - rows).mean(-1))
  for cuts in ([], [1, 2, 3], [20, 45]):
    search = memorisation.Search(queries)
    for part in np.split(rows, cuts):
      search.update(part)
    np.testing.assert_array_equal(search.index, gaps.argmin(1))
    np.testing.assert_allclose(search.distance, gaps.min(1), rtol=1e-12)
    assert search.distance[4] == 0 and search.index[4] == 31


def test_copies_are_found_and_what_is_new_is_not(rng):
  train, fresh, heldout = (_clips(rng, n) for n in (60, 40, 40))
  noise = rng.normal(0, 8, size=train[:40].shape)
  copies = np.clip(train[:40] + noise, 0, 255).astype(np.uint8)
  half = np.concatenate([copies[:20], fresh[:20]])
  search = Memorisation(
    copies=_rows(copies), fresh=_rows(fresh), half=_rows(half), heldout=_rows(heldout)
  ).look(np.split(train, [7, 40]))
  assert search.seen == 60
  np.testing.assert_array_equal(search.nearest("copies")["content index"], np.arange(40))
  for kind in ("content", "motion"):
    found = {name: search.summary(name)[kind] for name in ("copies", "fresh", "half")}
    assert found["copies"]["copies"]["mean"] > 0.9
    assert found["fresh"]["copies"]["mean"] < 0.2
    assert 0.4 < found["half"]["copies"]["mean"] < 0.65
    assert found["copies"]["ratio"]["mean"] < 0.5
    assert found["fresh"]["ratio"]["mean"] == pytest.approx(1, abs=0.3)


def test_still_clips_have_no_motion_to_copy(rng):
  train, heldout = _clips(rng, 10), _clips(rng, 12)
  still = np.repeat(train[:, :1], 9, axis=1)
  search = Memorisation(samples=_rows(still), heldout=_rows(heldout)).look([train])
  found = search.summary()
  assert found["motion"]["still"]["mean"] == 1 and "copies" not in found["motion"]
  assert found["content"]["ratio"]["mean"] > 0
