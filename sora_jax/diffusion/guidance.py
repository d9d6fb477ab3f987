"""Classifier-free guidance (Ho & Salimans 2022), rescaled (Lin et al. 2023), in an interval of
noise levels (Kynkäänniemi et al. 2024)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from sora_jax.errors import UserError
from sora_jax.typing import Array, Bool, Float

ROUNDING = 1e-6  # of noise levels


@dataclass(frozen=True, kw_only=True)
class Guidance:
  """How strongly the prompt pulls.

  Attributes:
    scale: 1 is the conditional model; larger follows the prompt more and varies less.
    rescale: in [0, 1], how far the guided velocity's standard deviation is brought back to the
      conditional one's, against burnt colours.
    interval: guidance acts while low <= noise level <= high.
  """

  scale: float = 3.0
  rescale: float = 0.0
  interval: tuple[float, float] = (0.0, 1.0)

  def __post_init__(self):
    if not 1 <= self.scale < math.inf:
      raise UserError(f"Guidance is {self.scale} but must be at least 1 (1 switches it off).")
    low, high = self.interval
    if not 0 <= low <= high <= 1:
      raise UserError(f"Guidance acts from level {low} to {high}: they must rise, within 0 and 1.")
    if not 0 <= self.rescale <= 1:
      raise UserError(f"Guidance rescale is {self.rescale} but must lie between 0 and 1.")

  @property
  def active(self) -> bool:
    """Whether the unconditional model is needed at all."""
    return self.scale != 1

  def acts(self, level: Any) -> Any:
    """Whether the unconditional model matters at a noise level, or at each of some."""
    low, high = self.interval
    return (level >= low - ROUNDING) & (level <= high + ROUNDING) & self.active

  def __call__(
    self,
    conditional: Float[Array, "b n p"],
    unconditional: Float[Array, "b n p"],
    level: Float[Array, ""],
    made: Bool[Array, "b n"],
  ) -> Float[Array, "b n p"]:
    """Combines the two velocities; statistics are taken over the tokens that are made."""
    scale = jnp.where(self.acts(level), self.scale, 1.0)
    guided = unconditional + scale * (conditional - unconditional)
    factor = _std(conditional, made) / jnp.maximum(_std(guided, made), 1e-6)
    return guided * (1 + self.rescale * (factor - 1))


def _std(x: Float[Array, "b n p"], where: Bool[Array, "b n"]) -> Float[Array, "b 1 1"]:
  return jnp.std(x, axis=(1, 2), where=where[..., None], keepdims=True)


def guide_channels(
  conditional: Float[Array, "b *s c"],
  unconditional: Float[Array, "b *s c"],
  scale: float,
  channels: int,
) -> Float[Array, "b *s c"]:
  """Guides the first channels of a prediction; the others are the conditional ones.

  DiT's own code guides 3 of 4 latent channels, diffusers' pipeline all 4; the variance neither.
  """
  guided = unconditional + scale * (conditional - unconditional)
  return jnp.concatenate([guided[..., :channels], conditional[..., channels:]], axis=-1)
