"""Finds what is damaged in a video: black, white or noisy frames and bands, as on old tapes.

A row of pixels is damaged if it is all black or white and in most frames is not, or if it jumps
away from the frames before and after it while these agree with each other. Frames of which half the
rows are damaged are lost as a whole.
"""

from __future__ import annotations

import numpy as np

from sora_jax.data.images import spread
from sora_jax.typing import Bool, Clip

BLANK = 24.0  # grey levels: how far from black or white a lost row may be
APART = 30.0  # grey levels: the least that a damaged row differs from what belongs there
AGREE = 0.6  # how much the neighbours of a jump may differ, as a part of it
THINNEST = 0.03  # bands, as a part of the height
SAMPLED = 65  # frames that tell what is usual


def find(video: Clip) -> Bool[np.ndarray, "t h w"]:
  """The damaged pixels of a video."""
  usual = np.median(spread(video, SAMPLED), axis=0)
  damaged = np.zeros(video.shape[:3], bool)
  for t in range(len(video)):
    # The first and the last frame have two others on one side.
    sides = (t - 1, t + 1) if 0 < t < len(video) - 1 else (abs(t - 1), abs(t - 2))
    row = video[t].astype(np.float32)
    before, after = (video[i % len(video)].astype(np.float32) for i in sides)
    blank = (row.max(axis=(1, 2)) <= BLANK) | (row.min(axis=(1, 2)) >= 255 - BLANK)
    blank &= np.abs(row - usual).mean(axis=(1, 2)) > APART
    jump = np.minimum(_apart(row, before), _apart(row, after))
    leap = (jump > APART) & (_apart(before, after) < AGREE * jump)
    rows = _bands(blank | leap)
    damaged[t, rows if rows.mean() <= 0.5 else slice(None)] = True
  return damaged


def _apart(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """Of most of a row, not of an object in it."""
  return np.median(np.abs(a - b), axis=(1, 2))


def _bands(rows: Bool[np.ndarray, " h"]) -> Bool[np.ndarray, " h"]:
  """Without what is too thin for a band."""
  thinnest = max(2, round(THINNEST * len(rows)))
  edges = np.flatnonzero(np.diff(np.concatenate([[0], rows, [0]])))
  kept = np.zeros_like(rows)
  for start, stop in edges.reshape(-1, 2):
    kept[start:stop] = stop - start >= thinnest
  return kept
