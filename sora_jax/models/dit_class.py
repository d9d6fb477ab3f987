"""The class-conditional diffusion transformer for images (Peebles & Xie 2023, arXiv:2212.09748).

Patches of an image's latents, with fixed positions, pass blocks whose norms are modulated by the
time and the class (adaLN-Zero, every block with a map of its own):

  c   = MLP(sinusoid(time)) + label embedding                           b d
  m_l = W_l silu(c)                                                     b 6 d   of block l
  x  += gate1 * SelfAttention(norm(x) * (1 + scale1) + shift1)
  x  += gate2 * MLP(norm(x) * (1 + scale2) + shift2)

The null class, for classifier-free guidance, is the one after the last. SiT (Ma et al. 2024,
arXiv:2401.08740) is the same network predicting velocities, so it is rows of the same table.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from sora_jax.models.dit import REMAT, gated, modulate
from sora_jax.models.layers import Attention, Dense, LayerNorm, Mlp, sinusoid
from sora_jax.models.patch import patchify, unpatchify
from sora_jax.parallel.sharding import constrain
from sora_jax.typing import Array, Float, Int

_SIZES = {
  "s": dict(width=384, layers=12, heads=6),
  "b": dict(width=768, layers=12, heads=12),
  "l": dict(width=1024, layers=24, heads=16),
  "xl": dict(width=1152, layers=28, heads=16),
}
# "dit-xl/2", "sit-b/4", ...: the published sizes and patches, for 256 px.
VARIANTS: dict[str, dict[str, Any]] = {
  f"{name}-{size}/{patch}": dict(fields, patch=patch, predicts=predicts)
  for name, predicts in (("dit", "noise"), ("sit", "velocity"))
  for size, fields in _SIZES.items()
  for patch in (2, 4, 8)
}


class Block(nn.Module):
  """One transformer block."""

  width: int
  heads: int
  mlp_width: int
  eps: float
  mlp_eps: float
  dtype: Any = None

  @nn.compact
  def __call__(
    self, x: Float[Array, "b n d"], c: Float[Array, "b d"]
  ) -> tuple[Float[Array, "b n d"], None]:
    rows = Dense(6 * self.width, kernel_init=nn.initializers.zeros, name="time_modulation")(c)
    rows = rearrange(rows, "b (six d) -> six b 1 d", six=6)
    shift1, scale1, gate1, shift2, scale2, gate2 = rows
    ids = jnp.ones(x.shape[:2], jnp.int32)

    y = modulate(LayerNorm(self.eps)(x), shift1, scale1)
    y = Attention(
      self.width, self.heads, dtype=self.dtype, qk_norm=False, name="attention"
    )(y, ids)  # fmt: skip
    x = gated(x, gate1, y)

    y = modulate(LayerNorm(self.mlp_eps)(x), shift2, scale2)
    y = Mlp(self.mlp_width, self.width, self.dtype, name="mlp")(y)
    return constrain(gated(x, gate2, y), "tokens"), None


class ClassDiT(nn.Module):
  """Predicts the noise, or the velocity, in the latents of images of known classes.

  Attributes:
    width, layers, heads: of the transformer. mlp_ratio: hidden units of its MLPs over `width`.
    classes: without the null class, whose number is `classes`.
    channels: of a latent. size: rows and columns of latents in training; grids of another size
      are given positions that span the same range.
    patch: rows and columns of a patch.
    learned_sigma: whether there are as many outputs again, which say the variance
      (`diffusion.ddpm`).
    predicts: "noise", at times 0 to 999, or "velocity": data - noise, at times from 0 (noise) to
      1 (data). SiT's outputs for the variance are never used; they are left out.
    freq_width: width of the time's sinusoid. freq_shift: see `layers.sinusoid`; diffusers has 1.
    eps, mlp_eps: of the norms before attention and MLP. diffusers has a `mlp_eps` of 1e-5.
    dtype, remat: as of `models.dit.DiT`.
  """

  width: int
  layers: int
  heads: int
  mlp_ratio: float = 4.0
  classes: int = 1000
  channels: int = 4
  size: int = 32
  patch: int = 2
  learned_sigma: bool = True
  predicts: str = "noise"
  freq_width: int = 256
  freq_shift: int = 0
  eps: float = 1e-6
  mlp_eps: float = 1e-6
  dtype: Any = None
  remat: str = "none"

  @property
  def outputs(self) -> int:
    """Channels that the head computes."""
    return 2 * self.channels if self.learned_sigma else self.channels

  @nn.compact
  def __call__(
    self, x: Float[Array, "b h w z"], time: Float[Array, " b"], label: Int[Array, " b"]
  ) -> Float[Array, "b h w o"]:
    """Args: label: in [0, classes]. Returns: `outputs` channels, or `channels` of velocity."""
    height, width = x.shape[1:3]
    patch = (1, self.patch, self.patch)
    positions = sincos(-(-height // self.patch), -(-width // self.patch), self.width, self.span)
    y = Dense(self.width, dtype=self.dtype, name="patch_in")(patchify(x[:, None], patch))
    y = constrain(y + positions.astype(y.dtype), "tokens")
    c = nn.silu(self._condition(time, label))

    block = Block
    if self.remat != "none":
      block = nn.remat(Block, policy=REMAT[self.remat], prevent_cse=False)
    blocks = nn.scan(
      block,
      variable_axes={"params": 0},
      split_rngs={"params": True},
      in_axes=nn.broadcast,
      length=self.layers,
    )
    hidden = int(self.width * self.mlp_ratio)
    y, _ = blocks(
      self.width, self.heads, hidden, self.eps, self.mlp_eps, self.dtype, name="blocks"
    )(y, c)  # fmt: skip

    zeros = nn.initializers.zeros
    rows = Dense(2 * self.width, kernel_init=zeros, name="time_modulation")(c)
    shift, scale = jnp.split(rows[:, None], 2, axis=-1)
    y = modulate(LayerNorm(self.eps)(y), shift, scale).astype(jnp.float32)
    y = Dense(self.patch**2 * self.outputs, kernel_init=zeros, name="patch_out")(y)
    y = unpatchify(y, (1, height, width), patch)[:, 0]
    return y[..., : self.channels] if self.predicts == "velocity" else y

  @property
  def span(self) -> int:
    """Patches along a side in training."""
    return self.size // self.patch

  def _condition(self, time: Float[Array, " b"], label: Int[Array, " b"]) -> Float[Array, "b d"]:
    normal = nn.initializers.normal(0.02)
    e = sinusoid(time, self.freq_width, shift=self.freq_shift)
    e = nn.silu(Dense(self.width, kernel_init=normal, name="time_in")(e))
    e = Dense(self.width, kernel_init=normal, name="time_out")(e)
    return e + nn.Embed(self.classes + 1, self.width, embedding_init=normal, name="label")(label)


def sincos(rows: int, columns: int, width: int, span: int) -> Float[np.ndarray, "n d"]:
  """Fixed positions: sines, then cosines, of the column, then of the row (in the first code's
  order), which run from 0 to `span` whatever the size of the grid."""
  freqs = 10_000.0 ** -(np.arange(width // 4) / (width // 4))
  parts = []
  for axis, count in ((1, columns), (0, rows)):
    angles = np.outer(np.arange(count) * span / count, freqs)
    features = np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)
    grid = np.expand_dims(features, 1 - axis)
    parts.append(np.broadcast_to(grid, (rows, columns, width // 2)))
  return np.concatenate(parts, axis=-1).reshape(rows * columns, width).astype(np.float32)
