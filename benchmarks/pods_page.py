"""The tables and plots of `pods.py`, from the lines of its results file."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sora_jax.plan.report import GIB
from sora_jax.plan.topology import CHIPS, parse

Line = Mapping[str, Any]
ATTENTION = ("all-to-all", "collective-permute")  # what Ulysses and rings send
PEERS = {"configs/wan_14b.py": "14b", "configs/wan_1_3b.py": "1.3b"}  # as the peer's rows say it
COLUMNS = (
  "config", "topology", "step", "mesh", "memory, of GiB", "sent, GB",
  "s of cycles outside attention", "attention forwards", "padding", "compile s",
)  # fmt: skip


def sent(line: Line, attention: bool = True) -> float:
  """Bytes that a device sends; not those of attention, if asked."""
  kinds = line["collectives"].items()
  return sum(sums["bytes"] for kind, sums in kinds if attention or kind not in ATTENTION)


def memory(line: Line) -> float:
  """Bytes of a device at the peak."""
  return line["memory"]["peak"]


def cycles(line: Line) -> float:
  """Seconds of the compiler's cycles, for all but attention and what is sent."""
  return line["cycles"] / CHIPS[line["row"][1].partition(":")[0]].clock


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """A table."""
  lines = [columns, ["---"] * len(columns), *rows]
  return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def name(line: Line) -> str:
  """The config and what is changed of it."""
  config, _, _, changes = line["row"]
  return f"`{config.removeprefix('configs/')}` " + " ".join(f"`{c}`" for c in changes.split())


def mesh(line: Line) -> str:
  """Such as "fsdp 16 x context 4"."""
  return " x ".join(f"{axis} {size}" for axis, size in line["mesh"].items() if size > 1)


def cells(line: Line) -> list[str]:
  """What a row needs: `COLUMNS`."""
  return [
    name(line), f"`{line['row'][1]}`", line["row"][2], mesh(line),
    f"{memory(line) / GIB:.1f} of {line['memory']['capacity'] / GIB:.1f}",
    f"{sent(line) / 1e9:.1f}", f"{cycles(line):.2f}" if line["cycles"] else "-",
    f"{line['attention_forwards']:.2f}",
    f"{line['padding']:.1%}", f"{line['compile_seconds']:.0f}",
  ]  # fmt: skip


def needs(lines: Sequence[Line]) -> str:
  """What each row needs, and its time."""
  rows = [[*cells(line), f"{line['tokens']:,}", f"{line['seconds']:.2f}"] for line in lines]
  return markdown([*COLUMNS, "tokens of a clip", "s a step (estimate)"], rows)


def growth(lines: Sequence[Line]) -> str:
  """How much more each row needs than the first."""
  columns = ("config", "topology", "mesh", "memory, GiB", "sent, GB", "not attention's, GB",
             "s of cycles outside attention", "s a step (estimate)")  # fmt: skip
  figures: list[tuple[Callable[[Line], float], float]] = [
    (memory, GIB), (sent, 1e9), (lambda line: sent(line, attention=False), 1e9), (cycles, 1),
    (lambda line: line["seconds"], 1),
  ]  # fmt: skip
  rows = []
  for line in lines:
    cells = [name(line), f"`{line['row'][1]}`", mesh(line)]
    for figure, unit in figures:
      change = "" if line is lines[0] else f" ({figure(line) / figure(lines[0]) - 1:+.1%})"
      cells.append(f"{figure(line) / unit:.2f}{change}")
    rows.append(cells)
  return markdown(columns, rows)


def beside(pairs: Sequence[tuple[Line, Line]]) -> str:
  """Ours over the peer's; the mean is over the first of the peer's for each of ours."""
  columns = ("ours", "topology", "step", "the peer's", "memory", "sent", "cycles outside attention",
             "attention forwards", "padding", "compile s (its CPU s)")  # fmt: skip
  figures: tuple[Callable[[Line], float], ...] = (memory, sent, lambda line: line["cycles"])
  rows, first = [], {}
  for ours, theirs in pairs:
    ratios = [figure(ours) / figure(theirs) for figure in figures]
    first.setdefault(tuple(ours["row"]), ratios)
    both = lambda key, spec: f"{ours[key]:{spec}} / {theirs[key]:{spec}}"  # noqa: B023, E731
    rows.append([
      name(ours), f"`{ours['row'][1]}`", ours["row"][2], theirs["row"][3],
      *(f"{ratio:.2f}" for ratio in ratios), both("attention_forwards", ".2f"),
      both("padding", ".1%"), f"{both('compile_seconds', '.0f')} ({theirs['cpu_seconds']:.0f})",
    ])  # fmt: skip
  means = [f"{math.prod(x) ** (1 / len(x)):.2f}" for x in zip(*first.values(), strict=True)]
  return markdown(columns, [*rows, ["geometric mean", "", "", "", *means, "", "", ""]])


