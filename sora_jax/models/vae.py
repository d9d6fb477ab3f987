"""One causal autoencoder for images and videos. Wan 2.1's and 2.2's are rows of its variants.

A video of 4k+1 frames becomes a grid of k+1 latent frames: the first latent sees one frame, every
later one `time_stride` more. An image is a video of one frame. Both directions are causal, so a
clip may be encoded and decoded chunk by chunk, in memory that does not grow with its length, and
the result is that of the whole clip.

The levels are Wan's (models/vae_levels.py), the latents those of a KL autoencoder (Rombach et al.,
arXiv:2112.10752). Options are the pixel unshuffle (in time too) and the shortcuts of Wan 2.2, and
fixed principal components beside the levels (models/vae_linear.py) or in their place: without
levels in the encoder the latents are final before anything is trained.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from sora_jax.errors import UserError
from sora_jax.models.conv import CausalConv, normal, present_tap
from sora_jax.models.vae_levels import Decoder, Encoder
from sora_jax.models.vae_linear import PatchComponents
from sora_jax.parallel.sharding import constrain
from sora_jax.typing import Array, Float, Latents, Params, PRNGKey, Video

_PIXELS, _PATCHES = "b (t p) (h q) (w r) c", "b t h w (c p r q)"

MIN_LOGVAR = -30.0
ENCODER = ("encoder", "quant", "principal")  # the parameters that latents depend on

VARIANTS: dict[str, dict[str, Any]] = {
  "toy": dict(
    z_channels=64, widths=(96, 128), res_blocks=1, patch=4, patch_time=4, time_down=(False,),
    kernel_t=(1, 3), mid_attention=False, linear=True, learned=(),
  ),
  "wan2.1": dict(
    widths=(96, 192, 384, 384), res_blocks=2, patch=1, time_down=(False, True, True),
    kernel_t=(3, 3, 3, 3), mid_attention=True,
    latent_mean=(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
                 0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
    latent_std=(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
                3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
  ),
  "wan2.2": dict(
    z_channels=48, widths=(160, 320, 640, 640), decoder_widths=(256, 512, 1024, 1024),
    res_blocks=2, patch=2, time_down=(False, True, True), kernel_t=(3, 3, 3, 3),
    mid_attention=True, shortcuts=True,
    latent_mean=(-0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557,
                 -0.1382, 0.0542, 0.2813, 0.0891, 0.1570, -0.0098, 0.0375, -0.1825,
                 -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502,
                 -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230,
                 -0.0313, -0.1649, 0.0117, 0.0723, -0.2839, -0.2083, -0.0520, 0.3748,
                 0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667),
    latent_std=(0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013,
                0.8158, 1.0344, 0.5894, 1.0901, 0.6885, 0.6165, 0.8454, 0.4978,
                0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659,
                0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093,
                0.5709, 0.6065, 0.6415, 0.4944, 0.5726, 1.2042, 0.5458, 1.6887,
                0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744),
  ),
}  # fmt: skip


class VideoVAE(nn.Module):
  """The causal video autoencoder.

  Attributes:
    z_channels: channels of a latent.
    widths: features per level, finest first; each level but the first has half the rows and
      columns of the one before. decoder_widths: those of the decoder, if they are others.
    res_blocks: residual blocks per level of the encoder; the decoder has one more.
    patch: pixels are first rearranged into patch x patch squares.
    patch_time: frames such a patch spans; the first frame fills one alone, repeated.
    time_down: per step from level to level, whether it also halves the frames.
    kernel_t: taps in time of the convolutions, per level.
    linear: adds the principal components of whole patches (models/vae_linear.py) on both ways; the
      levels start at zero and learn what is missing.
    learned: the sides that have levels; the other ones are the components alone (`linear`).
    mid_attention: whether pixels of a frame attend to each other at the coarsest level.
    shortcuts: adds to what a level makes its input, brought to that size without weights.
    latent_mean, latent_std: per channel over the training set, set once the encoder is frozen;
      `encode_video` and `decode_latents` use them, `encode` and `decode` do not.
    dtype: of the computation; parameters are float32.
  """

  z_channels: int = 16
  widths: tuple[int, ...] = (64, 96, 128)
  decoder_widths: tuple[int, ...] | None = None
  res_blocks: int = 1
  patch: int = 2
  patch_time: int = 1
  time_down: tuple[bool, ...] = (True, True)
  kernel_t: tuple[int, ...] = (1, 3, 3)
  mid_attention: bool = False
  shortcuts: bool = False
  linear: bool = False
  learned: tuple[str, ...] = ("encoder", "decoder")
  latent_mean: tuple[float, ...] | None = None
  latent_std: tuple[float, ...] | None = None
  channels: int = 3
  dtype: Any = None

  def setup(self):
    sides = {"encoder", "decoder"}
    if not (set(self.learned) == sides or (set(self.learned) < sides and self.linear)):
      raise UserError(
        f"learned={self.learned} must hold encoder and decoder, or linear=True do what is missing."
      )
    z = self.z_channels
    shape = dict(
      res_blocks=self.res_blocks, time_down=self.time_down, kernel_t=self.kernel_t,
      mid_attention=self.mid_attention, shortcuts=self.shortcuts, dtype=self.dtype,
    )  # fmt: skip
    last = nn.initializers.zeros if self.linear else present_tap()
    dense = partial(CausalConv, kernel=(1, 1, 1), dtype=self.dtype)
    if "encoder" in self.learned:
      self.encoder = Encoder(2 * z, self.widths, **shape)
      self.quant = dense(2 * z, kernel_init=last, bias_init=_quiet)
    if "decoder" in self.learned:
      patch = self.patch_time * self.patch**2
      widths = self.decoder_widths or self.widths
      self.decoder = Decoder(self.channels * patch, widths, last_init=last, **shape)
      self.post_quant = dense(z)
    if self.linear:
      self.principal = PatchComponents(z, self.time_stride, self.space_stride, self.channels)

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
    check_frames(frames, self.time_stride)
    check_size(height, width, self.space_stride)
    lt = 1 + (frames - 1) // self.time_stride
    return lt, height // self.space_stride, width // self.space_stride

  def encode(self, video: Video, first: bool = True) -> tuple[Latents, Latents]:
    """Mean and log variance of the posterior.

    Args:
      video: pixels in [-1, 1]. A clip's first chunk (or all of it) has 4k+1 frames, later ones 4k.
      first: False if `video` continues the clip whose features are in the collection `cache`.
    """
    b, t, h, w, _ = video.shape
    check_frames(t if first else t + 1, self.time_stride)
    check_size(h, w, self.space_stride)
    grid = (b, t, h // self.space_stride, w // self.space_stride, self.z_channels)
    video = constrain(video, "video", grid)
    linear = jnp.zeros(())
    if self.linear:
      linear = constrain(self.principal.encode(video, first), "video")
    if "encoder" not in self.learned:
      return linear, jnp.full_like(linear, MIN_LOGVAR)
    x = jnp.concatenate([video[:, :1]] * (self.patch_time - 1) * first + [video], axis=1)
    x = rearrange(x, _PIXELS + " -> " + _PATCHES, **self._patch)
    x = constrain(self.quant(self.encoder(x, first)), "video").astype(jnp.float32)
    mean, logvar = jnp.split(x, 2, axis=-1)
    return mean + linear, jnp.clip(logvar, MIN_LOGVAR, 20.0)

  def decode(self, latent: Latents, first: bool = True) -> Video:
    """Pixels, nominally in [-1, 1] but not clipped. `first` as for `encode`."""
    latent, linear = constrain(latent, "video"), jnp.zeros(())
    if self.linear:
      linear = constrain(self.principal.decode(latent, first), "video", latent.shape)
    if "decoder" not in self.learned:
      return linear
    x = self.decoder(self.post_quant(latent), first)
    x = rearrange(x, _PATCHES + " -> " + _PIXELS, **self._patch)
    x = x[:, self.patch_time - 1 :] if first else x
    return constrain(x, "video", latent.shape).astype(jnp.float32) + linear

  def __call__(self, video: Video, key: PRNGKey) -> tuple[Video, Latents, Latents]:
    """Reconstruction from a sample of the posterior, with the posterior's mean and log variance."""
    mean, logvar = self.encode(video)
    latent = mean + jnp.exp(0.5 * logvar) * normal(key, mean.shape)
    return self.decode(latent), mean, logvar


