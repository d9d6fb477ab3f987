"""Geometry of the five shapes, shared by the physics and by the renderer."""

from __future__ import annotations

import numpy as np

from sora_jax.typing import Float

Points = Float[np.ndarray, "n 3"]
Triangles = tuple[Points, Points, np.ndarray]  # vertices, unit normals, faces

# Extents for scale 1: half-height above the centre, and half-length of the profile.
CUBE_HALF = 0.86
CYLINDER_RADIUS, CYLINDER_HALF = 0.84, 1.0
CONE_RADIUS, CONE_HEIGHT = 1.0, 2.1
CAPSULE_RADIUS, CAPSULE_HALF = 0.62, 0.9


def rest_height(shape: str, scale: float) -> float:
  """Height of the centre, metres, when a thing of this shape rests on the floor."""
  unit = {
    "ball": 1.0, "cube": CUBE_HALF, "cylinder": CYLINDER_HALF, "cone": CONE_HEIGHT / 2,
    "capsule": CAPSULE_RADIUS,
  }  # fmt: skip
  return unit[shape] * scale


def half_width(shape: str, scale: float) -> float:
  """Half of the extent along x, metres, of a thing that rests on the floor without yaw."""
  unit = {
    "ball": 1.0, "cube": CUBE_HALF, "cylinder": CYLINDER_RADIUS, "cone": CONE_RADIUS,
    "capsule": CAPSULE_RADIUS + CAPSULE_HALF,
  }  # fmt: skip
  return unit[shape] * scale


def _ring(count: int) -> Float[np.ndarray, "n 2"]:
  angle = np.arange(count) * (2 * np.pi / count)
  return np.stack([np.cos(angle), np.sin(angle)], -1)


def lathe(profile: np.ndarray, normals: np.ndarray, sides: int) -> Triangles:
  """Turns a profile of (radius, z) rows about the z axis; consecutive rows are joined.

  Rows are given twice where the surface has an edge, each with its own normal.
  """
  ring = _ring(sides)
  vertices = np.concatenate(
    [np.concatenate([ring * r, np.full((sides, 1), z)], -1) for r, z in profile]
  )
  turned = np.concatenate(
    [np.concatenate([ring * r, np.full((sides, 1), z)], -1) for r, z in normals]
  )
  faces = []
  for row in range(len(profile) - 1):
    if np.allclose(profile[row], profile[row + 1]):
      continue
    for k in range(sides):
      a, b = row * sides + k, row * sides + (k + 1) % sides
      c, d = a + sides, b + sides
      if profile[row][0] > 0:
        faces.append((a, b, d))
      if profile[row + 1][0] > 0:
        faces.append((a, d, c))
  return vertices, turned, np.array(faces)


def cylinder(sides: int = 28) -> Triangles:
  """An upright cylinder around the origin."""
  r, h = CYLINDER_RADIUS, CYLINDER_HALF
  profile = np.array([(0, -h), (r, -h), (r, -h), (r, h), (r, h), (0, h)])
  normals = np.array([(0, -1), (0, -1), (1, 0), (1, 0), (0, 1), (0, 1)])
  return lathe(profile, normals, sides)


def cone(sides: int = 28) -> Triangles:
  """An upright cone around the origin."""
  r, h = CONE_RADIUS, CONE_HEIGHT / 2
  slope = np.array([CONE_HEIGHT, r]) / np.hypot(CONE_HEIGHT, r)
  # The tip is a tiny ring: its vertices need normals that differ around the axis.
  profile = np.array([(0, -h), (r, -h), (r, -h), (0.01 * r, h)])
  normals = np.array([(0, -1), (0, -1), slope, slope])
  return lathe(profile, normals, sides)


def capsule(sides: int = 20, steps: int = 5) -> Triangles:
  """A capsule along x, as it lies on the floor."""
  angle = np.linspace(-np.pi / 2, 0, steps)
  arc = np.stack([np.cos(angle), np.sin(angle)], -1)
  arc[0] = (0, -1)
  normals = np.concatenate([arc, arc[::-1] * (1, -1)])
  profile = CAPSULE_RADIUS * normals + np.repeat([[0, -1], [0, 1]], steps, 0) * CAPSULE_HALF
  vertices, turned, faces = lathe(profile, normals, sides)
  return vertices[:, [2, 0, 1]], turned[:, [2, 0, 1]], faces


def disc(sides: int = 20) -> Triangles:
  """A flat unit disc facing up."""
  ring = np.concatenate([_ring(sides), np.zeros((sides, 1))], -1)
  vertices = np.concatenate([ring, np.zeros((1, 3))])
  faces = [(k, (k + 1) % sides, sides) for k in range(sides)]
  return vertices, np.tile([0.0, 0.0, 1.0], (sides + 1, 1)), np.array(faces)


def ring_wall(sides: int = 72, top: float = 40.0, radius: float = 30.0) -> Triangles:
  """The inside of an upright tube: the sky's backdrop."""
  ring = _ring(sides) * radius
  low = np.concatenate([ring, np.zeros((sides, 1))], -1)
  high = np.concatenate([ring, np.full((sides, 1), top)], -1)
  inward = np.concatenate([-_ring(sides), np.zeros((sides, 1))], -1)
  faces = []
  for k in range(sides):
    a, b = k, (k + 1) % sides
    faces += [(a, b + sides, b), (a, a + sides, b + sides)]
  return np.concatenate([low, high]), np.concatenate([inward, inward]), np.array(faces)
