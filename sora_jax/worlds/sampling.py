"""Draws worlds: which scene, which object, and everything around it.

The distribution is meant to be learnt by a small model: about half of the worlds show one object
rolling, falling, bouncing or passing behind a wall, about 70 % have the plain look, a still camera
and daylight. Train and validation never show a held-out (colour, shape, motion); `heldout` shows
nothing else.
"""

from __future__ import annotations

import math

import numpy as np

from sora_jax.errors import UserError
from sora_jax.worlds import scenes
from sora_jax.worlds.spec import Camera, Spec, Thing
from sora_jax.worlds.textures import FLOOR_COLOURS
from sora_jax.worlds.vocabulary import (
  CAMERAS,
  COLOURS,
  FLOORS,
  LIGHTS,
  LOOKS,
  SCENES,
  SHAPES,
  SIZES,
  SPLITS,
  is_heldout,
)

SCENE_WEIGHTS = {
  "roll": 0.20, "fall": 0.09, "bounce": 0.09, "occlusion": 0.14, "collide": 0.09, "push": 0.09,
  "topple": 0.06, "pendulum": 0.08, "orbit": 0.08, "still_life": 0.08,
}  # fmt: skip
SCENE_MOTIONS: dict[str, dict[str, float]] = {
  "roll": {"left": 0.3, "right": 0.3, "toward": 0.2, "away": 0.2},
  "fall": {"falls": 1.0},
  "bounce": {"bounces": 1.0},
  "occlusion": {"passes_left": 0.36, "passes_right": 0.36, "hides": 0.14, "stays": 0.14},
  "collide": {"hits_left": 0.5, "hits_right": 0.5},
  "push": {"pushed_left": 0.5, "pushed_right": 0.5},
  "topple": {"topples": 1.0},
  "pendulum": {"swings": 1.0},
  "orbit": {"circles": 1.0},
  "still_life": {"stays": 1.0},
}
SCENE_SHAPES = {
  "push": ("cube", "cylinder", "cone", "capsule"),
  "topple": ("cube", "cylinder"),
}
SCENE_SIZES = {
  "occlusion": ("small", "medium"), "collide": ("small", "medium"), "topple": ("small",),
  "push": ("small", "medium"), "orbit": ("small", "medium"), "pendulum": ("small", "medium"),
  "still_life": ("medium", "large"),
}  # fmt: skip
_FLOOR_WEIGHTS = (0.22, 0.10, 0.10, 0.14, 0.12, 0.12, 0.08, 0.12)
_LIGHT_WEIGHTS = (0.74, 0.14, 0.12)
_LOOK_WEIGHTS = (0.70, 0.10, 0.10, 0.10)
_MOVING_CAMERA = {"roll": 0.35, "fall": 0.35, "bounce": 0.35, "push": 0.3, "collide": 0.25}
_EXTRAS = {"roll": 0.25, "fall": 0.25, "bounce": 0.25, "occlusion": 0.35, "push": 0.2,
           "collide": 0.15}  # fmt: skip
DEFAULT_DURATION = 2.0


def _pick(rng: np.random.Generator, options: dict[str, float]) -> str:
  weights = np.array(list(options.values()))
  return list(options)[int(rng.choice(len(weights), p=weights / weights.sum()))]


def sample_spec(
  seed: int | np.random.Generator,
  scene: str | None = None,
  split: str = "train",
  duration: float = DEFAULT_DURATION,
  scenes_allowed: tuple[str, ...] | None = None,
) -> Spec:
  """Draws one world.

  Args:
    seed: a seed or a generator; the same one gives the same world.
    scene: one of VOCABULARY.scenes, or None for any (weighted).
    split: "train" and "validation" draw from the seen combinations, "heldout" from the others.
    duration: seconds the event should fill.
    scenes_allowed: restricts what None draws from.

  Raises:
    UserError: unknown scene or split.
  """
  if split not in SPLITS:
    raise UserError(f"unknown split {split!r}: use one of {', '.join(SPLITS)}.")
  for name in (*(scenes_allowed or ()), *([scene] if scene else ())):
    if name not in SCENES:
      raise UserError(f"unknown scene {name!r}: use one of {', '.join(SCENES)}.")
  rng = np.random.default_rng(seed)
  if scene is None:
    scene = _pick(rng, {k: SCENE_WEIGHTS[k] for k in scenes_allowed or SCENES})
  draw = _draw(rng, scene, split, duration)
  parts = scenes.BUILDERS[scene](rng, draw)
  things = tuple(parts.pop("things"))
  light = LIGHTS[rng.choice(3, p=_LIGHT_WEIGHTS)]
  look = LOOKS[rng.choice(4, p=_LOOK_WEIGHTS)]
  things += _extras(rng, scene, draw, things)
  return Spec(
    scene=scene,
    motion=draw.motion,
    things=things,
    floor=_floor(rng, draw.colour, light, look),
    light=light,
    sky=int(rng.integers(2)),
    sun=float(rng.uniform(-0.9, 0.9)),
    look=look,
    camera=_camera(rng, scene, draw.motion, duration),
    duration=duration,
    **parts,
  )


