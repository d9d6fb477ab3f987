"""One causal autoencoder for images and videos. Wan 2.1's is one row of its table of variants.

A video of 4k+1 frames becomes a grid of k+1 latent frames: the first latent sees one frame, every
later one `time_stride` more. An image is a video of one frame. Both directions are causal, so a
clip may be encoded and decoded chunk by chunk, in memory that does not grow with its length, and
the result is that of the whole clip.

The architecture (and what "the first frame" means to the resampling layers) is that of
Wan: Open and Advanced Large-Scale Video Generative Models (arXiv:2503.20314), section 4.1, with
the pixel unshuffle of its version 2.2 as an option; the latents are those of a KL autoencoder
(Rombach et al., arXiv:2112.10752).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange, repeat

from sora_jax.errors import UserError
from sora_jax.models.conv import CausalConv, normal, same_frames
from sora_jax.models.layers import RMSNorm
from sora_jax.parallel.sharding import constrain
from sora_jax.typing import Array, Float, Latents, Params, PRNGKey, Video

_PIXELS, _PATCHES = "b (t p) (h q) (w r) c", "b t h w (c p r q)"
EPS = 1e-8  # of the norms: small beside any real activation (Wan has none), finite gradient at 0

VARIANTS: dict[str, dict[str, Any]] = {
  "toy": dict(
    widths=(64, 96, 128), res_blocks=1, patch=2, time_down=(True, True), kernel_t=(1, 3, 3),
    mid_attention=False,
  ),
  "wan2.1": dict(
    widths=(96, 192, 384, 384), res_blocks=2, patch=1, time_down=(False, True, True),
    kernel_t=(3, 3, 3, 3), mid_attention=True,
    latent_mean=(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
                 0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
    latent_std=(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
                3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
  ),
}  # fmt: skip


class ResBlock(nn.Module):
  """Two normalised convolutions beside the input. The second starts at zero."""

  features: int
  kernel_t: int
  dtype: Any = None

  @nn.compact
  def __call__(self, x: Float[Array, "b t h w i"]) -> Float[Array, "b t h w o"]:
    conv = partial(CausalConv, self.features, (self.kernel_t, 3, 3), dtype=self.dtype)
    y = conv(name="conv1")(nn.silu(RMSNorm(EPS, name="norm1")(x)))
    y = nn.silu(RMSNorm(EPS, name="norm2")(y))
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
  """Doubles, if asked, the frames after the first one, and rows and columns; halves the width.

  In time, the first frame passes as it is and is not seen by those after it: for them the clip
  begins at the second frame. At the start of training each frame is shown twice.
  """

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
    return CausalConv(c // 2, (1, 3, 3), dtype=self.dtype, name="conv")(x)


class Encoder(nn.Module):
  """Pixels to the parameters of the latents' distribution."""

  features: int
  widths: tuple[int, ...]
  res_blocks: int
  time_down: tuple[bool, ...]
  kernel_t: tuple[int, ...]
  mid_attention: bool
  dtype: Any = None

  @nn.compact
  def __call__(self, x: Float[Array, "b t h w c"], first: bool) -> Float[Array, "b lt lh lw z2"]:
    conv = partial(CausalConv, dtype=self.dtype)
    x = conv(self.widths[0], (self.kernel_t[0], 3, 3), name="conv_in")(x)
    for i, (width, kernel_t) in enumerate(zip(self.widths, self.kernel_t, strict=True)):
      for j in range(self.res_blocks):
        x = ResBlock(width, kernel_t, self.dtype, name=f"level_{i}_block_{j}")(x)
      if i < len(self.time_down):
        x = Downsample(self.time_down[i], self.dtype, name=f"level_{i}_down")(x, first)
    x = Middle(self.kernel_t[-1], self.mid_attention, self.dtype, name="middle")(x)
    x = nn.silu(RMSNorm(EPS, name="norm_out")(x))
    return conv(self.features, (self.kernel_t[-1], 3, 3), name="conv_out")(x)


class Decoder(nn.Module):
  """Latents to pixels: the encoder's levels from the coarsest, with one more block in each."""

  features: int
  widths: tuple[int, ...]
  res_blocks: int
  time_down: tuple[bool, ...]
  kernel_t: tuple[int, ...]
  mid_attention: bool
  dtype: Any = None

  @nn.compact
  def __call__(self, x: Latents, first: bool) -> Float[Array, "b t h w c"]:
    conv = partial(CausalConv, dtype=self.dtype)
    x = conv(self.widths[-1], (self.kernel_t[-1], 3, 3), name="conv_in")(x)
    x = Middle(self.kernel_t[-1], self.mid_attention, self.dtype, name="middle")(x)
    for i in reversed(range(len(self.widths))):
      for j in range(self.res_blocks + 1):
        x = ResBlock(self.widths[i], self.kernel_t[i], self.dtype, name=f"level_{i}_block_{j}")(x)
      if i:
        x = Upsample(self.time_down[i - 1], self.dtype, name=f"level_{i}_up")(x, first)
    x = nn.silu(RMSNorm(EPS, name="norm_out")(x))
    return conv(self.features, (self.kernel_t[0], 3, 3), name="conv_out")(x)


