"""What the benchmarks share: interleaved rounds, medians, a table that says where it was made."""

from __future__ import annotations

import os
import platform
import shlex
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax

from sora_jax.provenance import commit

ROOT = Path(__file__).parent.parent
Row = Mapping[str, float]


def interleave(variants: Mapping[str, Callable[[], Row]], rounds: int) -> dict[str, list[Row]]:
  """Calls each variant once per round; returns what each measured, round by round."""
  measured: dict[str, list[Row]] = {name: [] for name in variants}
  for number in range(rounds):
    for name, measure in variants.items():
      measured[name].append(measure())
      print(f"round {number + 1}/{rounds}, {name}: {dict(measured[name][-1])}", file=sys.stderr)
  return measured


def medians(rounds: int) -> str:
  """How `table` comes from what `interleave` measured."""
  return f"medians of {rounds} interleaved rounds, range in brackets"


def table(measured: Mapping[str, Sequence[Row]], formats: Mapping[str, str]) -> str:
  """A Markdown table of medians, with the range in brackets.

  Args:
    formats: column -> format specification, in the order of the columns.
  """
  lines = ["| variant | " + " | ".join(formats) + " |", "|---|" + "---|" * len(formats)]
  for name, rows in measured.items():
    cells = []
    for column, spec in formats.items():
      values = [row[column] for row in rows]
      middle = format(statistics.median(values), spec)
      cells.append(f"{middle} ({min(values):{spec}} to {max(values):{spec}})")
    lines.append(f"| {name} | " + " | ".join(cells) + " |")
  return "\n".join(lines)


def report(title: str, text: str, out: str | None, how: str) -> None:
  """Prints the table with its circumstances, `how` it was measured too; stores it if asked."""
  command = "python " + shlex.join([os.path.relpath(sys.argv[0], ROOT), *sys.argv[1:]])
  lines = [
    f"# {title}", "", text, "", f"- {how}",
    f"- `{command}`", f"- commit {commit()}, {machine()}", "",
  ]  # fmt: skip
  page = "\n".join(lines)
  print(page)
  if out:
    partial = Path(out).with_suffix(".tmp")
    partial.write_text(page, encoding="utf-8")
    os.replace(partial, out)


def machine() -> str:
  """Devices, cores and versions."""
  devices = jax.devices()
  kind = f"{len(devices)} x {devices[0].device_kind}, {os.cpu_count()} cores"
  return f"{kind}, Python {platform.python_version()}, JAX {jax.__version__}"
