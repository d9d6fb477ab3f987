"""Which tokens of a clip are visible and which are asked for: the multi-block masks of V-JEPA.

Bardes et al. 2024, section 3.2 (arXiv:2404.08471). A mask hides the union of a few blocks, large in
space and as long as the clip, so that what is hidden cannot be copied from its neighbours. Masks
leave different numbers of tokens, and programs want the same: a random part is taken of those that
are too many, and too few are padded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sora_jax.data.transforms import Sample
from sora_jax.errors import UserError
from sora_jax.typing import Bool, Int

Grid = tuple[int, int, int]
PADDING = -1
TRIES = 100


@dataclass(frozen=True, kw_only=True)
class Mask:
  """A kind of mask.

  Attributes:
    blocks: how many blocks are hidden.
    space, time: the share of the frame that a block covers, and of the clip that it lasts.
    aspect: least and largest ratio of a block's height to its width.
    future: if above 0, everything from a random frame of the grid on is hidden, too, and just so
      many frames from there on are asked for.
  """

  blocks: int = 0
  space: float = 0.0
  time: float = 1.0
  aspect: tuple[float, float] = (0.75, 1.5)
  future: int = 0

  def __call__(
    self, grid: Grid, rng: np.random.Generator
  ) -> tuple[Bool[np.ndarray, "t h w"], Bool[np.ndarray, "t h w"]]:
    """What is visible, and what is asked for."""
    hidden = np.zeros(grid, bool)
    t, h, w = grid
    for _ in range(self.blocks):
      side, aspect = math.sqrt(self.space * h * w), math.sqrt(rng.uniform(*self.aspect))
      sides = (self.time * t, side * aspect, side / aspect)
      lengths = [min(max(1, round(a)), size) for a, size in zip(sides, grid, strict=True)]
      starts = [rng.integers(size - a + 1) for a, size in zip(lengths, grid, strict=True)]
      hidden[tuple(slice(s, s + a) for s, a in zip(starts, lengths, strict=True))] = True
    asked = hidden
    if self.future:
      cut = int(rng.integers(1, t)) if t > 1 else 0
      hidden[cut:] = True
      asked = np.zeros(grid, bool)
      asked[cut : cut + self.future] = True
    return ~hidden, asked


@dataclass(frozen=True, kw_only=True)
class Masks:
  """Adds `context` and `targets` to a sample, int32 (kinds, count): token numbers, or `PADDING`.

  Attributes:
    grid: tokens along time, rows and columns.
    context, targets: how many tokens are taken of those that are visible and of those that are
      asked for, at most; shares of all.
    kinds: by name, in alphabetical order.
  """

  grid: Grid
  context: float
  targets: float
  kinds: Mapping[str, Mask]

  @property
  def counts(self) -> tuple[int, int]:
    """How many numbers there are of visible tokens, and of those asked for, with the padding."""
    total = math.prod(self.grid)
    return max(1, round(self.context * total)), max(1, round(self.targets * total))

  def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
    drawn = [self.draw(self.kinds[name], rng) for name in sorted(self.kinds)]
    context, targets = (np.stack(rows) for rows in zip(*drawn, strict=True))
    return {**sample, "context": context, "targets": targets}

  def draw(
    self, mask: Mask, rng: np.random.Generator
  ) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " m"]]:
    """Random numbers of tokens that are visible in one mask, and of those it asks for.

    Raises:
      UserError: nothing stays visible, or nothing is hidden, however often it is drawn.
    """
    for _ in range(TRIES):
      visible, asked = mask(self.grid, rng)
      if visible.any() and asked.any():
        break
    else:
      raise UserError(f"{mask} leaves nothing to see or to predict of {self.grid} tokens.")
    order = rng.permutation(visible.size)
    some = []
    for wanted, count in zip((visible, asked), self.counts, strict=True):
      found = order[wanted.ravel()[order]][:count].astype(np.int32)
      some.append(np.pad(found, (0, count - len(found)), constant_values=PADDING))
    return some[0], some[1]
