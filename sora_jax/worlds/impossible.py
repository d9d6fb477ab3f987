"""Pairs of clips, one of a possible and one of an impossible world, that begin alike.

Violation of expectation, as in IntPhys (Riochet et al. 2018, arXiv:1803.07616): each frame of the
impossible clip is a frame of a possible world; only their order is not. It is spliced: up to some
frame one world, from there on another that differs in one respect. Where a wall hides the object at
the splice, only a memory can tell; "open" pairs, in plain sight, are the easy controls.

  colour, shape   another object comes out than went in
  presence        it does not come out; or something does that never went in
  place           it comes out too early; or is back where it came from
  hover           an object that falls or bounces stops in mid-air

The roles of both worlds are exchanged in every other pair of a kind (but "hover"), so no end of a
clip is in itself more frequent among impossible ones.
"""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from sora_jax.errors import UserError
from sora_jax.typing import Bool
from sora_jax.typing import Clip as ClipArray
from sora_jax.worlds import shapes
from sora_jax.worlds.film import Clip, check_size, render
from sora_jax.worlds.sampling import sample_spec
from sora_jax.worlds.scenes import sliding
from sora_jax.worlds.spec import NOWHERE, Spec, Thing
from sora_jax.worlds.textures import FLOOR_COLOURS
from sora_jax.worlds.vocabulary import COLOURS, SHAPES, is_heldout

CHANGES = ("colour", "shape", "presence", "place")
KINDS = (*(f"hidden_{x}" for x in CHANGES), *(f"open_{x}" for x in CHANGES), "hover")
TRIES = 200
_GONE, _CLEAR = 0.02, 0.85  # visible parts of an object that count as none and as all
_AHEAD = 5  # frames by which a place is wrong
_DISTINCT = 0.42  # least distance of two colours that are told apart


@dataclasses.dataclass(frozen=True)
class Pair:
  """Two clips that are the same up to `event`.

  Attributes:
    possible, impossible: uint8 t h w 3.
    kind: one of `KINDS`.
    splice: first frame that is taken from another world.
    event: first frame that differs, so where the violation can be seen; not before `splice`.
    id: says which pair of which source it is.
    specs: the worlds before and after the splice.
  """

  possible: ClipArray
  impossible: ClipArray
  kind: str
  splice: int
  event: int
  id: str
  specs: tuple[Spec, Spec]


