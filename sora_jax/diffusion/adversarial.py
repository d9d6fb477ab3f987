"""The hinge losses of a generator and its discriminator (Lim & Ye 2017), as terms of one scalar."""

from __future__ import annotations

import jax.numpy as jnp

from sora_jax.typing import Array, Scalar


def discriminator_loss(real: Array, fake: Array) -> Scalar:
  """Pushes logits of real data above 1 and of generated data below -1."""
  return 0.5 * (jnp.mean(jnp.maximum(1 - real, 0)) + jnp.mean(jnp.maximum(1 + fake, 0)))


def generator_loss(fake: Array) -> Scalar:
  """Raises the logits of generated data."""
  return -jnp.mean(fake)
