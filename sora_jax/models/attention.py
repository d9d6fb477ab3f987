"""The one attention function. Who sees whom is said by ids and blocks, never by a mask tensor."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sora_jax.models.matmul import product
from sora_jax.typing import Array, Bool, Float, Int

# The name of attention's results: a remat policy that saves them does not run attention again.
SAVED = "attention"
# The scope of what a backward pass makes again: no part of the work that a model asks for.
RECOMPUTED = "recomputed"
# Queries whose scores are made at once: few enough to stay in a processor's cache.
PIECE = 256
UNSEEN = -1e30  # a score, and the logarithm of a sum, of nothing: finite, so that no NaN arises


class Who(NamedTuple):
  """Who sees whom: `visible`'s arguments, as far as they are known (no blocks: all 0)."""

  q_ids: Int[Array, "b n"]
  kv_ids: Int[Array, "b m"]
  q_block: Int[Array, "b n"]
  kv_block: Int[Array, "b m"]


def visible(
  q_ids: Int[Array, "b n"],
  kv_ids: Int[Array, "b m"],
  q_block: Int[Array, "b n"] | None = None,
  kv_block: Int[Array, "b m"] | None = None,
) -> Bool[Array, "b n m"]:
  """True where a query may see a key: same id, id not 0, key's block not later than the query's."""
  seen = (q_ids[:, :, None] == kv_ids[:, None, :]) & (kv_ids[:, None, :] > 0)
  if q_block is not None and kv_block is not None:
    seen &= kv_block[:, None, :] <= q_block[:, :, None]
  return seen


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
  bias: Float[Array, "#b k n m"] | None = None,
  scale: float | None = None,
) -> Float[Array, "b n kd"]:
  """Scaled dot-product attention within ids and blocks; softmax in float32.

  The `heads` heads lie one beside the other, as a projection makes them. A query that sees no key
  gets 0, and so do the gradients through it (the average of no values is not a number, and padding
  must not poison a packed sequence).

  Args:
    bias: is added to the scores.
    scale: the scores are multiplied by it; None is one over the root of a head's width.
  """
  seen = visible(q_ids, kv_ids, q_block, kv_block)
  q, k, v = (split(x, heads) for x in (q, k, v))
  out = jax.nn.dot_product_attention(q, k, v, bias, seen[:, None], scale=scale)
  return flat(jnp.where(seen.any(-1)[:, :, None, None], out, 0), out.dtype)


