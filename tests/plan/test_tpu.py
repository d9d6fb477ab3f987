"""The laws of `test_hlo.py` on programs that libtpu compiled for TPUs that are not there."""

from __future__ import annotations

from importlib import util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import pallas as pl
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from sora_jax import config as config_lib
from sora_jax.parallel import sharding
from sora_jax.parallel.attention import attend
from sora_jax.plan import estimate, hlo, topology
from sora_jax.plan.hlo import Collective, CustomCall

if util.find_spec("libtpu") is None:
  pytest.skip("libtpu is made for Linux on x86 only", allow_module_level=True)


@pytest.fixture(autouse=True)
def _uncached():
  with topology.uncached():
    yield


PODS = pytest.mark.parametrize("pod", ["v5p:2x2x1", "v6e:2x4"])


@pytest.mark.parametrize(
  ("text", "kind"),
  [("v4:2x2x2", "TPU v4"), ("v5e:1x1", "TPU v5 lite"), ("v5e:4x8", "TPU v5 lite")]
  + [("v5p:4x4x8", "TPU v5"), ("v6e:16x16", "TPU v6 lite"), ("tpu7x:2x2x1", "TPU7x")],
)
def test_devices(text, kind):
  found = topology.devices(topology.parse(text))
  assert len(found) == topology.parse(text).device_count
  assert {device.device_kind for device in found} == {kind}
  assert {device.platform for device in jax.devices()} == {"cpu"}


def test_a_program_compiles_again(tmp_path):
  """What JAX's cache has written of it would be read back, and fail, with a warning."""
  threshold = "jax_persistent_cache_min_compile_time_secs"
  before = getattr(jax.config, threshold)
  jax.config.update(threshold, 0.0)
  jax.config.update("jax_compilation_cache_dir", str(tmp_path))  # restored by the fixture
  placed = NamedSharding(mesh_of("v6e:2x2"), P("x"))
  try:
    for _ in range(2):
      with topology.uncached():
        x = jax.ShapeDtypeStruct((64, 64), jnp.float32, sharding=placed)
        jax.jit(lambda x: jnp.tanh(x @ x)).lower(x).compile()
      assert jax.config.jax_compilation_cache_dir == str(tmp_path)
  finally:
    jax.config.update(threshold, before)
  assert not list(tmp_path.iterdir())


def mesh_of(pod):
  return Mesh(np.array(topology.devices(topology.parse(pod))), ("x",))


def costs(mesh, f, *shapes, specs, out=None, mapped=True):
  """Costs of a function of what each device has or, not `mapped`, of all there is."""
  out = P() if out is None else out
  placed = [
    jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))
    for (shape, dtype), spec in zip(shapes, specs, strict=True)
  ]
  if mapped:
    f = jax.shard_map(f, mesh=mesh, in_specs=tuple(specs), out_specs=out, check_vma=False)
  return hlo.costs(jax.jit(f, out_shardings=NamedSharding(mesh, out)).lower(*placed).compile())


@PODS
def test_nested_scans_gather_and_permute(pod):
  mesh = mesh_of(pod)
  n = mesh.size

  def f(w, x):
    turn = lambda x, _: (lax.ppermute(jnp.tanh(x), "x", [(i, (i + 1) % n) for i in range(n)]), None)  # noqa: E731
    body = lambda x, w: (lax.scan(turn, x + lax.all_gather(w, "x", tiled=True), None, 3)[0], None)  # noqa: E731
    return lax.scan(body, x, w)[0]

  shapes = ((5, n * 16, 256), jnp.float32), ((n * 16, 256), jnp.float32)
  found = costs(mesh, f, *shapes, specs=[P(None, "x"), P()])
  size = n * 16 * 256 * 4
  assert found.collectives == {
    "all-gather": Collective(5, 5 * size, 5 * size * (n - 1) // n),
    "collective-permute": Collective(15, 15 * size, 15 * size),
  }
  assert found.unknown_loops == {}
  assert found.memory.arguments == 5 * 16 * 256 * 4 + size
  assert found.memory.outputs == size


@PODS
def test_a_sharded_step_of_training(pod):
  """Weights gathered forward and backward, their gradients reduced and scattered."""
  mesh = mesh_of(pod)
  n, d, layers = mesh.size, 1024, 6

  def loss(w, x):
    x = lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]
    return jnp.sum(x.astype(jnp.float32) ** 2)

  shapes = ((layers, d, d), jnp.bfloat16), ((n * 128, d), jnp.bfloat16)
  specs = [P(None, None, "x"), P("x")]
  found = costs(mesh, jax.grad(loss), *shapes, specs=specs, out=specs[0], mapped=False)
  assert found.flops == 3 * layers * 2 * 128 * d * d
  weights = layers * d * d * 2
  reduced = {"reduce-scatter", "all-reduce"} & set(found.collectives)
  assert found.collectives["all-gather"].bytes in (weights, 2 * weights)
  sent = {kind: found.collectives[kind].wire for kind in reduced}
  assert sum(sent.values()) >= weights * (n - 1) // n, sent
  assert found.unknown_loops == {}
  least = found.flops / (2 * topology.parse(pod).chip.flops / topology.parse(pod).chip.clock)
  assert least < found.cycles < 100 * least


