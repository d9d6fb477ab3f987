"""The diffusion transformer: tokens in, one velocity (noise - data) per token out.

The block is Wan 2.1's (Wan Team 2025): adaLN whose time modulation is shared by all blocks plus a
learned offset per block (PixArt's adaLN-single), self-attention over all tokens of a segment with
3-axis RoPE and QK RMS norm, unmodulated cross-attention to the text behind an affine LayerNorm, and
a GELU MLP. Published Wan models are rows of `VARIANTS`.

  e      = MLP([sinusoid(1000 level), other features])            b k d     one per cond row
  m_l    = W silu(e) + offset_l                                   b k 6 d   of block l
  x     += gate1 * SelfAttention(norm(x) * (1 + scale1) + shift1)
  x     += CrossAttention(affine_norm(x), text)
  x     += gate2 * MLP(norm(x) * (1 + scale2) + shift2)
"""

from __future__ import annotations

import functools
import math
from dataclasses import replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange, repeat

from sora_jax.models.attention import SAVED
from sora_jax.models.layers import (
  Attention,
  Dense,
  LayerNorm,
  Mlp,
  kernels_in,
  position_features,
  sinusoid,
)
from sora_jax.models.patch import Patch, rope_angles
from sora_jax.models.tokens import Tokens, select_rows
from sora_jax.parallel.sharding import constrain
from sora_jax.typing import Array, Float, Params

VARIANTS: dict[str, dict[str, Any]] = {
  "toy": dict(
    width=256,
    layers=8,
    heads=4,
    mlp_width=1024,
    text_width=256,
    cond_features=4,
    channels=64,
    absolute=True,
    affine=True,
  ),
  "wan2.1-1.3b": dict(width=1536, layers=30, heads=12, mlp_width=8960, text_width=4096),
  "wan2.1-14b": dict(width=5120, layers=40, heads=40, mlp_width=13824, text_width=4096),
  "wan2.2-5b": dict(width=3072, layers=30, heads=24, mlp_width=14336, text_width=4096, channels=48),
}

REMAT = {
  "none": None,
  "full": jax.checkpoint_policies.nothing_saveable,
  "dots": jax.checkpoint_policies.save_from_both_policies(
    jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    jax.checkpoint_policies.save_only_these_names(SAVED),
  ),
  "attention": jax.checkpoint_policies.save_only_these_names(SAVED),
  "offload": jax.checkpoint_policies.save_and_offload_only_these_names(
    names_which_can_be_saved=[],
    names_which_can_be_offloaded=[SAVED],
    offload_src="device",
    offload_dst="pinned_host",
  ),
}


class Block(nn.Module):
  """One transformer block. `modulation` has the six rows shift, scale, gate of each half."""

  width: int
  heads: int
  mlp_width: int
  eps: float = 1e-6
  dtype: Any = None
  kernel: str = "auto"
  ulysses: int = 0

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b n d"],
    modulation: Float[Array, "b k 6 d"],
    tokens: Tokens,
    text: Float[Array, "b s d"],
    angles: Float[Array, "b n half"],
  ) -> tuple[Float[Array, "b n d"], None]:
    attention = functools.partial(
      Attention, self.width, self.heads, self.eps, self.dtype, self.kernel, self.ulysses
    )
    offset = self.param("modulation", nn.initializers.zeros, (6, self.width))
    shift1, scale1, gate1, shift2, scale2, gate2 = (
      select_rows(rows, tokens.cond_index)
      for rows in rearrange(modulation + offset, "b k six d -> six b k d")
    )

    y = modulate(LayerNorm(self.eps)(x), shift1, scale1)
    y = attention(name="self_attention")(y, tokens.segments, block=tokens.block, angles=angles)
    x = gated(x, gate1, y)

    y = LayerNorm(self.eps, affine=True, name="text_norm")(x)
    x = x + attention(name="text_attention")(y, tokens.prompt, text, tokens.text_ids)

    y = modulate(LayerNorm(self.eps)(x), shift2, scale2)
    y = Mlp(self.mlp_width, self.width, self.dtype, name="mlp")(y)
    return constrain(gated(x, gate2, y), "tokens"), None


