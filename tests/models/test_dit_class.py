"""Laws of the class-conditional transformer that no reference is needed for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.models.dit_class import VARIANTS, ClassDiT, sincos

DIT = ClassDiT(width=24, layers=2, heads=2, classes=5, channels=3, size=6, patch=2)


@pytest.fixture(scope="module")
def params():
  x, label = jnp.zeros((1, 6, 6, 3)), jnp.zeros(1, jnp.int32)
  return jax.jit(DIT.init)(jax.random.key(0), x, jnp.zeros(1), label)["params"]


def perturbed(params):
  leaves, tree = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(1), len(leaves))
  noisy = [x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
  return jax.tree.unflatten(tree, noisy)


def inputs(rng, rows=6, columns=6):
  x = jnp.asarray(rng.normal(size=(2, rows, columns, 3)), jnp.float32)
  return x, jnp.array([3.0, 700.0]), jnp.array([5, 0])


def test_blocks_start_as_the_identity(params, rng):
  gates = params["blocks"]["time_modulation"]["kernel"]
  assert not np.any(gates) and gates.shape == (2, 24, 6 * 24)
  assert not np.any(jax.jit(DIT.apply)({"params": params}, *inputs(rng)))


def test_grids_of_any_size(params, rng):
  apply = jax.jit(DIT.apply)
  out = apply({"params": perturbed(params)}, *inputs(rng, 5, 8))
  assert out.shape == (2, 5, 8, 6) and np.std(out) > 0.01
  # twice as many patches lie half as far apart
  fine = sincos(6, 6, 24, 3).reshape(6, 6, 24)
  np.testing.assert_allclose(fine[::2, ::2].reshape(9, 24), sincos(3, 3, 24, 3), atol=1e-6)


def test_velocity_is_the_first_half_and_remat_changes_nothing(params, rng):
  params, args = {"params": perturbed(params)}, inputs(rng)
  both = jax.jit(DIT.apply)(params, *args)
  v = jax.jit(DIT.copy(predicts="velocity").apply)(params, *args)
  np.testing.assert_array_equal(v, both[..., :3])
  for name in ("full", "dots"):
    dit = DIT.copy(remat=name)
    loss = lambda p, dit: jnp.sum(dit.apply(p, *args) ** 2)  # noqa: E731
    one, other = (jax.jit(jax.grad(loss), static_argnums=1)(params, d) for d in (DIT, dit))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), one, other)


def test_published_sizes():
  """Parameters in millions, as in the paper (DiT-B/8 is in its appendix)."""
  label = jax.ShapeDtypeStruct((1,), np.int32)
  for name, millions in (("dit-s/4", 33), ("dit-b/8", 131), ("dit-l/2", 458), ("sit-xl/2", 675)):
    dit = ClassDiT(**VARIANTS[name])
    x = jax.ShapeDtypeStruct((1, 32, 32, 4), np.float32)
    time = jax.ShapeDtypeStruct((1,), np.float32)
    shapes = jax.eval_shape(dit.init, jax.random.key(0), x, time, label)
    count = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
    assert count / 1e6 == pytest.approx(millions, abs=0.7)
  assert len(VARIANTS) == 24
