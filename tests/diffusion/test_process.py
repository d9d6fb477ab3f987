"""Laws of the forward process."""

import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.diffusion import process
from sora_jax.diffusion.time import LevelSampler, schedule


def test_data_are_read_back(rng):
  x, noise = (jnp.asarray(rng.normal(size=(3, 5, 4)), jnp.float32) for _ in range(2))
  t = jnp.asarray(rng.uniform(0.05, 0.95, (3, 5)), jnp.float32)
  x_t, v = process.corrupt(x, noise, t), process.velocity(x, noise)
  np.testing.assert_allclose(process.data_from(x_t, v, t), x, atol=1e-5)


def test_level_zero_is_data_and_one_is_noise(rng):
  x, noise = (jnp.asarray(rng.normal(size=(2, 3, 4)), jnp.float32) for _ in range(2))
  np.testing.assert_array_equal(process.corrupt(x, noise, jnp.zeros((2, 3))), x)
  np.testing.assert_array_equal(process.corrupt(x, noise, jnp.ones((2, 3))), noise)


@pytest.mark.parametrize("shift", [0.3, 1.0, 5.0])
def test_shift_keeps_the_ends_and_the_order_and_composes(rng, shift):
  t = np.sort(rng.uniform(size=20))
  moved = process.shift_levels(t, shift)
  np.testing.assert_allclose(process.shift_levels(np.array([0.0, 1.0]), shift), [0, 1])
  assert (np.diff(moved) > 0).all()
  np.testing.assert_allclose(process.shift_levels(moved, 1 / shift), t, atol=1e-12)


def test_more_tokens_mean_more_noise(rng):
  levels = LevelSampler(reference_tokens=64)
  assert levels.shift_for(256) == 2 * levels.shift_for(64)
  few, many = (levels(np.random.default_rng(0), n, 4000) for n in (64, 1024))
  assert (few > 0).all() and (many <= 1).all()
  assert np.median(many) > np.median(few) + 0.1


def test_schedule_falls_from_start_to_zero():
  t = schedule(10, shift=3.0, start=0.6)
  assert len(t) == 11 and t[0] == 0.6 and t[-1] == 0 and (np.diff(t) < 0).all()
