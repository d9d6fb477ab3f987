"""FLOPs are counted as often as they run, and agree with formulas."""

import jax
import jax.numpy as jnp
import pytest

from sora_jax.parallel.attention import attend
from sora_jax.plan import flops

X = jax.ShapeDtypeStruct((8, 16), jnp.float32)
W = jax.ShapeDtypeStruct((16, 16), jnp.float32)
ONE = 2 * 8 * 16 * 16


def _scanned(x, w):
  return jax.lax.scan(lambda x, _: (x @ w, None), x, None, length=5)[0]


@pytest.mark.parametrize(
  ("f", "expected"),
  [
    (lambda x, w: x @ w, ONE),
    (lambda x, w: jax.jit(lambda x: jnp.sin(x @ w) @ w)(x), 2 * ONE),
    (_scanned, 5 * ONE),
    (lambda x, w: jax.lax.cond(x[0, 0] > 0, lambda: x @ w @ w, lambda: x @ w), 2 * ONE),
    (lambda x, w: jax.grad(lambda w: jnp.sum(_scanned(x, w)))(w), 15 * ONE),
    (lambda x, w: jax.grad(jax.checkpoint(lambda w: jnp.sum(jnp.sin(x @ w))))(w), 3 * ONE),
    (lambda x, w: jax.vmap(lambda row: row @ w)(x), ONE),
  ],
)
def test_matmuls(f, expected):
  assert flops.count(f, X, W) == expected


def test_scores_made_again_are_no_work_of_the_model():
  x, ids = jax.ShapeDtypeStruct((1, 64, 32), jnp.float32), jnp.ones((1, 64), int)
  f = lambda q, k, v: attend(q, k, v, ids, ids, heads=2, kernel="xla").sum()  # noqa: E731
  forward = 2 * 2 * 64 * 64 * 32
  assert flops.count(f, x, x, x) == forward
  assert flops.count(jax.grad(f, (0, 1, 2)), x, x, x) == 3 * forward


@pytest.mark.parametrize("groups", [1, 4])
def test_convolutions(groups):
  image = jax.ShapeDtypeStruct((2, 9, 9, 8), jnp.float32)
  kernel = jax.ShapeDtypeStruct((3, 3, 8 // groups, 12), jnp.float32)

  def f(x, k):
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
      x, k, (2, 2), "VALID", dimension_numbers=numbers, feature_group_count=groups
    )

  assert flops.count(f, image, kernel) == 2 * (2 * 4 * 4 * 12) * (3 * 3 * 8 // groups)
