"""An adapter is what the formula says, wherever it is used, and nothing else is touched."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from sora_jax.diffusion.loss import flow_matching
from sora_jax.errors import UserError
from sora_jax.interop.names import flatten, unflatten
from sora_jax.models import lora
from sora_jax.models.dit import DiT, blank_tokens
from sora_jax.models.lora import Lora
from sora_jax.models.tokens import Tokens
from sora_jax.parallel import sharding
from sora_jax.train import optim
from sora_jax.train.state import TrainState
from sora_jax.train.step import train_step

DIT = DiT(width=48, layers=3, heads=2, mlp_width=64, text_width=32, channels=4, absolute=True)
LORA = Lora(rank=3, alpha=2.0, targets="attention/(q|k|v|out)$")
ROWS, LENGTH = 4, 16


def noisy(tree, seed):
  """Random numbers everywhere but in alpha: B is zero at first, and so are the gates."""
  rng = np.random.default_rng(seed)
  change = lambda path, x: (  # noqa: E731
    x if path[-1].key == "lora_alpha" else x + 0.1 * jnp.asarray(rng.normal(size=x.shape), x.dtype)
  )
  return jax.tree_util.tree_map_with_path(change, tree)


@pytest.fixture(scope="module")
def base():
  return noisy(jax.jit(DIT.init)(jax.random.key(0), blank_tokens(DIT))["params"], 0)


@pytest.fixture(scope="module")
def tokens():
  rng = np.random.default_rng(1)
  f = lambda *shape: jnp.asarray(rng.normal(size=(ROWS, *shape)), jnp.float32)  # noqa: E731
  ones = jnp.ones((ROWS, LENGTH), jnp.int32)
  return Tokens(
    values=f(LENGTH, DIT.patch_width), positions=f(LENGTH, 3), period=jnp.zeros((ROWS, LENGTH)),
    segments=ones, block=0 * ones, cond=jnp.full((ROWS, 1, 1), 0.4), cond_index=0 * ones,
    text=f(5, 32), text_ids=jnp.ones((ROWS, 5), jnp.int32), prompt=ones,
  )  # fmt: skip


@functools.partial(jax.jit, static_argnums=0)
def run(dit, params, tokens):
  return dit.apply({"params": params}, tokens)


def test_a_new_adapter_changes_nothing(base, tokens):
  params = lora.add(base, LORA, jax.random.key(1))
  np.testing.assert_array_equal(run(DIT, params, tokens), run(DIT, base, tokens))
  added = {path for path in flatten(params) if path not in flatten(base)}
  attentions = ("blocks/self_attention", "blocks/text_attention")
  assert added == {
    f"{a}/{m}/{n}" for a in attentions for m in "q k v out".split() for n in lora.NAMES
  }
  assert params["blocks"]["self_attention"]["q"]["lora_down"].shape == (3, 48, 3)
  layers = params["blocks"]["self_attention"]["q"]["lora_down"]
  assert np.abs(layers).max() <= 48**-0.5 and not np.array_equal(layers[0], layers[1])
  jax.tree.map(np.testing.assert_array_equal, lora.merge(params), base)


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_every_linear_map_can_have_one_and_it_equals_a_merged_one(base, tokens, dtype):
  dit = DIT.clone(dtype=dtype)
  tolerance = 1e-5 if dtype is None else 0.02
  params = noisy(lora.add(base, Lora(rank=3, alpha=2.0, targets="."), jax.random.key(1)), 2)
  params = lora.apply(base, lora.adapter_of(params))
  got, merged = run(dit, params, tokens), run(dit, lora.merge(params), tokens)
  assert np.linalg.norm(got - merged) < tolerance * np.linalg.norm(merged)
  assert np.linalg.norm(got - run(dit, base, tokens)) > 0.1 * np.linalg.norm(got)
  flat = {path: np.asarray(x) for path, x in flatten(params).items()}
  paths = [path for path in flat if path.endswith("lora_alpha")]
  assert len(paths) == len([path for path in flat if path.endswith("kernel")]) == 18
  for path in paths if dtype is None else ():
    without = unflatten(flat | {path: 0 * flat[path]})
    assert np.abs(run(dit, without, tokens) - got).max() > 1e-4, path


def test_merging_is_the_formula(base):
  params = noisy(lora.add(base, LORA, jax.random.key(1)), 3)
  layer = {k: np.asarray(x, np.float64) for k, x in params["blocks"]["text_attention"]["v"].items()}
  expected = layer["kernel"] + 2.0 / 3 * layer["lora_down"] @ layer["lora_up"]
  merged = lora.merge(params)
  got = merged["blocks"]["text_attention"]["v"]["kernel"]
  assert np.abs(got - expected).max() < 1e-6 * np.abs(expected).max()
  assert not [path for path in flatten(merged) if "lora" in path]


def test_strengths_add_up(base, tokens):
  adapter = lora.adapter_of(noisy(lora.add(base, LORA, jax.random.key(1)), 4))
  whole = run(DIT, lora.apply(base, adapter), tokens)
  twice = run(DIT, lora.apply(lora.apply(base, adapter, 0.75), adapter, 0.25), tokens)
  assert np.linalg.norm(whole - twice) < 1e-5 * np.linalg.norm(whole)
  assert np.abs(run(DIT, lora.apply(base, adapter, 0.5), tokens) - whole).max() > 1e-3


def test_mistakes_are_named(base):
  with pytest.raises(UserError, match="matches lora.targets='no_such'"):
    lora.add(base, Lora(rank=2, alpha=1.0, targets="no_such"), jax.random.key(0))
  with pytest.raises(UserError, match="at least 1"):
    Lora(rank=0, alpha=1.0, targets=".")


def _step(dit, params, trainable=lora.TRAINABLE):
  loss = lambda params, batch, key, step: flow_matching(  # noqa: E731
    lambda tokens: dit.apply({"params": params}, tokens), batch, key
  )
  optimizer = optim.build({"warmup": 0, "lr": 0.1}, params, 10, trainable)
  step = lambda state, batch: train_step(state, batch, loss, optimizer, 0, 1)  # noqa: E731
  return step, TrainState.create(params, optimizer)


@pytest.mark.parametrize("remat", ["none", "attention"])
def test_only_the_adapter_is_differentiated_and_has_moments(base, tokens, remat):
  dit = DIT.clone(remat=remat)
  params = noisy(lora.add(base, LORA, jax.random.key(1)), 5)
  step, state = _step(dit, params)
  names = lambda tree: {sharding.path_string(p) for p, _ in jax.tree.leaves_with_path(tree)}  # noqa: E731
  trained = {path for path in flatten(params) if path.endswith(("lora_down", "lora_up"))}
  assert names(state.params) == names(state.ema) == trained
  moments = [x for x in jax.tree.leaves(state.opt_state) if x.ndim]
  assert sorted(x.shape for x in moments) == sorted(
    2 * [x.shape for x in jax.tree.leaves(state.params)]
  )
  # The backward pass multiplies nothing into the shape of a frozen kernel.
  made = _products(jax.make_jaxpr(step)(state, tokens).jaxpr)
  kernels = {
    tuple(sorted(x.shape[-2:])) for path, x in flatten(params).items() if path.endswith("kernel")
  }
  assert not made & kernels
  assert made >= {tuple(sorted(x.shape[-2:])) for x in jax.tree.leaves(state.params)}
  everything, state_of_all = _step(dit, base, "kernel")
  assert _products(jax.make_jaxpr(everything)(state_of_all, tokens).jaxpr) >= kernels
  after, values = jax.jit(step)(state, tokens)
  assert np.isfinite(values["loss"])
  jax.tree.map(np.testing.assert_array_equal, after.frozen, state.frozen)
  jax.tree.map(lambda a, b: np.testing.assert_(np.abs(a - b).max() > 0), after.params, state.params)


def _products(jaxpr):
  """The shapes of all products, in loops and calls too, smallest axis first."""
  shapes = set()
  for equation in jaxpr.eqns:
    if equation.primitive.name == "dot_general":
      shapes.add(tuple(sorted(equation.outvars[0].aval.shape)))
    for inner in jaxprs_in_params(equation.params):
      shapes |= _products(inner)
  return shapes


@pytest.mark.parametrize(
  "sizes", [(2, 2, 1, 2), pytest.param((1, 2, 4, 1), marks=pytest.mark.slow)], ids=str
)
def test_any_mesh_learns_the_same(base, tokens, sizes):
  every = Lora(rank=4, alpha=2.0, targets=".")
  params = noisy(lora.add(base, every, jax.random.key(1)), 6)
  step, state = _step(DIT, params)
  expected, _ = jax.jit(step)(state, tokens)
  mesh = sharding.make_mesh(dict(zip(sharding.AXES, sizes, strict=True)))
  with jax.set_mesh(mesh):
    shardings = sharding.param_shardings(state, mesh)
    batch = jax.device_put(tokens, sharding.batch_sharding(mesh))
    placed = jax.device_put(state, shardings)
    split = [x for x in jax.tree.leaves(placed.params) if not x.sharding.is_fully_replicated]
    assert len(split) > 10
    got, _ = jax.jit(step, out_shardings=(shardings, None))(placed, batch)
  moved = lambda new: jax.tree.map(jnp.subtract, new.opt_state, state.opt_state)  # noqa: E731
  for a, b in zip(jax.tree.leaves(moved(got)), jax.tree.leaves(moved(expected)), strict=True):
    assert np.linalg.norm(np.asarray(a) - b) <= 2e-4 * np.linalg.norm(b) + 1e-12
