"""Which calls are short follows from levels and curve alone, and stays within the threshold."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sora_jax.diffusion import caching
from sora_jax.diffusion.time import schedule
from sora_jax.errors import UserError


@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.floats(1e-4, 0.5), st.floats(1.0, 8.0))
def test_short_calls_stay_within_the_threshold(seed, steps, threshold, shift):
  rng = np.random.default_rng(seed)
  curve = [(t, s) for t, s in zip(caching.LEVELS, rng.uniform(1, 2, 20), strict=True)]
  rng.shuffle(curve)
  levels = schedule(steps, shift)[:-1]
  short = caching.reused(levels, curve, threshold)
  assert not short[: int(np.ceil(caching.FIRST * steps))].any() and not short[0]
  sizes = np.interp(levels, *np.array(sorted(curve)).T)
  whole, error = 0, 0.0
  for i in range(1, steps):
    error += abs(1 - sizes[i] / sizes[whole])
    if short[i]:
      assert error < threshold and i - whole <= caching.LONGEST
    else:
      whole, error = i, 0.0
  assert not caching.reused(levels, curve, 0.0).any()
  if threshold > 0.1:  # a nearly flat curve lets as many be short as there may be
    flat = caching.reused(levels, [(0.0, 1.0), (1.0, 1.0001)], threshold)
    assert flat.sum() >= (steps - np.ceil(caching.FIRST * steps)) * 3 / 4 - 1


def test_mistakes_are_named():
  with pytest.raises(UserError, match="has no curve of residuals"):
    caching.reused(np.array([1.0, 0.5]), None, 0.1)
  for bad in (-0.1, np.nan):
    with pytest.raises(UserError, match="must be at least 0"):
      caching.reused(np.array([1.0, 0.5]), [(0, 1.0), (1, 1.0)], bad)