class DiT(nn.Module):
  """Predicts the velocity of every token of a packed sequence.

  Attributes:
    width, layers, heads, mlp_width: of the transformer.
    text_width: width `e` of the text encoder's states.
    channels: latent channels. patch: (time, row, column) size of a patch, in latents.
    cond_features: features of a cond row; the first is the noise level.
    absolute: adds an embedding of its position to each patch. RoPE tells differences only, so where
      a thing is must be inferred from the borders, which small models learn slowly. Not in Wan.
    affine: makes the velocity an affine function of the token's own noisy values, of which the
      transformer predicts intercept and slope: noise need not pass through its width. Not in Wan.
    split: works on the latents of each patch as tokens of their own: finer, and that much dearer.
      What it is given and gives back are patches all the same. Not in Wan.
    freq_width: width of the noise level's sinusoid.
    dtype: of the matmuls and the activations between them; parameters, norms, modulation, softmax
      and the output stay in float32.
    remat: what the backward pass recomputes; a key of `REMAT`.
    attention: which kernel computes attention; see `parallel.attention`.
    ulysses: how many devices of the context axis trade tokens for heads, 0 for as many as can; the
      others of the axis pass keys and values round.
  """

  width: int
  layers: int
  heads: int
  mlp_width: int
  text_width: int
  channels: int = 16
  patch: Patch = (1, 2, 2)
  cond_features: int = 1
  absolute: bool = False
  affine: bool = False
  split: bool = False
  freq_width: int = 256
  eps: float = 1e-6
  dtype: Any = None
  remat: str = "none"
  attention: str = "auto"
  ulysses: int = 0

  @property
  def patch_width(self) -> int:
    """Numbers in one patch: the `p` of `Tokens.values`."""
    pt, ph, pw = self.patch
    return pt * ph * pw * self.channels

  @property
  def pieces(self) -> int:
    """How many tokens of its own a patch becomes."""
    return math.prod(self.patch) if self.split else 1

  def __call__(
    self, tokens: Tokens, residual: Float[Array, "b m d"] | None = None
  ) -> Float[Array, "b n p"]:
    """Velocities.

    Args:
      residual: what the blocks added in another call: added here in their place. A call without it
        sows its own as the intermediate "residual".
    """
    own = split_patches(tokens, self.patch) if self.split else tokens
    return self._velocities(own, residual).reshape(tokens.values.shape)

  @nn.compact
  def _velocities(self, tokens: Tokens, residual: Array | None) -> Float[Array, "b m q"]:
    numbers = tokens.values.shape[-1]
    dense = lambda name, width: Dense(width, dtype=self.dtype, name=name)  # noqa: E731
    x = dense("patch_in", self.width)(tokens.values)
    if self.absolute:
      x = x + dense("position_in", self.width)(where(tokens))
    x = constrain(x, "tokens")
    text = Mlp(self.width, self.width, self.dtype, name="text_in")(tokens.text)
    text = constrain(text, "tokens")
    embedding, modulation = self._time(tokens.cond)
    angles = rope_angles(tokens.positions, tokens.period, self.width // self.heads)

    block = Block
    if self.remat != "none":
      block = nn.remat(Block, policy=REMAT[self.remat], prevent_cse=False)
    blocks = nn.scan(
      block,
      variable_axes={"params": 0},
      split_rngs={"params": True},
      in_axes=(nn.broadcast,) * 4,
      length=self.layers,
    )(
      self.width, self.heads, self.mlp_width, self.eps, self.dtype, self.attention, self.ulysses,
      name="blocks",
    )  # fmt: skip
    if residual is None:
      before = x
      x, _ = blocks(x, modulation, tokens, text, angles)
      self.sow("intermediates", "residual", x - before)
    else:
      x = x + residual

    offset = self.param("modulation", nn.initializers.zeros, (2, self.width))
    shift, scale = (select_rows(embedding + row, tokens.cond_index) for row in offset)
    y = modulate(LayerNorm(self.eps)(x), shift, scale)
    outputs = 2 * numbers if self.affine else numbers
    head = Dense(outputs, kernel_init=nn.initializers.zeros, name="patch_out")
    y = head(y.astype(jnp.float32))
    if not self.affine:
      return y
    intercept, slope = jnp.split(y, 2, axis=-1)
    return intercept + slope * tokens.values

  def stored(self, params: Params) -> Params:
    """Its parameters as sampling may keep them: kernels that are used in `dtype` alone, in that."""
    return {**params, "blocks": kernels_in(self.dtype, params["blocks"])}

  def _time(
    self, cond: Float[Array, "b k c"]
  ) -> tuple[Float[Array, "b k d"], Float[Array, "b k 6 d"]]:
    """Embeds every cond row, once; computed in float32 (bfloat16 cannot tell 0.997 from 1).

    There are few rows and large kernels, so on a mesh each device works on all rows with its part
    of the kernels, and is given the modulation of its own.
    """
    features = jnp.concatenate(
      [sinusoid(1000.0 * cond[..., 0], self.freq_width), cond[..., 1:]], axis=-1
    )
    dense = functools.partial(Dense, gathered=False)
    e = constrain(features, "rows")
    e = nn.silu(constrain(dense(self.width, name="time_in")(e), "rows"))
    e = constrain(dense(self.width, name="time_out")(e), "rows")
    zeros = nn.initializers.zeros  # adaLN-Zero: every block starts as the identity
    modulation = dense(6 * self.width, kernel_init=zeros, name="time_modulation")(nn.silu(e))
    return e, rearrange(modulation, "b k (six d) -> b k six d", six=6)


def blank_tokens(dit: DiT) -> Tokens:
  """The smallest input of a transformer, for initialisation."""
  i, f = jnp.zeros((1, 1), jnp.int32), jnp.zeros((1, 1))
  return Tokens(
    values=jnp.zeros((1, 1, dit.patch_width)), positions=jnp.zeros((1, 1, 3)), period=f,
    segments=i, block=i, cond=jnp.zeros((1, 1, dit.cond_features)), cond_index=i,
    text=jnp.zeros((1, 1, dit.text_width)), text_ids=i, prompt=i,
  )  # fmt: skip


def split_patches(tokens: Tokens, patch: Patch) -> Tokens:
  """The latents of each patch as tokens of their own, around its place, in their order in it."""
  if patch[0] > 1:
    raise ValueError(f"patches of {patch[0]} latents in time cannot be split")
  offsets = [(jnp.arange(n) + 0.5) / n - 0.5 for n in patch]
  within = jnp.stack(jnp.meshgrid(*offsets, indexing="ij"), axis=-1).reshape(-1, 3)
  each = lambda x: repeat(x, "b n -> b (n s)", s=len(within))  # noqa: E731
  return replace(
    tokens,
    values=rearrange(tokens.values, "b n (s z) -> b (n s) z", s=len(within)),
    positions=rearrange(tokens.positions[:, :, None] + within, "b n s three -> b (n s) three"),
    period=each(tokens.period),
    segments=each(tokens.segments),
    block=each(tokens.block),
    cond_index=each(tokens.cond_index),
    prompt=each(tokens.prompt),
  )


def split_params(params: Params, dit: DiT) -> Params:
  """Weights to begin a `split` transformer with, from those of one that is not and else like it.

  A latent is embedded as a patch that is full of it would be, and gets the mean of what the latents
  of a patch would get: right where a patch is uniform, and soon learned elsewhere.
  """
  pieces, width, affine = dit.pieces, dit.width, 1 + dit.affine
  to, out = params["patch_in"], params["patch_out"]
  kernel = rearrange(to["kernel"], "(s z) d -> s z d", s=pieces)
  outward = rearrange(out["kernel"], "d (r s z) -> d r s z", r=affine, s=pieces)
  bias = rearrange(out["bias"], "(r s z) -> r s z", r=affine, s=pieces)
  return params | {
    "patch_in": to | {"kernel": kernel.sum(0)},
    "patch_out": {
      "kernel": outward.mean(2).reshape(width, -1),
      "bias": bias.mean(1).reshape(-1),
    },
  }


def where(tokens: Tokens) -> Float[Array, "b n f"]:
  """Features of each token's position; a circle of time has no origin to tell."""
  features = position_features(tokens.positions)
  time = jnp.arange(features.shape[-1]) < features.shape[-1] // 3
  return jnp.where((tokens.period > 0)[..., None] & time, 0.0, features)


def modulate(x: Array, shift: Array, scale: Array) -> Array:
  """x * (1 + scale) + shift, in float32, returned in x's dtype."""
  return (x.astype(jnp.float32) * (1 + scale) + shift).astype(x.dtype)


def gated(x: Array, gate: Array, y: Array) -> Array:
  """x + gate * y, in float32, returned in x's dtype."""
  return (x.astype(jnp.float32) + gate * y.astype(jnp.float32)).astype(x.dtype)
