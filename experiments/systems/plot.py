"""The table and the figure of results.jsonl: python experiments/systems/plot.py

Writes table.md, and figure.svg: what each system knows of the world, beside knowing nothing and
knowing the truth. Several seeds become mean and range.
"""

from __future__ import annotations

import json
from collections import defaultdict
from math import nan
from pathlib import Path

import matplotlib.pyplot as plt

HERE = Path(__file__).parent
COLUMNS = ("sora", "toy", "videogpt", "dit", "vjepa")
# What is shown of each suite: metric -> (title, factor, unit).
ROWS: dict[tuple[str, str], tuple[str, float, str]] = {
  ("quality", "video distance/FVD samples"): ("FVD", 1, ""),
  ("quality", "video distance/FVD floor (real)"): ("FVD, real clips (floor)", 1, ""),
  ("quality", "video distance/FVD reconstructions"): ("FVD, reconstructions", 1, ""),
  ("quality", "image distance/Frechet samples"): ("Fréchet distance of images", 1, ""),
  ("quality", "image distance/Frechet floor (real)"): ("the same, real images (floor)", 1, ""),
  ("quality", "adherence/colour"): ("colour as asked", 100, " %"),
  ("quality", "adherence/shape"): ("shape as asked", 100, " %"),
  ("quality", "adherence/motion"): ("motion as asked", 100, " %"),
  ("quality", "adherence/all"): ("all as asked, and sound", 100, " %"),
  ("quality", "classifier/accuracy"): ("told from real clips (50 % is best)", 100, " %"),
  ("quality", "warp error/ratio"): ("warp error over that of real clips", 1, ""),
  ("world", "permanence/the same thing/system"): ("permanence: the same thing", 100, " %"),
  ("world", "gravity/position error, px/system"): ("gravity: position error", 1, " px"),
  ("world", "collision/the target moves on/system"): ("collision: the target moves on", 100, " %"),
  ("world", "interaction/stays where it was pushed/system"): ("pushed things stay", 100, " %"),
  ("world", "still scenes/things in their places/system"): ("still scenes: in place", 100, " %"),
  ("world", "continuity, 17 frames/and stays the only thing/system"): (
    "no jumps, alone",
    100,
    " %",
  ),
  ("world", "violation of expectation/max, all/system"): ("the impossible surprises", 100, " %"),
  ("world", "violation of expectation/max, hidden/system"): ("the same, behind a wall", 100, " %"),
  ("probe", "vjepa/colour"): ("probe: colour", 100, " %"),
  ("probe", "vjepa/shape"): ("probe: shape", 100, " %"),
  ("probe", "vjepa/place_pixels"): ("probe: position error", 1, " px"),
  ("probe", "random/colour"): ("the same of random weights: colour", 100, " %"),
  ("probe", "random/shape"): ("the same of random weights: shape", 100, " %"),
  ("probe", "pixels/colour"): ("the same of raw patches: colour", 100, " %"),
  ("probe", "pixels/shape"): ("the same of raw patches: shape", 100, " %"),
}
SHARES = [key for key, (_, factor, _) in ROWS.items() if factor == 100 and key[0] == "world"]


def read() -> dict[tuple[str, str, str], list[float]]:
  """(checkpoint, suite, metric) -> a value of each seed."""
  found: dict[tuple[str, str, str], list[float]] = defaultdict(list)
  for text in (HERE / "results.jsonl").read_text().splitlines():
    line = json.loads(text)
    if line["value"] is not None:
      found[line["checkpoint"], line["suite"], line["metric"]].append(line["value"])
  return found


def mean(values: list[float]) -> float:
  """Of all seeds."""
  return sum(values) / len(values)


def cell(values: list[float], factor: float, unit: str) -> str:
  """Mean and range over seeds; empty if there is none."""
  if not values:
    return ""
  shown = f"{factor * mean(values):.3g}{unit}"
  if len(values) == 1:
    return shown
  return f"{shown} ({factor * min(values):.3g} to {factor * max(values):.3g})"


def table(found: dict[tuple[str, str, str], list[float]]) -> str:
  """Markdown: a row for each number, a column for each checkpoint."""
  names = [name for name in COLUMNS if any(key[0] == name for key in found)]
  lines = [["", *names], ["---"] * (len(names) + 1)]
  for (suite, metric), (title, factor, unit) in ROWS.items():
    cells = [cell(found.get((name, suite, metric), []), factor, unit) for name in names]
    if any(cells):
      lines.append([title, *cells])
  return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def draw(found: dict[tuple[str, str, str], list[float]], path: Path) -> None:
  """Bars: right answers about the world, of each checkpoint that was asked, and of the controls."""
  asked = [name for name in COLUMNS if any(key[:2] == (name, "world") for key in found)]
  known = [key for key in SHARES if any((name, *key) in found for name in asked)]
  bars = {name: [found.get((name, *key)) for key in known] for name in asked}
  for control in ("frozen", "truth"):
    others = [(suite, metric.removesuffix("system") + control) for suite, metric in known]
    bars[control] = [
      next((found[name, *key] for name in asked if (name, *key) in found), None) for key in others
    ]
  figure, axes = plt.subplots(figsize=(9, 0.55 * len(known) + 1.2), layout="constrained")
  height = 0.8 / len(bars)
  for i, (name, values) in enumerate(bars.items()):
    places = [row + i * height for row in range(len(known))]
    axes.barh(places, [100 * mean(x) if x else nan for x in values], height, label=name)
    for place, value in zip(places, values, strict=True):
      if not value:
        axes.text(0.5, place, "not asked", va="center", fontsize=5, color="grey")
  axes.set_yticks([row + 0.4 - height / 2 for row in range(len(known))])
  axes.set_yticklabels([ROWS[key][0] for key in known])
  axes.invert_yaxis()
  axes.set(xlabel="% of worlds, or of pairs (chance of these: 50)", xlim=(0, 100))
  axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
  figure.savefig(path, metadata={"Date": None})


def main() -> None:
  """Writes both files."""
  plt.rcParams["svg.hashsalt"] = "sora_jax"  # the same file for the same numbers
  found = read()
  (HERE / "table.md").write_text(table(found))
  draw(found, HERE / "figure.svg")


if __name__ == "__main__":
  main()
