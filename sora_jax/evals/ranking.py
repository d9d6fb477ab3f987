"""What the quality suite's numbers are worth: each must rank real clips above their controls.

  python -m sora_jax.evals.ranking [--count N] [--seed N]

measures real clips that are in no other set, and the same clips damaged (`degrade`): each number as
something that is the larger, the worse (of a ratio, how far it is from 1 in either direction).
`MUST` says which controls a number is there for. A still, for example, is as sharp as what it was
made of, so sharpness need not see it; and that the clips are those of training, only the search for
them can see.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from sora_jax.evals import degrade, quality
from sora_jax.evals.exhibit import SEARCHED, Real, Stack
from sora_jax.evals.memorisation import Memorisation
from sora_jax.evals.reference import BATCH, SEED, Clips, batches, worlds
from sora_jax.worlds import WorldSource

COPIES = "nearest training clip"
DAMAGE = ("shuffled", "frozen", "blurred", "noisy")
MUST = {
  "FVD": DAMAGE,
  "video kernel": DAMAGE,
  "image Frechet": ("blurred", "noisy"),
  "image kernel": ("blurred", "noisy"),
  "classifier": DAMAGE,
  "sharpness": ("blurred", "noisy"),
  "flicker": ("shuffled", "noisy"),
  "warp error": DAMAGE,
  "copies, content": (COPIES,),
  "copies, motion": (COPIES,),
}


def gap(ratio: float) -> float:
  """How far a ratio is from 1, in either direction: the size of its logarithm."""
  return abs(math.log(ratio)) if ratio > 0 else math.inf


def badness(
  bench: quality.Bench, rows: quality.Rows, copies: Mapping[str, Any]
) -> dict[str, float]:
  """Every number of the suite as something that is larger the worse the clips are.

  Args:
    copies: `Memorisation.summary` of the same clips.
  """
  distances = bench.distances({"samples": rows})
  found = {
    "FVD": distances["video distance"]["FVD samples"]["mean"],
    "video kernel": distances["video distance"]["kernel samples"]["mean"],
    "image Frechet": distances["image distance"]["Frechet samples"]["mean"],
    "image kernel": distances["image distance"]["kernel samples"]["mean"],
    "classifier": bench.realism(rows)[0]["accuracy"]["mean"],
  }
  found |= {sign: gap(x["ratio"]["mean"]) for sign, x in bench.signs(rows).items()}
  nearest = {kind: x["copies"]["mean"] for kind, x in copies.items() if "copies" in x}
  return found | {f"copies, {kind}": share for kind, share in nearest.items()}


def damaged(clips: Clips, name: str, seed: int) -> Clips:
  """The clips under one of `degrade.CONTROLS` that needs nothing but a clip."""
  rng = np.random.default_rng([seed, DAMAGE.index(name)])
  masks = np.zeros(clips.shape[1:4], bool)
  return np.stack([degrade.CONTROLS[name](clip, masks, clip, rng) for clip in clips])


def rank(count: int, seed: int = 0, searched: int = SEARCHED // 4) -> dict[str, Any]:
  """The table: for each number the value of real clips and of all controls.

  Args:
    searched: training clips for each of the `count` clips.
  """

  def search(**sets: quality.Rows) -> Memorisation:
    rows = {name: (x["content"], x["motion"]) for name, x in sets.items()}
    memory = Memorisation(heldout=heldout, **rows)
    return memory.look(clips for _, clips in batches(train, "search"))

  stacked = lambda source, name: np.concatenate([c for _, c in batches(source, name)])  # noqa: E731
  bench = quality.Bench(Real(*worlds(count, seed)))
  heldout = bench.heldout["content"], bench.heldout["motion"]
  real = stacked(WorldSource(count, SEED + seed + 300, "validation"), "real clips")
  train = Stack(stacked(WorldSource(searched * count, 1, "train"), "training clips"))
  sets = {"real": real} | {name: damaged(real, name, seed) for name in DAMAGE}
  rows = {
    name: bench.measure.all(clips for _, clips in batches(Stack(clips), name))
    for name, clips in sets.items()
  }
  first = search(**rows)
  found = train.clips[first.nearest("real")["content index"]]
  rows[COPIES] = bench.measure.all(found[i : i + BATCH] for i in range(0, count, BATCH))
  searches = dict.fromkeys(rows, first) | {COPIES: search(**{COPIES: rows[COPIES]})}
  table = {name: badness(bench, x, searches[name].summary(name)) for name, x in rows.items()}
  numbers = {
    key: {"ranked": ranked(table, key)} | {name: row.get(key) for name, row in table.items()}
    for key in MUST
  }
  return {"count": count, "seed": seed, "numbers": numbers}


def ranked(table: Mapping[str, Mapping[str, float]], number: str) -> bool:
  """Whether real clips are better than each control that the number must see."""
  return all(table["real"][number] < table[name][number] for name in MUST[number])


def main() -> None:
  """Prints the table."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--count", type=int, default=128)
  parser.add_argument("--seed", type=int, default=0)
  args = parser.parse_args()
  report = rank(args.count, args.seed)
  report["command"] = shlex.join(["python", "-m", "sora_jax.evals.ranking", *sys.argv[1:]])
  print(json.dumps(report, indent=2))


if __name__ == "__main__":
  main()
