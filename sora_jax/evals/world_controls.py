"""What the bench of the world is worth: its answers on systems that know nothing, or everything.

  python -m sora_jax.evals.world_controls [--count N] [--seed N]

prints a table in Markdown, a line for each number: shares are better high, errors low. A number in
which the truth is not above all controls is marked, and the command then fails.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from typing import Any

from sora_jax.evals import world
from sora_jax.evals.report import Number
from sora_jax.evals.world_tests import TESTS

ORDER = ("truth", "frozen", "linear", "shuffled", "nearest", "chance")


def table(count: int, seed: int) -> dict[str, dict[str, dict[str, Number]]]:
  """Test -> number -> system -> its value, of all controls and the truth."""
  found: dict[str, Any] = {}
  for name, test in TESTS.items():
    worlds = test.worlds(count, seed)
    clips = {
      system: world.continuation(control, worlds, test, seed)
      for system, control in world.controls(test, worlds).items()
    }
    found[name] = world.compared(name, test, worlds, clips, [])
  pairs = world.pairs(count, seed)
  return found | world.expectations(None, pairs, seed, [])


def value(number: Number) -> float | None:
  """The share, or the median error."""
  return number["mean"] if "mean" in number else number["median"]


def unranked(row: Mapping[str, Number]) -> list[str]:
  """The controls that a number does not rank below the truth."""
  truth = value(row["truth"])
  sign = 1 if "mean" in row["truth"] else -1
  found = {name: value(number) for name, number in row.items() if name != "truth"}
  if truth is None:
    return []
  return [name for name, x in found.items() if x is not None and not sign * truth > sign * x]


def markdown(found: Mapping[str, Mapping[str, Mapping[str, Number]]]) -> str:
  """The table as text."""
  lines = ["| | " + " | ".join(ORDER) + " |", "|---" * (1 + len(ORDER)) + "|"]
  for test, rows in found.items():
    for name, row in rows.items():
      cells = []
      for system in ORDER:
        number = row.get(system)
        x = None if number is None else value(number)
        if number is None or x is None:
          cells.append("")
        else:
          cells.append(f"{x:.0%}".replace("%", " %") if "mean" in number else f"{x:.1f}")
      mark = " (not ranked)" if unranked(row) else ""
      lines.append(f"| {test}: {name}{mark} | " + " | ".join(cells) + " |")
  return "\n".join(lines)


def main() -> int:
  """Prints the table; 1 if a number does not rank the truth above its controls."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--count", type=int, default=32)
  parser.add_argument("--seed", type=int, default=0)
  args = parser.parse_args()
  found = table(args.count, args.seed)
  print(markdown(found))
  return int(any(unranked(row) for rows in found.values() for row in rows.values()))


if __name__ == "__main__":
  sys.exit(main())
