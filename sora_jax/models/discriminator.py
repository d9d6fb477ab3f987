"""Patch discriminator for images and videos (PatchGAN: Isola et al., arXiv:1611.07004)."""

from __future__ import annotations

from typing import Any

import flax.linen as nn

from sora_jax.models.conv import CausalConv
from sora_jax.models.layers import RMSNorm
from sora_jax.parallel.sharding import constrain
from sora_jax.typing import Array, Float, Video


class PatchDiscriminator(nn.Module):
  """One logit per patch and frame: is it real?

  Convolutions over time are causal and their past taps start at zero, as the autoencoder's: an
  image is a video of one frame, and a discriminator trained on images judges each frame of a video
  as an image until it learns to look at motion. Norms are per pixel, so that a patch's logit
  depends on nothing beyond its receptive field (`8 x (2 + 2) - 1` = 31 pixels with three levels).

  Attributes:
    widths: features per level; each level halves rows and columns.
    kernel_t: taps in time.
    dtype: of the computation; parameters are float32.
  """

  widths: tuple[int, ...] = (32, 64, 128)
  kernel_t: int = 3
  dtype: Any = None

  @nn.compact
  def __call__(self, video: Video) -> Float[Array, "b t h2 w2"]:
    kernel = (self.kernel_t, 3, 3)
    b, t, h, w, c = video.shape
    x = constrain(video, "video", (b, t, h >> len(self.widths), w >> len(self.widths), c))
    for i, width in enumerate(self.widths):
      x = CausalConv(width, kernel, (1, 2, 2), dtype=self.dtype, name=f"level_{i}")(x)
      if i:  # the first level keeps colour and contrast
        x = RMSNorm(name=f"norm_{i}")(x)
      x = nn.leaky_relu(x, 0.2)
    return CausalConv(1, kernel, dtype=self.dtype, name="head")(x)[..., 0].astype(video.dtype)