class VideoVAE(nn.Module):
  """The causal video autoencoder.

  Attributes:
    z_channels: channels of a latent.
    widths: features per level, finest first; each level but the first has half the rows and
      columns of the one before.
    res_blocks: residual blocks per level of the encoder; the decoder has one more.
    patch: pixels are first rearranged into patch x patch squares,
    patch_time: of so many frames. The first frame fills a patch alone, repeated.
    time_down: per step from level to level, whether it also halves the frames.
    kernel_t: taps in time of the convolutions, per level.
    mid_attention: whether pixels of a frame attend to each other at the coarsest level.
    latent_mean, latent_std: per channel over the training set, set once the encoder is frozen;
      `encode_video` and `decode_latents` use them, `encode` and `decode` do not.
    dtype: of the computation; parameters are float32.
  """

  z_channels: int = 16
  widths: tuple[int, ...] = (64, 96, 128)
  res_blocks: int = 1
  patch: int = 2
  patch_time: int = 1
  time_down: tuple[bool, ...] = (True, True)
  kernel_t: tuple[int, ...] = (1, 3, 3)
  mid_attention: bool = False
  latent_mean: tuple[float, ...] | None = None
  latent_std: tuple[float, ...] | None = None
  channels: int = 3
  dtype: Any = None

  def setup(self):
    z = self.z_channels
    shape = dict(
      widths=self.widths, res_blocks=self.res_blocks, time_down=self.time_down,
      kernel_t=self.kernel_t, mid_attention=self.mid_attention, dtype=self.dtype,
    )  # fmt: skip
    self.encoder = Encoder(features=2 * z, **shape)
    patch = self.patch_time * self.patch**2
    self.decoder = Decoder(features=self.channels * patch, **shape)
    self.quant = CausalConv(2 * z, (1, 1, 1), bias_init=_quiet, dtype=self.dtype)
    self.post_quant = CausalConv(z, (1, 1, 1), dtype=self.dtype)

  @property
  def time_stride(self) -> int:
    return self.patch_time * 2 ** sum(self.time_down)

  @property
  def space_stride(self) -> int:
    return self.patch * 2 ** len(self.time_down)

  @property
  def _patch(self) -> dict[str, int]:
    return dict(p=self.patch_time, q=self.patch, r=self.patch)

  def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
    """(lt, lh, lw) of a whole video. Raises UserError for a size the autoencoder cannot take."""
    _check_frames(frames, self.time_stride)
    _check_size(height, width, self.space_stride)
    lt = 1 + (frames - 1) // self.time_stride
    return lt, height // self.space_stride, width // self.space_stride

  def encode(self, video: Video, first: bool = True) -> tuple[Latents, Latents]:
    """Mean and log variance of the posterior.

    Args:
      video: pixels in [-1, 1]. A clip's first chunk (or all of it) has 4k+1 frames, later ones 4k.
      first: False if `video` continues the clip whose features are in the collection `cache`.
    """
    _, t, h, w, _ = video.shape
    _check_frames(t if first else t + 1, self.time_stride)
    _check_size(h, w, self.space_stride)
    x = constrain(video, "video")
    if first:
      x = jnp.concatenate([x[:, :1]] * (self.patch_time - 1) + [x], axis=1)
    x = rearrange(x, _PIXELS + " -> " + _PATCHES, **self._patch)
    x = constrain(self.quant(self.encoder(x, first)), "latent").astype(jnp.float32)
    mean, logvar = jnp.split(x, 2, axis=-1)
    return mean, jnp.clip(logvar, -30.0, 20.0)

  def decode(self, latent: Latents, first: bool = True) -> Video:
    """Pixels, nominally in [-1, 1] but not clipped. `first` as for `encode`."""
    x = self.decoder(self.post_quant(constrain(latent, "latent")), first)
    x = rearrange(x, _PATCHES + " -> " + _PIXELS, **self._patch)
    x = x[:, self.patch_time - 1 :] if first else x
    return constrain(x, "video").astype(jnp.float32)

  def __call__(self, video: Video, key: PRNGKey) -> tuple[Video, Latents, Latents]:
    """Reconstruction from a sample of the posterior, with the posterior's mean and log variance."""
    mean, logvar = self.encode(video)
    latent = mean + jnp.exp(0.5 * logvar) * normal(key, mean.shape)
    return self.decode(latent), mean, logvar


