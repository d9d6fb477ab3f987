"""Damage to clips, of two kinds: what a judge must see through, and what it must reject.

`mild` stands for a good autoencoder, a lossy file, a camera: a clip so treated is still what its
caption says. `CONTROLS` are the failures of a bad generator: mush, double exposure, two objects
where one was asked for, no motion, motion in the wrong order, a cut to something else.
All take and return uint8 clips and draw from the generator they are given.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import ndimage

from sora_jax.typing import Bool, Clip, Float

Rng = np.random.Generator
Masks = Bool[np.ndarray, "t h w"]


def _finish(x: Float[np.ndarray, "t h w 3"]) -> Clip:
  return np.clip(np.round(x), 0, 255).astype(np.uint8)


def _spatial_blur(x: np.ndarray, sigma: float) -> np.ndarray:
  for axis in (1, 2):
    x = ndimage.gaussian_filter1d(x, sigma, axis, mode="nearest", truncate=2.5)
  return x


def mild(video: Clip, rng: Rng) -> Clip:
  """A random mixture of slight blur, lost detail, noise, blocks, colour and temporal smear."""
  x = video.astype(np.float32)
  frames, height, width, _ = x.shape
  if rng.random() < 0.5:
    x = _spatial_blur(x, rng.uniform(0.3, 0.75))
  if rng.random() < 0.4:  # detail the decoder did not bring back
    small = x[:, : height // 2 * 2, : width // 2 * 2]
    small = small.reshape(frames, height // 2, 2, width // 2, 2, 3).mean((2, 4))
    coarse = np.repeat(np.repeat(small, 2, 1), 2, 2)
    part = rng.uniform(0.1, 0.5)
    x[:, : coarse.shape[1], : coarse.shape[2]] *= 1 - part
    x[:, : coarse.shape[1], : coarse.shape[2]] += part * _spatial_blur(coarse, 0.6)
  if rng.random() < 0.3:
    part = rng.uniform(0.02, 0.12)
    x = (1 - 2 * part) * x + part * (x[np.r_[0, : frames - 1]] + x[np.r_[1:frames, frames - 1]])
  if rng.random() < 0.4:
    x += rng.normal(0, rng.uniform(1, 7), x.shape).astype(np.float32)
  if rng.random() < 0.4:  # blotches, as of quantised blocks or of noisy latents
    cell = int(rng.choice([4, 8]))
    coarse = rng.normal(0, rng.uniform(1, 6), (frames, -(-height // cell), -(-width // cell), 3))
    coarse = coarse.astype(np.float32).repeat(cell, 1).repeat(cell, 2)[:, :height, :width]
    x += _spatial_blur(coarse, cell / 3) if rng.random() < 0.6 else coarse
  if rng.random() < 0.4:
    x = x * rng.uniform(0.94, 1.06, 3).astype(np.float32) + rng.uniform(-6, 6)
  return _finish(x)


def blurred(video: Clip, rng: Rng) -> Clip:
  """Out of focus: Gaussian blur of 2.2 to 4 px at 64 px."""
  return _finish(_spatial_blur(video.astype(np.float32), rng.uniform(2.2, 4) * len(video[0]) / 64))


def ghosted(video: Clip, other: Clip, rng: Rng) -> Clip:
  """A double exposure with another clip."""
  part = rng.uniform(0.35, 0.6)
  return _finish((1 - part) * video.astype(np.float32) + part * other)


def doubled(video: Clip, masks: Masks, rng: Rng) -> Clip:
  """A second copy of the object under `masks`, beside the first and moving along with it."""
  columns = np.nonzero(masks)[2]
  if not len(columns):
    raise ValueError("the object to double is never visible")
  frames, height, width = masks.shape
  extent = max(int(np.ptp(np.nonzero(m.any(0))[0])) + 1 for m in masks if m.any())
  # Towards the side with more room, far enough that the two do not merge.
  side = 1 if columns.mean() < width / 2 else -1
  dx = side * int(np.clip(rng.uniform(1.1, 1.5) * extent, 0.2 * width, 0.45 * width))
  dy = int(rng.integers(-height // 16, height // 16 + 1))
  moved = np.roll(masks, (dy, dx), (1, 2))
  moved[:, :, slice(None, dx) if dx > 0 else slice(dx, None)] = False
  if dy:
    moved[:, slice(None, dy) if dy > 0 else slice(dy, None)] = False
  return np.where(moved[..., None], np.roll(video, (dy, dx), (1, 2)), video)


def frozen(video: Clip, rng: Rng) -> Clip:
  """One frame, held."""
  return np.repeat(video[rng.integers(len(video))][None], len(video), 0)


def shuffled(video: Clip, rng: Rng) -> Clip:
  """The frames in random order."""
  return video[rng.permutation(len(video))]


def spliced(video: Clip, other: Clip, rng: Rng) -> Clip:
  """A cut to another clip half-way."""
  cut = int(rng.integers(len(video) // 3, 2 * len(video) // 3 + 1))
  return np.concatenate([video[:cut], other[cut:]])


def noisy(video: Clip, rng: Rng) -> Clip:
  """Noise of 40 to 80 grey levels."""
  return _finish(video + rng.normal(0, rng.uniform(40, 80), video.shape))


# name -> function of (video, masks of the main object, another clip, rng)
CONTROLS: dict[str, Callable[[Clip, Masks, Clip, Rng], Clip]] = {
  "blurred": lambda video, masks, other, rng: blurred(video, rng),
  "ghosted": lambda video, masks, other, rng: ghosted(video, other, rng),
  "doubled": lambda video, masks, other, rng: doubled(video, masks, rng),
  "frozen": lambda video, masks, other, rng: frozen(video, rng),
  "shuffled": lambda video, masks, other, rng: shuffled(video, rng),
  "spliced": lambda video, masks, other, rng: spliced(video, other, rng),
  "noisy": lambda video, masks, other, rng: noisy(video, rng),
}
# A clip in which nothing moves is not changed by these.
NEED_MOTION = ("frozen", "shuffled")
