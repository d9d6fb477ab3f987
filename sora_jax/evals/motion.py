"""Measures of movement that need no judge: seams between frames, and where an object is."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from sora_jax.typing import Bool, Clip, Float, Frame, Int

STANDS_OUT = 25.0  # grey levels: the least that an object differs from what is behind it


def steps(video: Clip, cyclic: bool = False) -> Float[np.ndarray, " _"]:
  """Mean absolute difference of each frame from the one before, in grey levels.

  Step i leads to frame i + 1; with `cyclic` the last one leads from the last frame to the first.
  """
  x = video.astype(np.float32)
  following = np.concatenate([x[1:], x[:1]]) if cyclic else x[1:]
  return np.abs(following - x[: len(following)]).mean(axis=(1, 2, 3))


def seam(video: Clip, frames: list[int], cyclic: bool = False) -> float:
  """The largest step to one of these frames, over the median step of the clip.

  Around 1 where movement is even; an object that gathers speed has more, so compare real clips.
  Frame 0 of a cyclic clip follows the last one. NaN: nothing moves.
  """
  size = steps(video, cyclic)
  usual = float(np.median(size))
  return float(max(size[frame - 1] for frame in frames)) / usual if usual > 0.05 else float("nan")


def border(video: Clip, known: Bool[np.ndarray, "h w"]) -> float:
  """Steps between neighbouring pixels across the border of a region, over those beside it."""
  x = video.astype(np.float32)
  across, beside = [], []
  for axis in (0, 1):
    step = np.abs(np.diff(x, axis=axis + 1)).mean(axis=(0, 3))
    edge = np.diff(known.astype(np.int8), axis=axis) != 0
    near = np.zeros_like(edge)
    for way in (-2, 2):
      near |= np.roll(edge, way, axis=axis)
    across.append(step[edge])
    beside.append(step[near & ~edge])
  return float(np.concatenate(across).mean() / np.concatenate(beside).mean())


def background(video: Clip, thing: Bool[np.ndarray, "t h w"]) -> Float[np.ndarray, "h w 3"]:
  """What is behind a moving thing: the median of the frames that do not show it.

  Where all of them do, it is the median of all.
  """
  x = video.astype(np.float32)
  hidden = np.where(thing[..., None], np.nan, x)
  seen = ~thing.all(axis=0)
  out = np.median(x, axis=0)
  out[seen] = np.nanmedian(hidden[:, seen], axis=0)
  return out


def centre(mask: Bool[np.ndarray, "h w"]) -> Float[np.ndarray, "2"]:
  """Mean row and column of a mask; NaN if it is empty."""
  if not mask.any():
    return np.full(2, np.nan)
  return np.argwhere(mask).mean(axis=0)


def hue(colours: Float[np.ndarray, "*n 3"]) -> Float[np.ndarray, "*n 3"]:
  """Colours without their brightness, as far as they are not black: vectors of length below 1."""
  return colours / (np.linalg.norm(colours, axis=-1, keepdims=True) + STANDS_OUT)


def segment(
  frame: Frame, behind: Float[np.ndarray, "h w 3"], colours: Float[np.ndarray, "n 3"]
) -> Int[np.ndarray, "h w"]:
  """Which of things of these colours is seen in each pixel; -1: none.

  A pixel is a thing's if it stands out and is nearer to its hue than to the others' and to that of
  what is behind it. A shadow stands out too, but has the hue of the floor.
  """
  x = frame.astype(np.float32)
  gaps = [np.linalg.norm(hue(x) - hue(y), axis=-1) for y in (*colours, behind)]
  nearest = np.argmin(gaps, axis=0)
  seen = (np.linalg.norm(x - behind, axis=-1) > STANDS_OUT) & (nearest < len(colours))
  return np.where(seen, nearest, -1)


def find(
  frame: Frame, behind: Float[np.ndarray, "h w 3"], colour: Float[np.ndarray, "3"]
) -> Float[np.ndarray, "2"]:
  """Where a thing of this colour is: the centre of what `segment` finds of it."""
  return centre(segment(frame, behind, colour[None]) == 0)


def parts(mask: Bool[np.ndarray, "h w"], least: int) -> list[Bool[np.ndarray, "h w"]]:
  """The connected parts of a mask that have so many pixels, the largest first."""
  numbers, count = ndimage.label(mask, np.ones((3, 3)))
  found = [numbers == number for number in range(1, count + 1)]
  return sorted((x for x in found if x.sum() >= least), key=lambda x: -x.sum())


def track(video: Clip) -> Float[np.ndarray, "t 2"]:
  """Where the movement of a clip is, frame by frame: the centre of what differs from the usual."""
  x = video.astype(np.float32)
  apart = np.linalg.norm(x - np.median(x, axis=0), axis=-1)
  return np.stack([centre(frame > max(STANDS_OUT, 0.5 * frame.max())) for frame in apart])


def agreement(one: Float[np.ndarray, "t 2"], other: Float[np.ndarray, "t 2"]) -> float:
  """Correlation of two tracks along the direction in which the first one moves; 0 if lost."""
  seen = ~(np.isnan(one) | np.isnan(other)).any(axis=1)
  if seen.sum() < 4:
    return 0.0
  a, b = one[seen] - one[seen].mean(axis=0), other[seen] - other[seen].mean(axis=0)
  direction = np.linalg.svd(a, full_matrices=False)[2][0]
  a, b = a @ direction, b @ direction
  scale = float(np.sqrt((a @ a) * (b @ b)))
  return float(a @ b) / scale if scale > 0 else 0.0
