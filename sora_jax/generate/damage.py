"""Finds what is damaged in a video: black, white or noisy frames and bands, as on old tapes.

A row of pixels is damaged if it is all black or white and in most frames is not, or if it jumps
away from the frames before and after it while these agree with each other. Frames of which half the
rows are damaged are lost as a whole.
"""

from __future__ import annotations

import numpy as np

from sora_jax.typing import Bool, Clip

BLANK = 24.0  # grey levels: how far from black or white a lost row may be
APART = 30.0  # grey levels: the least that a damaged row differs from what belongs there
AGREE = 0.6  # how much the neighbours of a jump may differ, as a part of it
THINNEST = 0.03  # bands, as a part of the height


def find(video: Clip) -> Bool[np.ndarray, "t h w"]:
  """The damaged pixels of a video."""
  rows = video.astype(np.float32)
  blank = (rows.max(axis=(2, 3)) <= BLANK) | (rows.min(axis=(2, 3)) >= 255 - BLANK)
  blank &= np.abs(rows - np.median(rows, axis=0)).mean(axis=(2, 3)) > APART

  def apart(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.median(np.abs(a - b), axis=(2, 3))  # of most of a row, not of an object in it

  before, after = rows[[0, *range(len(rows) - 1)]], rows[[*range(1, len(rows)), -1]]
  jump = np.minimum(apart(rows, before), apart(rows, after))
  leap = (jump > APART) & (apart(before, after) < AGREE * jump)

  damaged = blank | leap
  damaged = np.stack([_bands(frame) for frame in damaged])
  damaged[damaged.mean(axis=1) > 0.5] = True
  return np.repeat(damaged[:, :, None], video.shape[2], axis=2)


def _bands(rows: Bool[np.ndarray, " h"]) -> Bool[np.ndarray, " h"]:
  """Without what is too thin for a band."""
  thinnest = max(2, round(THINNEST * len(rows)))
  edges = np.flatnonzero(np.diff(np.concatenate([[0], rows, [0]])))
  kept = np.zeros_like(rows)
  for start, stop in edges.reshape(-1, 2):
    kept[start:stop] = stop - start >= thinnest
  return kept
