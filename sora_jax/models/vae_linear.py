"""The best linear autoencoder of whole patches: principal components.

A fixed transform beside the levels of the autoencoder (models/vae.py), which then only learn what
it misses: what sixteen components of 4 x 8 x 8 pixels give for nothing takes the levels hours.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from scipy.linalg import hadamard

from sora_jax.errors import UserError
from sora_jax.typing import Array, Float, Latents, Params, Video

_PIXELS, _PATCHES = "b (t p) (h q) (w r) c", "b t h w (p q r c)"


class PatchComponents(nn.Module):
  """One latent per patch of `time` x `space` x `space` pixels, and one per square of frame 1."""

  z_channels: int
  time: int
  space: int
  channels: int = 3

  def setup(self):
    square = self.space**2 * self.channels
    self.first_in, self.rest_in = nn.Dense(self.z_channels), nn.Dense(self.z_channels)
    self.first_out, self.rest_out = nn.Dense(square), nn.Dense(square * self.time)

  def __call__(self, video: Video, first: bool) -> Video:
    return self.decode(self.encode(video, first), first)

  def encode(self, video: Video, first: bool) -> Latents:
    head = self.first_in(_patches(video[:, :first], 1, self.space))
    return jnp.concatenate(
      [head, self.rest_in(_patches(video[:, first:], self.time, self.space))], axis=1
    )

  def decode(self, latents: Latents, first: bool) -> Video:
    head = _pixels(self.first_out(latents[:, :first]), 1, self.space)
    tail = _pixels(self.rest_out(latents[:, first:]), self.time, self.space)
    return jnp.concatenate([head, tail], axis=1)


def _patches(video: Any, time: int, space: int) -> Any:
  """(b t h w c) to (b t/time h/space w/space d); numpy or JAX arrays."""
  return rearrange(video, f"{_PIXELS} -> {_PATCHES}", p=time, q=space, r=space)


def _pixels(patches: Array, time: int, space: int) -> Video:
  return rearrange(patches, f"{_PATCHES} -> {_PIXELS}", p=time, q=space, r=space)


def fit(
  components: PatchComponents, video: Float[np.ndarray, "b t h w c"], whiten: float = 0.5
) -> Params:
  """The parameters that reconstruct these clips best in the mean square.

  Args:
    whiten: 1 gives all components the same variance, 0 leaves them as they are: then distances
      between latents are those between pixels.

  Raises:
    UserError: the clips are too short to have a patch after their first frame.
  """
  if video.shape[1] <= components.time:
    raise UserError(
      f"Principal components need clips of at least {components.time + 1} frames, not "
      f"{video.shape[1]}; set data.frames, or model.linear=False."
    )
  z, time, space = components.z_channels, components.time, components.space
  frames = _patches(video[:, :1], 1, space)
  first, rest = (_fit(x, z, whiten) for x in (frames, _patches(video[:, 1:], time, space)))
  still = _patches(np.repeat(video[:, :1], time, axis=1), time, space)
  turn = _rotation(_dense(first["in"], frames), _dense(rest["in"], still))
  first["in"] = {name: x @ turn for name, x in first["in"].items()}
  first["out"]["kernel"] = turn.T @ first["out"]["kernel"]
  return {
    f"{name}_{side}": layer
    for name, layers in (("first", first), ("rest", rest))
    for side, layer in layers.items()
  }


def _rotation(x: Float[np.ndarray, "*n z"], y: Float[np.ndarray, "*n z"]) -> np.ndarray:
  """Turns `x` as near to `y` as it gets (Schönemann 1966): a still picture is nearly the same
  latent as a first frame and as later ones, and a transformer need not learn two codes."""
  z = x.shape[-1]
  left, _, right = np.linalg.svd(x.reshape(-1, z).T @ y.reshape(-1, z))
  return left @ right


def _dense(layer: Params, x: np.ndarray) -> np.ndarray:
  return x @ layer["kernel"] + layer["bias"]


def _fit(patches: Float[np.ndarray, "b t h w d"], z: int, whiten: float) -> dict[str, Params]:
  """Components, by default half-way whitened, mixed so that no channel is loud and none faint.

  Whitened fully, a diffusion model would spend as much on the last component as on the first; not
  at all, and the last would drown in the least noise.
  """
  x = patches.reshape(-1, patches.shape[-1]).astype(np.float64)
  mean = x.mean(axis=0)
  values, vectors = np.linalg.eigh(np.cov((x - mean).T))
  values, vectors = np.maximum(values[::-1][:z], 1e-8), vectors[:, ::-1][:, :z]  # grey has none
  power = values ** (1 - whiten)
  scale = np.sqrt(power / values / np.mean(power))  # the latents' mean square is 1
  mix = hadamard(z) / np.sqrt(z) if z & (z - 1) == 0 else np.eye(z)
  inward, outward = vectors * scale @ mix, (vectors / scale @ mix).T
  layers = {"in": (inward, -mean @ inward), "out": (outward, mean)}
  return {
    side: {"kernel": kernel.astype(np.float32), "bias": bias.astype(np.float32)}
    for side, (kernel, bias) in layers.items()
  }
