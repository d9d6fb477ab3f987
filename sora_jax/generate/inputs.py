"""From the files a user has to the canvas of a task."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sora_jax.data import images, video
from sora_jax.diffusion.conditioning import TIME_STRIDE
from sora_jax.errors import UserError
from sora_jax.generate import damage, tasks
from sora_jax.generate.canvas import Canvas, runs
from sora_jax.typing import Bool, Clip, UInt8

Fitted = UInt8[np.ndarray, "t _ _ 3"]

# task -> what it needs, and what it can use besides --size and --fit
TASKS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
  "generate": ((), ("--frames",)),
  "animate": (("--image",), ("--frames",)),
  "extend": (("one --video",), ("--frames", "--direction")),
  "loop": ((), ("one --video", "--frames")),
  "storyboard": (("--storyboard",), ("--frames",)),
  "connect": (("two --video",), ("--frames",)),
  "blend": (("two --video",), ("--strength",)),
  "fill": (("one --video",), ("--missing",)),
  "inpaint": (("one --video", "--mask"), ()),
  "outpaint": (("one --video", "--size"), ()),
  "edit": (("one --video",), ("--mask", "--strength")),
  "variations": (("one --video",), ("--strength",)),
}
STRENGTH = 0.6  # where the user says none
LARGEST = 4  # times the area of the model's clips: an input that is larger is made smaller


@dataclass(frozen=True, kw_only=True)
class Inputs:
  """What came with a prompt.

  Attributes:
    image, videos, mask: files; the mask is an image, white where something is to be made.
    missing: frames such as "3-7,12", counted from 0; None: those that look damaged.
    storyboard: a file for `Story.read`.
    direction, strength: of `tasks.extend` and `tasks.edit`.
    frames: how many to make. size: (height, width) of the result.
    fps: rate of the result; None keeps that of the input.
    fit: how an input of another shape is brought to a size; a key of `images.FITS` (None: crop).
  """

  image: str | None = None
  videos: Sequence[str] = ()
  mask: str | None = None
  missing: str | None = None
  storyboard: str | None = None
  direction: str | None = None
  strength: float | None = None
  frames: int | None = None
  size: tuple[int, int] | None = None
  fps: float | None = None
  fit: str | None = None

  def check(self, task: str) -> None:
    """Raises UserError if a task lacks an input or cannot use one, before anything is read."""
    if task not in TASKS:
      raise UserError(f"Unknown task {task!r}: choose one of {', '.join(TASKS)}.")
    given = {
      "--image": self.image is not None, "one --video": len(self.videos) == 1,
      "two --video": len(self.videos) == 2, "--mask": self.mask is not None,
      "--missing": self.missing is not None, "--storyboard": self.storyboard is not None,
      "--size": self.size is not None,
      "--frames": self.frames is not None, "--direction": self.direction is not None,
      "--strength": self.strength is not None,
      "more than two --video": len(self.videos) > 2, "--fit": self.fit is not None,
    }  # fmt: skip
    needs, may = TASKS[task]
    for name in needs:
      if not given[name]:
        raise UserError(f"The task {task} needs {name}.")
    for name, there in given.items():
      if there and name not in (*needs, *may, "--size", "--fit"):
        raise UserError(f"The task {task} cannot use {name}.")
    if self.fit is not None and (task == "outpaint" or not (self.image or self.videos)):
      raise UserError(f"The task {task} cannot use --fit: nothing is resized.")
    if self._fit not in images.FITS:
      raise UserError(f"Unknown fit {self.fit!r}: choose one of {', '.join(images.FITS)}.")
    tasks.check(self.direction or "forward", STRENGTH if self.strength is None else self.strength)
    self._pairs()
    for path in (self.image, *self.videos, self.mask, self.storyboard):
      if path is not None and not Path(path).exists():
        raise UserError(f"{path} does not exist.")

  def canvas(
    self, task: str, *, step: int, frames: int, size: tuple[int, int], fps: float
  ) -> tuple[Canvas | None, float]:
    """The canvas of a task (None: nothing is given) and its frame rate.

    Args:
      task: a key of `TASKS`. step: what height and width must be multiples of.
      frames, size, fps: of a clip of the model, where neither the user nor the input says.

    Raises:
      UserError: an input is missing, superfluous, unreadable or does not fit the others.
    """
    self.check(task)
    count = self.frames if self.frames is not None else frames // 2
    if task == "loop" and not self.videos:
      count = self.frames if self.frames is not None else frames // TIME_STRIDE * TIME_STRIDE
      return tasks.loop(count, self.size or size), self.fps or fps
    if task in ("generate", "storyboard"):
      return None, self.fps or fps
    if task == "animate":
      near = self._near(str(self.image), step, size)
      image, _ = self._read(str(self.image), near, self.fps, frames=1)
      count = frames if self.frames is None else self.frames
      return tasks.animate(image[0], count), self.fps or fps
    if task == "outpaint":
      assert self.size is not None
      if any(side % step for side in self.size):
        larger = "x".join(str(-(-side // step) * step) for side in self.size)
        raise UserError(f"Height and width must be multiples of {step}: use {larger}.")
      info = video.probe(self.videos[0])
      tasks.check_around((info.height, info.width), self.size)
      clip, rate = self._read(self.videos[0], (info.height, info.width), self.fps)
      return tasks.outpaint(clip, self.size), rate
    clip, rate = self._read(self.videos[0], self._near(self.videos[0], step, size), self.fps)
    strength = STRENGTH if self.strength is None else self.strength
    if task in ("connect", "blend"):
      second, _ = self._read(self.videos[1], clip.shape[1:3], rate)
      if task == "blend":
        return tasks.blend(clip, second, strength), rate
      return tasks.connect(clip, second, count), rate
    if task == "extend":
      return tasks.extend(clip, count, self.direction or "forward"), rate
    if task == "loop":
      return tasks.loop_of(clip, count), rate
    if task == "fill":
      if self.missing is None:
        return self._mend(clip), rate
      return tasks.fill(clip, self._pairs()), rate
    mask = self._mask(clip) if self.mask else None
    if task == "inpaint":
      assert mask is not None
      return tasks.inpaint(clip, mask), rate
    return tasks.edit(clip, strength, mask), rate

  def _mend(self, clip: Clip) -> Canvas:
    """What is damaged in a clip is to be made; says what that is."""
    damaged = damage.find(clip)
    if not damaged.any():
      raise UserError(f"{self.videos[0]} shows no damage: name the frames to make with --missing.")
    whole = np.asarray(damaged.all(axis=(1, 2)))
    frames = ", ".join(f"{run.start}-{run.stop - 1}" for run in runs(whole)) or "none"
    bands = np.flatnonzero(damaged.any(axis=(1, 2)) & ~whole)
    print(f"damaged: frames {frames}; bands in {len(bands)} others", file=sys.stderr)
    return tasks.inpaint(clip, damaged)

  def _pairs(self) -> list[tuple[int, int]]:
    """The first and last frame of each range in `missing`."""
    pairs = []
    for word in self.missing.split(",") if self.missing is not None else ():
      match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", word)
      if not match:
        raise UserError(f"{word.strip()!r} in --missing is no frame or range such as 3 or 3-7.")
      pairs.append((int(match[1]), int(match[2] or match[1])))
    return pairs

  @property
  def _fit(self) -> str:
    return self.fit or "crop"

  def _near(self, path: str, step: int, size: tuple[int, int]) -> tuple[int, int]:
    """The wanted size for a clip: by default near its own, if that is not too large.

    So a long film in 4K takes the memory of a small one.
    """
    info = video.probe(path)
    own = (info.height, info.width)
    area, usual = own[0] * own[1], size[0] * size[1]
    scale = (usual / area) ** 0.5 if area > LARGEST * usual else 1.0
    near = (max(1, round(own[0] * scale / step)), max(1, round(own[1] * scale / step)))
    return self.size or (near[0] * step, near[1] * step)

  def _read(
    self, path: str, size: tuple[int, int], fps: float | None, frames: int | None = None
  ) -> tuple[Fitted, float]:
    """A clip and its rate, decoded at a size and, unless that is None, at a rate.

    Raises:
      UserError: so long a clip cannot be held; found before anything is decoded.
    """
    info = video.probe(path)
    if size != (info.height, info.width):
      changed = f"{info.height}x{info.width} to {size[0]}x{size[1]}"
      print(f"{path} is resized from {changed} ({self._fit})", file=sys.stderr)
    if info.audio:
      print(f"the sound of {path} is left out", file=sys.stderr)
    rate = fps or info.fps
    if info.duration and abs(rate - info.fps) > 0.01 * rate:
      print(f"{path} is resampled from {info.fps:g} to {rate:g} frames a second", file=sys.stderr)
    if frames is None and info.duration * rate * size[0] * size[1] * 3 > video.MAX_BYTES:
      raise UserError(
        f"{path} is {info.duration:.0f} s long, too much to hold in memory at "
        f"{size[0]}x{size[1]}: cut it, or give a smaller --size or --fps."
      )
    return video.read(path, frames=frames, size=size, fps=fps, fit=self._fit)

  def _mask(self, clip: Clip) -> Bool[np.ndarray, "_ _"]:
    """The mask of the video, brought to the size that its clip was brought to."""
    info = video.probe(self.videos[0])
    mask, _ = video.read(str(self.mask), frames=2)
    if len(mask) > 1:
      raise UserError(f"The mask {self.mask} moves: give a still image.")
    if mask.shape[1:3] != (info.height, info.width):
      raise UserError(
        f"The mask is {mask.shape[1]}x{mask.shape[2]} but the video is "
        f"{info.height}x{info.width}: give one of its size."
      )
    height, width = clip.shape[1:3]
    made = images.resize(mask, height, width, self._fit)[0].mean(-1) > 127
    if made.all():
      raise UserError(
        f"The mask {self.mask} is white everywhere, as transparent parts of it are: paint black "
        "what is to stay."
      )
    return made
