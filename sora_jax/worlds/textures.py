"""Procedural floors and skies, as uint8 images for the renderer's texture memory."""

from __future__ import annotations

import numpy as np

from sora_jax.typing import Frame
from sora_jax.worlds.vocabulary import FLOORS

FLOOR_TEXELS = 256
FLOOR_METRES = 2.4  # one repeat of the texture
SKY_TEXELS = 1024  # over the height of the backdrop

FLOOR_COLOURS: dict[str, tuple[float, float, float]] = {
  "grey": (0.56, 0.57, 0.60),
  "white": (0.90, 0.90, 0.88),
  "dark": (0.22, 0.23, 0.26),
  "wooden": (0.62, 0.46, 0.30),
  "checkered": (0.64, 0.64, 0.67),
  "sandy": (0.80, 0.73, 0.56),
  "grassy": (0.40, 0.52, 0.26),
  "tiled": (0.62, 0.70, 0.78),
}

# Horizon, middle and zenith of each sky.
SKIES: dict[str, tuple[tuple[tuple[float, float, float], ...], ...]] = {
  "day": (
    ((0.86, 0.93, 0.98), (0.52, 0.74, 0.95), (0.30, 0.56, 0.90)),
    ((0.90, 0.91, 0.92), (0.78, 0.80, 0.83), (0.66, 0.69, 0.73)),
  ),
  "dusk": (
    ((0.99, 0.74, 0.42), (0.86, 0.46, 0.36), (0.40, 0.27, 0.42)),
    ((0.98, 0.70, 0.66), (0.72, 0.46, 0.62), (0.36, 0.28, 0.50)),
  ),
  "night": (
    ((0.14, 0.18, 0.34), (0.06, 0.08, 0.20), (0.02, 0.03, 0.09)),
    ((0.10, 0.11, 0.14), (0.05, 0.05, 0.07), (0.02, 0.02, 0.03)),
  ),
}


def _noise(rng: np.random.Generator, cells: int) -> np.ndarray:
  """Smooth tileable noise in [-1, 1]."""
  grid = rng.uniform(-1, 1, (cells, cells))
  at = np.arange(FLOOR_TEXELS) * cells / FLOOR_TEXELS
  low = at.astype(int)
  mix = at - low
  mix = mix * mix * (3 - 2 * mix)
  rows = grid[low] * (1 - mix)[:, None] + grid[(low + 1) % cells] * mix[:, None]
  return rows[:, low] * (1 - mix) + rows[:, (low + 1) % cells] * mix


def floor(name: str) -> Frame:
  """The floor's texture, FLOOR_TEXELS square; covers FLOOR_METRES and repeats."""
  rng = np.random.default_rng(FLOORS.index(name))
  y, x = np.mgrid[:FLOOR_TEXELS, :FLOOR_TEXELS] / FLOOR_TEXELS
  shade = np.zeros_like(x)
  if name == "checkered":
    shade = np.where((np.floor(x * 2) + np.floor(y * 2)) % 2 == 0, 0.09, -0.09)
  elif name == "wooden":
    planks = np.floor(y * 6).astype(int)
    tone = rng.uniform(-0.07, 0.07, 6)[planks]
    grain = 0.03 * np.sin(2 * np.pi * (y * 48 + 0.6 * np.sin(2 * np.pi * (x + planks / 6))))
    gap = np.abs(y * 6 - np.round(y * 6)) < 0.06
    shade = tone + grain - 0.16 * gap
  elif name == "tiled":
    edge = np.minimum(np.abs(x * 3 - np.round(x * 3)), np.abs(y * 3 - np.round(y * 3)))
    shade = (
      np.where(edge < 0.05, 0.16, 0.0)
      + rng.uniform(-0.03, 0.03, (3, 3))[(y * 3).astype(int), (x * 3).astype(int)]
    )
  elif name == "sandy":
    shade = 0.05 * _noise(rng, 8) + 0.05 * _noise(rng, 32)
  elif name == "grassy":
    shade = 0.06 * _noise(rng, 8) + 0.09 * _noise(rng, 48)
  image = np.array(FLOOR_COLOURS[name]) + shade[..., None]
  return np.round(255 * np.clip(image, 0, 1)).astype(np.uint8)


def sky(light: str, index: int) -> Frame:
  """A vertical gradient, SKY_TEXELS rows from the zenith (row 0) to the horizon, 4 columns."""
  # The backdrop is tall; what a camera sees is mostly its lower quarter.
  stops = np.array([0.0, 0.10, 0.35, 1.0])
  low, middle, high = SKIES[light][index]
  height = np.linspace(1, 0, SKY_TEXELS)
  image = np.stack(
    [np.interp(height, stops, channel) for channel in zip(low, middle, high, high, strict=True)],
    -1,
  )
  return np.round(255 * np.repeat(image[:, None], 4, 1)).astype(np.uint8)
