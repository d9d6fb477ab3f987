"""Ground truth of a rendered clip, gathered from the physics and the renderer's passes."""

from __future__ import annotations

from typing import Any

import numpy as np

from sora_jax.worlds.physics import Motion
from sora_jax.worlds.spec import Spec
from sora_jax.worlds.stage import View

_HIDDEN, _SHOWN = 0.05, 0.25


def gather(
  spec: Spec,
  times: np.ndarray,
  motion: Motion,
  views: list[View],
  passes: tuple[np.ndarray, np.ndarray],
  alone: np.ndarray,
  scale: int,
) -> dict[str, Any]:
  """The `truth` of a sample.

  Args:
    passes: segmentation and depth, t h w at the rendering resolution, `scale` times the final one.
    alone: pixels each thing would cover without the others, at the same resolution, t n.

  Returns:
    A dict of numpy arrays and plain values (t frames, n things in the order of the spec):
    `labels` (colour, shape, size, motion, look, count, scene of the main object), `spec` (JSON),
    `times` t; `position` t n 3 (metres), `rotation` t n 4 (w x y z), `velocity`, `spin` t n 3;
    `camera_position`, `camera_forward`, `camera_up` t 3, `camera_tangent` t (of half the vertical
    field of view); `segmentation` t h w (0 sky, 1 floor, 2 fixtures, 10 + i thing i) and `depth`
    t h w (metres along the view), both sampled, not averaged; `visibility` t n (visible part of
    what is in the frame, 0 where nothing is), `coverage` t n (visible part of the frame); `events`,
    a list of {"type", "time", ...}: contact (of `first`, `second`), occluded, reappears (of
    `thing`), the latter two at the first frame in question.
  """
  segmentation, depth = passes
  pixels = segmentation.shape[1] * segmentation.shape[2]
  count = len(spec.things)
  seen = np.stack([(segmentation == 10 + i).sum((1, 2)) for i in range(count)], -1)
  # An object of which less than this is inside the frame is out of it, not hidden.
  inside = alone >= 0.0005 * pixels
  visibility = np.where(inside, seen / np.maximum(alone, 1), 0.0)
  return {
    "labels": spec.labels,
    "spec": spec.to_json(),
    "times": times,
    "position": motion.position,
    "rotation": motion.rotation,
    "velocity": motion.velocity,
    "spin": motion.spin,
    "camera_position": np.stack([v.position for v in views]),
    "camera_forward": np.stack([v.forward for v in views]),
    "camera_up": np.stack([v.up for v in views]),
    "camera_tangent": np.array([v.tangent for v in views]),
    "segmentation": segmentation[:, scale // 2 :: scale, scale // 2 :: scale].copy(),
    "depth": depth[:, scale // 2 :: scale, scale // 2 :: scale].copy(),
    "visibility": np.clip(visibility, 0.0, 1.0),
    "coverage": seen / pixels,
    "events": _events(times, motion, visibility, inside),
  }


def _events(times, motion: Motion, visibility, inside) -> list[dict[str, Any]]:
  events: list[dict[str, Any]] = [
    {"type": "contact", "time": c.time, "first": c.first, "second": c.second}
    for c in motion.contacts
  ]
  for thing in range(visibility.shape[1]):
    hidden = None
    for t, time in enumerate(times):
      if not inside[t, thing]:
        continue
      if visibility[t, thing] > _SHOWN and hidden:
        events.append({"type": "reappears", "time": float(time), "thing": thing})
      if visibility[t, thing] > _SHOWN:
        hidden = False
      elif visibility[t, thing] < _HIDDEN and hidden is False:
        events.append({"type": "occluded", "time": float(time), "thing": thing})
        hidden = True
  return sorted(events, key=lambda event: event["time"])