def _draw(rng: np.random.Generator, scene: str, split: str, duration: float) -> scenes.Draw:
  motion = _pick(rng, SCENE_MOTIONS[scene])
  allowed = [
    (shape, colour)
    for shape in SCENE_SHAPES.get(scene, SHAPES)
    for colour in COLOURS
    if is_heldout(colour, shape, motion) == (split == "heldout")
  ]
  shape, colour = allowed[int(rng.integers(len(allowed)))]
  size = str(rng.choice(SCENE_SIZES.get(scene, tuple(SIZES))))
  if scene == "occlusion" and shape == "capsule":
    size = "small"  # it is long: there must be room beside the wall
  return scenes.Draw(shape, colour, size, motion, duration)


def _grey(colour: tuple[float, float, float]) -> float:
  return 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]


def _floor(rng: np.random.Generator, colour: str, light: str, look: str) -> str:
  """A floor that the main object's colour stands out from, in greys too where it must."""

  def stands_out(name: str) -> bool:
    floor, thing = FLOOR_COLOURS[name], COLOURS[colour]
    if look == "mono":
      return abs(_grey(floor) - _grey(thing)) > 0.26
    return math.dist(floor, thing) > 0.42

  weights = np.array(_FLOOR_WEIGHTS) * [stands_out(name) for name in FLOORS]
  if light == "night" and look != "mono":
    weights = weights * [name != "dark" for name in FLOORS]
  return FLOORS[rng.choice(len(FLOORS), p=weights / weights.sum())]


def _camera(rng: np.random.Generator, scene: str, motion: str, duration: float) -> Camera:
  elevation = float(rng.uniform(0.20, 0.30))
  azimuth = float(rng.uniform(-0.12, 0.12))
  kind, amount, fov = "static", 0.0, 0.70
  if scene == "still_life":
    kind = str(rng.choice(["orbit_left", "orbit_right"]))
    amount, elevation = float(rng.uniform(1.1, 1.8)), float(rng.uniform(0.38, 0.52))
  elif rng.uniform() < _MOVING_CAMERA.get(scene, 0.0):
    kinds = ["zoom_in", "zoom_out", "pan_left", "pan_right", "orbit_left", "orbit_right"]
    if scene == "fall":
      kinds.remove("zoom_out")  # it would begin too near to see the start
    if motion.endswith(("left", "right")):
      kinds = [k for k in kinds if not k.startswith("pan")]  # it would cancel the movement
    kind = str(rng.choice(kinds))
    amount = {"zoom": 1.45, "pan": 0.24, "orbit": 0.6}[kind.split("_")[0]]
  if scene == "occlusion":
    azimuth = 0.0
  if kind.startswith(("pan", "zoom")) or scene == "still_life":
    fov = 0.80
  assert kind in CAMERAS
  return Camera(
    kind=kind, azimuth=azimuth, elevation=elevation, distance=5.0, fov=fov, amount=amount
  )


def _extras(
  rng: np.random.Generator, scene: str, draw: scenes.Draw, things: tuple[Thing, ...]
) -> tuple[Thing, ...]:
  """Objects at rest in the back, out of the way; the wall's empty control may have one too."""
  if rng.uniform() >= _EXTRAS.get(scene, 0.0):
    return ()
  count = int(rng.choice([1, 2, 3], p=[0.7, 0.22, 0.08]))
  slots = [(-1.25, 1.9), (1.25, 1.9), (0.0, 2.3), (-2.1, 2.6), (2.1, 2.6)]
  if draw.motion in ("toward", "away"):
    slots = [(-1.5, 1.6), (1.5, 1.6), (-1.2, 0.2), (1.2, 0.2)]
  if scene == "occlusion":
    slots = [(-1.55, 1.7), (1.55, 1.7), (-2.4, 2.4), (2.4, 2.4)]
  taken = [thing.colour for thing in things]
  out = []
  for slot in rng.permutation(len(slots))[:count]:
    kind = scenes.other(rng, draw, sizes=("small",), taken=taken)
    taken.append(kind[1])
    x, y = slots[slot] + rng.uniform(-0.12, 0.12, 2)
    out.append(scenes.place(kind, float(x), float(y), yaw=float(rng.uniform(0.3, 0.8))))
  return tuple(out)
