"""Features of clips: where they come from, and whether they still tell clips apart.

The last is not certain of a network that is trained to predict its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sora_jax.data.transforms import to_float
from sora_jax.models.patch import Patch
from sora_jax.models.vjepa import VJEPA, tubelets
from sora_jax.typing import Array, Float, Params, Scalar, UInt8

Clips = UInt8[np.ndarray, "b t h w 3"]
Encode = Callable[[Clips], Float[np.ndarray, "b n d"]]  # tokens in the order of a grid
PIECE = 16  # clips at a time


def frozen(vjepa: VJEPA, encoder: Params) -> Encode:
  """The features of an encoder that stays as it is: `target`, `encoder`, or random weights."""

  @jax.jit
  def encode(params: Params, clips: Array) -> Array:
    values, positions = tubelets(to_float(clips), vjepa.patch)
    features = vjepa.apply({"params": {"encoder": params}}, values, positions, method="encode")
    return features.astype(jnp.float32)

  return lambda clips: in_pieces(lambda piece: encode(encoder, piece), clips)


def pixels(patch: Patch) -> Encode:
  """The patches themselves, in [-1, 1]: what any encoder has to beat."""
  return lambda clips: np.asarray(tubelets(jnp.asarray(to_float(clips)), patch)[0])


def in_pieces(function: Callable[[Any], Any], clips: np.ndarray) -> np.ndarray:
  """`function` of all clips, images or codes, `PIECE` at a time: one program for any number."""
  parts = []
  for start in range(0, len(clips), PIECE):
    piece = clips[start : start + PIECE]
    padded = np.concatenate([piece, np.repeat(piece[-1:], PIECE - len(piece), axis=0)])
    parts.append(np.asarray(function(padded))[: len(piece)])
  return np.concatenate(parts)


def effective_rank(features: Float[Array, "b n d"]) -> Scalar:
  """exp of the entropy of the normalised singular values of all tokens' features, in [1, d].

  RankMe (Garrido et al. 2022, arXiv:2210.02885, equation 1), from the eigenvalues of the d x d
  matrix of products; those that float32 cannot tell from 0 count as 0.
  """
  x = features.reshape(-1, features.shape[-1]).astype(jnp.float32)
  power = jnp.linalg.eigvalsh(jnp.einsum("nd,ne->de", x, x, precision="highest"))
  floor = jnp.finfo(jnp.float32).eps * len(power) * power[-1]
  found = power > floor
  size = jnp.sqrt(jnp.where(found, power, 1.0)) * found
  share = size / jnp.maximum(jnp.sum(size), jnp.finfo(jnp.float32).tiny)
  return jnp.exp(-jnp.sum(share * jnp.log(jnp.where(share > 0, share, 1.0))))


def spread(features: Float[Array, "b n d"]) -> Scalar:
  """Variance over clips at the same place, averaged over places and channels.

  0 if features say only where a token is; near 1 if they are standardised and say nothing of it.
  """
  return jnp.mean(jnp.var(features.astype(jnp.float32), axis=0))
