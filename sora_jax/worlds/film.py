"""From a Spec to pixels and ground truth."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from sora_jax.errors import UserError
from sora_jax.typing import Clip as ClipArray
from sora_jax.typing import Float
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
  if frames < 1 or not 0 < fps <= 1000:
    raise UserError(
      f"a clip needs at least 1 frame and a rate above 0, at most 1000: not {frames} at {fps}."
    )
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
  video = _apply_look(spec, shots, scale)
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


def _matrices(quaternion: Float[np.ndarray, "t 4"]) -> Float[np.ndarray, "t 3 3"]:
  w, x, y, z = quaternion.T
  rows = [
    [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
    [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
    [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
  ]
  return np.moveaxis(np.array(rows), -1, 0)


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


Track = tuple[np.ndarray, np.ndarray]  # positions t 3, matrices t 3 3


def _shadows(thing: Thing, spec: Spec, position, rotation) -> list[Track]:
  """A soft contact shadow: translucent discs that spread and drift as the thing rises."""
  rise = np.maximum(0.0, position[:, 2] - shapes.rest_height(thing.shape, thing.scale))
  heading = np.arctan2(rotation[:, 1, 0], rotation[:, 0, 0])
  c, s, o = np.cos(heading), np.sin(heading), np.zeros_like(heading)
  rx, ry = _footprint(thing)
  rows = [[c * rx, -s * ry, o], [s * rx, c * ry, o], [o, o, o + 1]]
  matrix = np.moveaxis(np.array(rows), -1, 0) * (1 + 0.12 * rise)[:, None, None]
  lift = 0.12 * thing.scale + 0.25 * rise
  x = position[:, 0] + lift * np.sin(spec.sun)
  y = position[:, 1] + lift * np.cos(spec.sun)
  return [
    (np.stack([x, y, o + 0.004 + 0.003 * layer], -1), matrix * size)
    for layer, (size, _) in enumerate(_SHADOWS)
  ]


def _string(pivot: np.ndarray, bob: np.ndarray) -> Track:
  """A thin box from the pivots to the bobs, t 3 each."""
  along = bob - pivot
  length = np.linalg.norm(along, axis=-1, keepdims=True)
  z = along / length
  x = np.cross([0.0, 1.0, 0.0], z)
  x /= np.linalg.norm(x, axis=-1, keepdims=True)
  return (pivot + bob) / 2, np.stack([0.035 * x, 0.035 * np.cross(z, x), z * length / 2], -1)


class _Cast:
  """All geoms of a clip, and where they are in each frame; `only` leaves a single thing."""

  def __init__(self, spec: Spec, motion: physics.Motion, only: int | None = None):
    base, self.sun = _base(spec)
    self.geoms: list[Geom] = [] if only is not None else base
    self.tracks: list[tuple[int, Track]] = []
    frames = len(motion.position)
    shadows = []
    for i, thing in enumerate(spec.things):
      if only not in (None, i):
        continue
      geom, scale = _thing_geom(thing, THING + i)
      rotation = _matrices(motion.rotation[:, i])
      self._add(geom, (motion.position[:, i], rotation @ scale))
      shadows.append(_shadows(thing, spec, motion.position[:, i], rotation))
    if only is not None:
      return
    for i, item in enumerate(spec.fixtures):
      track = (motion.fixtures[:, i], np.tile(_EYE, (frames, 1, 1)))
      if item.kind == "string":
        track = _string(motion.fixtures[:, i], motion.position[:, 0])
      self._add(_fixture_geom(item), track)
    for layers in shadows:
      for track, (_, alpha) in zip(layers, _SHADOWS, strict=True):
        geom = Geom("disc", np.zeros(3), _EYE, (0.0, 0.0, 0.0, alpha), identity=-1)
        self._add(geom, track)

  def _add(self, geom: Geom, track: Track) -> None:
    geom.position, geom.matrix = track[0][0], track[1][0]
    if np.ptp(track[0], axis=0).any() or np.ptp(track[1], axis=0).any():
      self.tracks.append((len(self.geoms), track))
    self.geoms.append(geom)

  def place(self, stage: Stage, t: int) -> None:
    for index, (position, matrix) in self.tracks:
      stage.move(index, position[t], matrix[t])


def _shoot(
  stage: Stage, spec, motion, views, height, width, passes
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Colour, segmentation and depth at the rendering resolution; the latter empty unless asked."""
  scale = supersampling(height, width)
  shape = (len(views), height * scale, width * scale)
  video = np.empty((*shape, 3), np.uint8)
  kept = shape if passes else (0, 0, 0)
  ids, depth = np.empty(kept, np.uint8), np.empty(kept, np.float32)
  cast = _Cast(spec, motion)
  stage.fill(cast.geoms, cast.sun)
  for t, v in enumerate(views):
    cast.place(stage, t)
    stage.look(v, width / height)
    video[t] = stage.shoot(*shape[1:])
    if passes:
      stage.segment(True)
      colours = stage.shoot(*shape[1:], depth[t])
      ids[t] = np.maximum(colours[..., 0], 1) - 1
      stage.segment(False)
  return video, ids, depth


def _visibility(stage: Stage, spec, motion, views, height, width) -> np.ndarray:
  """Pixels each thing would cover in the frame if it were alone: t n."""
  scale = supersampling(height, width)
  alone = np.zeros((len(views), len(spec.things)), np.int64)
  stage.segment(True)
  for i in range(len(spec.things)):
    cast = _Cast(spec, motion, only=i)
    stage.fill(cast.geoms, cast.sun)
    for t, v in enumerate(views):
      cast.place(stage, t)
      stage.look(v, width / height)
      colours = stage.shoot(height * scale, width * scale)
      alone[t, i] = (colours[..., 0] == THING + i + 1).sum()
  stage.segment(False)
  return alone


def _apply_look(spec: Spec, shots: tuple[np.ndarray, ...], scale: int) -> ClipArray:
  video, ids, depth = shots
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
