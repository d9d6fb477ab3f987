"""The four looks, computed from one scene's colour, depth and segmentation passes.

All take frames at the rendering resolution (`scale` times the final one) and return the final one.
"""

from __future__ import annotations

import numpy as np
from einops import repeat

from sora_jax.typing import Bool, Clip, Float, UInt8

PAPER = np.array([247.0, 245.0, 238.0], np.float32)
INK = np.array([28.0, 28.0, 34.0], np.float32)


def shrink(video: UInt8[np.ndarray, "t sh sw 3"], scale: int) -> Clip:
  """Area-downsamples by an integer: the antialiasing."""
  if scale == 1:
    return video
  # Strided sums, channel by channel: ten times faster than a mean over split axes.
  rows = video[:, ::scale].astype(np.uint16)
  for k in range(1, scale):
    rows += video[:, k::scale]
  out = np.empty((*rows.shape[:2], rows.shape[2] // scale, 3), np.uint8)
  for channel in range(3):
    total = rows[:, :, ::scale, channel] + np.uint16(scale * scale // 2)
    for k in range(1, scale):
      total += rows[:, :, k::scale, channel]
    out[..., channel] = total // np.uint16(scale * scale)
  return out


def _edges(
  segmentation: UInt8[np.ndarray, "t sh sw"],
  depth: Float[np.ndarray, "t sh sw"],
  folded: Bool[np.ndarray, " n"],
  radius: int,
) -> Bool[np.ndarray, "t sh sw"]:
  """True on the outlines of things and on sharp folds of the surface of those `folded`."""
  edge = np.zeros(segmentation.shape, bool)
  inverse = 1.0 / depth
  for axis in (1, 2):
    ahead = np.roll(segmentation, -1, axis) != segmentation
    # The second difference of 1/depth vanishes on planes, in perspective too.
    fold = np.abs(np.roll(inverse, -1, axis) + np.roll(inverse, 1, axis) - 2 * inverse)
    edge |= ahead | ((fold > 0.12 / min(depth.shape[1:])) & folded[segmentation])
  edge[:, 0] = edge[:, -1] = edge[:, :, 0] = edge[:, :, -1] = False
  thick = edge.copy()
  for axis in (1, 2):
    for shift in range(1, radius + 1):
      thick |= np.roll(edge, shift, axis)
    edge = thick.copy()
  return thick


def line(
  segmentation: UInt8[np.ndarray, "t sh sw"],
  depth: Float[np.ndarray, "t sh sw"],
  scale: int,
  palette: Float[np.ndarray, "n 3"],
  folded: Bool[np.ndarray, " n"],
) -> Clip:
  """Ink outlines on paper, things filled flatly.

  `palette` has a colour, `folded` whether its folds are drawn, per segmentation number.
  """
  edge = _edges(segmentation, depth, folded, max(1, round(0.0105 * min(depth.shape[1:]))))
  fills = np.round(0.22 * PAPER + 0.78 * 255 * palette)
  fills[:2] = PAPER
  fills = np.concatenate([fills, INK[None]]).astype(np.uint8)
  return shrink(fills[np.where(edge, len(fills) - 1, segmentation)], scale)


def pixel(video, segmentation, depth, scale: int) -> Clip:
  """Blocks of one colour from a coarse palette, dark outlines around things."""
  del depth
  height, width = video.shape[1] // scale, video.shape[2] // scale
  block = max(2, round(min(height, width) / 32))
  side = block * scale
  pad = ((0, 0), (0, -video.shape[1] % side), (0, -video.shape[2] % side))
  video = np.pad(video, (*pad, (0, 0)), mode="edge")
  ids = np.pad(segmentation, pad, mode="edge")[:, side // 2 :: side, side // 2 :: side]
  small = shrink(video, side).astype(np.float32)
  # Few brightnesses, but true hues: channels rounded one by one would scatter false colours.
  bright = np.maximum(small.max(-1, keepdims=True), 1)
  small *= np.maximum(np.round(bright / 28), 1) * 28 / bright
  border = np.zeros(ids.shape, bool)
  thing = ids > 1
  for axis in (1, 2):
    for shift in (-1, 1):
      near = np.roll(ids, shift, axis)
      border |= thing & (near != ids) & (near <= 1)
  small = np.where(border[..., None], small * 0.45, small)
  small = np.clip(np.round(small), 0, 255).astype(np.uint8)
  return repeat(small, "t h w c -> t (h a) (w b) c", a=block, b=block)[:, :height, :width]


def mono(video, scale: int, colour: tuple[float, float, float], gain: float) -> Clip:
  """Shades of one colour, the main object's: dark, the colour itself, nearly white.

  `gain` is the light's brightness: the main object keeps its colour by night.
  """
  small = shrink(video, scale).astype(np.float32) / 255
  weights = np.array([0.299, 0.587, 0.114], np.float32)
  grey = small @ weights
  own = max(float(np.array(colour) @ weights) * gain, 0.1)
  dark = 0.08 + 0.92 * np.minimum(grey / own, 1) ** 1.6
  light = np.clip((grey - own) / (1 - min(own, 0.9)), 0, 1)[..., None]
  out = np.array(colour, np.float32) * dark[..., None]
  out = np.minimum(out * (1 - light) + 0.96 * light, 1)
  return np.round(255 * out).astype(np.uint8)
