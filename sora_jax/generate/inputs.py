"""From the files a user has to the canvas of a task."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from sora_jax.data import images, video
from sora_jax.errors import UserError
from sora_jax.generate import tasks
from sora_jax.generate.canvas import Canvas
from sora_jax.typing import Bool, Clip, UInt8

Fitted = UInt8[np.ndarray, "t _ _ 3"]


@dataclass(frozen=True, kw_only=True)
class Inputs:
  """What came with a prompt.

  Attributes:
    image, videos, mask: files; the mask is an image, white where something is to be made.
    missing: frames such as "3-7,12", counted from 0.
    direction, strength: of `tasks.extend` and `tasks.edit`.
    frames: how many to make. size: (height, width) of the result; None keeps that of the input.
    fps: rate of the result; None keeps that of the input.
    fit: how an input of another shape is brought to a size; a key of `images.FITS`.
  """

  image: str | None = None
  videos: Sequence[str] = ()
  mask: str | None = None
  missing: str | None = None
  direction: str = "forward"
  strength: float = 0.6
  frames: int | None = None
  size: tuple[int, int] | None = None
  fps: float | None = None
  fit: str = "crop"

  def canvas(self, task: str, step: int, frames: int, fps: float) -> tuple[Canvas | None, float]:
    """The canvas of a task (None: nothing is given) and its frame rate.

    Args:
      task: a key of `TASKS`. step: what height and width must be multiples of.
      frames, fps: of a clip of the model, where neither the user nor the input says.

    Raises:
      UserError: an input is missing, superfluous, unreadable or does not fit the others.
    """
    self.check(task)
    if task == "generate":
      return None, self.fps or fps
    if task == "animate":
      clip, _ = video.read(str(self.image), frames=1)
      return tasks.animate(self._fit(clip, step)[0], self.frames or frames), self.fps or fps
    clip, rate = video.read(self.videos[0], fps=self.fps)
    return TASKS[task](self, clip, rate, step, self.frames or frames // 2), rate

  def check(self, task: str) -> None:
    """Raises UserError if a task lacks an input or cannot use one, before anything is read."""
    if task not in NEEDS:
      raise UserError(f"Unknown task {task!r}: choose one of {', '.join(NEEDS)}.")
    given = {
      "--image": self.image is not None, "--video": len(self.videos) == 1,
      "two --video": len(self.videos) == 2, "--mask": self.mask is not None,
      "--missing": self.missing is not None, "--size": self.size is not None,
    }  # fmt: skip
    needs = NEEDS[task]
    for name in needs:
      if not given[name]:
        raise UserError(f"The task {task} needs {name}.")
    may = {*needs, "--size", *(["--mask"] if task == "edit" else [])}
    for name, there in given.items():
      if there and name not in may:
        raise UserError(f"The task {task} cannot use {name}.")
    if len(self.videos) > 2:
      raise UserError("At most two videos can be given.")

  def _fit(self, clip: Clip, step: int, size: tuple[int, int] | None = None) -> Fitted:
    """A clip at the wanted size, by default the nearest to its own that the model can do."""
    own = clip.shape[1:3]
    wanted = size or self.size or tuple(max(1, round(side / step)) * step for side in own)
    if wanted != own:
      print("resized {}x{} to {}x{} ({})".format(*own, *wanted, self.fit), file=sys.stderr)
    return images.resize(clip, wanted[0], wanted[1], self.fit)

  def _mask(self, clip: Clip, fitted: Fitted) -> Bool[np.ndarray, "_ _"]:
    """The mask of a clip, brought to the size that the clip was brought to."""
    mask, _ = video.read(str(self.mask), frames=1)
    if mask.shape[1:3] != clip.shape[1:3]:
      sizes = ("{}x{}".format(*x.shape[1:3]) for x in (mask, clip))
      raise UserError("The mask is {} but the video is {}: give one of its size.".format(*sizes))
    height, width = fitted.shape[1:3]
    return images.resize(mask, height, width, self.fit)[0].mean(-1) > 127


def _extend(inputs: Inputs, clip: Clip, rate: float, step: int, frames: int) -> Canvas:
  return tasks.extend(inputs._fit(clip, step), frames, inputs.direction)


def _connect(inputs: Inputs, clip: Clip, rate: float, step: int, frames: int) -> Canvas:
  first = inputs._fit(clip, step)
  second, other = video.read(inputs.videos[1], fps=rate)
  if other != rate:
    raise UserError(f"The videos have {rate:g} and {other:g} frames per second: give --fps.")
  return tasks.connect(first, inputs._fit(second, step, first.shape[1:3]), frames)


def _fill(inputs: Inputs, clip: Clip, rate: float, step: int, frames: int) -> Canvas:
  pairs = []
  for word in str(inputs.missing).split(","):
    match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", word)
    if not match:
      raise UserError(f"{word.strip()!r} in --missing is no frame or range such as 3 or 3-7.")
    pairs.append((int(match[1]), int(match[2] or match[1])))
  return tasks.fill(inputs._fit(clip, step), pairs)


def _inpaint(inputs: Inputs, clip: Clip, rate: float, step: int, frames: int) -> Canvas:
  fitted = inputs._fit(clip, step)
  return tasks.inpaint(fitted, inputs._mask(clip, fitted))


def _outpaint(inputs: Inputs, clip: Clip, rate: float, step: int, frames: int) -> Canvas:
  assert inputs.size is not None
  return tasks.outpaint(clip, inputs.size)


def _edit(inputs: Inputs, clip: Clip, rate: float, step: int, frames: int) -> Canvas:
  fitted = inputs._fit(clip, step)
  mask = inputs._mask(clip, fitted) if inputs.mask else None
  return tasks.edit(fitted, inputs.strength, mask)


TASKS: dict[str, Callable[[Inputs, Clip, float, int, int], Canvas]] = {
  "extend": _extend, "connect": _connect, "fill": _fill, "inpaint": _inpaint,
  "outpaint": _outpaint, "edit": _edit, "variations": _edit,
}  # fmt: skip
NEEDS: dict[str, tuple[str, ...]] = {
  "generate": (),
  "animate": ("--image",),
  "extend": ("--video",),
  "connect": ("two --video",),
  "fill": ("--video", "--missing"),
  "inpaint": ("--video", "--mask"),
  "outpaint": ("--video", "--size"),
  "edit": ("--video",),
  "variations": ("--video",),
}
