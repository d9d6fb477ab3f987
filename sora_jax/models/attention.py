"""The one attention function. Who sees whom is said by ids and blocks, never by a mask tensor."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from sora_jax.typing import Array, Bool, Float, Int


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
  q: Float[Array, "b n k dk"],
  k: Float[Array, "b m k dk"],
  v: Float[Array, "b m k dk"],
  q_ids: Int[Array, "b n"],
  kv_ids: Int[Array, "b m"],
  q_block: Int[Array, "b n"] | None = None,
  kv_block: Int[Array, "b m"] | None = None,
) -> Float[Array, "b n k dk"]:
  """Scaled dot-product attention within ids and blocks; softmax in float32.

  A query that sees no key gets 0, and so do the gradients through it (the average of no values is
  not a number, and padding must not poison a packed sequence).
  """
  seen = visible(q_ids, kv_ids, q_block, kv_block)
  out = jax.nn.dot_product_attention(q, k, v, mask=seen[:, None])
  return jnp.where(seen.any(-1)[:, :, None, None], out, jnp.zeros((), out.dtype))
