"""What a user has and what is to be made: a clip, and which of its pixels are known.

Every task is a canvas (`generate.tasks`), and a canvas is completed in one way: window by window,
each no longer than the model's clips, each seeing what the ones before it made. In a window

  * frames from its first one on, as long as none is wholly unknown, sit in the target grid: their
    unknown pixels are greyed, and a latent is known if all of its pixels are;
  * wholly known frames after a gap are encoded alone and handed over as stretches;
  * everything else is made.

Nothing that is known has seen a pixel that is not (`diffusion.conditioning` says why). A loop is
one window, all of it made, whose time is a circle.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from einops import reduce

from sora_jax.data.video import MAX_BYTES
from sora_jax.errors import UserError
from sora_jax.typing import Bool, UInt8


@dataclass(frozen=True)
class Canvas:
  """Clips of one shape, known in the same places.

  Attributes:
    video: uint8; what unknown pixels hold counts only if `strength` is below 1.
    known: t h w, the pixels that stay.
    strength: the noise level that unknown pixels start from: at 1 nothing is left of them, at 0
      nothing changes (SDEdit, Meng et al. 2021).
    loop: whether the last frame is followed by the first; nothing of a loop is known.
    shown: how many frames are the result; what comes after them is only led up to. None: all.
  """

  video: UInt8[np.ndarray, "b t h w 3"]
  known: Bool[np.ndarray, "_ _ _"]
  strength: float = 1.0
  loop: bool = False
  shown: int | None = None

  def __post_init__(self) -> None:
    if self.known.shape != self.video.shape[1:4]:
      mask, video = ("x".join(map(str, x)) for x in (self.known.shape, self.video.shape[1:4]))
      raise UserError(f"The mask is {mask} but the video is {video} (frames, rows, columns).")
    if not 0 < self.strength <= 1:
      raise UserError(f"The strength is {self.strength:g} but must be above 0 and at most 1.")
    if self.loop and (self.known.any() or self.strength < 1):
      raise UserError("A loop is made as a whole: for one from a video use tasks.loop_of.")

  def of(self, samples: Sequence[int] | np.ndarray) -> Canvas:
    """The clips of these samples; a single clip is that of all of them."""
    index = np.asarray(samples) if len(self.video) > 1 else np.zeros(len(samples), int)
    return dataclasses.replace(self, video=self.video[index])

  def part(self, start: int, stop: int) -> Canvas:
    """Some frames of it; after the end the last one repeats.

    Of what comes after the end a region stays known that is known in the last frame, so that the
    latent in which the clip ends is; that it stands still as a whole is not known.
    """
    frames = np.arange(start, stop)
    here = np.minimum(frames, len(self.known) - 1)
    known = self.known[here]
    if self.known[-1].all():
      known[frames >= len(self.known)] = False
    return dataclasses.replace(self, video=self.video[:, here], known=known)

  def paste(self, made: UInt8[np.ndarray, "b t h w 3"]) -> UInt8[np.ndarray, "b t h w 3"]:
    """The given pixels in the place of what was made of them."""
    here = np.s_[: self.shown]
    return np.where(self.known[here, ..., None], self.video[:, here], made)


@dataclass(frozen=True)
class Plan:
  """The windows of a canvas: the first frame of each, in order, and how many frames they have."""

  starts: Sequence[int]
  length: int

  @classmethod
  def of(cls, canvas: Canvas, longest: int, stride: int) -> Plan:
    """Windows of at most `longest` frames, about half of them known where there are as many.

    Raises:
      UserError: the windows are too short to take anything along, or a loop is no whole number of
        latents.
    """
    known = np.asarray(canvas.known.all(axis=(1, 2)))
    if canvas.loop:
      if len(known) % stride:
        near = max(1, round(len(known) / stride)) * stride
        raise UserError(f"A loop has {stride}k frames, not {len(known)}; use {near}.")
      return cls([0], len(known))
    length = min(longest, len(known) + -(len(known) - 1) % stride)
    if length < min(len(known), stride + 1):
      raise UserError(f"To make {len(known)} frames piece by piece, ask for {stride + 1} or more.")
    return cls(windows(known, length, stride), length)


def blank(count: int, frames: int, size: tuple[int, int]) -> Canvas:
  """Nothing is known. Raises UserError: it is too much to hold in memory."""
  check_room(frames, size)
  return Canvas(np.zeros((count, frames, *size, 3), np.uint8), np.zeros((frames, *size), bool))


def check_room(frames: int, size: tuple[int, int]) -> None:
  """Raises UserError if so many frames of this height and width are too much to hold in memory."""
  if frames * size[0] * size[1] * 3 > MAX_BYTES:
    most = MAX_BYTES // (size[0] * size[1] * 3)
    fix = f"{most} can be, all together" if most else "give a smaller size"
    raise UserError(
      f"{frames} frames of {size[0]}x{size[1]} are too many to hold in memory: {fix}."
    )


def legal(frames: int, stride: int) -> int:
  """The longest `stride` k + 1 that is at most `frames`; 0 for none."""
  return (frames - 1) // stride * stride + 1 if frames > 0 else 0


def windows(known: Bool[np.ndarray, " t"], length: int, stride: int) -> list[int]:
  """First frames of the windows that complete a clip, in order.

  From each known frame forward, half of a window known if there are as many, or as many frames
  before the gap as after it if both its sides fit; what lies before the first known frame is made
  backward from it. The last window may end after the clip.

  Args:
    known: frames of which nothing is to be made. length: frames of a window.
    stride: beginnings of stride k + 1 frames sit in the grid as they are.
  """
  context = legal(min((length + 1) // 2, length - 1), stride)
  known, starts = known.copy(), []
  while not known.all():
    gap = int(np.argmin(known))
    if len(known) <= length:
      start = 0
    elif gap:
      after = known[gap:]
      room = length - int(np.argmax(after)) if after.any() else 0
      start = max(0, gap - (min(context, legal(room // 2 + 1, stride)) if room > 1 else context))
    else:  # backward, from the first frame that is known; if there is none, from the beginning
      start = max(0, int(np.argmax(known)) + context - length) if known.any() else 0
    known[start : start + length] = True
    starts.append(start)
  return starts


def in_grid(known: Bool[np.ndarray, "t h w"], stride: int) -> int:
  """How many frames of a clip sit in the target grid: none of them is wholly unknown."""
  unknown = ~known.any(axis=(1, 2))
  return legal(int(np.argmax(unknown)) if unknown.any() else len(known), stride)


def runs(flags: Bool[np.ndarray, " t"]) -> list[slice]:
  """Where flags are true without a break."""
  edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]])))
  return [slice(int(a), int(b)) for a, b in edges.reshape(-1, 2)]


def stretches(known: Bool[np.ndarray, "t h w"], stride: int) -> list[slice]:
  """The known frames after those in the grid, cut into lengths the autoencoder takes."""
  whole = np.asarray(known.all(axis=(1, 2)))
  whole[: in_grid(known, stride)] = False
  pieces = []
  for run in runs(whole):
    frame = run.start
    while frame < run.stop:
      length = legal(run.stop - frame, stride)
      pieces.append(slice(frame, frame + length))
      frame += length
  return pieces


def known_latents(
  canvas: Canvas, time_stride: int, space_stride: int
) -> Bool[np.ndarray, "lt lh lw"]:
  """Latents in the grid all of whose pixels are known."""
  known = canvas.known.copy()
  known[in_grid(known, time_stride) :] = False
  if not canvas.loop:  # the first latent is one frame
    known = np.concatenate([known[:1]] * (time_stride - 1) + [known])
  return reduce(
    known, "(t p) (h q) (w r) -> t h w", "min",
    p=time_stride, q=space_stride, r=space_stride,
  )  # fmt: skip
