"""A world as data: everything a clip is made of, before it has a size or a frame rate."""

from __future__ import annotations

import dataclasses
from typing import Any

Vector = tuple[float, float, float]
NOWHERE = (0.0, -40.0)  # x and y: behind any camera, with its shadow


@dataclasses.dataclass(frozen=True)
class Thing:
  """One named solid.

  Attributes:
    shape: one of VOCABULARY.shapes.
    colour: one of VOCABULARY.colours.
    size: one of VOCABULARY.sizes.
    scale: half of its extent, metres.
    position: its centre at t=0, metres; x to the right, y away from the camera, z up.
    yaw: rotation about the vertical, radians.
    tilt: rotation about the depth axis after the yaw, radians.
    velocity: at t=0, metres per second.
    body: "free" (six degrees of freedom), "upright" (slides and bounces, never turns),
      "fixed", or "path" (follows `Spec.path`).
    role: "main", "target", "block" or "extra".
  """

  shape: str
  colour: str
  size: str
  scale: float
  position: Vector
  yaw: float = 0.0
  tilt: float = 0.0
  velocity: Vector = (0.0, 0.0, 0.0)
  body: str = "fixed"
  role: str = "extra"


@dataclasses.dataclass(frozen=True)
class Fixture:
  """A neutral part of the set: a wall, a paddle, a post, a string. Boxes are half-extents."""

  kind: str
  position: Vector
  extent: Vector
  colour: Vector


@dataclasses.dataclass(frozen=True)
class Camera:
  """A camera that looks at `target` from a sphere around it; `kind` says how it moves.

  `amount` is the sweep over the clip: radians for pans and orbits, the ratio of the fields of view
  for zooms. `fov` is that of the shorter side of the frame, radians.
  """

  kind: str = "static"
  azimuth: float = 0.0
  elevation: float = 0.2
  distance: float = 5.0
  fov: float = 0.7
  target: Vector = (0.0, 0.0, 0.6)
  amount: float = 0.0


@dataclasses.dataclass(frozen=True)
class Spec:
  """One world. `things[0]` is the main object.

  Attributes:
    scene, motion, floor, light, look: names from VOCABULARY.
    duration: seconds the motion was laid out for; a longer clip simply continues.
    gravity: metres per second squared, downwards.
    bounce: seconds of contact and damping ratio of the floor contact, or () for a dead stop.
    path: parameters of a closed or prescribed movement, by name.
    sun: azimuth of the light, radians.
  """

  scene: str
  motion: str
  things: tuple[Thing, ...]
  fixtures: tuple[Fixture, ...] = ()
  floor: str = "grey"
  light: str = "day"
  sky: int = 0
  sun: float = 0.6
  look: str = "plain"
  camera: Camera = Camera()
  duration: float = 2.0
  gravity: float = 8.0
  bounce: tuple[float, ...] = ()
  path: tuple[tuple[str, float], ...] = ()

  @property
  def main(self) -> Thing:
    return self.things[0]

  @property
  def labels(self) -> dict[str, Any]:
    """The main object's flat labels: what a judge has to read off the clip."""
    main = self.main
    return {
      "colour": main.colour, "shape": main.shape, "size": main.size, "motion": self.motion,
      "look": self.look, "count": len(self.things), "scene": self.scene,
    }  # fmt: skip

  def emptied(self) -> Spec:
    """The same place without its things, and without the strings they hang on."""
    fields: dict[str, Any] = dict(velocity=(0.0, 0.0, 0.0), body="fixed")
    things = tuple(
      dataclasses.replace(x, position=(*NOWHERE, x.position[2]), **fields) for x in self.things
    )
    fixtures = tuple(x for x in self.fixtures if x.kind != "string")
    return dataclasses.replace(self, things=things, fixtures=fixtures)

  def to_json(self) -> dict[str, Any]:
    return dataclasses.asdict(self)

  @classmethod
  def from_json(cls, data: dict[str, Any]) -> Spec:
    def tuples(value):
      return tuple(tuples(v) for v in value) if isinstance(value, list | tuple) else value

    data = {k: tuples(v) for k, v in data.items()}
    data["things"] = tuple(Thing(**{k: tuples(v) for k, v in x.items()}) for x in data["things"])
    data["fixtures"] = tuple(
      Fixture(**{k: tuples(v) for k, v in x.items()}) for x in data["fixtures"]
    )
    data["camera"] = Camera(**{k: tuples(v) for k, v in data["camera"].items()})
    return cls(**data)
