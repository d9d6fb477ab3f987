"""Who is updated by what, how fast, and who is not updated at all."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sora_jax.errors import UserError
from sora_jax.models.dit import DiT
from sora_jax.models.tokens import Tokens
from sora_jax.parallel.sharding import path_string
from sora_jax.train import optim

SHAPES = {
  "blocks/self_attn/q/kernel": (3, 8, 16),
  "blocks/self_attn/q/bias": (3, 16),
  "blocks/modulation": (3, 6, 8),
  "patch_out/kernel": (8, 4),
  "text/mlp_0/up/kernel": (8, 8),
  "text/pieces": (20, 8),
  "vae/decoder/conv/kernel": (3, 3, 3, 4, 4),
}


def _tree(rng, shapes=SHAPES):
  tree = {}
  for path, shape in shapes.items():
    *parents, last = path.split("/")
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[last] = jnp.asarray(rng.normal(size=shape), jnp.float32)
  return tree


def _flat(tree):
  return {path_string(p): x for p, x in jax.tree_util.tree_leaves_with_path(tree)}


def _update(optimizer, params, grads):
  @jax.jit
  def update(params, grads):
    trainable, frozen = optimizer.split(params)
    state = optimizer.transform.init(trainable)
    updates, state = optimizer.transform.update(optimizer.split(grads)[0], state, trainable)
    return optim.merge(optax.apply_updates(trainable, updates), frozen), state

  return update(params, grads)


def test_muon_orthogonalises_each_layer_of_a_stacked_kernel(rng):
  params, grads = _tree(rng), _tree(rng)
  section = {"name": "muon", "lr": 0.1, "warmup": 0, "clip": 0.0, "schedule": "constant"}
  after, state = _update(optim.build(section, params, 10), params, grads)
  moved = {k: np.asarray(v - _flat(params)[k]) for k, v in _flat(after).items()}
  for layer in moved["blocks/self_attn/q/kernel"]:
    values = np.linalg.svd(layer, compute_uv=False) / (0.1 * optim.MUON_RMS * np.sqrt(16))
    assert np.all((values > 0.5) & (values < 1.4))
  # AdamW's first step has the sign of the gradient and one size for all (Nesterov's, here).
  for path in moved:
    if not path.endswith(("self_attn/q/kernel", "up/kernel", "conv/kernel")):
      size = np.abs(moved["text/pieces"]).max()
      np.testing.assert_allclose(moved[path], -size * np.sign(_flat(grads)[path]), rtol=1e-3)


def test_muon_takes_all_block_matrices_of_the_transformer_and_nothing_else():
  zeros = lambda *s: jnp.zeros(s)  # noqa: E731
  ids = lambda *s: jnp.zeros(s, jnp.int32)  # noqa: E731
  tokens = Tokens(
    values=zeros(1, 4, 64), positions=zeros(1, 4, 3), period=zeros(1, 4), segments=ids(1, 4),
    block=ids(1, 4), cond=zeros(1, 1, 1), cond_index=ids(1, 4), text=zeros(1, 3, 8),
    text_ids=ids(1, 3), prompt=ids(1, 4),
  )  # fmt: skip
  model = DiT(width=16, layers=3, heads=2, mlp_width=32, text_width=8)
  params = jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]
  exclude = optim.OptimConfig().muon_exclude
  taken = {p for p, m in _flat(optim.muon_mask(params, exclude)).items() if m}
  kernels = {p for p, x in _flat(params).items() if p.startswith("blocks/") and x.ndim == 3}
  assert taken >= {p for p in kernels if p.endswith("kernel")} and len(taken) >= 10
  assert not any(word in p for p in taken for word in ("patch", "time", "modulation", "norm"))


@pytest.mark.parametrize("shape", [(96, 16), (16, 96), (3, 40, 8), (24, 24), (3, 20, 24)])
def test_orthogonalize_is_newton_schulz(rng, shape):
  """The steps on the Gram matrix against the steps on the matrix itself, small values included."""
  x = rng.normal(size=shape) * np.geomspace(1, 1e-3, shape[-1])
  y = x / np.linalg.norm(x, axis=(-2, -1), keepdims=True)
  for a, b, c in optim.QUINTICS:
    gram = y @ y.mT
    y = a * y + (b * gram + c * gram @ gram) @ y
  made = optim.orthogonalize(jnp.asarray(x, jnp.float32))
  np.testing.assert_allclose(made, y, atol=2e-3)


def test_quintics_are_the_nearest_to_one():
  """Chebyshev: three coefficients leave the largest error four times, with alternating signs."""
  low, high = 0.002, 1.0
  for a, b, c in optim.QUINTICS:
    inner = np.sort(np.sqrt(np.roots([5 * c, 3 * b, a])))
    x = np.array([low, *inner, high])
    assert np.all(np.diff(x) > 0)
    error = a * x + b * x**3 + c * x**5 - 1
    np.testing.assert_allclose(error * [-1, 1, -1, 1], -error[0], rtol=0.02, atol=2e-3)
    low, high = 1 + error[0], 1 - error[0]


@pytest.mark.parametrize("tall", [1, 3])
def test_orthogonalize_brings_singular_values_near_one(rng, tall):
  """Those from 0.002 of the Frobenius norm on; smaller ones are raised about as much."""
  u, _ = np.linalg.qr(rng.normal(size=(32 * tall, 32)))
  v, _ = np.linalg.qr(rng.normal(size=(32, 32)))
  values = np.geomspace(1, 1e-4, 32)
  values /= np.linalg.norm(values)
  made = np.asarray(optim.orthogonalize(jnp.asarray((u * values) @ v.T, jnp.float32)))
  after = np.diagonal(u.T @ made @ v)
  kept = values > 0.002
  assert kept.sum() > 15 and np.all((after[kept] > 0.65) & (after[kept] < 1.4))
  np.testing.assert_allclose(made, (u * after) @ v.T, atol=1e-2)
  assert np.all(after[~kept] > 200 * values[~kept])


def test_muon_takes_a_convolution_as_the_matrix_from_what_it_reads_to_what_it_writes(rng):
  conv = {"middle": {"kernel": jnp.asarray(rng.normal(size=(3, 3, 3, 4, 8)), jnp.float32)}}
  section = {"name": "muon", "lr": 0.1, "warmup": 0, "clip": 0.0, "schedule": "constant"}
  after, _ = _update(optim.build(section, conv, 10), conv, conv)
  moved = np.asarray(after["middle"]["kernel"] - conv["middle"]["kernel"]).reshape(-1, 8)
  values = np.linalg.svd(moved, compute_uv=False) / (0.1 * optim.MUON_RMS * np.sqrt(108))
  assert np.all((values > 0.5) & (values < 1.4))


def test_frozen_leaves_have_neither_updates_nor_moments(rng):
  params = _tree(rng) | {"int8": jnp.arange(6, dtype=jnp.int8)}
  grads = _tree(rng) | {"int8": jnp.arange(6, dtype=jnp.int8)}
  optimizer = optim.build({"name": "adamw", "decay": 0.1}, params, 10, trainable="blocks/")
  after, state = _update(optimizer, params, grads)
  for path, value in _flat(after).items():
    same = np.array_equal(value, _flat(params)[path])
    assert same != path.startswith("blocks/"), path
  assert all("blocks/" in p for p, x in _flat(state).items() if x.ndim)
  trained, frozen = optimizer.split(params)
  ema = optimizer.ema(trained, optimizer.split(after)[0], jnp.asarray(0))
  assert ema["int8"] is None and frozen["int8"].dtype == jnp.int8


def test_split_and_merge_are_inverse(rng):
  params = _tree(rng)
  optimizer = optim.build({}, params, 10, trainable="kernel")
  jax.tree.map(np.testing.assert_array_equal, optim.merge(*optimizer.split(params)), params)


def test_weight_decay_spares_vectors_tables_and_modulation(rng):
  params = _tree(rng)
  zero = jax.tree.map(jnp.zeros_like, params)
  section = {
    "decay": 0.1,
    "lr": 0.5,
    "warmup": 0,
    "schedule": "constant",
    "decay_exclude": "pieces",
  }
  after, _ = _update(optim.build(section, params, 10), params, zero)
  decayed = {p for p, x in _flat(after).items() if not np.array_equal(x, _flat(params)[p])}
  assert "text/pieces" not in decayed and "patch_out/kernel" in decayed
  assert "blocks/self_attn/q/bias" in decayed  # stacked by the scan: ndim 2, so named by default
  after, _ = _update(optim.build({"decay": 0.1}, params, 10), params, zero)
  decayed = {p for p, x in _flat(after).items() if not np.array_equal(x, _flat(params)[p])}
  assert decayed == {p for p in SHAPES if p.endswith("kernel")} | {"text/pieces"}


def test_lr_multipliers_scale_updates_by_path(rng):
  params, grads = _tree(rng), _tree(rng)
  section = {"lr": 0.1, "warmup": 0, "schedule": "constant"}
  plain, _ = _update(optim.build(section, params, 10), params, grads)
  section["lr_multipliers"] = (("pieces", 0.25), ("text/", 3.0))
  scaled, _ = _update(optim.build(section, params, 10), params, grads)
  for path, factor in {
    "text/pieces": 0.25,
    "text/mlp_0/up/kernel": 3.0,
    "blocks/modulation": 1.0,
  }.items():
    move = lambda tree, path=path: np.asarray(_flat(tree)[path] - _flat(params)[path])  # noqa: E731
    np.testing.assert_allclose(move(scaled), factor * move(plain), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("schedule", "end"), [("constant", 1.0), ("cosine", 0.1), ("linear", 0.1)])
def test_schedules_warm_up_and_end_where_they_say(schedule, end):
  config = optim.OptimConfig(lr=2.0, warmup=4, schedule=schedule, final=0.1)
  rates = np.array([float(optim.make_schedule(config, 20)(i)) for i in range(21)])
  np.testing.assert_allclose(rates[:4], [0.5, 1.0, 1.5, 2.0])
  assert np.all(np.diff(rates[4:]) <= 1e-6) and rates.max() <= 2.0
  np.testing.assert_allclose(rates[20], 2.0 * end, rtol=1e-5)


def test_ema_is_the_average_with_warm_up(rng):
  params = _tree(rng)
  optimizer = optim.build({"ema_decay": 0.5}, params, 100)
  ema, expected = params, jax.tree.map(np.asarray, params)
  for updates in range(12):
    new = _tree(rng)
    ema = optimizer.ema(ema, new, jnp.asarray(updates))
    decay = min(0.5, (1 + updates) / (10 + updates))
    expected = jax.tree.map(lambda e, p, d=decay: d * e + (1 - d) * p, expected, new)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), ema, expected)


@pytest.mark.parametrize(
  ("section", "trainable", "word"),
  [
    ({"nam": "adamw"}, ".*", "name"),
    ({"name": "adam"}, ".*", "adamw"),
    ({"schedule": "cosin"}, ".*", "cosine"),
    ({}, "no_such_path", "no_such_path"),
    ({"lr_multipliers": (("no_such", 2.0),)}, ".*", "no_such"),
    ({}, "^(?!text", r"'\^\(\?!text' .* is no regular expression"),
    ({"lr_multipliers": (("text(", 2.0),)}, ".*", r"'text\(' .* is no regular expression"),
    ({"muon_exclude": "text["}, ".*", r"'text\[' .* is no regular expression"),
    ({"decay_exclude": "*text"}, ".*", r"'\*text' .* is no regular expression"),
  ],
)
def test_mistakes_are_named(section, trainable, word, rng):
  with pytest.raises(UserError, match=word):
    optim.build(section, _tree(rng), 10, trainable)
