"""Attention for NVIDIA GPUs as Pallas kernels in Triton's dialect; the mathematics of `flash.py`.

A program holds one block and walks those that it has to do with: of the queries for the output and
their own gradient, of the keys for theirs. No two programs write to one place, so gradients are the
same from run to run; for that the scores are computed twice in the backward pass (3.5 forwards'
work; with atomic sums it would be 2.5).

What is walked is a list for each block: first the blocks in which all see all, which are not
masked, then those in which some may see some; those in which no query sees any key are not in it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from sora_jax.models.attention import UNSEEN, Who, flat, split
from sora_jax.parallel.flash import LOG2E, block_states
from sora_jax.typing import Array, Float, Int

NARROWEST = 16  # side of a product on tensor cores

NT = (((1,), (1,)), ((), ()))  # contract the last axes


def block_sizes(dtype: Any, width: int) -> tuple[int, int]:
  """Tokens of the block that a program holds, and of those it walks: what registers have room for.

  On an H100 nothing is spilled for half precision (said by ptxas); float32, which is not for speed,
  spills a little.
  """
  if jnp.dtype(dtype).itemsize > 2:
    return 32, 32
  return 128, 64 if width <= 128 else 32


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
  q, k, v = (split(x, heads) for x in (q, k, v))
  length, width = q.shape[1], q.shape[3]
  held, size = block_sizes(q.dtype, width)
  scaled = (q * (LOG2E * width**-0.5)).astype(q.dtype)
  who, (q_, k_, v_) = _lay(held, who, scaled, k, v)
  out, lse = _call(
    functools.partial(_forward_kernel, size=size),
    "attention_forward",
    products=2,
    states=block_states(who, (held, size)),
    held=(q_, who.q_ids, who.q_block),
    walked=(k_, v_, who.kv_ids, who.kv_block),
    made=(q_, jnp.moveaxis(q_[..., 0], 1, 2)),
    interpret=interpret,
  )
  return flat(out[:, :length, :, :width], dtype), lse[..., :length]


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
    delta: sum over dk of output times its gradient, per query.
  """
  q, k, v, dout = (split(x, heads) for x in (q, k, v, dout))
  length, keys, width = q.shape[1], k.shape[1], q.shape[3]
  scale, (held, size) = width**-0.5, block_sizes(q.dtype, width)
  scaled = (q * (LOG2E * scale)).astype(q.dtype)
  who, (q_, k_, v_, dout_) = _lay(held, who, scaled, k, v, dout.astype(q.dtype))
  rows = ((0, 0), (0, 0), (0, q_.shape[1] - length))
  queries = (q_, dout_, *(jnp.pad(x, rows) for x in (lse * LOG2E, delta)), who.q_ids, who.q_block)
  pairs = (k_, v_, who.kv_ids, who.kv_block)
  dk, dv = _call(
    functools.partial(_backward_keys, size=size),
    "attention_backward_keys",
    products=4,
    states=jnp.swapaxes(block_states(who, (size, held)), 1, 2),
    held=pairs,
    walked=queries,
    made=(k_, v_),
    interpret=interpret,
  )
  (dq,) = _call(
    functools.partial(_backward_queries, size=size),
    "attention_backward_queries",
    products=3,
    states=block_states(who, (held, size)),
    held=queries,
    walked=pairs,
    made=(q_,),
    interpret=interpret,
  )
  dq, dk, dv = dq[:, :length, :, :width], dk[:, :keys, :, :width], dv[:, :keys, :, :width]
  return flat(dq * scale, dtype), flat(dk / LOG2E, dtype), flat(dv, dtype)


def _forward_kernel(
  order: Any, counts: Any, q: Any, q_ids: Any, q_block: Any, k: Any, v: Any, kv_ids: Any,
  kv_block: Any, out: Any, lse: Any, *, size: int,
) -> None:  # fmt: skip
  queries, ids, block = q[...], q_ids[...], q_block[...]

  def step(at: Any, masked: bool, carry: Any) -> Any:
    total, top, mass = carry
    scores = _dot(queries, k[at, :], NT)
    if masked:
      seen = _seen(ids[:, None], block[:, None], kv_ids[at][None], kv_block[at][None])
      scores = jnp.where(seen, scores, UNSEEN)
    highest = jnp.maximum(top, jnp.max(scores, 1))
    share = jnp.exp2(scores - highest[:, None])
    if masked:
      share = jnp.where(seen, share, 0.0)
    shrink = jnp.exp2(top - highest)
    total = total * shrink[:, None] + _dot(share.astype(v.dtype), v[at, :])
    return total, highest, mass * shrink + jnp.sum(share, 1)

  held = queries.shape[0]
  nothing = jnp.zeros_like(queries, jnp.float32), jnp.full(held, UNSEEN), jnp.zeros(held)
  total, top, mass = _walk(order, counts, size, step, nothing)
  found = mass > 0
  mass = jnp.where(found, mass, 1.0)
  out[...] = total / mass[:, None]
  lse[...] = jnp.where(found, (top + jnp.log2(mass)) / LOG2E, UNSEEN)


