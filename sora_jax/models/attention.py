"""The one attention function. Who sees whom is said by ids and blocks, never by a mask tensor."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sora_jax.typing import Array, Bool, Float, Int

# The name of attention's results: a remat policy that saves them does not run attention again.
SAVED = "attention"
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
  q, k, v = (split(x, heads) for x in (q, k, v))
  scores = _scores(q, k, who)
  top = jnp.max(scores, axis=-1)
  share = jnp.where(scores == UNSEEN, 0.0, jnp.exp(scores - top[..., None]))
  mass = jnp.sum(share, axis=-1)
  found = jnp.where(mass > 0, mass, 1.0)
  out = _product("bknm,bmkd->bnkd", share / found[..., None], v)
  return flat(out, dtype), jnp.where(mass > 0, top + jnp.log(found), UNSEEN)


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
  q, k, v, dout = (split(x, heads) for x in (q, k, v, dout))
  scores = _scores(q, k, who)
  share = jnp.where(scores == UNSEEN, 0.0, jnp.exp(scores - lse[..., None]))
  dv = _product("bknm,bnkd->bmkd", share, dout)
  dscores = share * (_product("bnkd,bmkd->bknm", dout, v) - delta[..., None])
  dscores = dscores * q.shape[-1] ** -0.5
  dq, dk = _product("bknm,bmkd->bnkd", dscores, k), _product("bknm,bnkd->bmkd", dscores, q)
  return flat(dq, dtype), flat(dk, dtype), flat(dv, dtype)


def split(x: Float[Array, "b n kd"], heads: int) -> Float[Array, "b n k d"]:
  """The heads of a projection."""
  return x.reshape(*x.shape[:2], heads, -1)


def flat(x: Float[Array, "b n k d"], dtype: Any) -> Float[Array, "b n kd"]:
  """Heads side by side again, in `dtype`."""
  return x.reshape(*x.shape[:2], -1).astype(dtype)


def _scores(q: Array, k: Array, who: Who) -> Float[Array, "b k n m"]:
  scores = _product("bnkd,bmkd->bknm", q, k) * q.shape[-1] ** -0.5
  return jnp.where(visible(*who)[:, None], scores, UNSEEN)


def _product(spec: str, x: Array, y: Array) -> Array:
  return jnp.einsum(spec, x, y, preferred_element_type=jnp.float32)