@pytest.mark.parametrize("pod", ["tpu7x:2x2x1", "v6e:2x4"])
def test_a_kernel_is_gathered_before_its_product(pod):
  """Left alone, XLA makes eight products of it on a tpu7x, and passes the parts round."""
  n, d = 8192, 1024
  mesh = sharding.make_mesh({"fsdp": 2, "context": 4}, topology.devices(topology.parse(pod)))
  f = lambda x, w: x @ sharding.gather("blocks/mlp/up/kernel", w, None)  # noqa: E731
  shapes = ((2, n, d), jnp.bfloat16), ((d, d), jnp.bfloat16)
  specs = [P("fsdp", "context"), P(("fsdp", "context"))]
  with jax.set_mesh(mesh):
    found = costs(mesh, f, *shapes, specs=specs, out=specs[0], mapped=False)
  assert set(found.collectives) == {"all-gather"}
  assert found.collectives["all-gather"].wire <= d * d * 2


@PODS
def test_a_kernel_under_its_own_name(pod):
  def kernel(a, b, o):
    o[...] = jnp.dot(a[...], b[...], preferred_element_type=jnp.float32)

  def f(w, x):
    estimate = pl.CostEstimate(flops=2 * 128**3, transcendentals=0, bytes_accessed=3 * 4 * 128**2)
    call = pl.pallas_call(
      kernel, jax.ShapeDtypeStruct((128, 128), "f4"), name="product", cost_estimate=estimate
    )
    return lax.scan(lambda x, w: (call(x, w), None), x, w)[0]

  shapes = ((5, 128, 128), jnp.float32), ((128, 128), jnp.float32)
  found = costs(mesh_of(pod), f, *shapes, specs=[P(), P()])
  assert found.custom_calls == {"product": CustomCall(5, 5 * 2 * 128**3, 0)}
  assert found.flops == 0


@pytest.mark.parametrize(("dtype", "length"), [("bfloat16", 16_384), ("float32", 8192)])
def test_attention_fits_into_the_vmem_of_a_v4(dtype, length):
  """It has a quarter of the room of others, and keeps half of these queries' gradients there."""
  x, ids = ((1, length, 128), dtype), ((1, length), "int32")
  mesh = Mesh(np.array(topology.devices(topology.parse("v4:2x2x1"))[:1]), ("x",))
  loss = lambda q, k, v, ids: jnp.sum(attend(q, k, v, ids, ids, heads=1))  # noqa: E731
  step = lambda *arrays: sum(jax.grad(loss, (0, 1, 2))(*arrays))  # noqa: E731
  with jax.set_mesh(mesh):
    found = costs(mesh, step, x, x, x, ids, specs=[P()] * 4, mapped=False)
  assert sum(x.count for name, x in found.custom_calls.items() if "backward" in name) == 2


@PODS
def test_a_batched_product_is_no_more_flops_than_it_is(pod):
  """It is a convolution over an image with zeros between its elements."""
  f = lambda q, k: jnp.einsum("bnhd,bmhd->bhnm", q, k)  # noqa: E731
  shape = ((2, 128, 4, 128), jnp.bfloat16)
  found = costs(mesh_of(pod), f, shape, shape, specs=[P(), P()])
  assert found.flops == 2 * 2 * 4 * 128**3


@PODS
def test_a_loop_of_unknown_length_counts_once_and_is_named(pod):
  f = lambda x, n: lax.fori_loop(0, n, lambda _, x: lax.psum(jnp.tanh(x), "x"), x)  # noqa: E731
  found = costs(mesh_of(pod), f, ((8, 128), jnp.float32), ((), jnp.int32), specs=[P(), P()])
  assert found.collectives["all-reduce"].count == 1
  assert list(found.unknown_loops.values()) == [1]


@pytest.mark.slow
def test_what_the_compiler_refuses_does_not_fit():
  config = config_lib.load("configs/wan_1_3b.py", ["train.batch_size=1"])
  made = estimate.plan(config, "wan", topology.parse("v5e:1x1"))
  assert (made.source, made.fits, made.work.cycles) == ("refused", False, None)
  assert made.memory.peak > 2 * made.memory.capacity
  assert "DOES NOT FIT" in made.text(10)