def _backward_keys(
  order: Any, counts: Any, k: Any, v: Any, kv_ids: Any, kv_block: Any, q: Any, dout: Any, lse: Any,
  delta: Any, q_ids: Any, q_block: Any, dk: Any, dv: Any, *, size: int,
) -> None:  # fmt: skip
  keys, values, ids, block = k[...], v[...], kv_ids[...], kv_block[...]

  def step(at: Any, masked: bool, carry: Any) -> Any:
    more_k, more_v = carry
    queries, grads = q[at, :], dout[at, :]
    share = jnp.exp2(_dot(keys, queries, NT) - lse[at][None])  # keys down, queries across
    if masked:
      seen = _seen(q_ids[at][None], q_block[at][None], ids[:, None], block[:, None])
      share = jnp.where(seen, share, 0.0)
    more_v += _dot(share.astype(v.dtype), grads)
    dscores = share * (_dot(values, grads, NT) - delta[at][None])
    return more_k + _dot(dscores.astype(q.dtype), queries), more_v

  nothing = jnp.zeros_like(keys, jnp.float32)
  dk[...], dv[...] = _walk(order, counts, size, step, (nothing, nothing))


def _backward_queries(
  order: Any, counts: Any, q: Any, dout: Any, lse: Any, delta: Any, q_ids: Any, q_block: Any,
  k: Any, v: Any, kv_ids: Any, kv_block: Any, dq: Any, *, size: int,
) -> None:  # fmt: skip
  queries, grads, ids, block = q[...], dout[...], q_ids[...], q_block[...]
  logarithm, subtract = lse[...][:, None], delta[...][:, None]

  def step(at: Any, masked: bool, more: Any) -> Any:
    keys = k[at, :]
    share = jnp.exp2(_dot(queries, keys, NT) - logarithm)
    if masked:
      seen = _seen(ids[:, None], block[:, None], kv_ids[at][None], kv_block[at][None])
      share = jnp.where(seen, share, 0.0)
    dscores = share * (_dot(grads, v[at, :], NT) - subtract)
    return more + _dot(dscores.astype(k.dtype), keys)

  dq[...] = _walk(order, counts, size, step, jnp.zeros_like(queries, jnp.float32))


def _walk(order: Any, counts: Any, size: int, step: Callable[..., Any], carry: Any) -> Any:
  """`step(slice, masked, carry)` for the blocks in the list."""

  def run(masked: bool) -> Any:
    return lambda t, carry: step(pl.ds(order[t] * size, size), masked, carry)

  carry = jax.lax.fori_loop(0, counts[0], run(False), carry)
  return jax.lax.fori_loop(counts[0], counts[1], run(True), carry)


def _dot(x: Array, y: Array, axes: Any = (((1,), (0,)), ((), ()))) -> Array:
  # Exact for float32, where one is asked for; else tensor cores would take it for tf32.
  precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
  return jax.lax.dot_general(x, y, axes, precision=precision, preferred_element_type=jnp.float32)


def _seen(q_ids: Array, q_block: Array, kv_ids: Array, kv_block: Array) -> Array:
  return (q_ids == kv_ids) & (kv_ids > 0) & (kv_block <= q_block)


def _call(
  kernel: Callable[..., None],
  name: str,
  *,
  products: int,
  states: Int[Array, "b i j"],
  held: Sequence[Array],
  walked: Sequence[Array],
  made: Sequence[Array],
  interpret: bool,
) -> Any:
  """Runs a kernel with a program for each block of `held`; results in float32, shaped as `made`.

  Args:
    products: so many, between all that is held and all that is walked, are its work.
    states: `flash.block_states`, of blocks held, then walked.
  """
  order = jnp.argsort(-states, axis=-1, stable=True).astype(jnp.int32)
  counts = jnp.stack([(states == 2).sum(-1), (states > 0).sum(-1)], -1).astype(jnp.int32)
  lists = [
    pl.BlockSpec((None, None, x.shape[2]), lambda i, h, b: (b, i, 0)) for x in (order, counts)
  ]
  b, n, h, d = held[0].shape
  size = n // states.shape[1]
  pairs = b * h * n * walked[0].shape[1]
  # What is skipped is not known here. Triton's lowering drops the estimate and keeps the metadata.
  cost = pl.CostEstimate(
    flops=2 * products * pairs * d,
    transcendentals=pairs,
    bytes_accessed=sum(x.size * x.dtype.itemsize for x in (*held, *walked)),
  )
  return pl.pallas_call(
    kernel,
    grid=(states.shape[1], h, b),
    in_specs=lists + [_spec(x, size) for x in held] + [_spec(x) for x in walked],
    out_specs=[_spec(x, size) for x in made],
    out_shape=[jax.ShapeDtypeStruct(x.shape, jnp.float32) for x in made],
    cost_estimate=cost,
    metadata={"flops": str(cost.flops)},
    compiler_params=triton.CompilerParams(num_warps=8, num_stages=2),
    interpret=interpret,
    name=name,
  )(order, counts, *held, *walked)


def _spec(x: Array, held: int | None = None) -> pl.BlockSpec:
  """A block of `b n k dk`, `b k n` or `b n`, of one head; or all tokens, to be walked."""
  size = held or x.shape[2 if x.ndim == 3 else 1]
  block = (lambda i: i) if held else (lambda i: 0)
  match x.ndim:
    case 4:
      return pl.BlockSpec((None, size, None, x.shape[3]), lambda i, h, b: (b, block(i), h, 0))
    case 3:
      return pl.BlockSpec((None, None, size), lambda i, h, b: (b, h, block(i)))
  return pl.BlockSpec((None, size), lambda i, h, b: (b, block(i)))


def _lay(held: int, who: Who, *arrays: Array) -> tuple[Who, list[Array]]:
  """Tokens padded to whole blocks, with ids of 0, and widths to a power of two."""

  def pad(x: Array, *wider: int) -> Array:
    return jnp.pad(x, [(0, 0), (0, -x.shape[1] % held), *((0, more) for more in wider)])

  width = arrays[0].shape[3]
  wider = max(NARROWEST, pl.next_power_of_2(width)) - width
  return Who(*map(pad, who)), [pad(x, 0, wider) for x in arrays]
