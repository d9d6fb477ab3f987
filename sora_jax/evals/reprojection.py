"""Whether views of a still scene are views of one scene: known frames warped to later cameras.

With the simulator's depth and cameras a pixel of a later frame is a point of the scene, and that is
seen in a known frame too, unless something hides it. The two colours should be the same but for
interpolation and highlights, which the true frame has as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy import ndimage

from sora_jax.typing import Bool, Clip, Float
from sora_jax.worlds.film import THING

SAME = 0.03  # part of its distance by which a point may miss the surface that is seen there
AROUND = 3  # px around things that count as near them

Expected = tuple[Float[np.ndarray, "h w 3"], Bool[np.ndarray, "h w"]]


def axes(truth: Mapping[str, Any], t: int) -> Float[np.ndarray, "3 3"]:
  """Right, up and forward of the camera in frame t, in its rows."""
  forward, up = truth["camera_forward"][t], truth["camera_up"][t]
  return np.stack([np.cross(forward, up), up, forward])


def points(truth: Mapping[str, Any], t: int) -> Float[np.ndarray, "h w 3"]:
  """Where what each pixel of frame t shows is, metres."""
  depth, tangent = truth["depth"][t].astype(np.float64), truth["camera_tangent"][t]
  h, w = depth.shape
  x = ((2 * np.arange(w) + 1) / w - 1) * tangent * w / h
  y = (1 - (2 * np.arange(h) + 1) / h) * tangent
  rays = np.stack([*np.meshgrid(x, y), np.ones((h, w))], axis=-1)
  return truth["camera_position"][t] + depth[..., None] * (rays @ axes(truth, t))


def project(
  truth: Mapping[str, Any], t: int, where: Float[np.ndarray, "h w 3"]
) -> tuple[Float[np.ndarray, "2 h w"], Float[np.ndarray, "h w"]]:
  """Rows and columns, in pixels, at which points are seen in frame t, and their depth, metres."""
  h, w = truth["depth"].shape[1:]
  x, y, z = np.moveaxis((where - truth["camera_position"][t]) @ axes(truth, t).T, -1, 0)
  z_safe = np.maximum(z, 1e-6)
  rows = (1 - y / z_safe / truth["camera_tangent"][t]) * h / 2 - 0.5
  columns = (x / z_safe / truth["camera_tangent"][t] * h / w + 1) * w / 2 - 0.5
  return np.stack([rows, columns]), z


def expected(video: Clip, truth: Mapping[str, Any], t: int, known: int) -> Expected:
  """What frame t of a still scene shows of what the first `known` frames show, and where it does.

  Of several known frames that show a point, the last one counts.
  """
  where, ids = points(truth, t), truth["segmentation"]
  out, seen = np.zeros(video.shape[1:], np.float64), np.zeros(video.shape[1:3], bool)
  for source in reversed(range(known)):
    at, z = project(truth, source, where)
    row, column = np.rint(at).astype(int)
    inside = (row >= 0) & (row < ids.shape[1]) & (column >= 0) & (column < ids.shape[2]) & (z > 0)
    row, column = np.where(inside, row, 0), np.where(inside, column, 0)
    same = np.abs(truth["depth"][source][row, column] - z) < SAME * np.abs(z)
    new = inside & same & (ids[source][row, column] == ids[t]) & ~seen
    for channel in range(3):
      x = video[source, ..., channel].astype(np.float64)
      out[new, channel] = ndimage.map_coordinates(x, at[:, new], order=1, mode="nearest")
    seen |= new
  return out, seen


def errors(clip: Clip, video: Clip, truth: Mapping[str, Any], known: int) -> tuple[float, float]:
  """Mean absolute difference of made frames from what they should show, grey levels.

  Args:
    clip: what was made. video, truth: the still scene. known: frames that were given.

  Returns:
    of all pixels that a known frame shows, and of those on and around things alone.
  """
  everywhere, near = [], []
  for t in range(known, len(clip)):
    wanted, seen = expected(video, truth, t, known)
    gap = np.abs(clip[t] - wanted).mean(axis=-1)
    around = ndimage.binary_dilation(truth["segmentation"][t] >= THING, iterations=AROUND)
    everywhere.append(gap[seen])
    near.append(gap[seen & around])
  return float(np.concatenate(everywhere).mean()), float(np.concatenate(near).mean())
