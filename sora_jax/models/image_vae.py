"""The image autoencoder of Stable Diffusion (Rombach et al. 2022, arXiv:2112.10752).

Residual levels at halving resolutions, as in `vae_levels`, but another network: 2-D, with group
norms, whose statistics are of a whole image (of a video they would not be causal). To the
convolutions an image is a clip of one frame.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange, repeat

from sora_jax.models.conv import CausalConv
from sora_jax.models.vae import MIN_LOGVAR
from sora_jax.parallel.sharding import constrain
from sora_jax.typing import Array, Float, Params

MAX_LOGVAR = 20.0
VARIANTS: dict[str, dict[str, Any]] = {
  "sd": dict(widths=(128, 256, 512, 512), res_blocks=2),
}

Features = Float[Array, "b 1 h w c"]
Image = Float[Array, "b h w c"]
Latent = Float[Array, "b lh lw z"]


class Norm(nn.Module):
  """Group normalisation of each image, in float32."""

  groups: int

  @nn.compact
  def __call__(self, x: Features) -> Features:
    # The variance in two passes: activations may lie far from 0.
    norm = nn.GroupNorm(
      self.groups, epsilon=1e-6, dtype=jnp.float32, use_fast_variance=False, name="norm"
    )
    return norm(x.astype(jnp.float32)).astype(x.dtype)


class ResBlock(nn.Module):
  """Two normalised convolutions beside the input."""

  features: int
  groups: int
  dtype: Any = None

  @nn.compact
  def __call__(self, x: Float[Array, "b 1 h w i"]) -> Float[Array, "b 1 h w o"]:
    conv = partial(CausalConv, self.features, (1, 3, 3), dtype=self.dtype)
    y = conv(name="conv1")(nn.silu(Norm(self.groups, name="norm1")(x)))
    y = conv(name="conv2")(nn.silu(Norm(self.groups, name="norm2")(y)))
    if x.shape[-1] != self.features:
      x = CausalConv(self.features, (1, 1, 1), dtype=self.dtype, name="shortcut")(x)
    return x + y


class Middle(nn.Module):
  """The blocks at the coarsest level: attention among all places, one head, between two."""

  groups: int
  attention: bool
  dtype: Any = None

  @nn.compact
  def __call__(self, x: Features) -> Features:
    c = x.shape[-1]
    block = partial(ResBlock, c, self.groups, self.dtype)
    x = block(name="block_0")(x)
    if self.attention:
      dense = partial(CausalConv, c, (1, 1, 1), dtype=self.dtype)
      y = Norm(self.groups, name="attention_norm")(x)
      q, k, v = (
        rearrange(dense(name=f"attention_{name}")(y), "b 1 h w c -> b (h w) 1 c") for name in "qkv"
      )
      y = jax.nn.dot_product_attention(q, k, v)
      y = rearrange(y, "b (h w) 1 c -> b 1 h w c", h=x.shape[2])
      x = x + dense(name="attention_out")(y)
    return block(name="block_1")(x)


class Encoder(nn.Module):
  """Pixels to mean and log variance."""

  features: int
  widths: tuple[int, ...]
  res_blocks: int
  groups: int
  attention: bool
  dtype: Any = None

  @nn.compact
  def __call__(self, x: Float[Array, "b 1 h w c"]) -> Float[Array, "b 1 lh lw o"]:
    conv = partial(CausalConv, kernel=(1, 3, 3), dtype=self.dtype)
    x = conv(self.widths[0], name="conv_in")(x)
    for i, width in enumerate(self.widths):
      for j in range(self.res_blocks):
        x = ResBlock(width, self.groups, self.dtype, name=f"level_{i}_block_{j}")(x)
      if i < len(self.widths) - 1:
        x = conv(width, strides=(1, 2, 2), name=f"level_{i}_down")(x)
    x = Middle(self.groups, self.attention, self.dtype, name="middle")(x)
    x = nn.silu(Norm(self.groups, name="norm_out")(x))
    return conv(self.features, name="conv_out")(x)


class Decoder(nn.Module):
  """Latents to pixels: the encoder's levels from the coarsest, with one more block in each."""

  features: int
  widths: tuple[int, ...]
  res_blocks: int
  groups: int
  attention: bool
  dtype: Any = None

  @nn.compact
  def __call__(self, x: Float[Array, "b 1 lh lw z"]) -> Float[Array, "b 1 h w c"]:
    conv = partial(CausalConv, kernel=(1, 3, 3), dtype=self.dtype)
    x = conv(self.widths[-1], name="conv_in")(x)
    x = Middle(self.groups, self.attention, self.dtype, name="middle")(x)
    for i in reversed(range(len(self.widths))):
      for j in range(self.res_blocks + 1):
        x = ResBlock(self.widths[i], self.groups, self.dtype, name=f"level_{i}_block_{j}")(x)
      if i:
        x = repeat(x, "b 1 h w c -> b 1 (h r) (w s) c", r=2, s=2)
        x = conv(self.widths[i], name=f"level_{i}_up")(x)
    x = nn.silu(Norm(self.groups, name="norm_out")(x))
    return conv(self.features, name="conv_out")(x)


class ImageVAE(nn.Module):
  """The autoencoder. Images are floats in [-1, 1], of any size; odd ones lose a row at each level.

  Attributes:
    widths: features per level, finest first. res_blocks: per level of the encoder.
    z_channels: channels of a latent. channels: of the pixels.
    groups: of the norms. mid_attention: whether the coarsest level has attention.
    quant: whether 1x1 convolutions surround the latents.
    scale, shift: latents are (mean - shift) * scale for a diffusion model: about standard normal.
  """

  widths: tuple[int, ...]
  res_blocks: int
  z_channels: int = 4
  channels: int = 3
  groups: int = 32
  mid_attention: bool = True
  quant: bool = True
  scale: float = 0.18215
  shift: float = 0.0
  dtype: Any = None

  def setup(self):
    levels = (self.widths, self.res_blocks, self.groups, self.mid_attention, self.dtype)
    self.encoder = Encoder(2 * self.z_channels, *levels)
    self.decoder = Decoder(self.channels, *levels)
    if self.quant:
      conv = partial(CausalConv, kernel=(1, 1, 1), dtype=self.dtype)
      self.quant_in, self.quant_out = conv(2 * self.z_channels), conv(self.z_channels)

  @property
  def space_stride(self) -> int:
    """Pixels along a side of a latent."""
    return 2 ** (len(self.widths) - 1)

  def encode(self, image: Image) -> tuple[Latent, Latent]:
    """Mean and log variance of the latents, before `scale` and `shift`."""
    moments = self.encoder(constrain(image[:, None], "video"))
    moments = self.quant_in(moments) if self.quant else moments
    mean, logvar = jnp.split(moments[:, 0].astype(jnp.float32), 2, axis=-1)
    return mean, jnp.clip(logvar, MIN_LOGVAR, MAX_LOGVAR)

  def decode(self, latent: Latent) -> Image:
    """Pixels of latents before `scale` and `shift`."""
    z = constrain(latent[:, None], "video")
    z = self.quant_out(z) if self.quant else z
    return self.decoder(z)[:, 0].astype(jnp.float32)

  def __call__(self, image: Image) -> Image:
    return self.decode(self.encode(image)[0])


def decode_images(vae: ImageVAE, params: Params, latent: Latent) -> Image:
  """Pixels of a diffusion model's latents, not clipped."""
  return vae.apply({"params": params}, latent / vae.scale + vae.shift, method=vae.decode)
