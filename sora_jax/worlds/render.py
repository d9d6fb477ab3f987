"""From a Spec to pixels and ground truth."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from sora_jax.errors import UserError
from sora_jax.typing import Clip as ClipArray
from sora_jax.worlds import looks, physics, shapes
from sora_jax.worlds.spec import Camera, Fixture, Spec, Thing
from sora_jax.worlds.stage import Geom, Stage, Sun, View, on_stage
from sora_jax.worlds.vocabulary import COLOURS

# Segmentation numbers: the sky, the floor, fixtures, then things in the order of the spec.
SKY, FLOOR, FIXTURE, THING = 0, 1, 2, 10
_LIGHTS = {
  "day": ((0.52, 0.52, 0.53), (0.58, 0.58, 0.56)),
  "dusk": ((0.46, 0.42, 0.42), (0.50, 0.43, 0.36)),
  "night": ((0.40, 0.41, 0.46), (0.34, 0.35, 0.40)),
}
_SHADOWS = ((1.0, 0.14), (0.84, 0.14), (0.62, 0.12))


@dataclasses.dataclass(frozen=True)
class Clip:
  """`video` uint8 t h w 3; `truth` is {} unless it was asked for."""

  video: ClipArray
  truth: dict[str, Any]


def supersampling(height: int, width: int) -> int:
  """Rendered pixels per side of a final one.

  Against 8x, moving pixels of 64 px clips have 34 dB at 2x and 38.7 dB at 3x: below 2x aliasing
  would be as large as an autoencoder's error. Larger frames have fewer edges per pixel.
  """
  return 3 if height * width <= 80 * 80 else 2


def check_size(frames: int, height: int, width: int, fps: float) -> None:
  """Raises UserError unless a clip of this form can be rendered."""
  if frames < 1 or fps <= 0:
    raise UserError(f"a clip needs at least 1 frame and a positive rate, not {frames} at {fps}.")
  if not (16 <= height <= 1024 and 16 <= width <= 1024):
    raise UserError(f"cannot render {height}x{width}: height and width must be 16 to 1024 pixels.")


def render(
  spec: Spec, frames: int = 17, height: int = 64, width: int = 64, fps: float = 8.0,
  truth: bool = False,
) -> Clip:  # fmt: skip
  """Renders a world.

  Args:
    truth: also return poses, velocities, camera, segmentation, depth, visibility and events.

  Raises:
    UserError: a size, length or rate that cannot be rendered.
  """
  check_size(frames, height, width, fps)
  times = np.arange(frames) / fps
  motion = physics.move(spec, times, frames / fps, contacts=truth)
  views = [view(spec.camera, t / max(spec.duration, 1e-6), height, width) for t in times]
  need_passes = truth or spec.look in ("line", "pixel")
  shots = on_stage(_shoot, spec, motion, views, height, width, need_passes)
  scale = supersampling(height, width)
  video = _apply_look(spec, *shots, scale)
  if not truth:
    return Clip(video, {})
  from sora_jax.worlds.truth import gather

  visibility = on_stage(_visibility, spec, motion, views, height, width)
  return Clip(video, gather(spec, times, motion, views, shots[1:], visibility, scale))


def view(camera: Camera, progress: float, height: int, width: int) -> View:
  """The camera's view at `progress` (0 at the start, 1 at the end of the laid-out duration)."""
  kind, _, way = camera.kind.partition("_")
  sweep = camera.amount * (progress - 0.5) * (-1 if way == "left" else 1)
  azimuth = camera.azimuth + (sweep if kind == "orbit" else 0.0)
  ce, se = np.cos(camera.elevation), np.sin(camera.elevation)
  target = np.array(camera.target)
  backward = np.array([np.sin(azimuth) * ce, -np.cos(azimuth) * ce, se])
  position = target + camera.distance * backward
  forward = -backward
  if kind == "pan":
    c, s = np.cos(-sweep), np.sin(-sweep)
    forward = np.array(
      [c * forward[0] - s * forward[1], s * forward[0] + c * forward[1], forward[2]]
    )
  tangent = np.tan(camera.fov / 2)
  if kind == "zoom":
    tangent *= camera.amount ** ((0.5 - progress) * (1 if way == "in" else -1))
  # fov is that of the shorter side, so that any frame shows the whole event.
  tangent *= max(1.0, height / width)
  up = np.array([0.0, 0.0, 1.0]) - forward[2] * forward
  return View(position, forward, up / np.linalg.norm(up), float(tangent))


