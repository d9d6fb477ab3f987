"""What the shipped configs need of TPU pods, as `sora-jax plan` reads it out of compiled programs.

python benchmarks/pods.py

Rows that are in `pods.jsonl` already, of the same commit, are not made again; `--only none` makes
none. All tables and plots are then made from that file: `pods.md`, and docs/scaling.md. Lines of
`pods_peer.jsonl` (`pods_peer.py`) are set beside ours.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pods_page
from timing import ROOT, report

from sora_jax.provenance import commit

HERE = ROOT / "benchmarks"
WAN, SMALL, LONG = "configs/wan_14b.py", "configs/wan_1_3b.py", "configs/sora_8b.py"
WEAK = "configs/sora_1b.py"
MINUTE = f"{LONG}:1080p60s"
LENGTH = 46_080  # tokens of a clip on four chips, so that on 64 it is a minute of 1080p
SIZES = {4: "v5p:2x2x1", 64: "v5p:4x4x4", 512: "v5p:8x8x8"}
ONE_LEVEL = "train.batch_size={clips} packing.length={tokens} packing.cond_rows=1"
PACKED = "packing.cond_rows=8 packing.text_length=2048"

# What a row is compared with is the first of its group. Rows: config, topology, step, overrides.
GROUPS = {
  "wan": (
    (WAN, "v5p:4x4x4", "train", ""),
    (WAN, "v6e:16x16", "train", "train.batch_size=32"),
    (SMALL, "v5p:4x4x4", "train", ""),
  ),
  # Needs JAX's CUDA plugin: docs/plan.md.
  "gpu": (
    (WAN, "h100:8x8", "train", ""),
    (SMALL, "h100:8x8", "train", ""),
    (SMALL, "h100:1x8", "sample", ""),
  ),
  # The shipped batch on 64 chips; the mesh is chosen: two chips for a clip.
  "batch": tuple((WEAK, s, "train", f"train.batch_size={n // 2}") for n, s in SIZES.items()),
  # Two clips on all chips.
  "length": tuple(
    (WEAK, s, "train", f"train.batch_size=2 packing.length={LENGTH * n // 4}")
    for n, s in SIZES.items()
  ),
  # The same tokens and prompts: a sample in each sequence with one noise level, or four with two.
  "conditions": tuple(
    (WAN, SIZES[64], "train", f"train.mesh={{'fsdp':16,'context':4}} {change}")
    for change in (ONE_LEVEL.format(clips=64, tokens=18_944), PACKED)
  ),
  "narrow": tuple(
    (SMALL, SIZES[4], "train", f"train.mesh={{'context':4}} {change}")
    for change in (ONE_LEVEL.format(clips=4, tokens=8192), f"train.batch_size=1 {PACKED}")
  ),
  "minute": tuple(
    (MINUTE, pod, mode, "") for pod in ("v5p:4x8x8", "tpu7x:4x4x8") for mode in ("train", "sample")
  ),
  "tokens": tuple(
    (f"{LONG}:{clip}", "v5p:4x8x8", "train", "") for clip in ("480p5s", "720p20s", "1080p60s")
  ),
  # The batches of the peer's: one clip, or two where its mesh has a data axis of two.
  "forward": tuple(
    (config, pod, "forward", f"train.batch_size={clips}")
    for config in (SMALL, WAN)
    for pod, clips in (("v5p:2x2x1", 1), ("v6e:2x4", 1), ("v6e:4x4", 2), ("tpu7x:2x2x1", 2))
  ),
}  # fmt: skip
ROWS = tuple(dict.fromkeys(row for rows in GROUPS.values() for row in rows))


def plan(row: tuple[str, ...]) -> dict[str, Any]:
  """The plan of a row, made by the command in a process of its own."""
  config, topology, mode, changes = row
  command = [sys.executable, "-m", "sora_jax.cli.main", "plan", "--json", f"--config={config}"]
  command += [f"--topology={topology}", f"--mode={mode}"]
  command += [f"--config.{change}" for change in changes.split()]
  done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
  if done.returncode:
    return {"row": list(row), "error": f"exit status {done.returncode}"}
  made = json.loads(done.stdout) | {"row": list(row)}
  return made if made["source"] == "compiled" else {"row": list(row), "error": made["source"]}


def read(path: Path) -> dict[tuple[str, ...], dict[str, Any]]:
  """The lines of a results file, by row; none if there is no file."""
  lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
  return {tuple(line["row"]): line for line in map(json.loads, lines)}


def main() -> None:
  """Makes the rows that are missing, then the tables, and the page with its plots."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--only", default="", help="a group, or what rows contain")
  parser.add_argument("--results", type=Path, default=HERE / "pods.jsonl")
  args = parser.parse_args()

  made, here = read(args.results), commit()  # once: what is written below changes the checkout
  for row in GROUPS.get(args.only, ROWS):
    old = made.get(row, {"error": ""})
    wanted = args.only in GROUPS or args.only in " ".join(row)
    if wanted and ("error" in old or old["commit"] != here):
      made[row] = plan(row) | {"commit": here}
      text = "".join(json.dumps(made[key]) + "\n" for key in ROWS if key in made)
      args.results.write_text(text, encoding="utf-8")
  done = {name: [made[row] for row in rows if row in made] for name, rows in GROUPS.items()}
  good = {name: [row for row in rows if "error" not in row] for name, rows in done.items()}
  peer = list(read(HERE / "pods_peer.jsonl").values())
  tables = pods_page.tables(good, peer)
  failed = [f"{' '.join(row['row'])}: {row['error']}" for row in made.values() if "error" in row]
  pods_page.fill(ROOT / "docs" / "scaling.md", tables)
  pods_page.plots(good, ROOT / "docs" / "media")
  text = "\n\n".join([f"## {name}\n\n{table}" for name, table in tables.items()] + failed)
  report("Pods", text, str(HERE / "pods.md"), "compiled for, never run; per device and step")


if __name__ == "__main__":
  main()
