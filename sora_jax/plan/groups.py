"""What collectives send: of which devices, how much, and how much of it from host to host."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence

import numpy as np

# Bytes that a device sends, of the bytes of the result and the devices of a group.
SENT: dict[str, Callable[[int, int], int]] = {
  "all-gather": lambda r, g: r * (g - 1) // g,
  "reduce-scatter": lambda r, g: r * (g - 1),
  "all-reduce": lambda r, g: 2 * r * (g - 1) // g,
  "all-to-all": lambda r, g: r * (g - 1) // g,
  "ragged-all-to-all": lambda r, g: r * (g - 1) // g,
  "collective-permute": lambda r, g: r,
  "collective-broadcast": lambda r, g: r,
}

# All the ways in which XLA writes groups of devices.
FORMS = r"\{[\d,{}]*\}|\[[\d,]+\](?:<=\[[\d,]+\](?:T\([\d,]+\))?)?|mesh\[[^{]*\{.*?\}"


def parse(text: str, devices: int) -> list[list[int]]:
  """Groups of devices, out of what `FORMS` matches; no groups at all are one of all devices."""
  if text.startswith("["):  # their shape, the shape they are cut from, and its axes' order
    shape, *rest = ([int(n) for n in part.split(",")] for part in re.findall(r"[\d,]+", text))
    ids = np.arange(math.prod(shape))
    if len(rest) == 2:
      ids = ids.reshape(rest[0]).transpose(rest[1])
    return ids.reshape(shape).tolist()
  if text.startswith("mesh"):
    return _along(text)
  found = [[int(n) for n in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", text)]
  return found or [list(range(devices))]


def _along(text: str) -> list[list[int]]:
  """All devices along the named axes, or a part of one: 'x':(2)4, within each 2nd, 4 of them."""
  mesh, names = text.partition("]")[0], text[text.index("{") :]
  sizes = [(axis, int(size)) for axis, size in re.findall(r"'(\w+)'=(\d+)", mesh)]
  parts: dict[str, list[tuple[int, int]]] = {}
  for axis, before, size in re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", names):
    parts.setdefault(axis, []).append((int(before or 1), int(size or dict(sizes)[axis])))
  shape: list[int] = []
  chosen: list[int] = []
  for axis, size in sizes:
    done = 1
    for before, part in sorted(parts.get(axis, [])):
      chosen.append(len(shape) + 1)
      shape += [before // done, part]
      done = before * part
    shape.append(size // done)
  others = [axis for axis in range(len(shape)) if axis not in chosen]
  ids = np.arange(math.prod(shape)).reshape(shape).transpose(others + chosen)
  return ids.reshape(-1, math.prod(shape[axis] for axis in chosen)).tolist()


def between_hosts(kind: str, wire: int, groups: Sequence[Sequence[int]], per_host: int) -> int:
  """Of the bytes that each device sends, those to other hosts, at least.

  The devices of a group that share a host share what it sends and is sent: a sum or a gather need
  enter each host once. What is traded is different for each device.

  Args:
    wire: see `hlo.Collective`. per_host: devices of a host.
  """
  hosts, size = max((len({i // per_host for i in group}), len(group)) for group in groups)
  if hosts == 1:
    return 0
  others = size - size // hosts if "all-to-all" in kind else hosts - 1
  return wire * others // (size - 1)
