"""The levels of the autoencoder: residual blocks at halving resolutions, causal in time.

The architecture (and what "the first frame" means to the resampling layers) is that of
Wan: Open and Advanced Large-Scale Video Generative Models (arXiv:2503.20314), section 4.1. Wan 2.2
adds shortcuts around whole levels that only move numbers (`fold`, `unfold`), as in DC-AE (Chen et
al., arXiv:2410.10733), and does not halve the width where it doubles rows and columns.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange, repeat

from sora_jax.models.conv import CausalConv, Initializer, same_frames
from sora_jax.models.layers import RMSNorm
from sora_jax.typing import Array, Float, Latents

_FINE, _COARSE = "b (t p) (h q) (w r) c", "b t h w (c p q r)"

EPS = 1e-8  # of the norms: small beside any real activation (Wan has none), finite gradient at 0


def silu(x: Array) -> Array:
  """x * sigmoid(x), rounded once: in bfloat16 XLA rounds each step of it."""
  return nn.silu(x.astype(jnp.float32)).astype(x.dtype)


class ResBlock(nn.Module):
  """Two normalised convolutions beside the input. The second starts at zero."""

  features: int
  kernel_t: int
  dtype: Any = None

  @nn.compact
  def __call__(self, x: Float[Array, "b t h w i"]) -> Float[Array, "b t h w o"]:
    conv = partial(CausalConv, self.features, (self.kernel_t, 3, 3), dtype=self.dtype)
    y = conv(name="conv1")(silu(RMSNorm(EPS, name="norm1")(x)))
    y = silu(RMSNorm(EPS, name="norm2")(y))
    y = conv(name="conv2", kernel_init=nn.initializers.zeros)(y)
    if x.shape[-1] != self.features:
      x = CausalConv(self.features, (1, 1, 1), dtype=self.dtype, name="shortcut")(x)
    return x + y


class FrameAttention(nn.Module):
  """Self-attention among the pixels of each frame, one head."""

  dtype: Any = None

  @nn.compact
  def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t h w c"]:
    b, t, h, w, c = x.shape
    dense = partial(CausalConv, kernel=(1, 1, 1), dtype=self.dtype)
    qkv = dense(3 * c, name="qkv")(RMSNorm(EPS, name="norm")(x))
    q, k, v = rearrange(qkv, "b t h w (r k c) -> r (b t) (h w) k c", r=3, k=1)
    y = jax.nn.dot_product_attention(q, k, v)
    y = rearrange(y, "(b t) (h w) k c -> b t h w (k c)", b=b, t=t, h=h, w=w)
    return x + dense(c, kernel_init=nn.initializers.zeros, name="out")(y)


class Middle(nn.Module):
  """The blocks at the coarsest level."""

  kernel_t: int
  attention: bool
  dtype: Any = None

  @nn.compact
  def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t h w c"]:
    block = partial(ResBlock, x.shape[-1], self.kernel_t, dtype=self.dtype)
    x = block(name="block_0")(x)
    if self.attention:
      x = FrameAttention(dtype=self.dtype, name="attention")(x)
    return block(name="block_1")(x)


class Downsample(nn.Module):
  """Halves rows and columns, and, if asked, the frames after the first one.

  In time, output i > 0 sees inputs 2i-2, 2i-1, 2i, and the first frame passes as it is. At the
  start of training an output is the mean of its two new frames: a still clip stays as it was.
  """

  time: bool
  dtype: Any = None

  @nn.compact
  def __call__(self, x: Float[Array, "b t h w c"], first: bool) -> Float[Array, "b _ _ _ c"]:
    c = x.shape[-1]
    x = CausalConv(c, (1, 3, 3), (1, 2, 2), dtype=self.dtype, name="conv")(x)
    if not self.time:
      return x
    conv = CausalConv(
      c, (3, 1, 1), (2, 1, 1), same_frames((0, 0.5, 0.5)), dtype=self.dtype, name="time_conv"
    )
    if not first:
      return conv(x)
    return jnp.concatenate([x[:, :1], conv(x[:, 1:], before=x[:, :1])], axis=1)


class Upsample(nn.Module):
  """Doubles, if asked, the frames after the first one, and rows and columns; `features` come out.

  In time, the first frame passes as it is and is not seen by those after it: for them the clip
  begins at the second frame. At the start of training each frame is shown twice.
  """

  features: int
  time: bool
  dtype: Any = None

  @nn.compact
  def __call__(self, x: Float[Array, "b t h w c"], first: bool) -> Float[Array, "b _ _ _ _"]:
    c = x.shape[-1]
    if self.time:
      head, tail = (x[:, :1], x[:, 1:]) if first else (x[:, :0], x)
      conv = CausalConv(
        2 * c, (3, 1, 1), kernel_init=same_frames((0, 0, 1)), dtype=self.dtype, name="time_conv"
      )
      tail = rearrange(conv(tail), "b t h w (r c) -> b (t r) h w c", r=2)
      x = jnp.concatenate([head, tail], axis=1)
    x = repeat(x, "b t h w c -> b t (h r) (w s) c", r=2, s=2)
    return CausalConv(self.features, (1, 3, 3), dtype=self.dtype, name="conv")(x)


def fold(
  x: Float[Array, "b t h w c"], features: int, strides: tuple[int, int, int], first: bool
) -> Float[Array, "b _ _ _ _"]:
  """A level without weights: cells of `strides` become channels, and means of them `features`.

  The first frame fills a cell alone, after frames of zeros.
  """
  st, sh, sw = strides
  x = jnp.pad(x, [(0, 0), ((st - 1) * first, 0), *[(0, 0)] * 3])
  x = rearrange(x, _FINE + " -> " + _COARSE, p=st, q=sh, r=sw)
  return rearrange(x, "b t h w (c g) -> b t h w c g", c=features).mean(axis=-1)


def unfold(
  x: Float[Array, "b t h w c"], features: int, strides: tuple[int, int, int], first: bool
) -> Float[Array, "b _ _ _ _"]:
  """The way back: each channel is shown as often as it takes to fill the cells of `features`.

  Of the first cell only the last frame is there.
  """
  st, sh, sw = strides
  x = jnp.repeat(x, features * st * sh * sw // x.shape[-1], axis=-1)
  x = rearrange(x, _COARSE + " -> " + _FINE, p=st, q=sh, r=sw)
  return x[:, st - 1 :] if first else x


class Encoder(nn.Module):
  """Pixels to the parameters of the latents' distribution."""

  features: int
  widths: tuple[int, ...]
  res_blocks: int
  time_down: tuple[bool, ...]
  kernel_t: tuple[int, ...]
  mid_attention: bool
  shortcuts: bool
  dtype: Any = None

  @nn.compact
  def __call__(self, x: Float[Array, "b t h w c"], first: bool) -> Float[Array, "b lt lh lw z2"]:
    conv = partial(CausalConv, dtype=self.dtype)
    x = conv(self.widths[0], (self.kernel_t[0], 3, 3), name="conv_in")(x)
    for i, (width, kernel_t) in enumerate(zip(self.widths, self.kernel_t, strict=True)):
      start, strides = x, (1, 1, 1)
      for j in range(self.res_blocks):
        x = ResBlock(width, kernel_t, self.dtype, name=f"level_{i}_block_{j}")(x)
      if i < len(self.time_down):
        strides = (1 + self.time_down[i], 2, 2)
        x = Downsample(self.time_down[i], self.dtype, name=f"level_{i}_down")(x, first)
      if self.shortcuts:
        x = x + fold(start, width, strides, first)
    x = Middle(self.kernel_t[-1], self.mid_attention, self.dtype, name="middle")(x)
    x = silu(RMSNorm(EPS, name="norm_out")(x))
    return conv(self.features, (self.kernel_t[-1], 3, 3), name="conv_out")(x)


