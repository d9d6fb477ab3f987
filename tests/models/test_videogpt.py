"""Laws of the prior: a code depends on those before it alone, and the cache changes nothing."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.models.videogpt import Prior, links, surprisal
from tests.conftest import random_weights

MODEL = Prior(
  width=24, layers=2, heads=2, mlp_width=32, text_width=6, grid=(3, 2, 2), codes=5, depth=3,
  z_channels=4,
)  # fmt: skip


def weights(model):
  codes = jnp.zeros((1, *model.grid, model.depth), jnp.int32)
  text = jnp.zeros((1, 3, model.text_width)), jnp.ones((1, 3), jnp.int32)
  return random_weights(model.init, codes, *text)


@pytest.fixture(scope="module")
def params():
  return weights(MODEL)


@pytest.fixture(scope="module")
def inputs():
  rng = np.random.default_rng(2)
  text = jnp.asarray(rng.normal(size=(2, 3, 6)), jnp.float32)
  ids = jnp.asarray([[1, 1, 1], [1, 1, 0]], jnp.int32)
  return jnp.asarray(rng.integers(0, 5, size=(2, 3, 2, 2, 3)), jnp.int32), text, ids


apply = jax.jit(lambda params, *inputs: MODEL.apply({"params": params}, *inputs))


@pytest.mark.parametrize("cell,depth", [(0, 0), (4, 1), (7, 2), (11, 0)])
def test_a_code_depends_on_those_before_it(cell, depth, params, inputs):
  codes, *text = inputs
  before = apply(params, codes, *text).reshape(2, -1, 5)
  flat = codes.reshape(2, -1, 3)
  changed = flat.at[:, cell, depth].set((flat[:, cell, depth] + 1) % 5).reshape(codes.shape)
  after = apply(params, changed, *text).reshape(2, -1, 5)
  order = cell * 3 + depth
  np.testing.assert_allclose(after[:, : order + 1], before[:, : order + 1], atol=1e-5)
  if cell < 11:
    later = np.abs(after - before)[:, (cell + 1) * 3 :].max(axis=(0, 2))
    assert (later > 1e-6).all(), "all later cells are told"
  if depth < 2:
    assert np.abs(after - before)[:, order + 1].max() > 1e-4


def test_a_beginning_is_like_that_of_the_whole(params, inputs):
  codes, *text = inputs
  np.testing.assert_allclose(
    apply(params, codes[:, :2], *text), apply(params, codes, *text)[:, :8], atol=1e-5
  )


def test_likelihoods_sum_to_one():
  model = Prior(
    width=12, layers=1, heads=1, mlp_width=16, text_width=6, grid=(2, 1, 2), codes=2, depth=2,
    z_channels=3,
  )  # fmt: skip
  params = weights(model)
  codes = jnp.asarray(list(itertools.product(range(2), repeat=8))).reshape(-1, 2, 1, 2, 2)
  text = jnp.zeros((256, 3, 6)), jnp.ones((256, 3), jnp.int32)
  logits = jax.jit(model.apply)({"params": params}, codes, *text)
  likelihood = jnp.exp(-jnp.sum(surprisal(logits, codes), axis=(1, 2)))
  assert np.std(likelihood) > 1e-3
  assert jnp.sum(likelihood) == pytest.approx(1, abs=1e-4)


def test_words_are_read_and_padding_is_not(params, inputs):
  codes, text, ids = inputs
  logits = apply(params, codes, text, ids)
  same = apply(params, codes, text.at[1, 2].set(9.0), ids)
  np.testing.assert_allclose(same, logits, atol=1e-5)
  other = apply(params, codes, text.at[1, 1].set(9.0), ids)
  assert np.abs(other - logits)[1].max() > 1e-2
  np.testing.assert_allclose(other[0], logits[0], atol=1e-5)
  none = jnp.zeros_like(ids)
  np.testing.assert_allclose(
    apply(params, codes, text, none), apply(params, codes, text + 1.0, none), atol=1e-5
  )


def test_links_by_hand():
  grid = (2, 3, 4)
  table = links(grid).reshape(*grid, 3)
  number = np.arange(24).reshape(grid)
  for t, h, w in np.ndindex(grid):
    above = number[t, h - 1, w] if h else -1
    before = number[t - 1, h, w] if t else -1
    assert table[t, h, w].tolist() == [number[t, h, w] - 1, above, before]


@jax.jit
def hidden(params, told, cells, text, ids, cache):
  """The transformer at some cells, and the cache after them."""
  return MODEL.apply(
    {"params": params, **cache}, told, cells, text, ids, method="hidden", mutable=["cache"]
  )


def test_the_cache_changes_nothing(params, inputs):
  codes, text, ids = inputs
  z = params["codebook"][jnp.arange(3), codes.reshape(2, 12, 3)].sum(axis=2)
  cells = jnp.arange(12)
  told = MODEL.apply({"params": params}, z, cells, links(MODEL.grid), method="told")
  whole = MODEL.apply({"params": params}, told, cells, text, ids, method="hidden")
  made, cache = [], {}
  for first, last in ((0, 5), *((i, i + 1) for i in range(5, 12))):
    piece, cache = hidden(params, told[:, first:last], cells[first:last], text, ids, cache)
    text = text + 1.0  # a prompt is read once: what it is later changes nothing
    made.append(piece)
  np.testing.assert_allclose(jnp.concatenate(made, axis=1), whole, rtol=1e-4, atol=1e-5)


def test_what_is_recomputed_is_the_same(params, inputs):
  def loss(params, model):
    return jnp.mean(surprisal(model.apply({"params": params}, *inputs), inputs[0]))

  grads = [
    jax.jit(jax.grad(loss), static_argnums=1)(params, MODEL.clone(remat=name))
    for name in ("none", "full")
  ]
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), *grads)
