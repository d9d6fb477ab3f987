"""However eight devices are arranged, loss and gradients are those of one."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.diffusion.loss import flow_matching
from sora_jax.models.dit import DiT
from sora_jax.models.tokens import Tokens
from sora_jax.parallel import sharding

ROWS, LENGTH, TEXT = 8, 60, 10  # a context axis of 8 does not divide the length
MODEL = DiT(
  width=64, layers=2, heads=4, mlp_width=128, text_width=32, channels=8, absolute=True, affine=True
)
FEW = [(2, 2, 2, 1)]  # of data, fsdp, context, tensor; the others are slow tests
ALL = [s for s in itertools.product((1, 2, 4, 8), repeat=4) if np.prod(s) == 8]


def _tokens(rng):
  """Rows of two packed samples each, with padding, blocks, two noise levels and two prompts."""
  half = np.repeat([[1, 2]], LENGTH // 2, axis=1).reshape(2, -1).T.reshape(-1)
  ids = np.tile(np.where(np.arange(LENGTH) >= LENGTH - 5, 0, np.sort(half)), (ROWS, 1))
  prompts = np.tile(np.repeat([1, 2], TEXT // 2), (ROWS, 1))
  f = lambda *shape: jnp.asarray(rng.standard_normal((ROWS, *shape)), jnp.float32)  # noqa: E731
  i = lambda x: jnp.asarray(x, jnp.int32)  # noqa: E731
  return Tokens(
    values=f(LENGTH, 32), positions=4 * f(LENGTH, 3), period=jnp.zeros((ROWS, LENGTH)),
    segments=i(ids), block=i(rng.integers(0, 2, (ROWS, LENGTH))),
    cond=jnp.asarray(rng.uniform(0.1, 0.9, (ROWS, 2, 1)), jnp.float32),
    cond_index=i(np.maximum(ids - 1, 0)), text=f(TEXT, 32), text_ids=i(prompts), prompt=i(ids),
  )  # fmt: skip


@functools.cache
def _problem():
  """A model whose gates are open, tokens, and the answer of one device."""
  rng = np.random.default_rng(0)
  tokens = _tokens(rng)
  params = MODEL.init(jax.random.key(0), tokens)["params"]
  params = jax.tree.map(lambda x: x + 0.1 * jnp.asarray(rng.standard_normal(x.shape)), params)
  return params, tokens, jax.jit(jax.value_and_grad(_loss))(params, tokens)


def _loss(params, tokens):
  model = lambda tokens: MODEL.apply({"params": params}, tokens)  # noqa: E731
  return flow_matching(model, tokens, jax.random.key(1))[0]


@pytest.mark.parametrize(
  "sizes", [pytest.param(s, marks=[] if s in FEW else [pytest.mark.slow]) for s in ALL], ids=str
)
def test_loss_and_gradients_on_every_mesh(sizes):
  params, tokens, (loss, grads) = _problem()
  mesh = sharding.make_mesh(dict(zip(sharding.AXES, sizes, strict=True)))
  with jax.set_mesh(mesh):
    placed = jax.device_put(params, sharding.param_shardings(params, mesh))
    batch = jax.device_put(tokens, sharding.batch_sharding(mesh))
    got, got_grads = jax.jit(jax.value_and_grad(_loss))(placed, batch)
  np.testing.assert_allclose(got, loss, rtol=1e-5)
  for (path, want), have in zip(
    jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves(got_grads), strict=True
  ):
    error = np.linalg.norm(have - want) / np.linalg.norm(want)
    assert error < 1e-4, (sharding.path_string(path), error)


@pytest.mark.parametrize(("ulysses", "kinds"), [(1, "ring"), (2, "both"), (4, "trade")])
def test_the_model_says_how_its_tokens_are_brought_together(ulysses, kinds):
  params, tokens, _ = _problem()
  model = MODEL.clone(ulysses=ulysses)
  mesh = sharding.make_mesh(dict(data=2, context=4))
  with jax.set_mesh(mesh):
    fields = jax.device_put(vars(tokens), sharding.batch_sharding(mesh))
    apply = jax.jit(lambda fields: model.apply({"params": params}, Tokens(**fields)))
    compiled = apply.lower(fields).compile()
    got = compiled(fields)
  text = compiled.as_text()
  assert ("collective-permute" in text, "all-to-all" in text) == {
    "ring": (True, False), "both": (True, True), "trade": (False, True)
  }[kinds]  # fmt: skip
  np.testing.assert_allclose(got, MODEL.apply({"params": params}, tokens), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["full", "dots", "attention"])
def test_remat_changes_nothing_but_memory(remat):
  params, tokens, (loss, grads) = _problem()
  model = MODEL.clone(remat=remat)

  def other(params):
    apply = lambda tokens: model.apply({"params": params}, tokens)  # noqa: E731
    return flow_matching(apply, tokens, jax.random.key(1))[0]

  got, got_grads = jax.jit(jax.value_and_grad(other))(params)
  np.testing.assert_allclose(got, loss, rtol=1e-6)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), got_grads, grads
  )
