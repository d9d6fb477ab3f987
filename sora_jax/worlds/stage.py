"""The renderer: MuJoCo's OpenGL pipeline driven directly, one context per process.

One model with every mesh and texture is compiled once; a clip only fills the abstract scene
(`mjvScene`) with geoms, lights and a camera, so a new world costs no compilation and no upload.
All OpenGL calls happen on one thread of the process (a context belongs to a thread), which makes
`Stage` safe under Grain's reader threads. The context is created at the first use, in whichever
process that is; processes that render must be started by "spawn" or before the first use.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import os

import mujoco
import numpy as np

from sora_jax.typing import Float
from sora_jax.worlds import shapes, textures
from sora_jax.worlds.vocabulary import FLOORS

FAR = 90.0
NEAR = 0.2
MAX_GEOMS = 120

_MESHES = {
  "cylinder": shapes.cylinder, "cone": shapes.cone, "capsule": shapes.capsule,
  "disc": shapes.disc, "sky": shapes.ring_wall,
}  # fmt: skip
_BUILTIN = {
  "ball": mujoco.mjtGeom.mjGEOM_SPHERE,
  "cube": mujoco.mjtGeom.mjGEOM_BOX,
  "box": mujoco.mjtGeom.mjGEOM_BOX,
  "floor": mujoco.mjtGeom.mjGEOM_PLANE,
}


@dataclasses.dataclass
class Geom:
  """One thing to draw; `matrix` is rotation times scale, `identity` its segmentation number."""

  kind: str
  position: Float[np.ndarray, "3"]
  matrix: Float[np.ndarray, "3 3"]
  colour: tuple[float, ...]
  size: tuple[float, float, float] = (1.0, 1.0, 1.0)
  texture: str = ""
  emission: float = 0.0
  specular: float = 0.0
  identity: int = 0


@dataclasses.dataclass(frozen=True)
class View:
  """A pinhole camera: `tangent` is the tangent of half the vertical field of view."""

  position: Float[np.ndarray, "3"]
  forward: Float[np.ndarray, "3"]
  up: Float[np.ndarray, "3"]
  tangent: float


@dataclasses.dataclass(frozen=True)
class Sun:
  """One directional light."""

  direction: tuple[float, float, float]
  ambient: tuple[float, float, float]
  diffuse: tuple[float, float, float]


def _join(values: np.ndarray) -> str:
  return " ".join(f"{x:g}" for x in np.asarray(values).ravel())


def _texture_images() -> dict[str, np.ndarray]:
  images = {f"floor {name}": textures.floor(name) for name in FLOORS}
  for light, skies in textures.SKIES.items():
    for index in range(len(skies)):
      images[f"sky {light} {index}"] = textures.sky(light, index)
  return images


def _build_model() -> mujoco.MjModel:
  images = _texture_images()
  assets = [
    f'<texture name="{name}" type="2d" builtin="flat" width="{x.shape[1]}" height="{x.shape[0]}"/>'
    for name, x in images.items()
  ]
  assets += [f'<material name="{name}" texture="{name}"/>' for name in images]
  meshes = {name: build() for name, build in _MESHES.items()}
  for name, (vertices, normals, faces) in meshes.items():
    coords = ""
    if name == "sky":
      height = vertices[:, 2] / vertices[:, 2].max()
      coords = f'texcoord="{_join(np.stack([0 * height, height], -1))}"'
    assets.append(
      f'<mesh name="{name}" inertia="shell" vertex="{_join(vertices)}" '
      f'normal="{_join(normals)}" face="{_join(faces)}" {coords}/>'
    )
  model = mujoco.MjModel.from_xml_string(
    "<mujoco><visual><quality offsamples='0' shadowsize='0' numslices='24' numstacks='14' "
    "numquads='1'/></visual><asset>" + "".join(assets) + "</asset></mujoco>"
  )
  for name, image in images.items():
    tex = model.texture(name).id
    start = model.tex_adr[tex]
    # OpenGL's first row is the bottom one.
    model.tex_data[start : start + image.size] = image[::-1].ravel()
  for name, (vertices, normals, _) in meshes.items():
    # The compiler moves meshes to their centre of mass; put the vertices back.
    mesh = model.mesh(name).id
    start, count = model.mesh_vertadr[mesh], model.mesh_vertnum[mesh]
    if count != len(vertices):
      raise RuntimeError(f"mesh {name}: {count} vertices after compilation, not {len(vertices)}")
    model.mesh_vert[start : start + count] = vertices
    start = model.mesh_normaladr[mesh]
    model.mesh_normal[start : start + count] = normals
  return model


def _gl_context():
  # Not mujoco.GLContext: that one was chosen when MuJoCo was first imported, maybe before us.
  if os.environ["MUJOCO_GL"].lower() == "egl":
    from mujoco.egl import GLContext
  else:
    from mujoco import GLContext
  return GLContext(64, 64)


class Stage:
  """Draws lists of geoms into a tile of one offscreen buffer. Use through `on_stage`."""

  def __init__(self):
    self.model = _build_model()
    self.textures = {self.model.texture(i).name: i for i in range(self.model.ntex)}
    self.context = _gl_context()
    self.context.make_current()
    self.size = (0, 0)
    self.render = mujoco.MjrContext(self.model, mujoco.mjtFontScale.mjFONTSCALE_100)
    mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self.render)
    self.scene = mujoco.MjvScene(self.model, maxgeom=MAX_GEOMS)
    for flag in range(len(self.scene.flags)):
      self.scene.flags[flag] = 0
    self.scene.flags[mujoco.mjtRndFlag.mjRND_CULL_FACE] = 1

  def _fit(self, height: int, width: int) -> None:
    if self.size != (height, width):
      mujoco.mjr_resizeOffscreen(width, height, self.render)
      mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self.render)
      self.size = (height, width)

  def fill(self, geoms: list[Geom], sun: Sun) -> None:
    """Puts the geoms and the light into the scene."""
    if len(geoms) > MAX_GEOMS:
      raise ValueError(f"{len(geoms)} geoms do not fit in a scene of {MAX_GEOMS}")
    for slot, geom in zip(self.scene.geoms, geoms, strict=False):
      self._set(slot, geom)
    self.scene.ngeom = len(geoms)
    light = self.scene.lights[0]
    light.type = mujoco.mjtLightType.mjLIGHT_DIRECTIONAL
    light.dir = sun.direction
    light.ambient, light.diffuse, light.specular = sun.ambient, sun.diffuse, sun.diffuse
    self.scene.nlight = 1

  def _set(self, slot: mujoco.MjvGeom, geom: Geom) -> None:
    kind = _BUILTIN.get(geom.kind, mujoco.mjtGeom.mjGEOM_MESH)
    rgba = np.array((*geom.colour, 1.0)[:4], np.float32)
    mujoco.mjv_initGeom(
      slot, kind, np.ones(3), np.asarray(geom.position, float), geom.matrix.ravel(), rgba
    )
    slot.size = geom.size
    slot.dataid = -1 if geom.kind in _BUILTIN else 2 * self.model.mesh(geom.kind).id
    slot.texcoord = geom.kind == "sky"
    slot.matid = slot.texid = self.textures[geom.texture] if geom.texture else -1
    slot.texuniform = 1
    slot.texrepeat = (1 / textures.FLOOR_METRES,) * 2 if geom.kind == "floor" else (1, 1)
    slot.emission, slot.specular, slot.shininess = geom.emission, geom.specular, 0.6
    slot.transparent = rgba[3] < 1
    slot.segid = geom.identity  # -1 is not drawn in the segmentation pass
    slot.category = mujoco.mjtCatBit.mjCAT_DYNAMIC

  def move(self, index: int, position: np.ndarray, matrix: np.ndarray) -> None:
    slot = self.scene.geoms[index]
    slot.pos = position
    slot.mat = matrix

  def look(self, view: View, aspect: float) -> None:
    for camera in self.scene.camera:
      camera.pos, camera.forward, camera.up = view.position, view.forward, view.up
      camera.frustum_near, camera.frustum_far = NEAR, FAR
      camera.frustum_top = NEAR * view.tangent
      camera.frustum_bottom = -camera.frustum_top
      camera.frustum_center, camera.frustum_width = 0.0, camera.frustum_top * aspect

  def segment(self, on: bool) -> None:
    """Switches between colours and segmentation numbers."""
    self.scene.flags[mujoco.mjtRndFlag.mjRND_SEGMENT] = on
    self.scene.flags[mujoco.mjtRndFlag.mjRND_IDCOLOR] = on

  def shoot(self, height: int, width: int, depth: np.ndarray | None = None) -> np.ndarray:
    """Renders the scene: uint8 h w 3. Fills `depth` (float32 h w) with metres along the view."""
    self._fit(height, width)
    rect = mujoco.MjrRect(0, 0, width, height)
    rgb = np.empty((height, width, 3), np.uint8)
    mujoco.mjr_render(rect, self.scene, self.render)
    mujoco.mjr_readPixels(rgb, depth, rect, self.render)
    if depth is not None:
      depth[:] = self._metres(depth[::-1])
    return rgb[::-1]

  def _metres(self, z: np.ndarray) -> np.ndarray:
    # MuJoCo reverses the depth range of its offscreen buffer where the driver allows it.
    if self.render.readDepthMap == mujoco.mjtDepthMap.mjDEPTH_ZERONEAR:
      ndc = 2 * z - 1
    else:
      ndc = 1 - 2 * z
    return 2 * FAR * NEAR / (FAR + NEAR - ndc * (FAR - NEAR))


_process = -1
_executor: concurrent.futures.ThreadPoolExecutor


@functools.cache
def _stage(process: int) -> Stage:
  return Stage()


def on_stage(draw, *args):
  """Runs `draw(stage, *args)` on the process's rendering thread and returns its result."""
  global _process, _executor
  if _process != os.getpid():
    _executor = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="stage")
    _process = os.getpid()
  return _executor.submit(lambda: draw(_stage(os.getpid()), *args)).result()
