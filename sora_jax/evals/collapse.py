"""Whether features still tell clips apart: what a network that predicts its own features may lose."""

from __future__ import annotations

import jax.numpy as jnp

from sora_jax.typing import Array, Float, Scalar


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
