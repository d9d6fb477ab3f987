"""Distractors: something in the picture that nobody can foresee and that does not matter.

Bands of bright noise, drawn anew in each frame, along the upper and lower edge: what happens on the
floor stays in sight even when they cover half of the picture. A model that draws all it sees has to
spend itself on them; one that predicts features may leave them out (LeCun 2022, "A path towards
autonomous machine intelligence").
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from einops import repeat

from sora_jax.errors import UserError
from sora_jax.typing import Clip

CELL = 4  # pixels of a side of what is drawn at once
DARKEST, BRIGHTEST = 96, 255


def check(share: float) -> None:
  """Raises UserError unless distractors can cover this part of a picture."""
  if not 0 <= share <= 0.8:
    raise UserError(f"Distractors cover {share:g} of the picture, but must cover 0 to 0.8 of it.")


def distracted(video: Clip, share: float, rng: np.random.Generator) -> Clip:
  """A clip with noise on `share` of its rows, half of them at the top and half at the bottom.

  Raises:
    UserError: a share outside [0, 0.8].
  """
  check(share)
  frames, height, width, _ = video.shape
  rows = round(share * height / 2)
  cells = (frames, 2 * -(-rows // CELL), -(-width // CELL))
  grey = rng.integers(DARKEST, BRIGHTEST, cells, dtype=np.uint8, endpoint=True)
  noise = repeat(grey, "t h w -> t (h p) (w q) c", p=CELL, q=CELL, c=3)[:, :, :width]
  out = video.copy()
  out[:, :rows] = noise[:, :rows]
  out[:, height - rows :] = noise[:, noise.shape[1] - rows :]
  return out


@dataclass(frozen=True)
class Distracted:
  """A source of samples (`data.pipeline.Source`) with distractors on `share` of their pictures.

  An item always has the same ones; a window that the source draws itself has new ones each time.
  """

  source: Any
  share: float

  def __len__(self) -> int:
    return len(self.source)

  def __getitem__(self, index: int) -> dict[str, Any]:
    return self._with(self.source[index], np.random.default_rng(index % len(self)))

  @property
  def clip(self) -> Callable[..., dict[str, Any]]:
    """As of the source; AttributeError if it has none."""
    read = self.source.clip

    def clip(index: int, rng: np.random.Generator, **form: Any) -> dict[str, Any]:
      return self._with(read(index, rng, **form), rng)

    return clip

  def _with(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    return {**sample, "video": distracted(sample["video"], self.share, rng)}
