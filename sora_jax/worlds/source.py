"""Worlds as a random access data source: rendered on the fly, the same at every access."""

from __future__ import annotations

import copy
import functools
import hashlib
import operator
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sora_jax.errors import UserError
from sora_jax.worlds import captions
from sora_jax.worlds.film import check_size, render
from sora_jax.worlds.sampling import DEFAULT_DURATION, sample_spec
from sora_jax.worlds.spec import Spec
from sora_jax.worlds.vocabulary import SCENES, SPLITS

_LEVELS = (0.35, 0.35, 0.30)


@functools.cache
def _code() -> str:
  """A hash of all that worlds are made by: this package's code and wordings."""
  files = (file for file in Path(__file__).parent.iterdir() if file.suffix in (".py", ".toml"))
  return hashlib.sha256(b"".join(file.read_bytes() for file in sorted(files))).hexdigest()


class WorldSource:
  """`count` worlds; item i depends on (seed, split, i) and the parameters only.

  Items are dicts of `video` (uint8 t h w 3), `caption`, `captions`, `fps`, `id` and, with
  `truth=True`, `truth` (see `worlds.truth`). Any order, thread or process gives the same items.
  Worlds are laid out for the clip's duration, so the same index at another rate and equal duration
  shows the same movement (pendulums and orbits nearly: their period is a number of frames).

  Args:
    split: "train", "validation" (seen combinations of colour, shape and motion, other worlds) or
      "heldout" (combinations that the other two never show).
    scenes: restricts the scenes, or None for all.
    wording: "train" or "heldout" (see `worlds.captions`).
    level: detail of the captions, 0 to 2; None mixes them.

  Raises:
    UserError: parameters that cannot be rendered, with the reason.
  """

  def __init__(
    self,
    count: int,
    seed: int,
    split: str = "train",
    frames: int = 17,
    height: int = 64,
    width: int = 64,
    fps: float = 8.0,
    scenes: Sequence[str] | None = None,
    truth: bool = False,
    wording: str = "train",
    level: int | None = None,
  ):
    check_size(frames, height, width, fps)
    if count < 0 or seed < 0:
      raise UserError(f"count and seed must not be negative, got {count} and {seed}.")
    if split not in SPLITS:
      raise UserError(f"unknown split {split!r}: use one of {', '.join(SPLITS)}.")
    if unknown := set(scenes or ()) - set(SCENES):
      raise UserError(f"unknown scene {min(unknown)!r}: use one of {', '.join(SCENES)}.")
    if wording not in captions.WORDINGS or level not in (None, 0, 1, 2):
      raise UserError("wording must be train or heldout, and level 0, 1, 2 or None.")
    self.count, self.seed, self.split = count, seed, split
    self.frames, self.height, self.width, self.fps = frames, height, width, fps
    self.scenes = tuple(scenes) if scenes else None
    self.truth, self.wording, self.level = truth, wording, level

  def __len__(self) -> int:
    return self.count

  def identity(self) -> list[str]:
    """What tells these worlds from those of the same settings in another version."""
    return [_code()]

  def __repr__(self) -> str:
    # Grain compares this text when it restores a checkpoint.
    fields = ", ".join(f"{k}={v!r}" for k, v in vars(self).items())
    return f"WorldSource({fields})"

  def _rng(self, index: int, stream: int) -> np.random.Generator:
    return np.random.default_rng([self.seed, SPLITS.index(self.split), index, stream])

  def spec(self, index: int) -> Spec:
    """The world behind item `index`."""
    duration = (self.frames - 1) / self.fps if self.frames > 1 else DEFAULT_DURATION
    return sample_spec(
      self._rng(index, 0), split=self.split, duration=duration, scenes_allowed=self.scenes
    )

  def caption(self, index: int, spec: Spec | None = None) -> str:
    rng = self._rng(index, 1)
    level = int(rng.choice(3, p=_LEVELS))
    if self.level is not None:
      level = self.level
    return captions.describe(spec or self.spec(index), level, rng, self.wording)

  def captions(self, index: int, spec: Spec | None = None) -> list[str]:
    """Several wordings of item `index`, of every level of detail; `caption` is the first."""
    spec = spec or self.spec(index)
    rng = self._rng(index, 2)
    levels = [0, 0, 1, 1, 2] if self.level is None else [self.level] * 3
    more = [captions.describe(spec, level, rng, self.wording) for level in levels]
    return [self.caption(index, spec), *more]

  def clip(
    self,
    index: int,
    rng: np.random.Generator,
    frames: int,
    fps: float | None = None,
    size: tuple[int, int] | None = None,
    short: str = "skip",
  ) -> dict[str, Any]:
    """Item `index` of the source that has this shape in the place of its own: nothing is resized.

    A world is as long as it is asked to be, so there is no window to draw and none too short.
    """
    del rng, short
    other = copy.copy(self)
    other.frames, other.fps = frames, fps or self.fps
    other.height, other.width = size or (self.height, self.width)
    check_size(other.frames, other.height, other.width, other.fps)
    return other[index]

  def __getitem__(self, index: int) -> dict[str, Any]:
    index = operator.index(index)
    if not -self.count <= index < self.count:
      raise IndexError(f"world {index} of {self.count}")
    index %= self.count
    spec = self.spec(index)
    clip = render(spec, self.frames, self.height, self.width, self.fps, truth=self.truth)
    sample = {
      "video": clip.video,
      "caption": self.caption(index, spec),
      "captions": self.captions(index, spec),
      "fps": float(self.fps),
      "id": f"worlds-{self.split}-{self.seed}-{index}",
    }
    if self.truth:
      sample["truth"] = clip.truth
    return sample
