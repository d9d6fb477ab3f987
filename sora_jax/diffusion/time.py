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
    reference_tokens: the number of tokens `shift` was chosen for.
    uniform: fraction of samples whose level is uniform instead, so that both ends are visited.
  """

  mean: float = 0.0
  std: float = 1.0
  shift: float = 1.0
  reference_tokens: int = 80
  uniform: float = 0.1

  def shift_for(self, tokens: int) -> float:
    """The shift for a sample of so many tokens."""
    return self.shift * (tokens / self.reference_tokens) ** 0.5

  def __call__(self, rng: np.random.Generator, tokens: int, count: int = 1) -> np.ndarray:
    """Draws `count` levels in (0, 1) for a sample of `tokens` tokens."""
    logistic = 1 / (1 + np.exp(-rng.normal(self.mean, self.std, count)))
    flat = rng.random(count)
    t = np.where(rng.random(count) < self.uniform, flat, logistic)
    return np.clip(shift_levels(t, self.shift_for(tokens)), 1e-3, 1.0).astype(np.float32)


def schedule(steps: int, shift: float, start: float = 1.0) -> np.ndarray:
  """The `steps + 1` levels a sampler visits, from `start` down to 0, shifted towards noise.

  `start` < 1 enters the path midway (SDEdit, Meng et al. 2021).
  """
  t = np.linspace(1.0, 0.0, steps + 1)
  return (start * shift_levels(t, shift)).astype(np.float32)
