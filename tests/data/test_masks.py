"""Masks of V-JEPA: disjoint, of a fixed form, and of the shape that was asked for."""

import numpy as np
import pytest

from sora_jax.data.masks import PADDING, Mask, Masks
from sora_jax.errors import UserError

GRID = (5, 8, 6)
KINDS = {
  "short": Mask(blocks=8, space=0.15),
  "long": Mask(blocks=2, space=0.7),
  "brief": Mask(blocks=3, space=0.3, time=0.4),
  "future": Mask(future=2),
  "both": Mask(blocks=1, space=0.3, future=1),
}
MASKS = Masks(grid=GRID, context=0.2, targets=0.375, kinds=KINDS)


def drawn(seed):
  return MASKS({"id": "x"}, np.random.default_rng(seed))


@pytest.mark.parametrize("seed", range(20))
def test_what_is_asked_for_is_not_seen(seed):
  sample = drawn(seed)
  assert sample["context"].shape == (5, 48) and sample["targets"].shape == (5, 90)
  assert sample["context"].dtype == sample["targets"].dtype == np.int32
  for context, targets in zip(sample["context"], sample["targets"], strict=True):
    seen, asked = (x[x != PADDING] for x in (context, targets))
    assert len(seen) and len(asked) and not set(seen) & set(asked)
    for found, row in ((seen, context), (asked, targets)):
      assert len(set(found)) == len(found) and found.max() < np.prod(GRID)
      assert (row[: len(found)] != PADDING).all()


@pytest.mark.parametrize("seed", range(20))
def test_the_future_is_asked_for_from_the_past(seed):
  sample, kinds = drawn(seed), sorted(KINDS)
  for name, ahead in (("future", 2), ("both", 1)):
    row = kinds.index(name)
    seen, asked = (
      np.unravel_index(x[x != PADDING], GRID)[0]
      for x in (sample["context"][row], sample["targets"][row])
    )
    assert seen.max() < asked.min() and np.ptp(asked) < ahead
  assert sample["id"] == "x"


def test_blocks_are_boxes_of_the_size_that_was_asked_for(rng):
  sizes = []
  for _ in range(200):
    visible, asked = Mask(blocks=1, space=0.25, time=0.6)(GRID, rng)
    np.testing.assert_array_equal(asked, ~visible)
    where = np.argwhere(asked)
    box = np.ptp(where, axis=0) + 1
    assert len(where) == np.prod(box) and box[0] == 3
    assert 0.45 < box[1] / box[2] < 2.2
    sizes.append(box[1] * box[2] / 48)
  assert np.mean(sizes) == pytest.approx(0.25, abs=0.03)


def test_a_seed_is_a_mask():
  for name in ("context", "targets"):
    np.testing.assert_array_equal(drawn(3)[name], drawn(3)[name])
    assert not np.array_equal(drawn(3)[name], drawn(4)[name])


@pytest.mark.parametrize("mask", [Mask(blocks=1, space=1.0, aspect=(4 / 3, 4 / 3)), Mask()])
def test_masks_that_hide_all_or_nothing_are_refused(mask, rng):
  masks = Masks(grid=GRID, context=0.2, targets=0.4, kinds={"bad": mask})
  with pytest.raises(UserError, match="leaves nothing to see or to predict"):
    masks({}, rng)
  short = Masks(grid=(1, 8, 6), context=0.2, targets=0.4, kinds={"future": Mask(future=1)})
  with pytest.raises(UserError, match="leaves nothing to see or to predict"):
    short({}, rng)
