"""Where everything is at any time: MuJoCo's physics, or a closed formula for periodic paths.

The physics runs on its own fixed grid of time, whatever the frame rate, and frames between its
steps interpolate them: the same spec moves the same way at 8 and at 60 frames per second.
"""

from __future__ import annotations

import dataclasses

import mujoco
import numpy as np

from sora_jax.typing import Float
from sora_jax.worlds import shapes
from sora_jax.worlds.spec import Spec, Thing

STEP = 1 / 480  # seconds
TICK = 8  # steps between looks at the contacts, and between moves of a paddle: 60 Hz
_QUIET = 0.1  # seconds without contact after which a touch is a new event


@dataclasses.dataclass(frozen=True)
class Contact:
  """Two things (indices into Spec.things, or "floor", or a fixture's kind) begin to touch."""

  time: float
  first: int
  second: int | str


@dataclasses.dataclass(frozen=True)
class Motion:
  """Poses at given times: metres, unit quaternions (w x y z), metres and radians per second."""

  position: Float[np.ndarray, "t n 3"]
  rotation: Float[np.ndarray, "t n 4"]
  velocity: Float[np.ndarray, "t n 3"]
  spin: Float[np.ndarray, "t n 3"]
  fixtures: Float[np.ndarray, "t m 3"]
  contacts: tuple[Contact, ...]


def _quaternion(axis: int, angle: float) -> np.ndarray:
  out = np.array([np.cos(angle / 2), 0.0, 0.0, 0.0])
  out[1 + axis] = np.sin(angle / 2)
  return out


def start_rotation(thing: Thing) -> Float[np.ndarray, "4"]:
  """The thing's orientation at t=0: yaw about z, then tilt about y (the depth axis)."""
  out = np.empty(4)
  mujoco.mju_mulQuat(out, _quaternion(1, thing.tilt), _quaternion(2, thing.yaw))
  return out


def move(spec: Spec, times: np.ndarray, clip_seconds: float, contacts: bool = True) -> Motion:
  """Poses of `spec` at `times` (seconds, ascending from 0).

  `clip_seconds` (frames / fps) only matters to periodic motion, whose period is bent so that the
  clip holds a whole number of cycles and loops. Without `contacts` they are not looked for.
  """
  if spec.main.body == "path":
    return _follow(spec, np.asarray(times, float), clip_seconds)
  return _simulate(spec, np.asarray(times, float), contacts)


def period(spec: Spec, clip_seconds: float) -> float:
  """The period that a periodic world has in a clip of this length, seconds."""
  natural = dict(spec.path)["period"]
  return clip_seconds / max(1, round(clip_seconds / natural))


def _follow(spec: Spec, times: np.ndarray, clip_seconds: float) -> Motion:
  path = dict(spec.path)
  count = (len(times), len(spec.things))
  position = np.tile([thing.position for thing in spec.things], (len(times), 1, 1)).astype(float)
  rotation = np.tile([start_rotation(x) for x in spec.things], (len(times), 1, 1))
  velocity, spin = np.zeros((*count, 3)), np.zeros((*count, 3))
  fixtures = np.tile([x.position for x in spec.fixtures], (len(times), 1, 1)).astype(float)
  fixtures = fixtures.reshape(len(times), len(spec.fixtures), 3)
  if "stop" in path:
    # Constant speed, then a smooth stop over the last third of the way.
    way, pace = _brake(times / path["time"])
    position[:, 0, 0] = path["go"] + (path["stop"] - path["go"]) * way
    velocity[:, 0, 0] = (path["stop"] - path["go"]) * pace / path["time"]
    return Motion(position, rotation, velocity, spin, fixtures, ())
  rate = 2 * np.pi / period(spec, clip_seconds)
  angle = path["direction"] * (rate * times) + path["phase"]
  pivot = np.array([path["x"], path["y"], path["z"]])
  radius, speed = path["radius"], path["direction"] * rate
  if spec.scene == "pendulum":
    swing = path["swing"] * np.sin(angle)
    swing_rate = path["swing"] * np.cos(angle) * speed
    arm = np.stack([np.sin(swing), 0 * swing, -np.cos(swing)], -1)
    across = np.stack([np.cos(swing), 0 * swing, np.sin(swing)], -1)
    velocity[:, 0] = radius * across * swing_rate[:, None]
    for i, lean in enumerate(swing):
      mujoco.mju_mulQuat(rotation[i, 0], _quaternion(1, -lean), start_rotation(spec.main))
    spin[:, 0, 1] = -swing_rate
  else:
    arm = np.stack([np.cos(angle), np.sin(angle), 0 * angle], -1)
    velocity[:, 0] = radius * speed * np.stack([-np.sin(angle), np.cos(angle), 0 * angle], -1)
  position[:, 0] = pivot + radius * arm
  return Motion(position, rotation, velocity, spin, fixtures, ())


