"""Programs compiled for H100s that are not there: attention kernels, rings, what crosses hosts."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from sora_jax.models.attention import Who
from sora_jax.parallel import ring
from sora_jax.parallel.attention import KERNELS
from sora_jax.parallel.ring import Ring, Way
from sora_jax.parallel.sharding import make_mesh
from sora_jax.plan import hlo, topology
from sora_jax.plan.hlo import Collective

H100 = topology.CHIPS["h100"]
if not topology.installed(H100):
  pytest.skip(
    "the CUDA plugin of the extra `test` is for Linux on x86 only", allow_module_level=True
  )


def costs(mesh, f, *shapes, specs):
  placed = [
    jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))
    for (shape, dtype), spec in zip(shapes, specs, strict=True)
  ]
  with jax.set_mesh(mesh), topology.uncached():
    return hlo.costs(jax.jit(f).lower(*placed).compile(), H100.per_host)


def test_kernels_in_a_ring_over_two_hosts():
  """One forward and two backward for each of eight parts, in loops; keys go from host to host."""
  mesh = make_mesh({"data": 2, "context": 8}, topology.devices(topology.parse("h100:2x8")))
  attend = functools.partial(
    ring.attention, Way(KERNELS["triton"], heads=2, ring=Ring("context", 8))
  )
  split = P("data", "context")
  attend = jax.shard_map(
    attend, mesh=mesh, in_specs=(split,) * 3 + (Who(*[split] * 4),), out_specs=split,
    check_vma=False,
  )  # fmt: skip

  def loss(q, k, v, ids):
    return jnp.sum(attend(q, k, v, Who(ids, ids, ids, ids)).astype(jnp.float32))

  x, ids = ((2, 2048, 2 * 128), jnp.bfloat16), ((2, 2048), jnp.int32)
  found = costs(mesh, jax.grad(loss, (0, 1, 2)), x, x, x, ids, specs=[split] * 4)
  product = 2 * 2 * 256 * 256 * 128
  sums = {name: (c.count, c.flops, c.silent) for name, c in found.custom_calls.items()}
  assert sums == {
    "attention_forward": (8, 8 * 2 * product, 0),
    "attention_backward_keys": (8, 8 * 4 * product, 0),
    "attention_backward_queries": (8, 8 * 3 * product, 0),
  }
  assert found.collectives["collective-permute"].bytes > 0
  assert found.collectives["collective-permute"].far == 0  # each ring is in one host
  assert (found.unknown_loops, found.cycles) == ({}, 0)
  assert found.memory.peak > 0


def test_weights_that_are_gathered_over_hosts():
  mesh = make_mesh({"fsdp": 16}, topology.devices(topology.parse("h100:2x8")))

  def f(w, x):
    return lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]

  shapes = ((6, 1024, 1024), jnp.bfloat16), ((16 * 128, 1024), jnp.bfloat16)
  found = costs(mesh, f, *shapes, specs=[P(None, None, "fsdp"), P("fsdp")])
  size = 6 * 1024 * 1024 * 2
  assert found.collectives == {
    "all-gather": Collective(6, size, size * 15 // 16, size // 16)  # once for the 8 of a host
  }
  assert found.flops == 6 * 2 * 128 * 1024 * 1024


def test_convolutions_of_cudnn_are_counted():
  mesh = make_mesh({"data": 8}, topology.devices(topology.parse("h100:1x8")))
  shapes = ((8, 16, 16, 32), jnp.float32), ((3, 3, 32, 64), jnp.float32)

  def f(x, w):
    y = lax.conv_general_dilated(x, w, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return jnp.sum(y**2)

  found = costs(mesh, jax.grad(f, (0, 1)), *shapes, specs=[P("data"), P()])
  one = 2 * 7 * 7 * 64 * 3 * 3 * 32
  assert {name: c.flops for name, c in found.custom_calls.items()} == {
    f"__cudnn$conv{way}": one
    for way in ("BiasActivationForward", "BackwardInput", "BackwardFilter")
  }
