"""The tasks: each says what is known, and that is all there is to a task.

video = model.sample("a red ball rolls to the left", canvas=tasks.animate(image, frames=17))
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from sora_jax.errors import UserError
from sora_jax.generate.canvas import Canvas, blank, check_room
from sora_jax.typing import Bool, Clip, Frame, UInt8

DIRECTIONS = ("forward", "backward", "both")


def animate(image: Frame, frames: int) -> Canvas:
  """The video that starts with an image."""
  if frames < 2:
    raise UserError(f"A video that starts with an image has 2 frames or more, not {frames}.")
  return extend(image[None], frames - 1)


def extend(video: Clip, frames: int, direction: str = "forward") -> Canvas:
  """What comes after a video, came before it, or `frames` of both."""
  check(direction=direction)
  if frames < 1:
    raise UserError(f"Nothing is to be made: ask for more frames than {frames}.")
  before = frames if direction != "forward" else 0
  after = frames if direction != "backward" else 0
  here = slice(before, before + len(video))
  return _placed([(here, video)], (before + len(video) + after, *video.shape[1:3]))


def connect(first: Clip, second: UInt8[np.ndarray, "_ _ _ 3"], frames: int) -> Canvas:
  """A passage of `frames` from the end of one video to the beginning of another."""
  _one_size(first, second)
  if frames < 1:
    raise UserError(f"A passage has at least one frame, not {frames}.")
  start = len(first) + frames
  places = [(slice(len(first)), first), (slice(start, None), second)]
  return _placed(places, (start + len(second), *first.shape[1:3]))


def loop(frames: int, size: tuple[int, int]) -> Canvas:
  """A video without beginning or end, from a prompt alone."""
  if frames < 1:
    raise UserError(f"A loop has at least one frame, not {frames}.")
  return dataclasses.replace(blank(1, frames, size), loop=True)


def loop_of(video: Clip, frames: int) -> Canvas:
  """A video and a passage of `frames` from its end to its beginning."""
  return dataclasses.replace(connect(video, video, frames), shown=len(video) + frames)


def blend(first: Clip, second: UInt8[np.ndarray, "_ _ _ 3"], strength: float) -> Canvas:
  """The first video's content passing into the second's, in as many frames as both have."""
  check(strength=strength)
  _one_size(first, second)
  weights = np.linspace(0.0, 1.0, min(len(first), len(second)))
  mixed = np.stack([
    ((1 - w) * a + w * b).round().astype(np.uint8)
    for w, a, b in zip(weights, first, second, strict=False)
  ])  # fmt: skip
  return Canvas(mixed[None], np.zeros(mixed.shape[:3], bool), strength)


def fill(video: Clip, missing: Sequence[tuple[int, int]]) -> Canvas:
  """The frames first to last (from 0, both included) of each pair in `missing`."""
  known = np.ones(video.shape[:3], bool)
  for first, last in missing:
    if not 0 <= first <= last < len(video):
      raise UserError(f"Frames {first}-{last} are not in 0-{len(video) - 1}, the video's.")
    if not known[first : last + 1].all():
      raise UserError(f"Frames {first}-{last} overlap others that are missing.")
    known[first : last + 1] = False
  return _some(Canvas(video[None], known))


def inpaint(video: Clip, mask: Bool[np.ndarray, "..."]) -> Canvas:
  """What is under a mask (True: to be made): h w, or t h w."""
  return _some(Canvas(video[None], _known(video, mask)))


def outpaint(video: Clip, size: tuple[int, int]) -> Canvas:
  """What lies around a video, which stands in the middle."""
  h, w = video.shape[1:3]
  check_around((h, w), size)
  top, left = ((outer - inner) // 2 for outer, inner in zip(size, (h, w), strict=True))
  here = (slice(None), slice(top, top + h), slice(left, left + w))
  return _some(_placed([(here, video)], (len(video), *size)))


def check_around(inner: tuple[int, int], size: tuple[int, int]) -> None:
  """Raises UserError if a video of this height and width is not within `size`."""
  if size[0] < inner[0] or size[1] < inner[1]:
    raise UserError(f"The size {size[0]}x{size[1]} must hold the video's {inner[0]}x{inner[1]}.")


def edit(video: Clip, strength: float, mask: Bool[np.ndarray, "..."] | None = None) -> Canvas:
  """The same motion in another look; under a mask (True: to be changed), or everywhere.

  Without a prompt, and at other seeds, these are a video's near relatives.
  """
  check(strength=strength)
  known = np.zeros(video.shape[:3], bool) if mask is None else _known(video, mask)
  return _some(Canvas(video[None], known, strength))


def check(direction: str = "forward", strength: float = 0.5) -> None:
  """Raises UserError if there is no such direction, or nothing or everything would change."""
  if direction not in DIRECTIONS:
    raise UserError(f"Unknown direction {direction!r}: choose one of {', '.join(DIRECTIONS)}.")
  if not 0 < strength < 1:
    raise UserError(f"The strength is {strength:g} but must be between 0 and 1.")


def _one_size(first: Clip, second: np.ndarray) -> None:
  if first.shape[1:] != second.shape[1:]:
    sizes = ("{}x{}".format(*video.shape[1:3]) for video in (first, second))
    raise UserError("The videos are {} and {}: bring them to one size.".format(*sizes))


def _placed(places: Sequence[tuple[Any, np.ndarray]], shape: tuple[int, int, int]) -> Canvas:
  """Clips in their places (indices) on a canvas of this many frames, rows and columns."""
  check_room(shape[0], shape[1:])
  canvas, known = np.zeros((*shape, 3), np.uint8), np.zeros(shape, bool)
  for here, video in places:
    canvas[here], known[here] = video, True
  return Canvas(canvas[None], known)


def _known(video: Clip, mask: np.ndarray) -> Bool[np.ndarray, "..."]:
  known = ~np.asarray(mask, bool)
  return np.broadcast_to(known, video.shape[:3]) if known.shape == video.shape[1:3] else known


def _some(canvas: Canvas) -> Canvas:
  if canvas.known.all():
    raise UserError("Nothing is to be made: all of the video is known.")
  if not canvas.known.any() and canvas.strength == 1:
    raise UserError("Nothing is known: ask for a video from a prompt alone.")
  return canvas
