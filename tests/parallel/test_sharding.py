"""Placing parameters and activations: rules match what they mean to, and never change values."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from sora_jax.errors import UserError
from sora_jax.models.conv import conv3d_folded
from sora_jax.models.discriminator import PatchDiscriminator
from sora_jax.models.dit import DiT
from sora_jax.models.text import TextEncoder
from sora_jax.models.tokens import Tokens
from sora_jax.models.vae import VideoVAE
from sora_jax.parallel import sharding

LARGE = 10_000  # kernels and tables with more numbers than this must be named by a rule


def test_mesh_has_automatic_axes_and_infers_one_size():
  mesh = sharding.make_mesh({"data": 2, "fsdp": -1})
  assert dict(mesh.shape) == {"data": 2, "fsdp": 4, "context": 1, "tensor": 1}
  assert set(mesh.axis_types) == {AxisType.Auto}
  assert sharding.make_mesh().shape["data"] == jax.device_count() == 8
  assert sharding.make_mesh({"tensor": 2}).size == 2  # fewer than there are


@pytest.mark.parametrize(
  "sizes", [{"model": 2}, {"data": 16}, {"data": -1, "fsdp": -1}, {"data": 0}]
)
def test_mesh_that_cannot_be_made(sizes):
  with pytest.raises(UserError):
    sharding.make_mesh(sizes)


@pytest.mark.parametrize(
  ("path", "shape", "spec"),
  [
    ("params/blocks/self_attn/q/kernel", (3, 16, 32), P(None, "fsdp", "tensor")),
    ("opt_state/1/mu/blocks/self_attn/q/kernel", (3, 16, 32), P(None, "fsdp", "tensor")),
    ("ema/blocks/cross_attn/out/kernel", (3, 32, 16), P(None, "tensor", "fsdp")),
    ("params/blocks/mlp/up/kernel", (16, 64), P("fsdp", "tensor")),
    ("params/blocks/mlp/up/bias", (3, 64), P(None, None)),
    ("params/vae/decoder/conv_in/kernel", (3, 3, 3, 16, 32), P(None, None, None, None, "fsdp")),
    ("params/vae/decoder/conv_in/kernel", (3, 3, 3, 16, 3), P(None, None, None, None, None)),
    ("params/nothing_like_it", (64, 64), P(None, None)),
    ("params/time_out/kernel", (9, 32), P(None, "tensor")),  # 9 rows cannot be split in 4
    ("opt_state/mu/blocks/self_attn/q/kernel", (), P()),
  ],
)
def test_spec_of_a_parameter(path, shape, spec):
  mesh = sharding.make_mesh({"fsdp": 4, "tensor": 2})
  rule = sharding.find_rule(path)
  fitted = sharding.fit_spec(rule[1] if rule else P(), shape, mesh)
  assert P(*fitted, *(None,) * (len(shape) - len(fitted))) == spec


def _zero_tokens() -> Tokens:
  f = lambda *shape: jnp.zeros(shape)  # noqa: E731
  i = lambda *shape: jnp.zeros(shape, jnp.int32)  # noqa: E731
  return Tokens(
    values=f(1, 4, 64), positions=f(1, 4, 3), period=f(1, 4), segments=i(1, 4), block=i(1, 4),
    cond=f(1, 1, 1), cond_index=i(1, 4), text=f(1, 3, 64), text_ids=i(1, 3), prompt=i(1, 4),
  )  # fmt: skip


def _dit(key):
  model = DiT(width=128, layers=2, heads=2, mlp_width=256, text_width=64)
  return model.init(key, _zero_tokens())


def _vae(key):
  return VideoVAE(mid_attention=True).init(key, jnp.zeros((1, 5, 16, 16, 3)), key)


def _text(key):
  pieces = jnp.zeros((1, 6), jnp.int32)
  return TextEncoder(vocabulary=1000).init(key, pieces, pieces)


def _discriminator(key):
  video = jnp.zeros((1, 5, 16, 16, 3))
  return {"discriminator": PatchDiscriminator().init(key, video)["params"]}


@pytest.mark.parametrize(
  ("init", "count"), [(_dit, 10), (_vae, 6), (_text, 6), (_discriminator, 2)]
)
def test_every_large_parameter_matches_a_rule(init, count):
  tree = jax.eval_shape(init, jax.random.key(0))
  sizes = {
    sharding.path_string(path): leaf.size
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }
  large = {path for path, size in sizes.items() if size > LARGE}
  assert len(large) >= count
  rules = {path: sharding.find_rule(path) for path in large}
  assert [path for path, rule in rules.items() if rule is None or rule[1] == P()] == []


@pytest.mark.parametrize("name", sorted(sharding.ACTIVATIONS))
def test_constrain_places_and_keeps_the_values(name, rng):
  spec = sharding.ACTIVATIONS[name]
  x = jnp.asarray(rng.normal(size=(8, 4, 6, 2, 3)[: len(spec)]).astype(np.float32))
  mesh = sharding.make_mesh({"data": 2, "fsdp": 1, "context": 2, "tensor": 2})
  with jax.set_mesh(mesh):
    y = jax.jit(lambda x: sharding.constrain(x, name))(x)
  expected = jax.sharding.NamedSharding(mesh, sharding.fit_spec(spec, x.shape, mesh))
  assert y.sharding.is_equivalent_to(expected, x.ndim)
  assert y.sharding.is_fully_replicated == (name == "rows")
  np.testing.assert_array_equal(x, y)


def test_constrain_without_a_mesh_and_with_a_batch_that_does_not_divide(rng):
  x = jnp.asarray(rng.normal(size=(3, 4, 6)).astype(np.float32))
  assert sharding.constrain(x, "tokens") is x
  with jax.set_mesh(sharding.make_mesh({"data": 8})):
    assert sharding.constrain(x, "tokens") is x
    np.testing.assert_array_equal(jax.jit(lambda x: sharding.constrain(x, "tokens"))(x), x)
  with pytest.raises(KeyError):
    sharding.constrain(x, "toknes")


def test_moments_and_averages_are_split_over_data_and_parameters_are_not():
  mesh = sharding.make_mesh({"data": 4, "tensor": 2})
  kernel = {"blocks": {"self_attention": {"q": {"kernel": jnp.zeros((8, 16, 16))}}}}
  conv = {"vae": {"decoder": {"kernel": jnp.zeros((3, 3, 3, 16, 10))}}}
  placed = sharding.param_shardings({"params": kernel, "ema": kernel, "opt_state": [conv]}, mesh)
  specs = [s.spec for s in jax.tree.leaves(placed)]  # in the order of the names
  assert specs[0] == P("data", None, "tensor")
  assert specs[1] == P(None, None, None, "data", None)
  assert specs[2] == P(None, None, "tensor")
  assert sharding.spread(P(), (6, 7), mesh) == P(None, None)


def test_each_device_sums_a_convolutions_gradient_over_its_own_frames(rng):
  x = jnp.asarray(rng.normal(size=(8, 3, 6, 6, 2)), jnp.float32)
  kernel = jnp.asarray(rng.normal(size=(2, 3, 3, 2, 4)), jnp.float32)

  def loss(kernel, x):
    return jnp.mean(conv3d_folded(x, kernel, (1, 1, 1), ((1, 0), (1, 1), (1, 1))) ** 2)

  expected = jax.grad(loss)(kernel, x)
  assert sharding.batch_shards(24) == 1
  mesh = sharding.make_mesh({"data": 4, "fsdp": 2})
  with jax.set_mesh(mesh):
    assert sharding.batch_shards(24) == 8 and sharding.batch_shards(7) == 1
    placed = jax.device_put(x, sharding.batch_sharding(mesh))
    gradient = jax.jit(jax.grad(loss)).lower(kernel, placed).compile()
    np.testing.assert_allclose(gradient(kernel, placed), expected, rtol=1e-4, atol=1e-5)
  assert "all-gather" not in gradient.as_text()


def test_sharded_parameters_compute_the_same(rng):
  tree = {"blocks": {"self_attn": {"q": {"kernel": rng.normal(size=(2, 16, 32))}}}}
  tree = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)
  x = jnp.asarray(rng.normal(size=(8, 16)), jnp.float32)

  def apply(tree, x):
    kernel = tree["blocks"]["self_attn"]["q"]["kernel"]
    return jnp.einsum("bi,lio->lbo", x, kernel, precision="highest")

  mesh = sharding.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
  sharded = jax.device_put(tree, sharding.param_shardings(tree, mesh))
  assert not sharded["blocks"]["self_attn"]["q"]["kernel"].sharding.is_fully_replicated
  batch = jax.device_put(x, sharding.batch_sharding(mesh))
  np.testing.assert_allclose(jax.jit(apply)(sharded, batch), apply(tree, x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
  ("rows", "state", "sizes"),
  [
    (16, 100, {"data": 16, "fsdp": 1, "context": 32}),  # few parameters are copied
    (16, 1_000, {"data": 1, "fsdp": 16, "context": 32}),
    (512, 1_000, {"data": 16, "fsdp": 32, "context": 1}),  # more than 32 devices save nothing
    (512, 60_000, {"data": 1, "fsdp": 512, "context": 1}),  # unless the parameters are many
    (512, 12_000, {"data": 4, "fsdp": 128, "context": 1}),
    (64, 12_000, {"data": 2, "fsdp": 32, "context": 8}),  # those of a clip divide them, too
    (3, 1_000, {"data": 1, "fsdp": 1, "context": 512}),
  ],
)
def test_a_mesh_for_a_batch(rows, state, sizes):
  """512 devices of 800 bytes: 100 of them for the parameters."""
  assert sharding.suggest(rows, jax.devices()[:1] * 512, state, 800) == sizes