def matched(lines: Sequence[Line], peer: Sequence[Line]) -> list[tuple[Line, Line]]:
  """Each of ours with each of the peer's for the same model, topology, step and clips."""
  key = lambda line, model: (model, *line["row"][1:3], line["clips"])  # noqa: E731
  return [
    (ours, theirs)
    for ours in lines
    for theirs in peer
    if "error" not in theirs
    and key(ours, PEERS.get(ours["row"][0])) == key(theirs, theirs["row"][0])
  ]


def tables(groups: Mapping[str, Sequence[Line]], peer: Sequence[Line]) -> dict[str, str]:
  """Name -> table, of the groups that have rows."""
  made = {}
  for group, lines in groups.items():
    if lines:
      compared = group in ("batch", "length", "conditions", "narrow", "tokens")
      made[group] = (growth if compared else needs)(lines)
    if group in ("wan", "forward") and (pairs := matched(lines, peer)):
      made[f"{group} beside the peer"] = beside(pairs)
  return made


def fill(page: Path, tables: Mapping[str, str]) -> None:
  """Writes each table between `<!-- its name -->` and the next `<!-- end -->`, if that is there."""
  text = page.read_text(encoding="utf-8")
  for title, table in tables.items():
    between = re.compile(rf"(<!-- {title} -->\n).*?(<!-- end -->)", re.DOTALL)
    text = between.sub(lambda found, table=table: f"{found[1]}\n{table}\n\n{found[2]}", text)
  page.write_text(text, encoding="utf-8")


def plots(groups: Mapping[str, Sequence[Line]], folder: Path) -> None:
  """Memory and time of a chip, against chips (`scaling-chips.svg`) and tokens."""
  chips = lambda line: parse(line["row"][1]).chips  # noqa: E731
  tokens = lambda line: line["tokens"]  # noqa: E731
  _plot(folder / "scaling-chips.svg", "chips", chips,
        {"more clips": groups["batch"], "two longer clips": groups["length"]})  # fmt: skip
  _plot(folder / "scaling-tokens.svg", "tokens of a clip", tokens,
        {"8B, 3 million tokens a step": groups["tokens"]})  # fmt: skip


def _plot(
  path: Path, label: str, x: Callable[[Line], float], series: Mapping[str, Sequence[Line]]
) -> None:
  if not any(series.values()):
    return
  import matplotlib

  matplotlib.use("Agg")
  from matplotlib import pyplot as plt

  matplotlib.rcParams |= {"svg.hashsalt": "sora_jax", "svg.fonttype": "none"}  # the same file again
  figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
  for title, lines in series.items():
    at = [x(line) for line in lines]
    (drawn,) = left.plot(at, [memory(line) / GIB for line in lines], "o-", label=title)
    state = [(line["memory"]["params"] + line["memory"]["optimizer"]) / GIB for line in lines]
    left.plot(at, state, "o:", color=drawn.get_color(), label=f"{title}: weights and state")
    right.plot(at, [line["seconds"] for line in lines], "o-", label=title)
    outside = [cycles(line) for line in lines]
    right.plot(at, outside, "o:", color=drawn.get_color(), label=f"{title}: outside attention")
  for axes, what in ((left, "memory of a chip, GiB"), (right, "s a step (estimate)")):
    axes.set(xscale="log", xlabel=label, ylabel=what)
    ticks = sorted({x(line) for lines in series.values() for line in lines})
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks], minor=False)
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", frameon=False)
  left.set_ylim(bottom=0)
  right.set_yscale("log")
  figure.savefig(path, metadata={"Date": None})
  plt.close(figure)
