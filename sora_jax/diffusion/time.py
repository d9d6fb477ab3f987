"""Which noise levels training visits, and which levels sampling steps through.

More latents hide less under the same noise, since neighbours average it away: the levels are moved
towards noise by s(t; a) (`process.shift_levels`) with a growing as the square root of the number of
tokens (Esser et al. 2024, section 5.3.2).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sora_jax.diffusion.process import shift_levels


@dataclass(frozen=True, kw_only=True)
class LevelSampler:
  """Logit-normal noise levels with a size-aware shift.

  Attributes:
    mean, std: of the normal variable under the logistic function.
    shift: the shift a at `reference_tokens` tokens.
    reference_tokens: the number of tokens `shift` was chosen for; None: for any number.
    uniform: fraction of samples whose level is uniform before the shift, so that both ends are
      visited.
    highest: no level is above it; less than 1 for a transformer of low noise alone.
  """

  mean: float = 0.0
  std: float = 1.0
  shift: float = 1.0
  reference_tokens: int | None = 80
  uniform: float = 0.1
  highest: float = 1.0

  def shift_for(self, tokens: int) -> float:
    """The shift for a sample of so many tokens."""
    return self.shift * (tokens / (self.reference_tokens or tokens)) ** 0.5

  def __call__(self, rng: np.random.Generator, tokens: int, count: int = 1) -> np.ndarray:
    """Draws `count` levels in (0, 1) for a sample of `tokens` tokens."""
    logistic = 1 / (1 + np.exp(-rng.normal(self.mean, self.std, count)))
    flat = rng.random(count)
    t = np.where(rng.random(count) < self.uniform, flat, logistic)
    t = self.highest * shift_levels(t, self.shift_for(tokens))
    return np.clip(t, 1e-3, 1.0).astype(np.float32)


def schedule(
  steps: int,
  shift: float,
  start: float = 1.0,
  *,
  highest: float = 1.0,
  lowest: float = 0.0,
  reached: bool = False,
) -> np.ndarray:
  """The `steps + 1` levels a sampler visits, from `start` down to 0, shifted towards noise.

  Args:
    start: below 1 enters the path midway (SDEdit, Meng et al. 2021).
    highest: no level is above it. lowest: where the levels lead to before they are shifted; the
      last step goes to 0 instead, however far that is. reached: whether `lowest` itself is visited,
      before that.
  """
  t = np.linspace(1.0, lowest, steps if reached else steps + 1)[:steps]
  return start * np.minimum(shift_levels(np.append(t, 0.0), shift), highest)


def told(levels: np.ndarray, timesteps: int) -> np.ndarray:
  """What a model is told of levels: as they are (0), or rounded down to multiples of 1/timesteps.

  The latter where it was published with a sampler that counts timesteps in whole numbers.
  """
  return np.floor(levels * timesteps) / timesteps if timesteps else levels
