"""FLOPs are counted as often as they run, and agree with formulas."""

import jax
import jax.numpy as jnp
import pytest

from sora_jax import config as config_lib
from sora_jax.parallel.attention import attend
from sora_jax.plan import flops
from sora_jax.plan.measure import changed, counted, model_flops
from sora_jax.train import program

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


def test_the_backward_pass_of_a_strided_convolution_is_two_forwards():
  image = jax.ShapeDtypeStruct((2, 8, 8, 4), jnp.float32)
  kernel = jax.ShapeDtypeStruct((3, 3, 4, 6), jnp.float32)

  def f(x, k):
    y = jax.lax.conv_general_dilated(
      x, k, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return jnp.sum(y**2)

  forward = flops.count(f, image, kernel)
  assert forward == 2 * (2 * 4 * 4 * 6) * (3 * 3 * 4)
  assert flops.count(jax.grad(f, (0, 1)), image, kernel) == 3 * forward


@pytest.mark.parametrize("name", ["toy", "dit_toy", "vjepa_toy", "vqvae_toy"])
def test_a_step_of_every_system_is_counted(name):
  """Up to three forward passes, whatever is recomputed; V-JEPA's target has no backward pass."""
  config = config_lib.load(f"configs/{name}.py:smoke")
  found = {}
  for remat in ("none", "full"):
    if "remat" in config.model:
      config.model.remat = remat
    found[remat] = [model_flops(config, mode) for mode in ("train", "loss")]
  assert found["none"] == found["full"]
  step, forward = found["none"]
  assert 1.5 < step / forward < 3.01


def test_what_is_counted_computes_nothing_twice_and_nothing_in_kernels():
  config = config_lib.load("configs/toy.py:smoke")
  config = changed(config, model=dict(remat="full", attention="flash"))
  recipe = program.build_recipe(config)
  assert (recipe.dit.remat, recipe.dit.attention) == ("full", "flash")
  plain = counted(recipe)
  assert (plain.dit.remat, plain.dit.attention) == ("none", "xla")
  assert plain.dit == recipe.dit.clone(remat="none", attention="xla")
  assert plain.packer == recipe.packer and plain.config is recipe.config
