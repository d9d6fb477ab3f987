"""The scenes: each small builder lays out one kind of event.

A builder gets a generator and a `Draw` (main object, duration) and returns the parts of a Spec.
Lengths are metres; the camera looks along +y at the neighbourhood of the origin, where a frame
shows about 3.6 m. Speeds follow from the clip's duration, so that the event fills the clip; only
what falls takes as long as it takes: of clips below a second some end before the floor is reached.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from sora_jax.worlds.shapes import CUBE_HALF, CYLINDER_HALF, half_width, rest_height
from sora_jax.worlds.spec import Fixture, Thing
from sora_jax.worlds.vocabulary import COLOURS, SHAPES, SIZES

WALL = (0.42, 0.40, 0.40)
PADDLE = (0.30, 0.30, 0.33)
POST = (0.34, 0.31, 0.30)


@dataclasses.dataclass(frozen=True)
class Draw:
  """What is fixed before the scene is laid out: the main object, the motion and the seconds."""

  shape: str
  colour: str
  size: str
  motion: str
  duration: float

  @property
  def scale(self) -> float:
    return SIZES[self.size]

  @property
  def side(self) -> float:
    """+1 for motion to the right, -1 to the left."""
    return -1.0 if self.motion.endswith("left") else 1.0

  def main(self, position, **fields) -> Thing:
    x, y, z = map(float, position)
    return Thing(self.shape, self.colour, self.size, self.scale, (x, y, z), role="main", **fields)


Rng = np.random.Generator
Parts = dict


def other(rng: Rng, draw: Draw, sizes=("small", "medium"), shapes=SHAPES, taken=()) -> tuple:
  """Another object's shape, colour, size: never the main object's colour, nor one in `taken`."""
  colours = [c for c in COLOURS if c != draw.colour and c not in taken]
  return str(rng.choice(shapes)), str(rng.choice(colours)), str(rng.choice(sizes))


def place(kind: tuple, x: float, y: float, **fields) -> Thing:
  """A thing of (shape, colour, size) that rests on the floor at x, y in metres."""
  shape, colour, size = kind
  scale = SIZES[size]
  return Thing(shape, colour, size, scale, (x, y, rest_height(shape, scale)), **fields)


def sliding(shape: str) -> str:
  """The kind of body (`Thing.body`) of a shape that moves along the floor."""
  return "free" if shape == "ball" else "upright"


def _yaw(rng: Rng, shape: str) -> float:
  """Cubes show two faces, so that they do not look like cylinders."""
  return float(rng.uniform(0.35, 0.75)) * float(rng.choice([-1, 1])) if shape == "cube" else 0.0


def roll(rng: Rng, draw: Draw) -> Parts:
  """Moves across the floor, or toward or away from the camera."""
  z = rest_height(draw.shape, draw.scale)
  pace = rng.uniform(0.92, 1.08) / draw.duration
  if draw.motion in ("left", "right"):
    reach = 1.62 - half_width(draw.shape, draw.scale)
    y = rng.uniform(-0.3, 0.5)
    start = (-draw.side * (reach + 0.08 * y), y, z)
    velocity = (2 * draw.side * (reach + 0.08 * y) * pace, rng.uniform(-0.15, 0.15) * pace, 0.0)
    yaw = _yaw(rng, draw.shape)
  else:
    near, far = -1.5, 3.2
    sign = -1.0 if draw.motion == "toward" else 1.0
    x0, x1 = rng.uniform(-0.55, 0.55), rng.uniform(-0.25, 0.25)
    ends = (far, near) if sign < 0 else (near, far)
    if sign > 0:
      x0, x1 = x1, x0
    start = (x0, ends[0], z)
    velocity = ((x1 - x0) * pace, (ends[1] - ends[0]) * pace, 0.0)
    yaw = _yaw(rng, draw.shape)
  return {"things": (draw.main(start, velocity=velocity, yaw=yaw, body=sliding(draw.shape)),)}


def fall(rng: Rng, draw: Draw) -> Parts:
  """Drops, lands and stays."""
  top = 2.2 - draw.scale
  x, y = rng.uniform(-0.6, 0.6), rng.uniform(-0.2, 0.4)
  drift = rng.uniform(-0.15, 0.15)
  # Only cubes tumble: they settle on a face, the others would roll away or look like another.
  tumbles = draw.shape == "cube"
  main = draw.main(
    (x, y, top), yaw=_yaw(rng, draw.shape),
    tilt=float(rng.uniform(-0.15, 0.15)) if tumbles else 0.0,
    velocity=(drift, 0.0, rng.uniform(-0.2, 0.3)),
    body="free" if tumbles else "upright",
  )  # fmt: skip
  # Slow enough to be seen at 8 frames per second.
  return {"things": (main,), "gravity": 5.0}


def bounce(rng: Rng, draw: Draw) -> Parts:
  """Hops, drifting to one side."""
  z = rest_height(draw.shape, draw.scale)
  drift = rng.choice([-1, 1]) * rng.uniform(0.2, 0.9)
  start = (-0.5 * drift, rng.uniform(-0.2, 0.4), z + rng.uniform(1.05, 1.3))
  main = draw.main(
    start, yaw=_yaw(rng, draw.shape), velocity=(drift / draw.duration, 0.0, 0.0), body="upright"
  )
  return {"things": (main,), "gravity": 9.0, "bounce": (0.03, float(rng.uniform(0.03, 0.055)))}


def occlusion(rng: Rng, draw: Draw) -> Parts:
  """Behind a wall: passes, hides and stays, or an empty control beside which something rests."""
  extent = half_width(draw.shape, draw.scale)
  height = 2 * rest_height(draw.shape, draw.scale)
  wall_x, wall_y, y = rng.uniform(-0.15, 0.15), -0.55, rng.uniform(0.2, 0.35)
  if draw.shape == "cube":
    extent *= 1.3  # it shows a corner
  # The wall is nearer to the camera, so what it hides behind it is wider than itself.
  half = (extent + 0.22) / 1.17
  top = 0.5 * max(height + 0.3, 0.95)
  wall = Fixture("wall", (wall_x, wall_y, top), (half, 0.07, top), WALL)
  z = rest_height(draw.shape, draw.scale)
  if draw.motion == "stays":
    # The control: nothing goes in, nothing comes out; the main object rests beside the wall.
    side = rng.choice([-1, 1])
    wall = dataclasses.replace(wall, position=(-0.5 * side, wall_y, wall.position[2]))
    x = side * rng.uniform(0.85, 1.05)
    return {"things": (draw.main((x, -0.2, z), yaw=_yaw(rng, draw.shape)),), "fixtures": (wall,)}
  start = -draw.side * (1.9 - extent)
  # As seen from the camera, what is further away moves less: aim at the wall's shadow line.
  hidden = wall_x * (1 + 0.16 * (y - wall_y))
  path: tuple[tuple[str, float], ...] = ()
  if draw.motion == "hides":
    side = rng.choice([-1, 1])
    start = -side * (1.9 - extent)
    velocity, path = 0.0, (("go", start), ("stop", hidden), ("time", 0.62 * draw.duration))
  else:
    stop = -start
    velocity = (stop - start) / draw.duration * rng.uniform(0.97, 1.06)
  main = draw.main(
    (start, y, z), velocity=(velocity, 0.0, 0.0), yaw=_yaw(rng, draw.shape),
    body="path" if path else sliding(draw.shape),
  )  # fmt: skip
  return {"things": (main,), "fixtures": (wall,), "path": path}


def collide(rng: Rng, draw: Draw) -> Parts:
  """The main object runs into another one, which moves on."""
  kind = other(rng, draw, sizes=(draw.size,))
  y = rng.uniform(-0.2, 0.3)
  gap = half_width(draw.shape, draw.scale) + half_width(kind[0], SIZES[kind[2]])
  target_x = draw.side * 0.25
  start = target_x - draw.side * (gap + rng.uniform(0.75, 0.95))
  start = draw.side * max(start * draw.side, -1.65 + 0.5 * draw.scale)
  speed = draw.side * 2.4 / draw.duration
  z = rest_height(draw.shape, draw.scale)
  main = draw.main((start, y, z), velocity=(speed, 0.0, 0.0), body=sliding(draw.shape))
  target = place(kind, target_x, y, body=sliding(kind[0]), role="target")
  return {"things": (main, target), "bounce": (0.03, 0.03)}


def push(rng: Rng, draw: Draw) -> Parts:
  """A paddle pushes the main object, goes back, and the object stays where it was pushed."""
  y = rng.uniform(-0.2, 0.3)
  extent = half_width(draw.shape, draw.scale)
  start = -draw.side * rng.uniform(0.45, 0.6)
  z = rest_height(draw.shape, draw.scale)
  yaw = 0.0
  face = start - draw.side * (extent + 0.25 + 0.05)
  reach = 0.25 + rng.uniform(1.0, 1.25)
  paddle = Fixture("paddle", (face, y, z), (0.07, 0.28, max(z, 0.3)), PADDLE)
  path = (
    ("start", 0.0), ("forth", 0.52 * draw.duration), ("reach", reach),
    ("retreat", 0.75), ("direction", draw.side),
  )  # fmt: skip
  main = draw.main((start, y, z), yaw=yaw, body="upright")
  return {"things": (main,), "fixtures": (paddle,), "path": path}


def topple(rng: Rng, draw: Draw) -> Parts:
  """A tower that leans too far and falls over; all its blocks have the main object's name."""
  count = int(rng.integers(3, 5)) if draw.shape == "cube" else 3
  half = 0.95 / count  # all towers are equally high and fit into the frame
  scale = half / (CUBE_HALF if draw.shape == "cube" else CYLINDER_HALF)
  side = float(rng.choice([-1, 1]))
  lean = side * half * rng.uniform(0.72, 0.84)
  y, yaw = rng.uniform(-0.1, 0.3), 0.0
  things = tuple(
    Thing(
      draw.shape, draw.colour, "small", scale,
      (lean * k - side * 0.7, y, half * (2 * k + 1)), yaw=yaw, body="free",
      # The upper ones already move a little, or the fall would take the whole clip to begin.
      velocity=(lean * 0.5 * k, 0.0, 0.0),
      role="main" if k == count - 1 else "block",
    )
    for k in reversed(range(count))
  )  # fmt: skip
  return {"things": things, "gravity": 6.0}