class ImpossiblePairs:
  """`count` pairs; pair i depends on (seed, i) and the parameters only. Kinds take turns.

  All have the plain look and a combination of colour, shape and motion that is trained on.

  Args:
    kinds: which of `KINDS`.

  Raises:
    UserError: an unknown kind, or a form that cannot be rendered or is too short for an event.
  """

  def __init__(
    self, count: int, seed: int, frames: int = 16, height: int = 64, width: int = 64,
    fps: float = 8.0, kinds: tuple[str, ...] = KINDS,
  ):  # fmt: skip
    check_size(frames, height, width, fps)
    if frames < 12:
      raise UserError(f"{frames} frames are too few for something to hide and come back: give 12.")
    if unknown := set(kinds) - set(KINDS):
      raise UserError(f"unknown kind {min(unknown)!r}: use some of {', '.join(KINDS)}.")
    if not kinds or count < 0 or seed < 0:
      raise UserError("There must be a kind, and count and seed must not be negative.")
    self.count, self.seed, self.kinds = count, seed, tuple(kinds)
    self.form: dict[str, Any] = dict(frames=frames, height=height, width=width, fps=fps)

  def __len__(self) -> int:
    return self.count

  def __getitem__(self, index: int) -> Pair:
    index = operator.index(index)
    if not 0 <= index < self.count:
      raise IndexError(f"pair {index} of {self.count}")
    turn, number = divmod(index, len(self.kinds))
    kind, swap = self.kinds[number], bool(turn % 2)
    setting, _, change = kind.rpartition("_")
    rng = np.random.default_rng([self.seed, KINDS.index(kind), turn])
    for _ in range(TRIES):
      if setting:
        made = self._splice(rng, setting, change, swap)
      else:
        made = self._hover(rng)
      if made is not None:
        first, second, splice, specs = made
        impossible = np.concatenate([first.video[:splice], second.video[splice:]])
        differs = (impossible != first.video).any(axis=(1, 2, 3))
        if differs.any():
          event = int(np.argmax(differs))
          name = f"impossible-{self.seed}-{index}"
          return Pair(first.video, impossible, kind, splice, event, name, specs)
    raise UserError(f"No pair of kind {kind} was found in {TRIES} worlds: use another size.")

  def _draw(self, rng: np.random.Generator, accept: Callable[[Spec], bool], scene: str) -> Spec:
    """A plain world of a scene that `accept` agrees to."""
    frames, fps = self.form["frames"], self.form["fps"]
    while True:
      spec = sample_spec(rng, scene, duration=(frames - 1) / fps)
      spec = dataclasses.replace(spec, look="plain")
      if accept(spec):
        return spec

  def _film(self, spec: Spec) -> Clip:
    return render(spec, **self.form, truth=True)

  def _splice(
    self, rng: np.random.Generator, setting: str, change: str, swap: bool
  ) -> tuple[Clip, Clip, int, tuple[Spec, Spec]] | None:
    """Two worlds that differ in one respect; None if there is no frame to change over at."""
    hidden = setting == "hidden"
    scene = "occlusion" if hidden else "roll"
    across = lambda s: s.motion.endswith(("left", "right")) and s.camera.kind == "static"  # noqa: E731
    base = self._draw(rng, across, scene)
    ahead = (-1 if swap else 1) * _AHEAD / self.form["fps"]
    other = changed(base, change, rng, ahead)
    if other is None:
      return None
    specs = (other, base) if swap and change != "place" else (base, other)
    first, second = (self._film(spec) for spec in specs)
    seen = [clip.truth["visibility"][:, 0] for clip in (first, second)]
    there = [x for x, spec in zip(seen, specs, strict=True) if spec.main.position[1] > NOWHERE[1]]
    if hidden:
      # Of a place, only the first world must be hidden: the second is where it should not be.
      covered = there[:1] if change == "place" else there
      fits = np.all([x < _GONE for x in covered], axis=0)
      fits &= np.all([_between(x > 1 - _CLEAR) for x in covered], axis=0)
    else:
      fits = np.all([x > _CLEAR for x in there], axis=0)
    frames = len(fits)
    fits[: frames // 4] = fits[-frames // 4 :] = False
    if not fits.any():
      return None
    return first, second, int(rng.choice(np.flatnonzero(fits))), specs

  def _hover(self, rng: np.random.Generator) -> tuple[Clip, Clip, int, tuple[Spec, Spec]] | None:
    """A world, and one in which its object hangs where it is at some frame."""
    spec = self._draw(rng, lambda s: s.main.body == "upright", str(rng.choice(["fall", "bounce"])))
    clip = self._film(spec)
    where, speed = clip.truth["position"][:, 0], clip.truth["velocity"][:, 0, 2]
    rise = where[:, 2] - shapes.rest_height(spec.main.shape, spec.main.scale)
    fits = (rise > 0.4) & (np.abs(speed) > 0.5) & (clip.truth["visibility"][:, 0] > _CLEAR)
    fits[:3] = fits[-3:] = False
    if not fits.any():
      return None
    splice = int(rng.choice(np.flatnonzero(fits)))
    x, y, z = where[splice].tolist()
    still = _with_main(spec, position=(x, y, z), velocity=(0.0, 0.0, 0.0), body="fixed")
    return clip, self._film(still), splice, (spec, still)


def changed(spec: Spec, change: str, rng: np.random.Generator, ahead: float) -> Spec | None:
  """`spec` with another colour, shape, presence or place of its main object; None if there is none.

  Args:
    change: one of `CHANGES`.
    ahead: of places, seconds by which it is too early; below 0 too late.
  """
  main = spec.main
  x, y, z = main.position
  if change == "colour":
    taken = {thing.colour for thing in spec.things}
    avoid = (FLOOR_COLOURS[spec.floor], COLOURS[main.colour])
    colours = [
      name
      for name, rgb in COLOURS.items()
      if name not in taken and not is_heldout(name, main.shape, spec.motion)
      if all(math.dist(rgb, other) > _DISTINCT for other in avoid)
    ]
    return _with_main(spec, colour=str(rng.choice(colours))) if colours else None
  if change == "shape":
    names = [
      name
      for name in SHAPES
      if name != main.shape and not is_heldout(main.colour, name, spec.motion)
    ]
    if not names:
      return None
    shape = str(rng.choice(names))
    z = shapes.rest_height(shape, main.scale)
    return _with_main(spec, shape=shape, position=(x, y, z), body=sliding(shape))
  if change == "presence":
    return _with_main(spec, position=(*NOWHERE, z), velocity=(0.0, 0.0, 0.0), body="fixed")
  u, v, _ = main.velocity
  return _with_main(spec, position=(x + ahead * u, y + ahead * v, z))


def _with_main(spec: Spec, **fields) -> Spec:
  main: Thing = dataclasses.replace(spec.main, **fields)
  return dataclasses.replace(spec, things=(main, *spec.things[1:]))


def _between(seen: Bool[np.ndarray, " t"]) -> Bool[np.ndarray, " t"]:
  """True for frames with a seen one before them and one after."""
  before = np.logical_or.accumulate(seen)
  after = np.logical_or.accumulate(seen[::-1])[::-1]
  return before & after
