"""Puts the four systems before the suites, and writes down a line for each number.

  python experiments/systems/measure.py --runs runs --count 64 --seed 0

RUNS holds the folders that the commands of README.md train; what is not there is left out. What was
measured before (RUNS/measured: of checkpoint, suite, count, seed, weights) is not measured again,
so a killed run goes on: remove that folder when a suite has changed. Lines of the same checkpoint,
suite and seed are replaced in results.jsonl. Probes have a count of their own.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from safetensors import safe_open

from sora_jax.evals.report import flat
from sora_jax.interop import native
from sora_jax.plan.measure import model_flops

HERE = Path(__file__).parent
RESULTS = HERE / "results.jsonl"
TOY = "toy"  # what ships
# checkpoint -> system and suites
SYSTEMS: dict[str, tuple[str, tuple[str, ...]]] = {
  "sora": ("sora", ("quality", "world")),
  TOY: ("sora", ("quality", "world")),
  "videogpt": ("videogpt", ("quality", "world")),
  "dit": ("dit", ("quality",)),
  "vjepa": ("vjepa", ("world", "probe")),
}


def checkpoint(name: str, runs: Path) -> str:
  """What `--checkpoint` is given."""
  return name if name == TOY else str(runs / name / "export")


def measure(name: str, suite: str, runs: Path, count: int, seed: int) -> dict[str, Any]:
  """The stored metrics of a checkpoint before a suite; measured now if there are none."""
  # Few clips train no probe, and many cost little.
  options = [] if suite == "probe" else ["--count", str(count)]
  weights = fingerprint(native.find(checkpoint(name, runs)))
  out = runs / "measured" / "-".join([name, suite, *options[1:], str(seed), weights])
  file = out / "metrics.json"
  if not file.is_file():
    out.parent.mkdir(exist_ok=True)
    command = ["sora-jax", "eval", f"--suite={suite}", "--checkpoint", checkpoint(name, runs)]
    subprocess.run([*command, *options, "--seed", str(seed), "--out", str(out)], check=True)
  return json.loads(file.read_text())


def fingerprint(folder: Path) -> str:
  """Of the weights and the settings of a checkpoint."""
  total = hashlib.sha256()
  for file in sorted([*folder.glob("*.safetensors"), folder / "config.json"]):
    total.update(file.read_bytes())
  return total.hexdigest()[:8]


def parameters(folder: Path) -> int:
  """Numbers in the weights of a checkpoint, but for a target encoder, which follows another one."""
  total = 0
  for file in folder.glob("*.safetensors"):
    with safe_open(file, "numpy") as tensors:
      learned = [key for key in tensors.keys() if not key.startswith("target/")]  # noqa: SIM118
      total += sum(math.prod(tensors.get_slice(key).get_shape()) for key in learned)
  return total


def training_flops(folder: Path) -> float:
  """What training a checkpoint asked for, its VQ-VAE included: steps as `plan` counts them."""
  stored = native.read_config(folder)
  configs = map(ConfigDict, [stored["training"], *stored.get("vqvae_training", [])])
  return sum(float(config.train.steps) * model_flops(config, "train") for config in configs)


def lines(
  name: str, suite: str, runs: Path, document: dict[str, Any], seed: int
) -> Iterator[dict[str, Any]]:
  """A line for each number of a suite."""
  system, folder = SYSTEMS[name][0], native.find(checkpoint(name, runs))
  # The config of what ships is that of its last run alone (docs/toy.md).
  spent = None if name == TOY else training_flops(folder)
  fixed = {"seed": seed, "params": parameters(folder), "flops": spent, "commit": document["commit"]}
  for metric, number in flat(document["metrics"]):
    value = number.get("mean", number.get("median"))
    spread = {
      key: number[key] for key in ("low", "high", "q25", "q75", "std", "n") if key in number
    }
    line = {"system": system, "checkpoint": name, "suite": suite, "metric": metric, "value": value}
    yield line | spread | fixed


def main() -> None:
  """Measures what is there and replaces its lines."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--runs", type=Path, required=True)
  parser.add_argument("--count", type=int, default=64)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--only", nargs="*", choices=SYSTEMS, default=list(SYSTEMS))
  args = parser.parse_args()
  for name in args.only:
    if name != TOY and not Path(checkpoint(name, args.runs)).is_dir():
      print(f"note: {checkpoint(name, args.runs)} is not there and left out", file=sys.stderr)
      continue
    for suite in SYSTEMS[name][1]:
      document = measure(name, suite, args.runs, args.count, args.seed)
      new = list(lines(name, suite, args.runs, document, args.seed))
      key = lambda line: tuple(line[k] for k in ("checkpoint", "suite", "seed"))  # noqa: E731
      old = [json.loads(x) for x in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
      kept = [line for line in old if key(line) != (name, suite, args.seed)]
      temporary = RESULTS.with_suffix(".tmp")
      temporary.write_text("".join(json.dumps(line) + "\n" for line in kept + new))
      os.replace(temporary, RESULTS)
      print(f"{name}, {suite}: {len(new)} numbers")


if __name__ == "__main__":
  main()
