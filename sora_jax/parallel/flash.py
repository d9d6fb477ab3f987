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

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from sora_jax.models.attention import UNSEEN, Who
from sora_jax.typing import Array, Float, Int

LANES = 128
BLOCKS = (1024, 896, 768, 640, 512, 384, 256, 128)
WASTE = 1.02  # a larger block is worth so much padding
VMEM = 96 << 20  # of 128 MiB on v5p and v6e
QUERIES = 48 << 20  # bytes of the queries' gradient that are kept in VMEM
LOG2E = math.log2(math.e)

NT = (((1,), (1,)), ((), ()))  # contract the last axes
TN = (((0,), (0,)), ((), ()))  # contract the first axes


def block_size(length: int) -> int:
  """The largest block that pads `length` hardly more than the best one does."""
  padded = {size: -(-length // size) * size for size in BLOCKS}
  return next(size for size in BLOCKS if padded[size] <= WASTE * min(padded.values()))


def forward(
  q: Float[Array, "b n k dk"],
  k: Float[Array, "b m k dk"],
  v: Float[Array, "b m k dk"],
  who: Who,
  interpret: bool = False,
) -> tuple[Float[Array, "b n k dk"], Float[Array, "b k n"]]:
  """Attention and the logarithm of each query's sum of exponentials, both in float32.

  Args:
    interpret: run the kernel on any backend, slowly: for tests.
  """
  sizes = block_size(q.shape[1]), block_size(k.shape[1])
  padded, who = _pad(sizes, (q * (LOG2E * q.shape[-1] ** -0.5)).astype(q.dtype), k, v, who=who)
  q_, k_, v_ = padded
  (b, h, n, d), m = q_.shape, k_.shape[2]
  queries, keys = n // sizes[0], m // sizes[1]
  q_spec, k_spec, row, row_ids, column_ids = _specs(sizes, d, query=2)
  ids = (row_ids, row_ids, column_ids, column_ids)
  column = pl.BlockSpec((1, 1, d, sizes[1]), lambda b, h, i, j, *_: (b, h, 0, j))
  across = pl.BlockSpec((1, 1, d, sizes[0]), lambda b, h, i, j, *_: (b, h, 0, i))
  out, lse = pl.pallas_call(
    functools.partial(_forward_kernel, last=keys - 1),
    out_shape=(
      jax.ShapeDtypeStruct((b, h, d, n), jnp.float32),
      jax.ShapeDtypeStruct((b, h, 1, n), jnp.float32),
    ),
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=1,
      grid=(b, h, queries, keys),
      in_specs=[q_spec, k_spec, column, *ids],
      out_specs=(across, row),
      scratch_shapes=[pltpu.VMEM((d, sizes[0]), jnp.float32)]
      + [pltpu.VMEM((1, sizes[0]), jnp.float32)] * 2,
    ),
    cost_estimate=_cost(2, q_, k_),
    compiler_params=_params("parallel", "parallel", "parallel", "arbitrary"),
    interpret=interpret,
    name="attention_forward",
  )(_states(who, sizes), q_, k_, jnp.swapaxes(v_, 2, 3), *_columns(who))
  length = q.shape[1]
  return jnp.moveaxis(out, 3, 1)[:, :length], lse[:, :, 0, :length]


def backward(
  q: Float[Array, "b n k dk"],
  k: Float[Array, "b m k dk"],
  v: Float[Array, "b m k dk"],
  who: Who,
  lse: Float[Array, "b k n"],
  delta: Float[Array, "b k n"],
  dout: Float[Array, "b n k dk"],
  interpret: bool = False,
) -> tuple[Float[Array, "b n k dk"], Float[Array, "b m k dk"], Float[Array, "b m k dk"]]:
  """Gradients of queries, keys and values, in float32.

  Args:
    lse: of the whole softmax, of which these keys may be a part.
    delta: sum over dk of output times its gradient, per query.
  """
  most = QUERIES // (4 * max(q.shape[-1], LANES))
  if q.shape[1] <= most:
    return _backward(q, k, v, who, lse, delta, dout, interpret)
  cuts = [slice(start, start + most) for start in range(0, q.shape[1], most)]
  parts = []
  for cut in cuts:
    part = Who(who.q_ids[:, cut], who.kv_ids, who.q_block[:, cut], who.kv_block)
    rows = lse[..., cut], delta[..., cut], dout[:, cut]
    parts.append(_backward(q[:, cut], k, v, part, *rows, interpret))
  dq, dk, dv = zip(*parts, strict=True)
  return jnp.concatenate(dq, 1), sum(dk[1:], dk[0]), sum(dv[1:], dv[0])


def _backward(
  q: Array, k: Array, v: Array, who: Who, lse: Array, delta: Array, dout: Array, interpret: bool
) -> Any:
  scale = q.shape[-1] ** -0.5
  sizes = block_size(q.shape[1]), block_size(k.shape[1])
  scaled = (q * (LOG2E * scale)).astype(q.dtype)
  length, keys = q.shape[1], k.shape[1]
  (q_, k_, v_, dout_), who = _pad(sizes, scaled, k, v, dout.astype(q.dtype), who=who)
  (b, h, n, d), m = q_.shape, k_.shape[2]
  rest = ((0, 0), (0, 0), (0, n - length))
  lse_, delta_ = (jnp.pad(x, rest)[:, :, None] for x in (lse * LOG2E, delta))
  q_spec, k_spec, row, row_ids, column_ids = _specs(sizes, d, query=3)
  ids = (row_ids, row_ids, column_ids, column_ids)
  # All queries of one head, revisited by every block of keys: written back once.
  whole = pl.BlockSpec(
    (1, 1, n, d), lambda b, h, j, i, *_: (b, h, 0, 0), pipeline_mode=pl.Buffered(1)
  )
  dq, dk, dv = pl.pallas_call(
    functools.partial(_backward_kernel, size=sizes[0]),
    out_shape=[jax.ShapeDtypeStruct((b, h, x, d), jnp.float32) for x in (n, m, m)],
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=1,
      grid=(b, h, m // sizes[1], n // sizes[0]),
      in_specs=[q_spec, k_spec, k_spec, q_spec, row, row, *ids],
      out_specs=(whole, k_spec, k_spec),
    ),
    cost_estimate=_cost(5, q_, k_),
    compiler_params=_params("parallel", "parallel", "arbitrary", "arbitrary"),
    interpret=interpret,
    name="attention_backward",
  )(_states(who, sizes), q_, k_, v_, dout_, lse_, delta_, *_columns(who))
  dq, dk, dv = (jnp.moveaxis(x, 1, 2) for x in (dq, dk, dv))
  return dq[:, :length] * scale, dk[:, :keys] / LOG2E, dv[:, :keys]


def _forward_kernel(
  state: Any, q: Any, k: Any, vt: Any, q_ids: Any, q_block: Any, kv_ids: Any, kv_block: Any,
  out: Any, lse: Any, total: Any, top: Any, mass: Any, *, last: int,
) -> None:  # fmt: skip
  b, i, j = pl.program_id(0), pl.program_id(2), pl.program_id(3)

  @pl.when(j == 0)
  def _() -> None:
    total[...] = jnp.zeros_like(total)
    top[...] = jnp.full_like(top, UNSEEN)
    mass[...] = jnp.zeros_like(mass)

  def step(masked: bool) -> None:
    scores = _dot(k[0, 0], q[0, 0], NT)
    if masked:
      seen = _seen(q_ids, q_block, kv_ids, kv_block)
      scores = jnp.where(seen, scores, UNSEEN)
    highest = jnp.maximum(top[...], jnp.max(scores, 0, keepdims=True))
    share = jnp.exp2(scores - highest)
    if masked:
      share = jnp.where(seen, share, 0.0)
    shrink = jnp.exp2(top[...] - highest)
    mass[...] = mass[...] * shrink + jnp.sum(share, 0, keepdims=True)
    total[...] = total[...] * shrink + _dot(vt[0, 0], share.astype(vt.dtype))
    top[...] = highest

  pl.when(state[b, i, j] == 1)(lambda: step(True))
  pl.when(state[b, i, j] == 2)(lambda: step(False))

  @pl.when(j == last)
  def _() -> None:
    found = mass[...] > 0
    out[0, 0] = total[...] / jnp.where(found, mass[...], 1.0)
    logarithm = top[...] + jnp.log2(jnp.where(found, mass[...], 1.0))
    lse[0, 0] = jnp.where(found, logarithm / LOG2E, UNSEEN)


def _backward_kernel(
  state: Any, q: Any, k: Any, v: Any, dout: Any, lse: Any, delta: Any, q_ids: Any, q_block: Any,
  kv_ids: Any, kv_block: Any, dq: Any, dk: Any, dv: Any, *, size: int,
) -> None:  # fmt: skip
  b, j, i = pl.program_id(0), pl.program_id(2), pl.program_id(3)

  @pl.when((i == 0) & (j == 0))
  def _() -> None:
    dq[...] = jnp.zeros_like(dq)

  @pl.when(i == 0)
  def _() -> None:
    dk[...] = jnp.zeros_like(dk)
    dv[...] = jnp.zeros_like(dv)

  def step(masked: bool) -> None:
    share = jnp.exp2(_dot(k[0, 0], q[0, 0], NT) - lse[0, 0])
    share = jnp.where(_seen(q_ids, q_block, kv_ids, kv_block), share, 0.0) if masked else share
    dv[0, 0] += _dot(share.astype(dout.dtype), dout[0, 0])
    dscores = share * (_dot(v[0, 0], dout[0, 0], NT) - delta[0, 0])
    dscores = dscores.astype(q.dtype)
    dk[0, 0] += _dot(dscores, q[0, 0])
    rows = pl.ds(pl.multiple_of(i * size, size), size)
    dq[0, 0, rows] += _dot(dscores, k[0, 0], TN)

  pl.when(state[b, i, j] == 1)(lambda: step(True))
  pl.when(state[b, i, j] == 2)(lambda: step(False))


def _dot(x: Array, y: Array, axes: Any = (((1,), (0,)), ((), ()))) -> Array:
  # Exact for float32, where one is asked for; bfloat16 has nothing more to give.
  precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
  return jax.lax.dot_general(x, y, axes, precision=precision, preferred_element_type=jnp.float32)


def _seen(q_ids: Any, q_block: Any, kv_ids: Any, kv_block: Any) -> Array:
  """Keys down, queries across."""
  same = (kv_ids[0] == q_ids[0]) & (kv_ids[0] > 0)
  return same & (kv_block[0] <= q_block[0])


def _states(who: Who, sizes: tuple[int, int]) -> Int[Array, "b i j"]:
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


def _pad(sizes: tuple[int, int], q: Array, k: Array, v: Array, *rest: Array, who: Who) -> Any:
  """Arrays as `b k n dk`, and ids, padded to whole blocks; padding has id 0."""
  q_pad, k_pad = (-q.shape[1] % sizes[0], -k.shape[1] % sizes[1])

  def lay(x: Array, pad: int) -> Array:
    return jnp.pad(jnp.moveaxis(x, 2, 1), ((0, 0), (0, 0), (0, pad), (0, 0)))

  pads = (q_pad, k_pad, k_pad, *[q_pad] * len(rest))
  padded = [lay(x, pad) for x, pad in zip((q, k, v, *rest), pads, strict=True)]
  ids = [jnp.pad(x, ((0, 0), (0, p))) for x, p in zip(who, (q_pad, k_pad) * 2, strict=True)]
  return padded, Who(*ids)


def _columns(who: Who) -> tuple[Array, ...]:
  """Ids and blocks of the queries as rows, of the keys as columns."""
  return who.q_ids[:, None], who.q_block[:, None], who.kv_ids[..., None], who.kv_block[..., None]


def _specs(sizes: tuple[int, int], d: int, query: int) -> Any:
  """Block specs of a query, a key, a row of numbers, a row and a column of ids.

  Args:
    query: which of the grid's axes walks the queries, 2 or 3; the other one walks the keys.
  """
  key = 5 - query
  return (
    pl.BlockSpec((1, 1, sizes[0], d), lambda *at: (at[0], at[1], at[query], 0)),
    pl.BlockSpec((1, 1, sizes[1], d), lambda *at: (at[0], at[1], at[key], 0)),
    pl.BlockSpec((1, 1, 1, sizes[0]), lambda *at: (at[0], at[1], 0, at[query])),
    pl.BlockSpec((1, 1, sizes[0]), lambda *at: (at[0], 0, at[query])),
    pl.BlockSpec((1, sizes[1], 1), lambda *at: (at[0], at[key], 0)),
  )


def _cost(products: int, q: Array, k: Array) -> pl.CostEstimate:
  """Of so many products between all queries and all keys; what is skipped is not known here."""
  (b, h, n, d), m = q.shape, k.shape[2]
  pairs = b * h * n * m
  moved = b * h * d * (n + m) * products
  return pl.CostEstimate(
    flops=2 * products * pairs * d,
    transcendentals=pairs,
    bytes_accessed=moved * q.dtype.itemsize,
  )


def _params(*semantics: Any) -> pltpu.CompilerParams:
  return pltpu.CompilerParams(dimension_semantics=semantics, vmem_limit_bytes=VMEM)
