"""Laws of the prior: a code depends on those before it alone, and the cache changes nothing."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.errors import UserError
from sora_jax.models.videogpt import Prior, in_order, links, on_grid, surprisal
from tests.conftest import random_weights

MODEL = Prior(
  width=24, layers=2, heads=2, mlp_width=32, text_width=6, grid=(3, 4, 2), patch=(2, 1), codes=5,
  depth=3, z_channels=4,
)  # fmt: skip


def weights(model):
  codes = jnp.zeros((1, *model.grid, model.depth), jnp.int32)
  text = jnp.zeros((1, 3, model.text_width)), jnp.ones((1, 3), jnp.int32)
  params = random_weights(model.init, codes, *text)
  return params | {"codebook": 10 * params["codebook"]}  # or positions would say most


@pytest.fixture(scope="module")
def params():
  return weights(MODEL)


@pytest.fixture(scope="module")
def inputs():
  rng = np.random.default_rng(2)
  text = jnp.asarray(rng.normal(size=(2, 3, 6)), jnp.float32)
  ids = jnp.asarray([[1, 1, 1], [1, 1, 0]], jnp.int32)
  return jnp.asarray(rng.integers(0, 5, size=(2, 3, 4, 2, 3)), jnp.int32), text, ids


apply = jax.jit(lambda params, *inputs: MODEL.apply({"params": params}, *inputs))


def ordered(x):
  """Of a grid, in the order that codes are drawn in, written out: patches are two cells high."""
  cells = [x[:, t, 2 * h + p, w] for t, h, w, p in np.ndindex(3, 2, 2, 2)]
  return jnp.stack(cells, axis=1)


@pytest.mark.parametrize("cell,depth", [(0, 0), (8, 1), (9, 2), (14, 2), (23, 0)])
def test_a_code_depends_on_those_before_it(cell, depth, params, inputs):
  codes, *text = inputs
  before = ordered(apply(params, codes, *text)).reshape(2, -1, 5)
  t, h, w, p = np.unravel_index(cell, (3, 2, 2, 2))
  at = (slice(None), t, 2 * h + p, w, depth)
  after = apply(params, codes.at[at].set((codes[at] + 1) % 5), *text)
  after = ordered(after).reshape(2, -1, 5)
  order = cell * 3 + depth
  np.testing.assert_allclose(after[:, : order + 1], before[:, : order + 1], atol=1e-5)
  changed = np.abs(after - before).max(axis=(0, 2))
  assert (changed[order + 1 :] > 1e-6).all(), "all later codes are told"


def test_a_beginning_is_like_that_of_the_whole(params, inputs):
  codes, *text = inputs
  np.testing.assert_allclose(
    apply(params, codes[:, :2], *text), apply(params, codes, *text)[:, :2], atol=1e-5
  )


def test_likelihoods_sum_to_one():
  model = Prior(
    width=12, layers=1, heads=1, mlp_width=16, text_width=6, grid=(2, 1, 2), patch=(1, 2),
    codes=2, depth=2, z_channels=3,
  )  # fmt: skip
  params = weights(model)
  codes = jnp.asarray(list(itertools.product(range(2), repeat=8))).reshape(-1, 2, 1, 2, 2)
  text = jnp.zeros((256, 3, 6)), jnp.ones((256, 3), jnp.int32)
  logits = jax.jit(model.apply)({"params": params}, codes, *text)
  likelihood = jnp.exp(-jnp.sum(surprisal(logits, codes), axis=(1, 2, 3, 4)))
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


@pytest.mark.parametrize("patch", [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_links_by_hand(patch):
  grid = (2, 4, 6)
  numbers = np.arange(48)
  number = on_grid(numbers[None], grid, patch)[0]
  np.testing.assert_array_equal(in_order(number[None, ..., None], patch)[0, :, 0], numbers)
  table = links(grid, patch)
  for t, h, w in np.ndindex(grid):
    left = number[t, h, w - 1] if w else -1
    above = number[t, h - 1, w] if h else -1
    before = number[t - 1, h, w] if t else -1
    mine = number[t, h, w]
    own = range(mine - mine % np.prod(patch), mine)
    found = table[mine].tolist()
    assert found[:3] == [left, above, before]
    assert [x for x in found[3:] if x >= 0] == list(own)
    assert max(left, above, before) < number[t, h, w]
  first = (slice(patch[0]), slice(patch[1]))
  assert set(number[0][first].ravel()) == set(range(patch[0] * patch[1]))


def test_patches_must_divide_the_grid():
  with pytest.raises(UserError, match="2x1 do not divide grids of 3x3"):
    MODEL.tokens((1, 3, 3))


@jax.jit
def hidden(params, told, tokens, text, ids, cache):
  """The transformer at some tokens, and the cache after them."""
  return MODEL.apply(
    {"params": params, **cache}, told, tokens, text, ids, method="hidden", mutable=["cache"]
  )


def test_the_cache_changes_nothing(params, inputs):
  codes, text, ids = inputs
  order = in_order(codes, MODEL.patch)
  z, tokens = params["codebook"][jnp.arange(3), order].sum(axis=2), jnp.arange(12)
  told = MODEL.apply({"params": params}, z, tokens, MODEL.grid, method="told_tokens")
  whole = MODEL.apply({"params": params}, told, tokens, text, ids, method="hidden")
  made, cache = [], {}
  for first, last in ((0, 5), *((i, i + 1) for i in range(5, 12))):
    piece, cache = hidden(params, told[:, first:last], tokens[first:last], text, ids, cache)
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