def _matrix(quaternion: np.ndarray) -> np.ndarray:
  w, x, y, z = quaternion
  return np.array([
    [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
    [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
    [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
  ])  # fmt: skip


_EYE = np.eye(3)


def _thing_geom(thing: Thing, identity: int) -> tuple[Geom, np.ndarray]:
  """The geom and the scale to multiply its rotation with."""
  size, scale = (1.0, 1.0, 1.0), _EYE
  if thing.shape == "ball":
    size = (thing.scale,) * 3
  elif thing.shape == "cube":
    size = (thing.scale * shapes.CUBE_HALF,) * 3
  else:
    scale = _EYE * thing.scale
  geom = Geom(
    thing.shape, np.zeros(3), _EYE, COLOURS[thing.colour], size, specular=0.25, identity=identity
  )
  return geom, scale


def _fixture_geom(item: Fixture) -> Geom:
  return Geom(
    "box", np.array(item.position), _EYE, item.colour,
    (1.0, 1.0, 1.0) if item.kind == "string" else item.extent, identity=FIXTURE,
  )  # fmt: skip


def _base(spec: Spec) -> tuple[list[Geom], Sun]:
  ambient, diffuse = _LIGHTS[spec.light]
  sun = Sun((0.55 * np.sin(spec.sun), 0.55 * np.cos(spec.sun), -1.0), ambient, diffuse)
  floor = Geom(
    "floor", np.zeros(3), _EYE, (1.0, 1.0, 1.0), (48.0, 48.0, 1.0), f"floor {spec.floor}",
    identity=FLOOR,
  )  # fmt: skip
  sky = Geom(
    "sky", np.zeros(3), _EYE, (0.01, 0.01, 0.01), texture=f"sky {spec.light} {spec.sky}",
    emission=100.0, identity=SKY,
  )  # fmt: skip
  return [floor, sky], sun


def _footprint(thing: Thing) -> tuple[float, float]:
  unit = {
    "ball": (0.9, 0.9), "cube": (1.12, 1.12), "cylinder": (0.93, 0.93), "cone": (1.06, 1.06),
    "capsule": (1.5, 0.68),
  }[thing.shape]  # fmt: skip
  return unit[0] * thing.scale, unit[1] * thing.scale


def _shadow(thing: Thing, spec: Spec, position, rotation, layer: int):
  """A soft contact shadow: translucent discs that spread and drift as the thing rises."""
  rise = max(0.0, position[2] - shapes.rest_height(thing.shape, thing.scale))
  grow = (1 + 0.12 * rise) * _SHADOWS[layer][0]
  rx, ry = _footprint(thing)
  heading = np.arctan2(rotation[1, 0], rotation[0, 0])
  c, s = np.cos(heading), np.sin(heading)
  matrix = np.array([[c * rx, -s * ry, 0], [s * rx, c * ry, 0], [0, 0, 1]]) * grow
  lift = 0.12 * thing.scale + 0.25 * rise
  at = np.array(
    [
      position[0] + lift * np.sin(spec.sun), position[1] + lift * np.cos(spec.sun),
      0.004 + 0.003 * layer,
    ]
  )  # fmt: skip
  return at, matrix


def _string(pivot: np.ndarray, bob: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  along = bob - pivot
  length = np.linalg.norm(along)
  z = along / length
  x = np.cross([0.0, 1.0, 0.0], z)
  x /= np.linalg.norm(x)
  return (pivot + bob) / 2, np.stack([0.035 * x, 0.035 * np.cross(z, x), z * length / 2], -1)


class _Cast:
  """The moving geoms of a clip and where they stand in the scene's list."""

  def __init__(self, spec: Spec, motion: physics.Motion, shadows: bool, only: int | None = None):
    self.spec, self.motion = spec, motion
    self.geoms, self.sun = _base(spec)
    self.movers = []
    if only is not None:
      self.geoms = []
    for i, thing in enumerate(spec.things):
      if only not in (None, i):
        continue
      geom, scale = _thing_geom(thing, THING + i)
      self._add(geom, self._thing(i, scale))
    if only is None:
      for i, item in enumerate(spec.fixtures):
        self._add(_fixture_geom(item), self._fixture(i, item))
    if shadows:
      for i, thing in enumerate(spec.things):
        for layer, (_, alpha) in enumerate(_SHADOWS):
          geom = Geom("disc", np.zeros(3), _EYE, (0.0, 0.0, 0.0, alpha), identity=-1)
          self._add(geom, self._shade(i, thing, layer))

  def _add(self, geom: Geom, where) -> None:
    self.movers.append((len(self.geoms), where))
    self.geoms.append(geom)

  def _thing(self, i, scale):
    return lambda t: (self.motion.position[t, i], _matrix(self.motion.rotation[t, i]) @ scale)

  def _fixture(self, i, item):
    if item.kind == "string":
      return lambda t: _string(self.motion.fixtures[t, i], self.motion.position[t, 0])
    return lambda t: (self.motion.fixtures[t, i], _EYE)

  def _shade(self, i, thing, layer):
    return lambda t: _shadow(
      thing, self.spec, self.motion.position[t, i], _matrix(self.motion.rotation[t, i]), layer
    )

  def place(self, stage: Stage, t: int) -> None:
    for index, where in self.movers:
      position, matrix = where(t)
      stage.move(index, position, matrix)


def _shoot(stage: Stage, spec, motion, views, height, width, passes):
  """Colour, segmentation and depth at the rendering resolution (the latter two on request)."""
  scale = supersampling(height, width)
  shape = (len(views), height * scale, width * scale)
  video = np.empty((*shape, 3), np.uint8)
  ids = np.empty(shape, np.uint8) if passes else None
  depth = np.empty(shape, np.float32) if passes else None
  cast = _Cast(spec, motion, shadows=True)
  stage.fill(cast.geoms, cast.sun)
  for t, v in enumerate(views):
    cast.place(stage, t)
    stage.look(v, width / height)
    video[t], _ = stage.shoot(*shape[1:], depth=False)
    if passes:
      stage.segment(True)
      colours, depth[t] = stage.shoot(*shape[1:], depth=True)
      ids[t] = np.maximum(colours[..., 0], 1) - 1
      stage.segment(False)
  return video, ids, depth


def _visibility(stage: Stage, spec, motion, views, height, width) -> np.ndarray:
  """Pixels each thing would cover in the frame if it were alone: t n."""
  scale = supersampling(height, width)
  alone = np.zeros((len(views), len(spec.things)), np.int64)
  stage.segment(True)
  for i in range(len(spec.things)):
    cast = _Cast(spec, motion, shadows=False, only=i)
    stage.fill(cast.geoms, cast.sun)
    for t, v in enumerate(views):
      cast.place(stage, t)
      stage.look(v, width / height)
      colours, _ = stage.shoot(height * scale, width * scale, depth=False)
      alone[t, i] = (colours[..., 0] == THING + i + 1).sum()
  stage.segment(False)
  return alone


def _apply_look(spec: Spec, video, ids, depth, scale: int) -> ClipArray:
  if spec.look == "line":
    palette = np.full((THING + len(spec.things), 3), 0.5)
    palette[THING:] = [COLOURS[thing.colour] for thing in spec.things]
    folded = np.zeros(len(palette), bool)
    folded[THING:] = [thing.shape in ("cube", "cylinder", "cone") for thing in spec.things]
    return looks.line(ids, depth, scale, palette, folded)
  if spec.look == "pixel":
    return looks.pixel(video, ids, depth, scale)
  if spec.look == "mono":
    ambient, diffuse = _LIGHTS[spec.light]
    gain = np.mean(ambient) + 0.7 * np.mean(diffuse)
    return looks.mono(video, scale, COLOURS[spec.main.colour], float(gain))
  return looks.shrink(video, scale)