def _brake(t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Way and speed, both ending at t=1 with way 1 and speed 0; uniform until t=0.5."""
  late = np.clip((t - 0.5) / 0.5, 0, 1)
  speed = np.where(t < 0.5, 1.0, 1 - late) / 0.75
  way = np.where(t < 0.5, t, 0.5 + 0.5 * (late - late**2 / 2)) / 0.75
  return way, speed


def _geom(thing: Thing, contact: str) -> str:
  s = thing.scale
  size = {
    "ball": f'type="sphere" size="{s:g}"',
    "cube": f'type="box" size="{s * shapes.CUBE_HALF:g} {s * shapes.CUBE_HALF:g} '
    f'{s * shapes.CUBE_HALF:g}"',
    "cylinder": f'type="cylinder" size="{s * shapes.CYLINDER_RADIUS:g} '
    f'{s * shapes.CYLINDER_HALF:g}"',
    "capsule": f'type="capsule" size="{s * shapes.CAPSULE_RADIUS:g} '
    f'{s * shapes.CAPSULE_HALF:g}" quat="0.70710678 0 0.70710678 0"',
  }
  if thing.shape == "cone":
    # A cylinder around the cone's lower half: cones here never tip over.
    half = s * shapes.CONE_HEIGHT / 2
    return (
      f'<geom type="cylinder" size="{0.78 * s * shapes.CONE_RADIUS:g} {half / 2:g}" '
      f'pos="0 0 {-half / 2:g}" {contact}/>'
    )
  return f"<geom {size[thing.shape]} {contact}/>"


def _contact(spec: Spec, thing: Thing) -> str:
  rolls = thing.shape == "ball" and thing.body == "free"
  if spec.scene in ("push", "topple", "fall") or rolls:
    text = 'condim="3" friction="0.7 0.002 0.0001"'
  else:
    text = 'condim="1"'
  if spec.bounce:
    seconds, damping = spec.bounce
    root = np.pi / seconds
    text += f' solref="{-root * root:g} {-2 * damping * root:g}"'
  return text


def _document(spec: Spec) -> str:
  bodies = []
  for i, thing in enumerate(spec.things):
    w, x, y, z = start_rotation(thing)
    joints = ""
    if thing.body == "free":
      joints = "<freejoint/>"
    elif thing.body == "upright":
      # Joint axes turn with the body; these are the world's, seen from it.
      axes = np.empty(9)
      mujoco.mju_quat2Mat(axes, start_rotation(thing))
      joints = "".join(
        '<joint type="slide" axis="{:.9g} {:.9g} {:.9g}"/>'.format(*a) for a in axes.reshape(3, 3)
      )
    px, py, pz = thing.position
    bodies.append(
      f'<body name="{i}" pos="{px:.9g} {py:.9g} {pz:.9g}" quat="{w:.9g} {x:.9g} {y:.9g} {z:.9g}">'
      f"{joints}{_geom(thing, _contact(spec, thing))}</body>"
    )
  for i, item in enumerate(spec.fixtures):
    if item.kind not in ("wall", "paddle"):
      continue
    px, py, pz = item.position
    ex, ey, ez = item.extent
    mocap = 'mocap="true"' if item.kind == "paddle" else ""
    bodies.append(
      f'<body name="f{i}" {mocap} pos="{px:g} {py:g} {pz:g}">'
      f'<geom type="box" size="{ex:g} {ey:g} {ez:g}" condim="1"/></body>'
    )
  return (
    f'<mujoco><compiler angle="radian"/><option timestep="{STEP:.12g}" '
    f'gravity="0 0 {-spec.gravity:g}"/><worldbody>'
    '<geom type="plane" size="0 0 1" condim="1" friction="0.01 0.001 0.0001"/>'
    + "".join(bodies)
    + "</worldbody></mujoco>"
  )


def _paddle(spec: Spec, time: float) -> float:
  """The paddle's way along x at `time`: forth, a rest, and back."""
  path = dict(spec.path)
  t = time - path["start"]
  forth = np.clip(t / path["forth"], 0, 1)
  back = np.clip((t - path["forth"] - 0.1) / path["forth"], 0, 1)
  ease = 3 * back**2 - 2 * back**3
  return path["direction"] * (path["reach"] * forth - path["retreat"] * ease)


def _start(model: mujoco.MjModel, data: mujoco.MjData, spec: Spec) -> None:
  for i, thing in enumerate(spec.things):
    if thing.body == "fixed":
      continue
    at = model.jnt_dofadr[model.body(str(i)).jntadr[0]]
    data.qvel[at : at + 3] = thing.velocity
    if thing.body == "free" and thing.shape == "ball" and spec.gravity and not spec.bounce:
      # Rolling without slipping: spin = up x velocity / radius, in the body's (unturned) frame.
      vx, vy, _ = thing.velocity
      data.qvel[at + 3 : at + 6] = (-vy / thing.scale, vx / thing.scale, 0.0)


def _simulate(spec: Spec, times: np.ndarray, watch: bool) -> Motion:
  model = mujoco.MjModel.from_xml_string(_document(spec))
  data = mujoco.MjData(model)
  _start(model, data, spec)
  mujoco.mj_forward(model, data)
  things = [model.body(str(i)).id for i in range(len(spec.things))]
  owner: dict[int, int | str] = {0: "floor"} | {b: i for i, b in enumerate(things)}
  paddles = {}
  for i, item in enumerate(spec.fixtures):
    if item.kind in ("wall", "paddle"):
      body = model.body(f"f{i}")
      owner[body.id] = item.kind
      if item.kind == "paddle":
        paddles[i] = int(body.mocapid[0])
  low, mix = _grid(times)
  wanted = sorted({int(k) for k in low} | {int(k) + 1 for k in low[mix > 0]})
  stops = set(wanted)
  if watch or paddles:
    stops |= set(range(0, wanted[-1] + 1, TICK))
  poses, touches = {}, _Touches(owner)
  position, rotation, speed = data.xpos, data.xquat, data.cvel
  step = 0
  for stop in sorted(stops):
    if stop > step:
      mujoco.mj_step(model, data, nstep=stop - step)
      step = stop
    # cvel is (spin, velocity of the subtree's centre of mass), which is the body's own here.
    poses[stop] = np.concatenate([position[things], rotation[things], speed[things]], -1)
    if stop % TICK == 0:
      if watch:
        touches.update(stop * STEP, _touching(model, data))
      for i, slot in paddles.items():
        x = spec.fixtures[i].position[0]
        data.mocap_pos[slot, 0] = x + _paddle(spec, (stop + TICK) * STEP)
  first = np.stack([poses[int(k)] for k in low])
  second = np.stack([poses[int(k) + (m > 0)] for k, m in zip(low, mix, strict=True)])
  pose = _blend(first, second, mix[:, None, None])
  fixtures = np.tile([x.position for x in spec.fixtures], (len(times), 1, 1)).astype(float)
  fixtures = fixtures.reshape(len(times), len(spec.fixtures), 3)
  for i in paddles:
    fixtures[:, i, 0] += [_paddle(spec, t) for t in times]
  contacts = tuple(c for c in touches.contacts if c.time <= times[-1])
  return Motion(pose[..., :3], pose[..., 3:7], pose[..., 10:], pose[..., 7:10], fixtures, contacts)


def _grid(times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """The physics step at or before each time, and how far the time is on the way to the next."""
  at = times / STEP
  nearest = np.round(at)
  at = np.where(np.abs(at - nearest) < 1e-6, nearest, at)
  low = np.floor(at)
  return low.astype(int), at - low


def _blend(first: np.ndarray, second: np.ndarray, mix: np.ndarray) -> np.ndarray:
  """Interpolates rows of position, quaternion, spin, velocity."""
  turn = slice(3, 7)
  flip = (first[..., turn] * second[..., turn]).sum(-1, keepdims=True) < 0
  second[..., turn] *= np.where(flip, -1, 1)
  out = first * (1 - mix) + second * mix
  out[..., turn] /= np.linalg.norm(out[..., turn], axis=-1, keepdims=True)
  return out


def _touching(model: mujoco.MjModel, data: mujoco.MjData) -> set[tuple[int, int]]:
  """Pairs of bodies in contact."""
  if not data.ncon:
    return set()
  return {(a, b) for a, b in model.geom_bodyid[data.contact.geom].tolist()}


class _Touches:
  """Turns touching pairs of bodies into events: the moments when a touch begins."""

  def __init__(self, owner: dict[int, int | str]):
    self.owner = owner
    self.last: dict[tuple[int, int], float] = {}
    self.contacts: list[Contact] = []

  def update(self, time: float, pairs: set[tuple[int, int]]) -> None:
    for pair in sorted({(min(p), max(p)) for p in pairs}):
      if time - self.last.get(pair, -np.inf) > _QUIET:
        self._add(time, self.owner[pair[0]], self.owner[pair[1]])
      self.last[pair] = time

  def _add(self, time: float, a: int | str, b: int | str) -> None:
    if isinstance(a, str):
      a, b = b, a
    if not isinstance(a, str):
      self.contacts.append(Contact(float(time), a, b))
