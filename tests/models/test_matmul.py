"""Products of rounded inputs: only where JAX is asked, forward and backward."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.models.dit import DiT, blank_tokens
from sora_jax.models.matmul import ROUNDED, linear, product


@pytest.fixture(name="arrays")
def _arrays(rng):
  return [jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((2, 5, 8), (8, 3), (2, 5, 3))]


def rounded(x):
  return np.asarray(x.astype(jnp.bfloat16), np.float64)


def test_nothing_is_rounded_unasked(arrays):
  x, kernel, _ = arrays
  np.testing.assert_array_equal(linear(x, kernel), x @ kernel)
  with jax.default_matmul_precision("float32"):
    np.testing.assert_array_equal(linear(x, kernel), x @ kernel)


def test_inputs_are_rounded_and_sums_are_not(arrays):
  x, kernel, _ = arrays
  with jax.default_matmul_precision(ROUNDED):
    made = linear(x, kernel)
    again = product("bni,io->bno", x, kernel)
  assert made.dtype == jnp.float32
  np.testing.assert_allclose(made, rounded(x) @ rounded(kernel), rtol=1e-5, atol=1e-5)
  np.testing.assert_array_equal(made, again)
  assert np.abs(made - x @ kernel).max() > 1e-4


def test_so_are_they_in_the_backward_pass(arrays):
  x, kernel, dy = arrays
  with jax.default_matmul_precision(ROUNDED):
    _, backward = jax.vjp(linear, x, kernel)
    dx, dkernel = backward(dy)
  np.testing.assert_allclose(dx, rounded(dy) @ rounded(kernel).T, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(dkernel, np.einsum("bni,bno->io", x, dy), rtol=1e-5, atol=1e-5)


def test_other_types_stay_as_they_are(arrays):
  x, kernel = (a.astype(jnp.bfloat16) for a in arrays[:2])
  with jax.default_matmul_precision(ROUNDED):
    assert linear(x, kernel).dtype == jnp.bfloat16


def test_a_transformer_multiplies_in_bfloat16_both_ways():
  dit = DiT(width=32, layers=2, heads=2, mlp_width=64, text_width=8, channels=4)
  tokens = blank_tokens(dit)
  params = dit.init(jax.random.key(0), tokens)
  loss = lambda p: jnp.sum(dit.apply(p, tokens) ** 2)  # noqa: E731
  count = lambda f: str(jax.make_jaxpr(f)(params)).count(":bf16[")  # noqa: E731
  assert not count(jax.grad(loss))
  with jax.default_matmul_precision(ROUNDED):
    forward, both = count(loss), count(jax.grad(loss))
  assert both > 1.5 * forward > 0
