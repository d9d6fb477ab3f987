"""Which attention runs: the kernel by backend, and how a split sequence is brought together.

Kernels give the same answer: `pallas` on TPUs (`flash.py`), `triton` on NVIDIA GPUs
(`flash_gpu.py`), `xla` everywhere.

Over the mesh axis `context` the tokens of a sequence are split, and two ways bring them together:
Ulysses (Jacobs et al. 2023, arXiv:2309.14509) trades tokens for heads among neighbours and back, a
ring (`ring.py`) passes keys and values round. Ulysses moves far fewer bytes, but its neighbours
must divide the heads: so as many as can are neighbours, and rings run across the groups. Attention
to a prompt needs neither: its keys are everywhere.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from sora_jax.errors import UserError
from sora_jax.models import attention as xla
from sora_jax.models.attention import Who
from sora_jax.parallel import flash, flash_gpu
from sora_jax.parallel.ring import Kernel, Ring, Trade, Way, attention
from sora_jax.parallel.sharding import BATCH, fit_spec
from sora_jax.typing import Array, Float, Int

HEADS = P(BATCH, "context", "tensor", None)  # b n k d

KERNELS = {
  "xla": Kernel("xla", xla.forward, xla.backward),
  "pallas": Kernel("pallas", flash.forward, flash.backward),
  "triton": Kernel("triton", flash_gpu.forward, flash_gpu.backward),
  "pallas_interpret": Kernel(  # on any backend, slowly: for tests
    "pallas_interpret",
    functools.partial(flash.forward, interpret=True),
    functools.partial(flash.backward, interpret=True),
  ),
}


def attend(
  q: Float[Array, "b n kd"],
  k: Float[Array, "b m kd"],
  v: Float[Array, "b m kd"],
  q_ids: Int[Array, "b n"],
  kv_ids: Int[Array, "b m"],
  q_block: Int[Array, "b n"] | None = None,
  kv_block: Int[Array, "b m"] | None = None,
  *,
  heads: int,
  kernel: str = "auto",
  ulysses: int = 0,
  cross: bool = False,
) -> Float[Array, "b n kd"]:
  """Attention within ids and blocks, as `models.attention.attend` defines it, on any mesh.

  Args:
    kernel: a key of `KERNELS`; "auto" is `pallas` on TPUs, `triton` on GPUs, `xla` elsewhere.
    ulysses: how many neighbours trade tokens for heads; 0: as many as divide the heads.
    cross: keys and values are not split over `context`.

  Raises:
    UserError: no such kernel; or so many neighbours do not divide the heads or the context axis.
  """
  name = choose(kernel)
  blocks = (jnp.zeros_like(q_ids), jnp.zeros_like(kv_ids))
  if q_block is not None and kv_block is not None:
    blocks = q_block, kv_block
  who = Who(q_ids, kv_ids, *blocks)
  mesh = jax.sharding.get_abstract_mesh()
  # Where no sequence is split, XLA can divide its own attention.
  divides = name == "xla" and mesh.shape.get("context", 1) == 1
  if mesh.empty or mesh.size == 1 or divides:
    return attention(Way(KERNELS[name], heads), q, k, v, who)
  return _on_mesh(mesh, KERNELS[name], heads, ulysses, cross, q, k, v, who)


def choose(kernel: str) -> str:
  """The kernel that "auto" stands for here, or the one that is asked for.

  Raises:
    UserError: there is no such kernel.
  """
  if kernel == "auto":
    target = jax.sharding.get_abstract_mesh().abstract_device  # a mesh may be of other devices
    platform = target.platform if target else jax.default_backend()
    return {"tpu": "pallas", "gpu": "triton", "cuda": "triton"}.get(platform, "xla")
  if kernel not in KERNELS:
    raise UserError(f"There is no attention {kernel!r}; there are auto, {', '.join(KERNELS)}.")
  return kernel


def neighbours(heads: int, context: int, asked: int = 0) -> int:
  """How many devices of the context axis trade tokens for heads.

  Raises:
    UserError: so many as asked cannot.
  """
  if asked and (heads % asked or context % asked):
    best = math.gcd(heads, context)
    raise UserError(
      f"{asked} neighbours cannot trade tokens for heads: they must divide both the {heads} heads "
      f"that each device has and the {context} devices of the context axis; {best} can."
    )
  return asked or math.gcd(heads, context)


def _on_mesh(
  mesh: AbstractMesh, kernel: Kernel, heads: int, ulysses: int, cross: bool, q: Array, k: Array,
  v: Array, who: Who,
) -> Array:  # fmt: skip
  context, length = mesh.shape["context"], q.shape[1]
  q, q_ids, q_block = _fill((q, who.q_ids, who.q_block), context)
  kv = (k, v, who.kv_ids, who.kv_block)
  k, v, kv_ids, kv_block = kv if cross else _fill(kv, context)

  batch, _, tensor, _ = fit_spec(HEADS, (*q.shape[:2], heads, 1), mesh)
  ids: Any = P(batch, "context"), P(batch, None if cross else "context")
  queries, keys = (P(*spec, tensor) for spec in ids)
  heads //= mesh.shape["tensor"] if tensor else 1
  group = 1 if cross or context == 1 else neighbours(heads, context, ulysses)
  ring = None if cross or group == context else Ring("context", context // group, group)
  trade = None if group == 1 else Trade("context", context, group)
  split = jax.shard_map(
    functools.partial(attention, Way(kernel, heads, ring, trade)),
    mesh=mesh,
    in_specs=(queries, keys, keys, Who(*ids, *ids)),
    out_specs=queries,
    check_vma=False,
  )
  return split(q, k, v, Who(q_ids, kv_ids, q_block, kv_block))[:, :length]


def _fill(arrays: tuple[Array, ...], multiple: int) -> Any:
  """Padded with zeros along the tokens to a multiple: a token of id 0 sees and is seen by none."""
  pad = -arrays[0].shape[1] % multiple
  return tuple(jnp.pad(x, [(0, 0), (0, pad), *[(0, 0)] * (x.ndim - 2)]) for x in arrays)
