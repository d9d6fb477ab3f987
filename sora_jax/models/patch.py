"""Between the latent grid and the sequence: patches, their positions and rotary embeddings.

Patch contents are ordered (patch time, patch row, patch column, channel), tokens (time, row,
column); the latent grid is padded at its end to whole patches and cropped back.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from einops import rearrange

from sora_jax.typing import Array, Float, Latents

Patch = tuple[int, int, int]


def grid_shape(latent: tuple[int, int, int], patch: Patch) -> tuple[int, int, int]:
  """Patches along time, rows and columns of a latent grid (lt, lh, lw)."""
  return tuple(-(-size // step) for size, step in zip(latent, patch, strict=True))  # type: ignore


def patchify(latents: Latents, patch: Patch) -> Float[Array, "b n p"]:
  """Cuts latents into patches; odd grids are padded with zeros."""
  pads = [(0, -size % step) for size, step in zip(latents.shape[1:4], patch, strict=True)]
  latents = jnp.pad(latents, [(0, 0), *pads, (0, 0)])
  pt, ph, pw = patch
  return rearrange(
    latents, "b (t pt) (h ph) (w pw) z -> b (t h w) (pt ph pw z)", pt=pt, ph=ph, pw=pw
  )


def unpatchify(
  values: Float[Array, "b n p"], latent: tuple[int, int, int], patch: Patch
) -> Latents:
  """The inverse of `patchify` for a latent grid of the given (lt, lh, lw)."""
  t, h, w = grid_shape(latent, patch)
  pt, ph, pw = patch
  padded = rearrange(
    values,
    "b (t h w) (pt ph pw z) -> b (t pt) (h ph) (w pw) z",
    t=t, h=h, w=w, pt=pt, ph=ph, pw=pw,
  )  # fmt: skip
  return padded[:, : latent[0], : latent[1], : latent[2]]


def rope_split(head_width: int) -> tuple[int, int, int]:
  """Channels of a head given to time, rows and columns; time takes what does not divide by six."""
  space = 2 * (head_width // 6)
  return head_width - 2 * space, space, space


def rope_angles(
  positions: Float[Array, "b n 3"],
  period: Float[Array, "b n"],
  head_width: int,
  theta: float = 10_000.0,
) -> Float[Array, "b n half"]:
  """Rotation angles of 3-axis RoPE (Su et al. 2021, per axis as in Wan 2.1).

  On a circle of time (period > 0) the time frequencies are rounded to multiples of 2 pi / period:
  attention then depends on time differences modulo the period, so that a rolled loop is the same
  sequence.
  """
  angles = []
  for axis, width in enumerate(rope_split(head_width)):
    freqs = jnp.asarray(1.0 / theta ** (np.arange(0, width, 2) / width), jnp.float32)
    freqs = jnp.broadcast_to(freqs, (*period.shape, width // 2))
    if axis == 0:
      base = 2 * np.pi / jnp.where(period > 0, period, 1.0)[..., None]
      freqs = jnp.where(period[..., None] > 0, jnp.round(freqs / base) * base, freqs)
    angles.append(positions[..., axis, None] * freqs)
  return jnp.concatenate(angles, axis=-1)


def rotate(
  x: Float[Array, "b n kd"], angles: Float[Array, "b n half"], paired: bool = True
) -> Float[Array, "b n kd"]:
  """Rotates interleaved channel pairs (2i, 2i + 1) of every head by their angles, in float32.

  Not `paired`, each channel has an angle of its own, as in V-JEPA 2: no rotation then, but what
  its weights were trained with. The pairs are swapped by a product with a matrix of 0, 1 and -1,
  which is exact in any precision: on TPUs, picking every second channel costs more than the
  projection that made them.
  """
  each = 2 if paired else 1
  cos, sin = (jnp.repeat(f(angles), each, axis=-1)[:, :, None] for f in (jnp.cos, jnp.sin))
  width = cos.shape[-1]
  swap = np.kron(np.eye(width // 2), [[0, 1], [-1, 0]])
  heads = x.reshape(*x.shape[:2], -1, width)
  other = jnp.einsum("bnkd,de->bnke", heads, swap.astype(x.dtype), precision="highest")
  turned = heads.astype(jnp.float32) * cos + other.astype(jnp.float32) * sin
  return turned.astype(x.dtype).reshape(x.shape)