def pendulum(rng: Rng, draw: Draw) -> Parts:
  """Swings on a string, undamped."""
  pivot = (rng.uniform(-0.1, 0.1), rng.uniform(0.0, 0.4), 2.5)
  length = 2.5 - 0.55 - draw.scale
  path = (
    ("period", 2.1), ("phase", rng.uniform(0, 2 * np.pi)), ("direction", 1.0),
    ("radius", length), ("swing", rng.uniform(0.55, 0.68)),
    ("x", pivot[0]), ("y", pivot[1]), ("z", pivot[2]),
  )  # fmt: skip
  string = Fixture("string", pivot, (0.035, 0.0, 0.0), POST)
  main = draw.main((pivot[0], pivot[1], pivot[2] - length), yaw=_yaw(rng, draw.shape), body="path")
  return {"things": (main,), "fixtures": (string,), "path": path}


def orbit(rng: Rng, draw: Draw) -> Parts:
  """Circles around a resting object, in front of it and behind it."""
  kind = other(rng, draw, sizes=("small",))
  radius = 1.0 + 0.3 * draw.scale
  z = rest_height(draw.shape, draw.scale)
  path = (
    ("period", 2.1), ("phase", rng.uniform(0, 2 * np.pi)),
    ("direction", float(rng.choice([-1, 1]))), ("radius", radius),
    ("x", 0.0), ("y", 0.5), ("z", z),
  )  # fmt: skip
  main = draw.main((radius, 0.5, z), yaw=_yaw(rng, draw.shape), body="path")
  return {"things": (main, place(kind, 0.0, 0.5, role="target")), "path": path}


