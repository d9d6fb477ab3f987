"""What a suite hands back, and how it is stored: numbers with their spread, count and origin."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sora_jax.errors import UserError

Number = dict[str, Any]
SPREADS = (("low", "high"), ("q25", "q75"))  # a 95 % interval of the number; quartiles of the clips


@dataclass
class Results:
  """`metrics`: nested dicts that end in numbers; `rows`: one dict per clip, for results.jsonl."""

  metrics: dict[str, Any] = field(default_factory=dict)
  rows: list[dict[str, Any]] = field(default_factory=list)


def proportion(flags: Iterable[float]) -> Number:
  """Share of true flags (of ties, halves) with Wilson's 95 % interval (Wilson 1927)."""
  values = [float(flag) for flag in flags]
  n = len(values)
  if not n:
    return {"mean": None, "n": 0}
  p, z = sum(values) / n, 1.959964
  centre = (p + z * z / (2 * n)) / (1 + z * z / n)
  half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
  # At the ends the bound is the share itself, up to rounding.
  return {
    "mean": p,
    "low": max(0.0, min(p, centre - half)),
    "high": min(1.0, max(p, centre + half)),
    "n": n,
  }


def median(values: Iterable[float]) -> Number:
  """Median and quartiles of what is a number."""
  x = np.array([value for value in values if not np.isnan(value)])
  if not len(x):
    return {"median": None, "n": 0}
  lower, middle, upper = np.quantile(x, [0.25, 0.5, 0.75])
  return {"median": float(middle), "q25": float(lower), "q75": float(upper), "n": len(x)}


def flat(metrics: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Number]]:
  """The numbers of nested metrics with their slash-joined names."""
  out = []
  for name, value in metrics.items():
    path = f"{prefix}/{name}" if prefix else name
    if isinstance(value, Mapping) and not {"mean", "median"} & value.keys():
      out += flat(value, path)
    else:
      out.append((path, dict(value) if isinstance(value, Mapping) else {"mean": value}))
  return out


def table(metrics: Mapping[str, Any]) -> str:
  """Text with a line per number: name, value, spread, count."""
  lines = []
  for name, number in flat(metrics):
    value = number["mean"] if "mean" in number else number["median"]
    shown = "-" if value is None or math.isnan(value) else f"{value:.4g}"
    ends = next((pair for pair in SPREADS if pair[0] in number), None)
    if ends:
      spread = " .. ".join(f"{number[end]:.4g}" for end in ends)
    else:
      std = number.get("std")
      spread = "" if std is None or math.isnan(std) else f"± {std:.3g}"
    count = f"n={number['n']}" if "n" in number else ""
    lines.append((name, shown, spread, count))
  widths = [max(len(line[i]) for line in lines) for i in range(4)]
  return "\n".join(
    "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
    for line in lines
  )


def open_folder(path: str | os.PathLike[str]) -> Path:
  """The output folder, made if it is not there, its parents too.

  Raises:
    UserError: it is a file, or cannot be made or written to.
  """
  folder = Path(path)
  if folder.is_file():
    raise UserError(f"{folder} is a file; give a folder for --out.")
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError as e:
    raise UserError(f"{folder} cannot be made: {e.strerror}.") from e
  if not os.access(folder, os.W_OK):
    raise UserError(f"{folder} cannot be written to: give another folder for --out.")
  return folder


def store(folder: Path, results: Results, origin: Mapping[str, Any]) -> None:
  """Writes metrics.json (with `origin`: command, commit, seed...) and results.jsonl, atomically."""
  rows = "".join(json.dumps(clean(row)) + "\n" for row in results.rows)
  _write(folder / "results.jsonl", rows)
  document = {**origin, "metrics": clean(results.metrics)}
  _write(folder / "metrics.json", json.dumps(document, indent=2) + "\n")


def clean(value: Any) -> Any:
  """`value` with NaN as None (JSON has no NaN) and plain Python numbers."""
  if isinstance(value, Mapping):
    return {key: clean(child) for key, child in value.items()}
  if isinstance(value, list | tuple):
    return [clean(child) for child in value]
  if hasattr(value, "item"):
    value = value.item()
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value


def _write(path: Path, text: str) -> None:
  temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
  try:
    temporary.write_text(text)
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)
