"""An autoencoder with its weights: pixels as files hold them to standardised latents, and back."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import jax
import numpy as np
from jax.sharding import Mesh

from sora_jax.data.transforms import to_float, to_uint8
from sora_jax.interop import native
from sora_jax.models.vae import (
  VideoVAE,
  decode_stream,
  encode_stream,
  encode_video,
)
from sora_jax.parallel import sharding
from sora_jax.typing import Array, Bool, Float, Params, UInt8

PIXELS = 1 << 22  # at a time, however long a clip: activations are some hundred times as many bytes
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
      placed = self._place(pixels, mesh)
      return np.asarray(encode_video(self.vae, self.params, placed, self._chunk(video.shape)))

  def decode(self, latents: Grid, loop: bool = False) -> UInt8[np.ndarray, "b t h w 3"]:
    """Videos of latents; a loop is decoded after a round of it that only warms up."""
    b, lt, lh, lw, _ = latents.shape
    if loop:
      latents = np.concatenate([latents, latents], axis=1)
    side = self.vae.space_stride
    step = self._chunk((b, lt, lh * side, lw * side))
    pieces = (latents[:, i : i + step] for i in range(0, latents.shape[1], step))
    video = np.concatenate(list(self.stream(pieces)), axis=1)
    return video[:, -lt * self.vae.time_stride :] if loop else video

  def stream(self, pieces: Iterable[Grid]) -> Iterator[UInt8[np.ndarray, "b _ h w 3"]]:
    """`decode` for latents that arrive in pieces of any number of frames; `video.write` takes it.

    Memory does not grow with the length of the clip.
    """
    mesh = sharding.mesh_of(self.params)
    placed = (sharding.place(piece, "video", mesh) for piece in pieces)
    videos = decode_stream(self.vae, self.params, placed)
    while True:
      with jax.set_mesh(mesh):  # not while the caller has its turn
        video = next(videos, None)
      if video is None:
        return
      yield to_uint8(video)

  def reconstruct(self, video: UInt8[np.ndarray, "b t h w 3"]) -> UInt8[np.ndarray, "b t h w 3"]:
    """What the autoencoder keeps of videos of any number of frames, piece by piece."""
    frames, stride = video.shape[1], self.vae.time_stride
    padded = np.pad(video, [(0, 0), (0, -(frames - 1) % stride), *[(0, 0)] * 3], "edge")
    step = self._chunk(video.shape) * stride
    starts = [0, *range(1 + step, padded.shape[1], step)]
    mesh = sharding.mesh_of(self.params)
    pieces = (
      self._place(to_float(padded[:, start:stop]), mesh)
      for start, stop in itertools.zip_longest(starts, starts[1:])
    )
    with jax.set_mesh(mesh):
      latents = encode_stream(self.vae, self.params, pieces)
      made = [to_uint8(piece) for piece in decode_stream(self.vae, self.params, latents)]
    return np.concatenate(made, axis=1)[:, :frames]

  def _chunk(self, shape: tuple[int, ...]) -> int:
    """Latent frames at a time of videos of this shape."""
    b, _, h, w = shape[:4]
    return max(1, PIXELS // (b * self.vae.time_stride * h * w))

  def _place(self, pixels: np.ndarray, mesh: Mesh) -> Array:
    b, t, h, w, c = pixels.shape
    grid = (b, t, h // self.vae.space_stride, w // self.vae.space_stride, c)
    return sharding.place(pixels, "video", mesh, grid)