def still_life(rng: Rng, draw: Draw) -> Parts:
  """Objects at rest around the main one, for an orbiting camera."""
  z = rest_height(draw.shape, draw.scale)
  # A capsule seen from its end would look like a ball.
  turn = 0.3 if draw.shape == "capsule" else np.pi
  things = [draw.main((0.0, 0.0, z), yaw=rng.uniform(-turn, turn))]
  count = int(rng.choice([1, 2, 3, 4, 5], p=[0.35, 0.3, 0.2, 0.1, 0.05]))
  first = rng.uniform(0, 2 * np.pi)
  taken: list[str] = []
  for k in range(count):
    kind = other(rng, draw, sizes=("small",), taken=taken)
    taken.append(kind[1])
    angle = first + 2 * np.pi * (k + rng.uniform(-0.1, 0.1)) / max(count, 3)
    distance = draw.scale + rng.uniform(0.75, 0.95)
    things.append(
      place(kind, distance * np.cos(angle), distance * np.sin(angle), yaw=rng.uniform(0, np.pi))
    )
  return {"things": tuple(things)}


BUILDERS: dict[str, Callable[[Rng, Draw], Parts]] = {
  "roll": roll, "fall": fall, "bounce": bounce, "occlusion": occlusion, "collide": collide,
  "push": push, "topple": topple, "pendulum": pendulum, "orbit": orbit, "still_life": still_life,
}  # fmt: skip