def forward(
  q: Float[Array, "b n kd"],
  k: Float[Array, "b m kd"],
  v: Float[Array, "b m kd"],
  who: Who,
  heads: int,
  dtype: Any,
) -> tuple[Float[Array, "b n kd"], Float[Array, "b k n"]]:
  """Attention, in `dtype`, and the logarithm of each query's sum of exponentials, in float32.

  The heads lie one beside the other, as a projection makes them. With the logarithms, attention to
  parts of the keys can be joined (`parallel/ring.py`).
  """
  k, v = _heads_first(k, heads), _heads_first(v, heads)

  def some(q: Array, who: Who) -> tuple[Array, Array]:
    scores = _scores(q, k, who)
    top = jnp.maximum(jnp.max(scores, axis=-1, keepdims=True), UNSEEN / 2)
    share = jnp.exp(scores - top)  # 0 of what is not seen, also where nothing is
    mass = jnp.sum(share, axis=-1, keepdims=True)
    found = jnp.where(mass > 0, mass, 1.0)
    out = product("bknm,bkmd->bknd", share.astype(v.dtype), v) / found
    return out.astype(dtype), jnp.where(mass > 0, top + jnp.log(found), UNSEEN)

  cut = _Cut(q.shape[1])
  out, lse = jax.lax.map(lambda args: some(*args), (cut(_heads_first(q, heads)), cut.who(who)))
  return _flat(cut.join(out)), cut.join(lse)[..., 0]


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
) -> tuple[Float[Array, "b n kd"], Float[Array, "b m kd"], Float[Array, "b m kd"]]:
  """Gradients of queries, keys and values, in `dtype`.

  Args:
    lse: of the whole softmax, of which these keys may be a part.
    delta: sum over a head of output times its gradient, per query.
  """
  k, v = _heads_first(k, heads), _heads_first(v, heads)
  scale = k.shape[-1] ** -0.5

  def some(sums: tuple[Array, Array], args: Any) -> Any:
    q, dout, lse, delta, who = args
    with jax.named_scope(RECOMPUTED):
      scores = _scores(q, k, who)
    share = jnp.exp(scores - jnp.maximum(lse, UNSEEN / 2))
    dscores = share * (product("bknd,bkmd->bknm", dout, v) - delta) * scale
    share, dscores = share.astype(k.dtype), dscores.astype(k.dtype)
    # Turned is what is small: a product over the first of two large axes is a slow one.
    dk = product("bkdn,bknm->bkdm", jnp.swapaxes(q, 2, 3), dscores)
    dv = product("bkdn,bknm->bkdm", jnp.swapaxes(dout, 2, 3), share)
    return (sums[0] + dk, sums[1] + dv), product("bknm,bkmd->bknd", dscores, k).astype(dtype)

  cut = _Cut(q.shape[1])
  of_queries = _heads_first(q, heads), _heads_first(dout, heads), lse[..., None], delta[..., None]
  zeros = (jnp.zeros(jnp.swapaxes(k, 2, 3).shape, jnp.float32),) * 2
  sums, dq = jax.lax.scan(some, zeros, (*map(cut, of_queries), cut.who(who)))
  dk, dv = (jnp.swapaxes(x, 2, 3).astype(dtype) for x in sums)
  return _flat(cut.join(dq)), _flat(dk), _flat(dv)


def split(x: Float[Array, "b n kd"], heads: int) -> Float[Array, "b n k d"]:
  """The heads of a projection."""
  return x.reshape(*x.shape[:2], heads, -1)


def flat(x: Float[Array, "b n k d"], dtype: Any) -> Float[Array, "b n kd"]:
  """Heads side by side again, in `dtype`."""
  return x.reshape(*x.shape[:2], -1).astype(dtype)


class _Cut:
  """Queries in pieces of about `PIECE`, the last one filled up with queries that see nothing."""

  def __init__(self, length: int) -> None:
    self.length, self.pieces = length, -(-length // PIECE)
    self.size = -(-length // self.pieces)

  def __call__(self, x: Array, axis: int = 2) -> Array:
    """The pieces along a new first axis."""
    fill = self.pieces * self.size - self.length
    x = jnp.pad(x, [(0, fill if i == axis else 0) for i in range(x.ndim)])
    shape = (*x.shape[:axis], self.pieces, self.size, *x.shape[axis + 1 :])
    return jnp.moveaxis(x.reshape(shape), axis, 0)

  def who(self, who: Who) -> Who:
    """`who` of each piece: its queries, and all keys."""
    same = lambda x: jnp.broadcast_to(x, (self.pieces, *x.shape))  # noqa: E731
    return Who(self(who.q_ids, 1), same(who.kv_ids), self(who.q_block, 1), same(who.kv_block))

  def join(self, x: Float[Array, "pieces b k piece d"]) -> Float[Array, "b k n d"]:
    """The way back."""
    x = jnp.moveaxis(x, 0, 2)
    return x.reshape(*x.shape[:2], -1, x.shape[-1])[:, :, : self.length]


def _heads_first(x: Float[Array, "b n kd"], heads: int) -> Float[Array, "b k n d"]:
  return jnp.swapaxes(split(x, heads), 1, 2)


def _flat(x: Float[Array, "b k n d"]) -> Float[Array, "b n kd"]:
  return flat(jnp.swapaxes(x, 1, 2), x.dtype)


def _scores(q: Array, k: Array, who: Who) -> Float[Array, "b k n m"]:
  scores = product("bknd,bkmd->bknm", q, k) * q.shape[-1] ** -0.5
  return jnp.where(visible(*who)[:, None], scores, UNSEEN)