class Decoder(nn.Module):
  """Latents to pixels: the encoder's levels from the coarsest, with one more block in each."""

  features: int
  widths: tuple[int, ...]
  res_blocks: int
  time_down: tuple[bool, ...]
  kernel_t: tuple[int, ...]
  mid_attention: bool
  shortcuts: bool
  last_init: Initializer
  dtype: Any = None

  @nn.compact
  def __call__(self, x: Latents, first: bool) -> Float[Array, "b t h w c"]:
    conv = partial(CausalConv, dtype=self.dtype)
    x = conv(self.widths[-1], (self.kernel_t[-1], 3, 3), name="conv_in")(x)
    x = Middle(self.kernel_t[-1], self.mid_attention, self.dtype, name="middle")(x)
    for i in reversed(range(len(self.widths))):
      start, width = x, self.widths[i]
      for j in range(self.res_blocks + 1):
        x = ResBlock(width, self.kernel_t[i], self.dtype, name=f"level_{i}_block_{j}")(x)
      if i:
        features, time = width if self.shortcuts else width // 2, self.time_down[i - 1]
        x = Upsample(features, time, self.dtype, name=f"level_{i}_up")(x, first)
        if self.shortcuts:
          x = x + unfold(start, features, (1 + time, 2, 2), first)
    x = silu(RMSNorm(EPS, name="norm_out")(x))
    kernel = (self.kernel_t[0], 3, 3)
    return conv(self.features, kernel, kernel_init=self.last_init, name="conv_out")(x)
