"""Times Wan's transformer and autoencoder on the CPU beside diffusers': same weights, same inputs.

python benchmarks/peers_cpu.py --out benchmarks/peers_cpu.md
python benchmarks/peers_cpu.py --quick --threads 1

Each library has a process per number of threads, pinned to as many cores (`peers_worker.py`). They
are asked in turn, one at a time, and those that wait are blocked; a ratio is one of medians. The
first answers are not counted, unless a run takes more than a minute: then they are the only ones.
All runs are in a .jsonl beside the table. Targets: forward, encode and decode at least as fast as
diffusers', a training step 0.8 times as fast, 1.2 times in the geometric mean.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from timing import ROOT, report
from tqdm import tqdm

LIBRARIES = ("diffusers", "sora_jax")
SLOW = 60.0  # seconds of a run that is not repeated

# The shapes that PyTorch's speed was first measured with here: a transformer of 20 M parameters on
# 1,280 tokens, and Wan 2.1's autoencoder at a third of its width.
WAN = dict(
  patch_size=[1, 2, 2], num_attention_heads=6, attention_head_dim=64, in_channels=16,
  out_channels=16, text_dim=512, freq_dim=256, ffn_dim=1536, num_layers=8, cross_attn_norm=True,
  qk_norm="rms_norm_across_heads", eps=1e-6, rope_max_seq_len=64,
)  # fmt: skip
VAE = dict(base_dim=32, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=2, attn_scales=[],
           temperal_downsample=[False, True, True])  # fmt: skip
FULL = dict(wan=WAN, vae=VAE, latents=[1, 5, 32, 32, 16], words=64,
            clips=[[1, 17, 64, 64, 3], [1, 17, 128, 128, 3]])  # fmt: skip
QUICK = dict(
  wan=WAN | dict(num_attention_heads=2, attention_head_dim=16, ffn_dim=64, num_layers=2),
  vae=VAE | dict(base_dim=8, num_res_blocks=1), latents=[1, 2, 8, 8, 16], words=8,
  clips=[[1, 5, 16, 16, 3]],
)  # fmt: skip


class Worker:
  """A process that does what it is asked, and is blocked until then."""

  def __init__(self, library: str, threads: int, folder: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks/peers_worker.py"), library, str(threads)]
    one = {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false"} if threads == 1 else {}
    env = os.environ | one | {"JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": str(threads)}
    self.process = subprocess.Popen(
      [*command, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
    )
    self("start")

  def __call__(self, task: str, dtype: str = "float32", clip: int = 0) -> float:
    """The seconds it took."""
    assert self.process.stdin and self.process.stdout
    self.process.stdin.write(json.dumps(dict(task=task, dtype=dtype, clip=clip)) + "\n")
    self.process.stdin.flush()
    if not (answer := self.process.stdout.readline()):
      raise SystemExit("A worker ended; what it wrote is above.")
    return float(answer)


@contextlib.contextmanager
def workers(threads: int, folder: Path) -> Iterator[dict[str, Worker]]:
  """One for each library; diffusers' comes first, and makes the weights."""
  made: dict[str, Worker] = {}
  try:
    for library in LIBRARIES:
      made[library] = Worker(library, threads, folder)
    yield made
  finally:
    for worker in made.values():
      worker.process.kill()
      worker.process.wait()


def cases(shapes: dict[str, Any], dtypes: list[str]) -> Iterator[tuple[str, str, str, int]]:
  """(name, task, dtype, clip) of all that is timed."""
  for dtype in dtypes:
    yield "transformer forward", "forward", dtype, 0
    yield "transformer training step", "train", dtype, 0
    # Without instructions for bfloat16, PyTorch's 3-D convolutions take minutes: one size of them.
    for i, clip in enumerate(shapes["clips"][: 1 if dtype == "bfloat16" else None]):
      size = "x".join(map(str, clip[1:4]))
      yield f"autoencoder encode {size}", "encode", dtype, i
      yield f"autoencoder decode {size}", "decode", dtype, i


