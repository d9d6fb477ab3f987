"""What happens to a sample between its source and the batch: plain callables on numpy arrays.

A random transform takes `(sample, rng)` with a `numpy.random.Generator` that Grain derives from
the pipeline's seed and the sample's position, so augmentations repeat exactly after a resume.
Videos stay uint8 until they are on the device (a quarter of the bytes): see `to_float`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from sora_jax.data.images import resize
from sora_jax.typing import Clip, UInt8

Sample = dict[str, Any]
RandomFilter = Callable[[Sample, np.random.Generator], Sample | None]  # None drops the sample

KEYS = ("video", "caption", "fps", "id")


def to_float(video: Any) -> Any:
  """Maps uint8 [0, 255] to float32 [-1, 1]; numpy or JAX arrays of any shape."""
  return video.astype(np.float32) * np.float32(2 / 255) - np.float32(1)


def to_uint8(video: Any) -> np.ndarray:
  """Maps float [-1, 1] to uint8 [0, 255], rounding and clipping; the inverse of `to_float`."""
  video = np.asarray(video, np.float32)
  return np.clip(np.rint((video + 1) * 127.5), 0, 255).astype(np.uint8)


def window(
  count: int, fps: float, frames: int, target_fps: float | None, rng: np.random.Generator
) -> np.ndarray | None:
  """Draws a random stretch of a clip as `frames` indices into its `count` frames.

  Times step by 1 / `target_fps` from a random start and take the nearest frame, so 30 fps
  footage can feed an 8 fps model. Returns None if the clip is too short.
  """
  step = fps / target_fps if target_fps else 1.0
  last = count - 1 - (frames - 1) * step
  if last < -0.5:
    return None
  # Whole first frames keep equal rates exact: rounding start + k * step never repeats one.
  start = rng.integers(0, int(max(last, 0)) + 1)
  return np.minimum(np.rint(start + step * np.arange(frames)).astype(int), count - 1)


def take(
  video: Clip, fps: float, frames: int, target_fps: float | None, rng: np.random.Generator,
  short: str = "skip",
) -> UInt8[np.ndarray, "{frames} h w 3"] | None:  # fmt: skip
  """Cuts a random clip of `frames` frames at `target_fps` (None: the video's own rate).

  A video that is too short gives None, or with `short="repeat"` ends on its last frame repeated.
  """
  indices = window(len(video), fps, frames, target_fps, rng)
  if indices is None:
    if short != "repeat":
      return None
    step = fps / target_fps if target_fps else 1.0
    indices = np.minimum(np.rint(step * np.arange(frames)).astype(int), len(video) - 1)
  return video[indices]


@dataclass(frozen=True)
class RandomCrop:
  """Cuts a random `height` x `width` window at full resolution; the same one for all frames.

  Videos smaller than the window are first enlarged to cover it.
  """

  height: int
  width: int

  def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
    video = sample["video"]
    h, w = video.shape[1:3]
    scale = max(self.height / h, self.width / w)
    if scale > 1:
      video = resize(video, max(self.height, round(h * scale)), max(self.width, round(w * scale)))
    top = rng.integers(0, video.shape[1] - self.height + 1)
    left = rng.integers(0, video.shape[2] - self.width + 1)
    window = video[:, top : top + self.height, left : left + self.width]
    # A copy: a view would keep the whole frames in memory, in each clip that is read ahead.
    return {**sample, "video": np.ascontiguousarray(window)}
