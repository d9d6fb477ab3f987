"""Worlds to be continued, with everything the simulator knows of them, and how they are drawn."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np
from tqdm import tqdm

from sora_jax.errors import UserError
from sora_jax.evals import motion
from sora_jax.typing import Bool, Clip, Float, Frame, Int
from sora_jax.worlds import WorldSource, captions, render, sample_spec
from sora_jax.worlds.film import THING
from sora_jax.worlds.spec import Spec
from sora_jax.worlds.vocabulary import COLOURS

SIZE, FPS = 64, 8.0
KNOWN = 5  # frames that are given
# A world of a suite's seed must not be one of a training seed: an offset no one would train on.
SEED = 1_700_000
LEAST = 8  # pixels: of fewer nobody can say where a thing is
LOST = SIZE / 2  # px: how far off a thing counts that is not there
TRAINED = 10_000  # training worlds
TRIES = 400  # worlds looked at for each that fits


@dataclass(frozen=True, eq=False)
class World:
  """A world, of which the first `KNOWN` frames are given.

  Attributes:
    video: as it goes on. empty: the same without its things and their shadows.
    truth: see `worlds.truth`. prompt: its caption.
  """

  video: Clip
  empty: Clip
  truth: dict[str, Any]
  spec: Spec
  prompt: str

  @classmethod
  def film(cls, spec: Spec, prompt: str, frames: int) -> World:
    """Renders a world."""
    clip = render(spec, frames, SIZE, SIZE, FPS, truth=True)
    empty = render(spec.emptied(), frames, SIZE, SIZE, FPS).video
    return cls(clip.video, empty, clip.truth, spec, prompt)

  def mask(self, thing: int) -> Bool[np.ndarray, "t h w"]:
    """Where a thing is seen."""
    return self.truth["segmentation"] == THING + thing

  @cached_property
  def areas(self) -> Int[np.ndarray, "t n"]:
    """Pixels in which each thing is seen."""
    counts = [self.mask(i).sum(axis=(1, 2)) for i in range(len(self.spec.things))]
    return np.stack(counts, axis=-1)

  @cached_property
  def colours(self) -> Float[np.ndarray, "n 3"]:
    """Mean colour of each thing in the frames that are given; its nominal one if it is hidden."""
    nominal = [COLOURS[thing.colour] for thing in self.spec.things]
    out = 255 * np.array(nominal, np.float32)
    for i in range(len(out)):
      seen = self.mask(i)[:KNOWN]
      if seen.any():
        out[i] = self.video[:KNOWN][seen].mean(axis=0)
    return out

  @cached_property
  def places(self) -> Float[np.ndarray, "t n 2"]:
    """Row and column of the middle of what is seen of each thing; NaN where nothing is."""
    things = range(len(self.spec.things))
    return np.stack([[motion.centre(x) for x in self.mask(i)] for i in things], axis=1)

  def segment(self, frame: Frame, t: int) -> Int[np.ndarray, "h w"]:
    """Which thing is seen in each pixel of frame t of a clip that continues this one; -1: none."""
    return motion.segment(frame, self.empty[t].astype(np.float32), self.colours)

  def found(self, clip: Clip, thing: int = 0) -> list[Bool[np.ndarray, "h w"]]:
    """A thing in each frame of a clip: the largest connected part of what has its colour.

    It is empty where that has fewer than `LEAST` pixels.
    """
    nothing = np.zeros((SIZE, SIZE), bool)
    parts = [motion.parts(self.segment(x, t) == thing, LEAST) for t, x in enumerate(clip)]
    return [found[0] if found else nothing for found in parts]

  def track(self, clip: Clip, thing: int = 0) -> Float[np.ndarray, "t 2"]:
    """Row and column of a thing in each frame of a clip; NaN where it is not found."""
    return np.stack([motion.centre(mask) for mask in self.found(clip, thing)])

  def errors(self, clip: Clip, thing: int = 0) -> Float[np.ndarray, " _"]:
    """How far a thing is from its place in each frame that was made, px; lost: `LOST`."""
    gaps = np.linalg.norm(self.track(clip, thing) - self.places[:, thing], axis=-1)
    return np.minimum(np.nan_to_num(gaps, nan=LOST), LOST)[KNOWN:]


def everyday(spec: Spec) -> bool:
  """A plain look, a camera that stands still, and nothing that only lies about."""
  roles = {thing.role for thing in spec.things}
  return spec.look == "plain" and spec.camera.kind == "static" and "extra" not in roles


def in_sight(world: World) -> bool:
  """Whether enough is seen of every thing in every frame."""
  return bool((world.areas > 20).all())


def draw(
  count: int,
  seed: int,
  scenes: tuple[str, ...],
  frames: int,
  wanted: Callable[[Spec], bool],
  accept: Callable[[World], bool],
) -> list[World]:
  """Worlds of the validation split.

  Args:
    wanted: which worlds are rendered. accept: which of these are taken.

  Raises:
    UserError: there are not so many among `TRIES` times as many.
  """
  source = WorldSource(TRIES * count, SEED + seed, "validation", frames, scenes=scenes)
  found: list[World] = []
  with tqdm(total=count, desc=f"worlds: {', '.join(scenes)}", unit="world") as bar:
    for index in range(len(source)):
      if len(found) == count:
        return found
      spec = source.spec(index)
      if wanted(spec):
        world = World.film(spec, source.caption(index, spec), frames)
        if accept(world):
          found.append(world)
          bar.update()
  if len(found) == count:
    return found
  raise UserError(f"There are no {count} worlds of {', '.join(scenes)} that fit the test.")


def still_lifes(count: int, seed: int, frames: int, most: int = 6) -> list[World]:
  """Things at rest before a camera that goes around them: 1, 2, ..., `most` of them in turn.

  All of them are seen in the frames that are given and in the last one.
  """
  found: list[World] = []
  index = 0
  with tqdm(total=count, desc="worlds: still_life", unit="world") as bar:
    while len(found) < count and index < TRIES * count:
      number = 1 + len(found) % most
      rng = np.random.default_rng([SEED + seed, index])
      spec = sample_spec(rng, "still_life", "validation", (frames - 1) / FPS)
      index += 1
      if spec.look != "plain" or len(spec.things) < number:
        continue
      spec = dataclasses.replace(spec, things=spec.things[:number])
      world = World.film(spec, captions.describe(spec, 1, rng), frames)
      if (world.areas[[0, KNOWN - 1, -1]] > 20).all():
        found.append(world)
        bar.update()
  if len(found) < count:
    raise UserError(f"There are no {count} still lifes of up to {most} things that fit the test.")
  return found


def nearest_of(scenes: tuple[str, ...], frames: int, count: int) -> Callable[[], Iterator[Clip]]:
  """Training clips of these scenes, rendered when they are asked for, for `Nearest`.

  The first such worlds of seed 0, from which `experiments/systems` takes its 10,000.
  """
  source = WorldSource(TRAINED, 0, "train", frames)

  def clips() -> Iterator[Clip]:
    those = (i for i in range(TRAINED) if source.spec(i).scene in scenes)
    return (source[i]["video"] for i in islice(those, count))

  return clips