def distance(folder: Path) -> float:
  """Relative error between the last outputs of the two."""
  a, b = (np.load(folder / f"{library}.npy") for library in LIBRARIES)
  return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def measure(args: argparse.Namespace, shapes: dict[str, Any]) -> list[dict[str, Any]]:
  """One row for each case and number of threads."""
  rows, todo = [], list(cases(shapes, args.dtype))
  with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    (folder / "shapes.json").write_text(json.dumps(shapes))
    for threads in args.threads:
      with workers(threads, folder) as asked:
        for label, *task in tqdm(todo, desc=f"{threads} threads"):
          seconds = {library: [ask(*task)] for library, ask in asked.items()}
          error = distance(folder)
          if max(map(max, seconds.values())) < SLOW:
            seconds = {library: [] for library in asked}
            for _ in range(args.rounds):
              for library, ask in asked.items():
                seconds[library].append(ask(*task))
          middle = {library: statistics.median(runs) for library, runs in seconds.items()}
          speed = middle["diffusers"] / middle["sora_jax"]
          rows.append(dict(case=label, dtype=task[1], threads=threads, speed=speed, error=error,
                           medians=middle, seconds=seconds))  # fmt: skip
          print(f"{label}, {task[1]}, {threads} threads: {speed:.2f}", file=sys.stderr)
  return rows


def table(rows: list[dict[str, Any]]) -> str:
  """Markdown: seconds of both, the ratio, and how far apart their outputs are."""
  head = ["what", "type", "threads", "diffusers, s", "sora_jax, s", "speed", "runs", "difference"]
  lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
  for row in rows:
    cells = [row["case"], row["dtype"], row["threads"]]
    cells += [f"{row['medians'][library]:.3f}" for library in LIBRARIES]
    cells += [f"**{row['speed']:.2f}**", len(row["seconds"]["sora_jax"]), f"{row['error']:.0e}"]
    lines.append("| " + " | ".join(map(str, cells)) + " |")
  lines.append("")
  for dtype in dict.fromkeys(row["dtype"] for row in rows):
    speeds = [row["speed"] for row in rows if row["dtype"] == dtype]
    lines.append(f"Geometric mean, {dtype}: {mean(speeds):.2f}.")
  lines.append(f"Geometric mean of all: {mean([row['speed'] for row in rows]):.2f}.")
  return "\n".join(lines)


def mean(speeds: list[float]) -> float:
  """The geometric one."""
  return math.exp(statistics.fmean(map(math.log, speeds)))


def processor() -> str:
  """Its name, and its instructions that matter here."""
  text = Path("/proc/cpuinfo").read_text() if os.path.exists("/proc/cpuinfo") else ""
  fields = dict(
    line.split("\t: ", 1) for line in map(str.rstrip, text.splitlines()) if "\t: " in line
  )
  fields = {key.strip(): value for key, value in fields.items()}
  have = fields.get("flags", "").split()
  wide = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in have]
  bf16 = "" if {"avx512_bf16", "amx_bf16"} & set(have) else ", no bfloat16 arithmetic"
  return f"{fields.get('model name', 'unknown')} ({', '.join(wide)}{bf16})"


def main() -> None:
  """Measures and prints."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
  parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--quick", action="store_true", help="tiny shapes, two rounds")
  parser.add_argument("--out", help="also write the table there, and all runs beside it")
  args = parser.parse_args()
  if args.quick:
    args.rounds = 2
  rows = measure(args, QUICK if args.quick else FULL)
  if args.out:
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    Path(args.out).with_suffix(".jsonl").write_text(lines, encoding="utf-8")
  how = (f"medians of as many interleaved runs as stated; speed: their seconds by ours; "
         f"{processor()}")  # fmt: skip
  report("Speed beside diffusers", table(rows), args.out, how)


if __name__ == "__main__":
  main()
