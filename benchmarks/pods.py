"""What the shipped configs need of TPU pods, as `sora-jax plan` reads it out of compiled programs.

python benchmarks/pods.py --out benchmarks/pods.md

Rows that are in the results file already, of the same commit, are not made again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from timing import ROOT, report

from sora_jax.plan.topology import CHIPS
from sora_jax.provenance import commit

# Config, topology, step, overrides.
ROWS = (
  ("configs/wan_14b.py", "v5p:4x4x4", "train", ""),
  ("configs/wan_14b.py", "v6e:16x16", "train", "train.batch_size=32"),
  ("configs/wan_1_3b.py", "v5p:4x4x4", "train", ""),
  ("configs/wan_1_3b.py", "v5p:2x2x1", "sample", ""),
  ("configs/wan_1_3b.py", "v6e:2x4", "sample", ""),
  ("configs/wan_14b.py", "v5p:2x2x1", "sample", ""),
  ("configs/wan_14b.py", "v6e:2x4", "sample", ""),
  ("configs/wan_14b.py", "v6e:4x4", "sample", ""),
  ("configs/wan_14b.py", "tpu7x:2x2x1", "sample", ""),
  ("configs/sora_8b.py:1080p60s", "v5p:4x8x8", "train", ""),
  ("configs/sora_8b.py:1080p60s", "v5p:4x8x8", "sample", ""),
  ("configs/sora_8b.py:1080p60s", "tpu7x:4x4x8", "train", ""),
  ("configs/sora_8b.py:1080p60s", "tpu7x:4x4x8", "sample", ""),
)
COLUMNS = (
  "config", "topology", "step", "mesh", "memory GB (of it params, state)", "sent GB",
  "s of cycles outside attention", "attention forwards", "padding", "compile s",
)  # fmt: skip


def plan(row: tuple[str, ...]) -> dict[str, Any]:
  """The plan of a row, made by the command in a process of its own."""
  config, topology, mode, changes = row
  command = [sys.executable, "-m", "sora_jax.cli.main", "plan", "--json", f"--config={config}"]
  command += [f"--topology={topology}", f"--mode={mode}"]
  command += [f"--config.{change}" for change in changes.split()]
  done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
  if done.returncode:
    return {"row": list(row), "error": f"exit status {done.returncode}"}
  return json.loads(done.stdout) | {"row": list(row)}


def cells(made: dict[str, Any]) -> list[str]:
  """A line of the table."""
  config, topology, mode, changes = made["row"]
  if "error" in made:
    return [f"{config} {changes}", topology, mode, made["error"]]
  memory, sent = made["memory"], made["collectives"].values()
  mesh = " x ".join(f"{axis} {size}" for axis, size in made["mesh"].items() if size > 1)
  return [
    f"{config} {changes}".strip(), topology, mode, mesh,
    f"{memory['peak'] / 1e9:.1f} ({memory['params'] / 1e9:.1f}, {memory['optimizer'] / 1e9:.1f})",
    f"{sum(kind['bytes'] for kind in sent) / 1e9:.0f}",
    f"{made['cycles'] / CHIPS[topology.partition(':')[0]].clock:.2f}",
    f"{made['attention_forwards']:.2f}", f"{made['padding']:.1%}",
    f"{made['compile_seconds']:.0f}",
  ]  # fmt: skip


def main() -> None:
  """Makes the rows that are missing, and the table."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--only", default="", help="rows whose config or topology contains this")
  parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "pods.jsonl")
  parser.add_argument("--out", help="also write the table there")
  args = parser.parse_args()

  lines = args.results.read_text().splitlines() if args.results.exists() else []
  made = {tuple(line["row"]): line for line in map(json.loads, lines)}
  for row in ROWS:
    old = made.get(row, {"error": ""})
    if args.only in " ".join(row) and ("error" in old or old["commit"] != commit()):
      made[row] = plan(row) | {"commit": commit()}
      text = "".join(json.dumps(made[key]) + "\n" for key in ROWS if key in made)
      args.results.write_text(text)
  table = ["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
  table += ["| " + " | ".join(cells(made[row])) + " |" for row in ROWS if row in made]
  report("Pods", "\n".join(table), args.out, "compiled for, never run; per device and step")


if __name__ == "__main__":
  main()