def _quiet(key, shape, dtype=jnp.float32):
  """Posteriors start narrow: training begins by looking at the data rather than at noise."""
  del key
  return jnp.concatenate([jnp.zeros(shape[0] // 2, dtype), jnp.full(shape[0] // 2, -4.0, dtype)])


def _check_frames(frames: int, stride: int) -> None:
  if frames < 1 or frames % stride != 1 % stride:
    below = max(1, (frames - 1) // stride * stride + 1)
    raise UserError(
      f"A video for this autoencoder has {stride}k+1 frames, not {frames}; "
      f"use {below} or {below + stride} (or repeat the last frame with pad_to_legal)."
    )


def _check_size(height: int, width: int, stride: int) -> None:
  if height < stride or width < stride or height % stride or width % stride:
    nearest = "x".join(str(max(1, round(n / stride)) * stride) for n in (height, width))
    raise UserError(
      f"Height and width must be multiples of {stride} for this autoencoder, not {height}x{width}; "
      f"the nearest is {nearest}."
    )


def pad_to_legal(video: Video, time_stride: int = 4) -> Float[Array, "b t2 h w c"]:
  """Repeats the last frame until there are `time_stride` k + 1 frames."""
  missing = -(video.shape[1] - 1) % time_stride
  return jnp.concatenate([video, *[video[:, -1:]] * missing], axis=1)


def encode_video(vae: VideoVAE, params: Params, video: Video, chunk: int | None = None) -> Latents:
  """The standardised latents of a video: (mean - latent_mean) / latent_std.

  Args:
    vae: the autoencoder (its parameters are `params`).
    video: 4k+1 frames of pixels in [-1, 1]; rows and columns multiples of the stride.
    chunk: latent frames to compute at a time, in memory that does not depend on the length of the
      clip; all at once if None. The result is the same.

  Raises:
    UserError: a length or size the autoencoder cannot take, naming the nearest it can.
  """
  lt, _, _ = vae.latent_shape(*video.shape[1:4])
  ends = [1 + n * vae.time_stride for n in _ends(lt, chunk)]
  pieces = (video[:, a:b] for a, b in zip([0, *ends], ends, strict=False))
  return jnp.concatenate(list(encode_stream(vae, params, pieces)), axis=1)


def decode_latents(
  vae: VideoVAE, params: Params, latents: Latents, chunk: int | None = None
) -> Video:
  """The video of standardised latents, clipped to [-1, 1]. `chunk` as for `encode_video`."""
  ends = [1 + n for n in _ends(latents.shape[1], chunk)]
  pieces = (latents[:, a:b] for a, b in zip([0, *ends], ends, strict=False))
  return jnp.concatenate(list(decode_stream(vae, params, pieces)), axis=1)


def encode_stream(
  vae: VideoVAE, params: Params, pieces: Iterable[Float[Array, "b _ h w c"]]
) -> Iterator[Latents]:
  """`encode_video` for a clip that arrives in pieces: 4k+1 frames first, then multiples of 4."""
  cache = None
  for piece in pieces:
    latents, cache = _encode_piece(vae, params, cache, piece)
    yield latents


def decode_stream(
  vae: VideoVAE, params: Params, pieces: Iterable[Float[Array, "b _ lh lw z"]]
) -> Iterator[Video]:
  """`decode_latents` for latents that arrive in pieces of any number of frames."""
  cache = None
  for piece in pieces:
    video, cache = _decode_piece(vae, params, cache, piece)
    yield video


def _ends(latent_frames: int, chunk: int | None) -> list[int]:
  """Where chunks end: the index of the last latent frame of each."""
  if chunk is not None and chunk < 1:
    raise UserError(f"A chunk has at least one latent frame, not {chunk}.")
  step = chunk or latent_frames
  return [min(n, latent_frames) - 1 for n in range(step, latent_frames + step, step)]


@partial(jax.jit, static_argnums=0)
def _encode_piece(vae, params, cache, video):
  variables = {"params": params} | ({} if cache is None else {"cache": cache})
  (mean, _), kept = vae.apply(variables, video, cache is None, method=vae.encode, mutable=["cache"])
  shift, scale = _statistics(vae)
  return (mean - shift) / scale, kept["cache"]


@partial(jax.jit, static_argnums=0)
def _decode_piece(vae, params, cache, latents):
  variables = {"params": params} | ({} if cache is None else {"cache": cache})
  shift, scale = _statistics(vae)
  video, kept = vae.apply(
    variables, latents * scale + shift, cache is None, method=vae.decode, mutable=["cache"]
  )
  return jnp.clip(video, -1.0, 1.0), kept["cache"]


def _statistics(vae: VideoVAE) -> tuple[Array, Array]:
  mean = vae.latent_mean if vae.latent_mean is not None else (0.0,) * vae.z_channels
  std = vae.latent_std if vae.latent_std is not None else (1.0,) * vae.z_channels
  return jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32)