def _quiet(key, shape, dtype=jnp.float32):
  """Posteriors start narrow: training begins by looking at the data rather than at noise."""
  del key
  return jnp.concatenate([jnp.zeros(shape[0] // 2, dtype), jnp.full(shape[0] // 2, -4.0, dtype)])


def check_frames(frames: int, stride: int) -> None:
  """Raises UserError: an autoencoder that packs `stride` frames cannot take so many."""
  if frames < 1 or frames % stride != 1 % stride:
    below = max(1, (frames - 1) // stride * stride + 1)
    raise UserError(
      f"A video for this autoencoder has {stride}k+1 frames, not {frames}; "
      f"use {below} or {below + stride} (or repeat the last frame)."
    )


def check_size(height: int, width: int, stride: int) -> None:
  """Raises UserError: an autoencoder of cells of `stride` pixels cannot take this size."""
  if height < stride or width < stride or height % stride or width % stride:
    nearest = "x".join(str(max(1, round(n / stride)) * stride) for n in (height, width))
    raise UserError(
      f"Height and width must be multiples of {stride} for this autoencoder, not {height}x{width}; "
      f"the nearest is {nearest}."
    )


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
  return (mean - shift) / scale, kept.get("cache", {})  # components keep nothing


@partial(jax.jit, static_argnums=0)
def _decode_piece(vae, params, cache, latents):
  variables = {"params": params} | ({} if cache is None else {"cache": cache})
  shift, scale = _statistics(vae)
  video, kept = vae.apply(
    variables, latents * scale + shift, cache is None, method=vae.decode, mutable=["cache"]
  )
  return jnp.clip(video, -1.0, 1.0), kept.get("cache", {})


def _statistics(vae: VideoVAE) -> tuple[Array, Array]:
  mean = vae.latent_mean if vae.latent_mean is not None else (0.0,) * vae.z_channels
  std = vae.latent_std if vae.latent_std is not None else (1.0,) * vae.z_channels
  return jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32)
