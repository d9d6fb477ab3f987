"""An autoencoder with its weights: pixels as files hold them to standardised latents, and back."""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass

import jax
import numpy as np
from jax.sharding import Mesh

from sora_jax.data.transforms import to_float, to_uint8
from sora_jax.interop import native
from sora_jax.models.vae import (
  VideoVAE,
  decode_latents,
  decode_stream,
  encode_stream,
  encode_video,
)
from sora_jax.parallel import sharding
from sora_jax.typing import Array, Bool, Float, Params, UInt8

CHUNK = 16  # latent frames at a time, where a clip may be of any length
Grid = Float[Array, "b lt lh lw z"] | Float[np.ndarray, "b lt lh lw z"]


@dataclass(frozen=True)
class Codec:
  """The round trip uint8 -> latents -> uint8, on the mesh that `params` are on."""

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
    mesh = sharding.mesh_of(self.params)
    with jax.set_mesh(mesh):
      return np.asarray(encode_video(self.vae, self.params, self._place(pixels, mesh)))

  def decode(self, latents: Grid, loop: bool = False) -> UInt8[np.ndarray, "b t h w 3"]:
    """Videos of latents; a loop is decoded after a round of it that only warms up."""
    frames = latents.shape[1] * self.vae.time_stride
    if loop:
      latents = np.concatenate([latents, latents], axis=1)
    mesh = sharding.mesh_of(self.params)
    with jax.set_mesh(mesh):
      placed = sharding.place(latents, "video", mesh)
      video = to_uint8(decode_latents(self.vae, self.params, placed))
    return video[:, -frames:] if loop else video

  def reconstruct(self, video: UInt8[np.ndarray, "b t h w 3"]) -> UInt8[np.ndarray, "b t h w 3"]:
    """What the autoencoder keeps of videos of any number of frames, piece by piece."""
    frames, stride = video.shape[1], self.vae.time_stride
    padded = np.pad(video, [(0, 0), (0, -(frames - 1) % stride), *[(0, 0)] * 3], "edge")
    starts = [0, *range(1 + CHUNK * stride, padded.shape[1], CHUNK * stride)]
    mesh = sharding.mesh_of(self.params)
    pieces = (
      self._place(to_float(padded[:, start:stop]), mesh)
      for start, stop in itertools.zip_longest(starts, starts[1:])
    )
    with jax.set_mesh(mesh):
      latents = encode_stream(self.vae, self.params, pieces)
      made = [to_uint8(piece) for piece in decode_stream(self.vae, self.params, latents)]
    return np.concatenate(made, axis=1)[:, :frames]

  def _place(self, pixels: np.ndarray, mesh: Mesh) -> Array:
    b, t, h, w, c = pixels.shape
    grid = (b, t, h // self.vae.space_stride, w // self.vae.space_stride, c)
    return sharding.place(pixels, "video", mesh, grid)
