"""Worlds to try tasks on, with the truth about them, and the naive ways to do the tasks."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from sora_jax.evals import motion
from sora_jax.evals.adherence import FRAMES, SIZE
from sora_jax.generate.canvas import runs
from sora_jax.typing import Clip, Float
from sora_jax.worlds import WorldSource
from sora_jax.worlds.film import render
from sora_jax.worlds.spec import Spec

SEED, SCENES = 1_200_000, ("roll", "fall", "bounce", "pendulum")


@dataclass(frozen=True)
class Case:
  """A world with one thing that moves before a camera that does not."""

  video: Clip
  thing: np.ndarray  # t h w, True where its main object is seen
  caption: str
  spec: Spec

  @property
  def labels(self) -> dict[str, str]:
    """What a judge has to read off the clip."""
    return self.spec.labels

  @property
  def night(self) -> Clip:
    """The same world at night."""
    spec = dataclasses.replace(self.spec, light="night")
    return render(spec, FRAMES, SIZE, SIZE).video

  @property
  def colour(self) -> Float[np.ndarray, "3"]:
    """Mean colour of the object."""
    return self.video[self.thing].astype(np.float32).mean(axis=0)

  @property
  def behind(self) -> Float[np.ndarray, "h w 3"]:
    """What is behind the object."""
    return motion.background(self.video, self.thing)

  @property
  def places(self) -> Float[np.ndarray, "t 2"]:
    """Row and column of the object in each frame, as the simulator has it."""
    return np.stack([motion.centre(mask) for mask in self.thing])

  def errors(self, clip: Clip, frames: Iterable[int]) -> Iterator[Float[np.ndarray, "2"]]:
    """How far the object of a clip is from its place, in these frames; NaN: not there."""
    behind, colour, places = self.behind, self.colour, self.places
    for i in frames:
      yield motion.find(clip[i], behind, colour) - places[i]

  def guess(self, frames: Sequence[int]) -> Float[np.ndarray, "_ 2"]:
    """Its places in these frames, by a straight line from those in the others."""
    given = [i for i in range(len(self.video)) if i not in frames]
    lines = [np.interp(frames, given, self.places[given, axis]) for axis in (0, 1)]
    return np.stack(lines, axis=-1)


def cases(count: int, seed: int, light: str | None = None) -> list[Case]:
  """Worlds of the validation split whose object is in sight in every frame."""
  source = WorldSource(100 * count, SEED + seed, "validation", FRAMES, scenes=SCENES, truth=True)
  found: list[Case] = []
  for index in tqdm(range(len(source)), desc="worlds", unit="world"):
    if len(found) == count:
      break
    spec = source.spec(index)
    still = spec.camera.kind == "static" and spec.look == "plain" and len(spec.things) == 1
    if not still or light not in (None, spec.light):
      continue
    sample = source[index]
    thing = sample["truth"]["segmentation"] == 10
    if thing.sum(axis=(1, 2)).min() > 20:
      found.append(Case(sample["video"], thing, sample["caption"], spec))
  return found


def interpolated(video: Clip, frames: Sequence[int]) -> Clip:
  """The frames in question blended from the nearest others."""
  out = video.copy()
  for run in runs(np.isin(np.arange(len(video)), frames)):
    out[run] = cross_fade(video[run.start - 1], video[run.stop], run.stop - run.start)
  return out


def cross_fade(first: np.ndarray, last: np.ndarray, count: int) -> Clip:
  """`count` frames between two that they lead from and to."""
  share = (np.arange(1, count + 1) / (count + 1))[:, None, None, None]
  return ((1 - share) * first + share * last).round().astype(np.uint8)
