"""Attention for TPUs as Pallas kernels: one forward, one backward, no score ever in memory.

The online softmax of Dao et al. (2022, arXiv:2205.14135), for sequences packed from many samples.
Scores are held transposed, keys down and queries across: a query's statistics are then a row, the
shape in which they are reduced, broadcast and stored. The backward kernel computes the scores once
for all three gradients (2.5 forwards' work; two separate kernels take 3.5): it walks the keys, and
the queries' gradient stays in VMEM until all of them have passed.

Blocks in which no query sees any key are skipped, those in which all see all are not masked. Both
are told from the ranges of the ids, so a packed sequence costs about what its samples cost alone.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from sora_jax.models.attention import UNSEEN, Who, split
from sora_jax.typing import Array, Float, Int

LANES = 128
BLOCKS = (1024, 896, 768, 640, 512, 384, 256, 128)
WASTE = 1.02  # a larger block is worth so much padding
VMEM = 60 << 20  # of the 64 MiB that a program has on v5p and 7x, and 128 on v5e and v6e
SMALL = ("TPU v2", "TPU v3", "TPU v4")  # these have 16 MiB
LOG2E = math.log2(math.e)

NT = (((1,), (1,)), ((), ()))  # contract the last axes
TN = (((0,), (0,)), ((), ()))  # contract the first axes


def block_size(length: int) -> int:
  """The largest block that pads `length` hardly more than the best one does."""
  room = BLOCKS if _vmem() == VMEM else [size for size in BLOCKS if size <= 512]
  padded = {size: -(-length // size) * size for size in room}
  return next(size for size in room if padded[size] <= WASTE * min(padded.values()))


def _vmem() -> int:
  """Bytes of VMEM that a kernel may fill on the chip it is compiled for."""
  target = jax.sharding.get_abstract_mesh().abstract_device or jax.devices()[0]
  return VMEM // 4 if target.device_kind in SMALL else VMEM


def forward(
  q: Float[Array, "b n kd"],
  k: Float[Array, "b m kd"],
  v: Float[Array, "b m kd"],
  who: Who,
  heads: int,
  dtype: Any,
  interpret: bool = False,
) -> tuple[Float[Array, "b n kd"], Float[Array, "b k n"]]:
  """Attention, in `dtype`, and the logarithm of each query's sum of exponentials, in float32.

  Args:
    interpret: run the kernel on any backend, slowly: for tests.
  """
  cut = _Cut.of(q, k, heads)
  q_spec, k_spec, row, ids = cut.specs(query=2)
  q, k, v = (cut.lay(x) for x in (cut.scaled(q), k, v))
  size = cut.sizes[0]
  out, lse = pl.pallas_call(
    functools.partial(_forward_kernel, cut),
    out_shape=(
      jax.ShapeDtypeStruct(q.shape, dtype),
      jax.ShapeDtypeStruct((q.shape[0], heads, 1, q.shape[1]), jnp.float32),
    ),
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=1,
      grid=(q.shape[0], heads, *cut.counts),
      in_specs=[*ids, q_spec, k_spec, k_spec],
      out_specs=(q_spec, row),
      scratch_shapes=[pltpu.VMEM((cut.lanes, size), jnp.float32)]
      + [pltpu.VMEM((1, size), jnp.float32)] * 2,
    ),
    cost_estimate=cut.cost(2, q),
    compiler_params=_params("parallel", "parallel", "parallel", "arbitrary"),
    interpret=interpret,
    name="attention_forward",
  )(*cut.ids(who), q, k, v)
  return cut.take(out, 0), lse[:, :, 0, : cut.lengths[0]]


def backward(
  q: Float[Array, "b n kd"],
  k: Float[Array, "b m kd"],
  v: Float[Array, "b m kd"],
  who: Who,
  lse: Float[Array, "b k n"],
  delta: Float[Array, "b k n"],
  dout: Float[Array, "b n kd"],
  heads: int,
  dtype: Any,
  interpret: bool = False,
) -> tuple[Float[Array, "b n kd"], Float[Array, "b m kd"], Float[Array, "b m kd"]]:
  """Gradients of queries, keys and values, in `dtype`.

  Args:
    lse: of the whole softmax, of which these keys may be a part.
    delta: sum over a head of output times its gradient, per query.
  """
  most = _vmem() // (4 * q.dtype.itemsize * _Cut.of(q, k, heads).lanes)  # half of it, or a quarter
  if q.shape[1] <= most:
    return _backward(q, k, v, who, lse, delta, dout, heads, dtype, interpret)
  parts = []
  for start in range(0, q.shape[1], most):
    at = slice(start, start + most)
    part = Who(who.q_ids[:, at], who.kv_ids, who.q_block[:, at], who.kv_block)
    rows = lse[..., at], delta[..., at], dout[:, at]
    parts.append(_backward(q[:, at], k, v, part, *rows, heads, jnp.float32, interpret))
  dq, dk, dv = zip(*parts, strict=True)
  sums = (sum(some[1:], some[0]).astype(dtype) for some in (dk, dv))
  return jnp.concatenate(dq, 1).astype(dtype), *sums


def _backward(
  q: Array, k: Array, v: Array, who: Who, lse: Array, delta: Array, dout: Array, heads: int,
  dtype: Any, interpret: bool,
) -> Any:  # fmt: skip
  cut = _Cut.of(q, k, heads)
  q_spec, k_spec, row, ids = cut.specs(query=3)
  q, dout, k, v = (cut.lay(x) for x in (cut.scaled(q), dout.astype(q.dtype), k, v))
  (queries, keys), (size, k_size) = cut.counts, cut.sizes
  # The queries' gradient is whole when the last keys have passed: only then do its blocks go out.
  dq_spec = pl.BlockSpec(
    q_spec.block_shape, lambda b, h, j, i, *_: (b, jnp.where(j == keys - 1, i, 0), h)
  )
  dq, dk, dv = pl.pallas_call(
    functools.partial(_backward_kernel, cut),
    out_shape=[jax.ShapeDtypeStruct(x.shape, dtype) for x in (q, k, v)],
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=1,
      grid=(q.shape[0], heads, keys, queries),
      in_specs=[*ids, q_spec, k_spec, k_spec, q_spec, row, row],
      out_specs=(dq_spec, k_spec, k_spec),
      scratch_shapes=[
        pltpu.VMEM((rows, cut.lanes), jnp.float32) for rows in (queries * size, k_size, k_size)
      ],
    ),
    cost_estimate=cut.cost(5, q),
    compiler_params=_params("parallel", "parallel", "arbitrary", "arbitrary"),
    interpret=interpret,
    name="attention_backward",
  )(*cut.ids(who), q, k, v, dout, (lse * LOG2E)[:, :, None], delta[:, :, None])
  return cut.take(dq, 0), cut.take(dk, 1), cut.take(dv, 1)


def _forward_kernel(
  cut: _Cut, state: Any, q_ids: Any, q_block: Any, kv_ids: Any, kv_block: Any, q: Any, k: Any,
  v: Any, out: Any, lse: Any, total: Any, top: Any, mass: Any,
) -> None:  # fmt: skip
  b, i, j = pl.program_id(0), pl.program_id(2), pl.program_id(3)

  @pl.when(j == 0)
  def _() -> None:
    total[...] = jnp.zeros_like(total)
    top[...] = jnp.full_like(top, UNSEEN)
    mass[...] = jnp.zeros_like(mass)

  def step(masked: bool) -> None:
    scores, values = _dot(k[0], q[0], NT), v[0]
    if masked:
      seen, values = _seen(q_ids, q_block, kv_ids, kv_block), cut.real(values, 1, j)
      scores = jnp.where(seen, scores, UNSEEN)
    highest = jnp.maximum(top[...], jnp.max(scores, 0, keepdims=True))
    share = jnp.exp2(scores - highest)
    if masked:
      share = jnp.where(seen, share, 0.0)
    shrink = jnp.exp2(top[...] - highest)
    mass[...] = mass[...] * shrink + jnp.sum(share, 0, keepdims=True)
    total[...] = total[...] * shrink + _dot(values, share.astype(values.dtype), TN)
    top[...] = highest

  pl.when(state[b, i, j] == 1)(lambda: step(True))
  pl.when(state[b, i, j] == 2)(lambda: step(False))

  @pl.when(j == cut.counts[1] - 1)
  def _() -> None:
    found = mass[...] > 0
    average = total[...] / jnp.where(found, mass[...], 1.0)
    out[0] = jnp.swapaxes(average, 0, 1).astype(out.dtype)
    logarithm = top[...] + jnp.log2(jnp.where(found, mass[...], 1.0))
    lse[0, 0] = jnp.where(found, logarithm / LOG2E, UNSEEN)


def _backward_kernel(
  cut: _Cut, state: Any, q_ids: Any, q_block: Any, kv_ids: Any, kv_block: Any, q: Any, k: Any,
  v: Any, dout: Any, lse: Any, delta: Any, dq: Any, dk: Any, dv: Any, dq_sum: Any, dk_sum: Any,
  dv_sum: Any,
) -> None:  # fmt: skip
  b, j, i = pl.program_id(0), pl.program_id(2), pl.program_id(3)
  rows = pl.ds(pl.multiple_of(i * cut.sizes[0], cut.sizes[0]), cut.sizes[0])

  @pl.when(j == 0)
  def _() -> None:
    dq_sum[rows] = jnp.zeros_like(dq_sum[rows])

  @pl.when(i == 0)
  def _() -> None:
    dk_sum[...] = jnp.zeros_like(dk_sum)
    dv_sum[...] = jnp.zeros_like(dv_sum)

  def step(masked: bool) -> None:
    q_, k_, dout_ = q[0], k[0], dout[0]
    share = jnp.exp2(_dot(k_, q_, NT) - lse[0, 0])
    dscores = share * (_dot(v[0], dout_, NT) - delta[0, 0])
    if masked:
      seen = _seen(q_ids, q_block, kv_ids, kv_block)
      share, dscores = jnp.where(seen, share, 0.0), jnp.where(seen, dscores, 0.0)
      q_, dout_, k_ = cut.real(q_, 0, i), cut.real(dout_, 0, i), cut.real(k_, 1, j)
    dscores = dscores.astype(q_.dtype)
    dv_sum[...] += _dot(share.astype(q_.dtype), dout_)
    dk_sum[...] += _dot(dscores, q_)
    dq_sum[rows] += _dot(dscores, k_, TN)

  pl.when(state[b, i, j] == 1)(lambda: step(True))
  pl.when(state[b, i, j] == 2)(lambda: step(False))

  @pl.when(i == cut.counts[0] - 1)
  def _() -> None:
    dk[0] = (dk_sum[...] / LOG2E).astype(dk.dtype)
    dv[0] = dv_sum[...].astype(dv.dtype)

  @pl.when(j == cut.counts[1] - 1)
  def _() -> None:
    dq[0] = (dq_sum[rows] * cut.width**-0.5).astype(dq.dtype)


@dataclasses.dataclass(frozen=True)
class _Cut:
  """How arrays `b n kd` are cut into blocks: some tokens of one head. The last may reach beyond.

  Attributes:
    lengths, sizes: tokens, and those of a block, of queries and of keys. heads, width: of a head.
  """

  lengths: tuple[int, int]
  sizes: tuple[int, int]
  heads: int
  width: int

  @classmethod
  def of(cls, q: Array, k: Array, heads: int) -> _Cut:
    lengths = q.shape[1], k.shape[1]
    return cls(
      lengths, (block_size(lengths[0]), block_size(lengths[1])), heads, q.shape[2] // heads
    )

  @property
  def lanes(self) -> int:
    """A head's channels as they lie in memory."""
    return -(-self.width // LANES) * LANES

  @property
  def counts(self) -> tuple[int, int]:
    """Blocks of queries and of keys."""
    queries, keys = (-(-n // size) for n, size in zip(self.lengths, self.sizes, strict=True))
    return queries, keys

  def scaled(self, q: Array) -> Array:
    """Queries whose products are exponents of 2."""
    return (q * (LOG2E * self.width**-0.5)).astype(q.dtype)

  def lay(self, x: Array) -> Array:
    """With heads of whole lanes, and at least one block of tokens."""
    tokens = max(0, min(BLOCKS) - x.shape[1])
    if self.lanes == self.width and not tokens:
      return x
    pads = ((0, 0), (0, tokens), (0, 0), (0, self.lanes - self.width))
    return jnp.pad(split(x, self.heads), pads).reshape(x.shape[0], x.shape[1] + tokens, -1)

  def take(self, x: Array, which: int) -> Array:
    """The way back, for queries (0) or keys (1)."""
    x = x[:, : self.lengths[which]]
    if self.lanes == self.width:
      return x
    return split(x, self.heads)[..., : self.width].reshape(*x.shape[:2], -1)

  def real(self, x: Array, which: int, block: Array) -> Array:
    """A block of queries (0) or keys (1), with 0 for what lies beyond the last of them."""
    length, size = self.lengths[which], self.sizes[which]
    if length % size == 0:
      return x
    at = block * size + jax.lax.broadcasted_iota(jnp.int32, x.shape, 0)
    return jnp.where(at < length, x, jnp.zeros_like(x))

  def ids(self, who: Who) -> tuple[Array, ...]:
    """The state of each pair of blocks, and ids and blocks as rows; beyond the last, id 0."""
    ends = [count * size for count, size in zip(self.counts, self.sizes, strict=True)]
    rows = Who(
      *(
        jnp.pad(x, ((0, 0), (0, end - x.shape[1])))
        for x, end in zip(who, (*ends, *ends), strict=True)
      )
    )
    order = rows.q_ids, rows.q_block, rows.kv_ids, rows.kv_block
    return block_states(rows, self.sizes), *(x[:, None] for x in order)

  def specs(self, query: int) -> tuple[Any, Any, Any, tuple[Any, ...]]:
    """Block specs of a query, a key, a row of numbers of queries, and of `ids`.

    Args:
      query: which of the grid's axes walks the queries, 2 or 3; the other one walks the keys.
    """
    key, (size, k_size) = 5 - query, self.sizes
    q_ids = pl.BlockSpec((1, 1, size), lambda *at: (at[0], 0, at[query]))
    k_ids = pl.BlockSpec((1, 1, k_size), lambda *at: (at[0], 0, at[key]))
    return (
      pl.BlockSpec((1, size, self.lanes), lambda *at: (at[0], at[query], at[1])),
      pl.BlockSpec((1, k_size, self.lanes), lambda *at: (at[0], at[key], at[1])),
      pl.BlockSpec((1, 1, 1, size), lambda *at: (at[0], at[1], 0, at[query])),
      (q_ids, q_ids, k_ids, k_ids),
    )

  def cost(self, products: int, q: Array) -> pl.CostEstimate:
    """Of so many products between all queries and all keys; what is skipped is not known here."""
    n, m = (count * size for count, size in zip(self.counts, self.sizes, strict=True))
    rows = q.shape[0] * self.heads
    return pl.CostEstimate(
      flops=2 * products * rows * n * m * self.width,
      transcendentals=rows * n * m,
      bytes_accessed=rows * self.lanes * (n + m) * products * q.dtype.itemsize,
    )


def _dot(x: Array, y: Array, axes: Any = (((1,), (0,)), ((), ()))) -> Array:
  # Exact for float32, where one is asked for; bfloat16 has nothing more to give.
  precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
  return jax.lax.dot_general(x, y, axes, precision=precision, preferred_element_type=jnp.float32)


def _seen(q_ids: Any, q_block: Any, kv_ids: Any, kv_block: Any) -> Array:
  """Keys down, queries across."""
  keys, block = (_column(x[0]) for x in (kv_ids, kv_block))
  return (keys == q_ids[0]) & (keys > 0) & (block <= q_block[0])


def _column(row: Array) -> Array:
  return jnp.swapaxes(jnp.broadcast_to(row, (LANES, row.shape[1])), 0, 1)[:, :1]


def block_states(who: Who, sizes: tuple[int, int]) -> Int[Array, "b i j"]:
  """Per pair of blocks: 0, no query sees a key; 1, some may; 2, all see all."""

  def ranges(x: Array, size: int) -> tuple[Array, Array]:
    blocks = x.reshape(x.shape[0], -1, size)
    return blocks.min(-1), blocks.max(-1)

  ids, block = ranges(who.q_ids, sizes[0]), ranges(who.q_block, sizes[0])
  kv_ids, kv_block = ranges(who.kv_ids, sizes[1]), ranges(who.kv_block, sizes[1])
  (low, high), (first, last) = ((x[:, :, None] for x in pair) for pair in (ids, block))
  (kv_low, kv_high), (kv_first, kv_last) = (
    (x[:, None] for x in pair) for pair in (kv_ids, kv_block)
  )
  some = (low <= kv_high) & (kv_low <= high) & (kv_high > 0) & (kv_first <= last)
  one = (low == high) & (kv_low == kv_high) & (low == kv_low) & (kv_low > 0)
  return some.astype(jnp.int32) + (one & (kv_last <= first)).astype(jnp.int32)


def _params(*semantics: Any) -> pltpu.CompilerParams:
  return pltpu.CompilerParams(dimension_semantics=semantics, vmem_limit_bytes=_vmem())
