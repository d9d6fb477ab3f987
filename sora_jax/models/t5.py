"""The text encoders of published models: T5 v1.1 and umT5 (and the first T5).

Pre-norm transformer encoders without biases, whose attention is not scaled and knows positions only
by a number per head that depends on the distance between two pieces (Raffel et al. 2020,
arXiv:1910.10683). T5 learns one table of such numbers for all layers, umT5 (Chung et al. 2023,
arXiv:2304.09151) one for each.

  x += W_o softmax(q k^T + bias[bucket(j - i)]) v        q, k, v = W norm(x)
  x += W_down (gelu(W_gate y) * W_up y)                  y = norm(x); the first T5: relu(W_up y)
"""

from __future__ import annotations

import functools
import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from sora_jax.models.attention import attend
from sora_jax.models.layers import Dense, RMSNorm, kernels_in
from sora_jax.parallel.sharding import constrain
from sora_jax.typing import Array, Float, Int, Params


class T5Encoder(nn.Module):
  """Word pieces to encoder states. Several prompts may be packed into one row.

  `ids` says which prompt a piece belongs to, from 1; 0 is padding. The pieces of a prompt lie side
  by side. Prompts never see each other; the states of padding are 0.

  Attributes:
    vocabulary: rows of the table of word pieces, which may be more than the tokenizer's.
    width, layers, heads, head_width, mlp_width: of the encoder; `heads * head_width` need not be
      `width`.
    gated: whether a GELU gates the feed-forward layer's hidden units; else they pass a ReLU.
    shared_bias: whether all layers share one table of relative positions (T5), or each has its own
      (umT5).
    buckets, distance: rows of such a table, and the distance from which on all are the same.
    dtype: of the matmuls; norms, softmax and the states between the layers, which grow large, are
      in float32.
    remat: whether the backward pass computes each layer again.
  """

  vocabulary: int
  width: int
  layers: int
  heads: int
  head_width: int
  mlp_width: int
  gated: bool = True
  shared_bias: bool = False
  buckets: int = 32
  distance: int = 128
  eps: float = 1e-6
  dtype: Any = None
  remat: bool = False

  @nn.compact
  def __call__(self, pieces: Int[Array, "b s"], ids: Int[Array, "b s"]) -> Float[Array, "b s e"]:
    table = self.param("pieces", nn.initializers.normal(1.0), (self.vocabulary, self.width))
    tables = 1 if self.shared_bias else self.layers
    shape = (tables, self.buckets, self.heads)
    relative = self.param("relative", nn.initializers.normal(1.0), shape)
    place = np.arange(pieces.shape[1])
    rows = relative_buckets(place - place[:, None], self.buckets, self.distance)

    x = jnp.take(table, pieces, axis=0).astype(jnp.float32)
    blocks = nn.scan(
      nn.remat(Block, prevent_cse=False) if self.remat else Block,
      variable_axes={"params": 0},
      split_rngs={"params": True},
      in_axes=(nn.broadcast, 0, nn.broadcast),
      length=self.layers,
    )(
      self.heads, self.head_width, self.mlp_width, self.gated, self.eps, self.dtype, name="blocks"
    )  # fmt: skip
    relative = jnp.broadcast_to(relative, (self.layers, *relative.shape[1:]))
    x, _ = blocks(constrain(x, "tokens"), ids, relative, jnp.asarray(rows))
    x = RMSNorm(self.eps, name="norm_out")(x)
    return constrain(jnp.where(ids[..., None] > 0, x, 0.0), "tokens")

  def stored(self, params: Params) -> Params:
    """Its parameters as they may be kept: kernels and word pieces in `dtype`."""
    pieces = params["pieces"].astype(self.dtype or params["pieces"].dtype)
    return {**params, "pieces": pieces, "blocks": kernels_in(self.dtype, params["blocks"])}


class Block(nn.Module):
  """One layer. `relative` is its table of positions, `rows` the row each pair of pieces reads."""

  heads: int
  head_width: int
  mlp_width: int
  gated: bool
  eps: float
  dtype: Any

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b s e"],
    ids: Int[Array, "b s"],
    relative: Float[Array, "r k"],
    rows: Int[Array, "s s"],
  ) -> tuple[Float[Array, "b s e"], None]:
    bias = jnp.transpose(jnp.take(relative, rows, axis=0), (2, 0, 1))[None]
    attention = SelfAttention(self.heads, self.head_width, self.dtype, name="attention")
    x = x + attention(RMSNorm(self.eps, name="attention_norm")(x), ids, bias)
    mlp = FeedForward(self.mlp_width, self.gated, self.dtype, name="mlp")
    return constrain(x + mlp(RMSNorm(self.eps, name="mlp_norm")(x)), "tokens"), None


class SelfAttention(nn.Module):
  """Attention that is not scaled, with a bias added to its scores."""

  heads: int
  head_width: int
  dtype: Any = None

  @nn.compact
  def __call__(
    self, x: Float[Array, "b s e"], ids: Int[Array, "b s"], bias: Float[Array, "1 k s s"]
  ) -> Float[Array, "b s e"]:
    dense = functools.partial(Dense, dtype=self.dtype, use_bias=False)
    inner = self.heads * self.head_width
    q, k, v = (constrain(dense(inner, name=name)(x), "hidden") for name in "qkv")
    # XLA's kernel on any mesh: prompts are short.
    out = attend(q, k, v, ids, ids, heads=self.heads, bias=bias, scale=1.0)
    return dense(x.shape[-1], name="out")(out)


class FeedForward(nn.Module):
  """Two linear maps around hidden units that a GELU gates (Shazeer 2020, arXiv:2002.05202)."""

  hidden: int
  gated: bool = True
  dtype: Any = None

  @nn.compact
  def __call__(self, x: Float[Array, "b s e"]) -> Float[Array, "b s e"]:
    dense = functools.partial(Dense, dtype=self.dtype, use_bias=False)
    up = dense(self.hidden, name="up")(x)
    if self.gated:
      up = up * nn.gelu(dense(self.hidden, name="gate")(x), approximate=True)
    else:
      up = nn.relu(up)
    return dense(x.shape[-1], name="down")(up)


def relative_buckets(
  offset: Int[np.ndarray, "*b"], buckets: int, distance: int
) -> Int[np.ndarray, "*b"]:
  """The row of the table for keys that lie `offset` pieces after the query.

  Half of the rows are for keys before it and half for those after. Of each half, half tell every
  distance and the others grow with its logarithm, the last from `distance` on. In float32, as
  published: what falls on a border is decided by its rounding.
  """
  half = buckets // 2
  exact = half // 2
  apart = np.abs(offset)
  ratio = np.maximum(apart, exact).astype(np.float32) / np.float32(exact)
  logs = np.log(ratio.astype(np.float64)).astype(np.float32)  # not numpy's own, which is coarser
  steps = logs / np.float32(math.log(distance / exact)) * np.float32(half - exact)
  far = np.minimum(exact + steps.astype(np.int64), half - 1)
  return half * (offset > 0) + np.where(apart < exact, apart, far)
