"""An autoencoder with its weights: pixels as files hold them to standardised latents, and back."""

from __future__ import annotations

import os
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from sora_jax.data.transforms import to_float, to_uint8
from sora_jax.interop import native
from sora_jax.models.vae import VideoVAE, decode_latents, encode_video
from sora_jax.typing import Array, Bool, Float, Params, UInt8

CHUNK = 16  # latent frames at a time: memory does not grow with the clip
Grid = Float[Array, "b lt lh lw z"] | Float[np.ndarray, "b lt lh lw z"]


@dataclass(frozen=True)
class Codec:
  """The round trip uint8 -> latents -> uint8."""

  vae: VideoVAE
  params: Params

  @classmethod
  def load(cls, name: str | os.PathLike[str]) -> Codec:
    """Reads the autoencoder of a checkpoint, which need not hold anything else.

    Raises:
      UserError: there is no such checkpoint, it has no autoencoder, or it is damaged.
    """
    return cls(*native.load_vae(name))

  def encode(
    self, video: UInt8[np.ndarray, "b t h w 3"], known: Bool[np.ndarray, "t h w"] | None = None
  ) -> Float[np.ndarray, "b lt lh lw z"]:
    """Latents of 4k+1 frames; pixels that are not known are greyed first."""
    pixels = to_float(video)
    if known is not None:
      pixels = np.where(known[..., None], pixels, np.float32(0))
    return np.asarray(encode_video(self.vae, self.params, jnp.asarray(pixels), CHUNK))

  def decode(self, latents: Grid, loop: bool = False) -> UInt8[np.ndarray, "b t h w 3"]:
    """Videos of latents; a loop is decoded after a round of it that only warms up."""
    latents = jnp.asarray(latents)
    frames = latents.shape[1] * self.vae.time_stride
    if loop:
      latents = jnp.concatenate([latents, latents], axis=1)
    video = to_uint8(decode_latents(self.vae, self.params, latents, CHUNK))
    return video[:, -frames:] if loop else video

  def reconstruct(self, video: UInt8[np.ndarray, "b t h w 3"]) -> UInt8[np.ndarray, "b t h w 3"]:
    """What the autoencoder keeps of videos of any number of frames."""
    padded = np.pad(
      video, [(0, 0), (0, -(video.shape[1] - 1) % self.vae.time_stride), *[(0, 0)] * 3], "edge"
    )
    return self.decode(self.encode(padded))[:, : video.shape[1]]
