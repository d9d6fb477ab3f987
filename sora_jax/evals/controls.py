"""What the oracle is worth: its answers on clips whose truth is known.

  python -m sora_jax.evals.controls [--weights DIR] [--count N] [--seed N] [--checkpoint NAME|DIR]

writes `validation.json` beside the weights and prints it. With a checkpoint, the same clips are
read off its autoencoder's reconstructions as well. Percentages are of clips; an abstention counts
as wrong, and for a damaged clip only "not valid, or not what was asked" counts as a rejection.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from sora_jax.evals import degrade
from sora_jax.evals.adherence import ATTRIBUTES, WEIGHTS, Judge, Reading
from sora_jax.typing import Bool, UInt8
from sora_jax.worlds import WorldSource

Clips = UInt8[np.ndarray, "b t h w 3"]
ASKED = ("colour", "shape", "motion")  # what the text suite asks for


def main_mask(truth: dict[str, Any]) -> Bool[np.ndarray, "t h w"]:
  """Where the main object (every block of a tower) is seen, from the renderer's ground truth."""
  roles = [thing["role"] for thing in truth["spec"]["things"]]
  own = [10 + i for i, role in enumerate(roles) if role in ("main", "block")]
  return np.isin(truth["segmentation"], own)


class Exam:
  """Held-out worlds with their truth: half of seen combinations, half of held-out ones."""

  def __init__(self, count: int, seed: int) -> None:
    halves = [
      WorldSource(count // 2, seed, split, truth=True) for split in ("validation", "heldout")
    ]
    samples = [source[i] for source in halves for i in range(len(source))]
    self.clips: Clips = np.stack([sample["video"] for sample in samples])
    self.labels = [sample["truth"]["labels"] for sample in samples]
    self.masks = [main_mask(sample["truth"]) for sample in samples]
    self.moving = [np.ptp(clip.astype(np.int16), axis=0).max() > 40 for clip in self.clips]

  def damaged(self, name: str, seed: int) -> tuple[Clips, np.ndarray]:
    """The clips under one of `degrade.CONTROLS`, and the indices of those it applies to."""
    rng = np.random.default_rng([seed, sorted(degrade.CONTROLS).index(name)])
    kept = [
      index
      for index in range(len(self.clips))
      if (name not in degrade.NEED_MOTION or self.moving[index])
      and (name != "doubled" or (self.masks[index].sum((1, 2)) > 20).sum() >= 10)
    ]
    clips = [
      degrade.CONTROLS[name](self.clips[i], self.masks[i], self.clips[i - 1], rng) for i in kept
    ]
    return np.stack(clips), np.array(kept)


def share(flags: list[bool]) -> float:
  """Percentage of true flags."""
  return round(100 * float(np.mean(flags)), 2)


def accuracy(readings: list[Reading], labels: list[dict[str, Any]]) -> dict[str, float]:
  """Percent right per attribute, of all asked attributes together, and read as valid."""
  pairs = list(zip(readings, labels, strict=True))
  table = {
    name: share([getattr(reading, name) == label[name] for reading, label in pairs])
    for name in ATTRIBUTES
  }
  table["valid"] = share([reading.valid for reading in readings])
  table["all"] = share([r.matches(**{k: label[k] for k in ASKED}) for r, label in pairs])
  return table


def rejection(readings: list[Reading], labels: list[dict[str, Any]], seed: int) -> dict[str, float]:
  """Percent of mismatched captions rejected: of another clip, and with one attribute changed."""
  rng = np.random.default_rng(seed)
  other, table = [], {}
  for reading, label in zip(readings, labels, strict=True):
    wrong = label
    while all(wrong[k] == label[k] for k in ASKED):
      wrong = labels[rng.integers(len(labels))]
    other.append(not reading.matches(**{k: wrong[k] for k in ASKED}))
  table["another clip's caption"] = share(other)
  for name in ASKED:
    flags = []
    for reading, label in zip(readings, labels, strict=True):
      value = str(rng.choice([v for v in ATTRIBUTES[name] if v != label[name]]))
      flags.append(not reading.matches(**({k: label[k] for k in ASKED} | {name: value})))
    table[f"wrong {name}"] = share(flags)
  return table


def validate(
  judge: Judge,
  count: int = 1000,
  seed: int = 4242,
  reconstruct: Callable[[Clips], Clips] | None = None,
) -> dict[str, Any]:
  """The table of controls. `reconstruct` maps a batch of clips through an autoencoder."""
  exam = Exam(count, seed)
  rng = np.random.default_rng(seed)
  clean = judge(exam.clips)
  half = len(clean) // 2
  report: dict[str, Any] = {
    "count": len(clean),
    "seed": seed,
    "clean": accuracy(clean, exam.labels),
    "clean, seen combinations": accuracy(clean[:half], exam.labels[:half])["all"],
    "clean, held-out combinations": accuracy(clean[half:], exam.labels[half:])["all"],
    "mildly damaged": accuracy(
      judge(np.stack([degrade.mild(clip, rng) for clip in exam.clips])), exam.labels
    ),
    "rejected captions": rejection(clean, exam.labels, seed),
    "rejected damage": {},
    "permanence": _permanence(clean, exam.labels),
  }
  if reconstruct is not None:
    parts = [reconstruct(exam.clips[i : i + 8]) for i in range(0, len(clean), 8)]
    report["reconstructions"] = accuracy(judge(np.concatenate(parts)), exam.labels)
  for name in degrade.CONTROLS:
    clips, kept = exam.damaged(name, seed)
    flags = [
      not reading.matches(**{k: exam.labels[i][k] for k in ASKED})
      for i, reading in zip(kept, judge(clips), strict=True)
    ]
    report["rejected damage"][name] = share(flags)
  return report


def _permanence(readings: list[Reading], labels: list[dict[str, Any]]) -> dict[str, float]:
  table = {}
  for kind in ("passes", "hides", "stays"):
    flags = [
      reading.permanent(label["colour"], label["shape"], label["motion"])
      for reading, label in zip(readings, labels, strict=True)
      if label["scene"] == "occlusion" and label["motion"].startswith(kind)
    ]
    if flags:
      table[kind] = share(flags)
  return table


def main() -> None:
  """Validates the weights in a folder and stores the table there."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--weights", type=Path, default=WEIGHTS)
  parser.add_argument("--count", type=int, default=1000)
  parser.add_argument("--seed", type=int, default=4242)
  parser.add_argument("--checkpoint", help="also judge this checkpoint's reconstructions")
  args = parser.parse_args()
  if args.count < 2:
    parser.error("--count must be at least 2: half of the worlds are of held-out combinations")
  reconstruct = None
  if args.checkpoint:
    from sora_jax.generate.codec import Codec

    reconstruct = Codec.load(args.checkpoint).reconstruct
  report = validate(Judge(args.weights), args.count, args.seed, reconstruct)
  report["command"] = shlex.join(["python", "-m", "sora_jax.evals.controls", *sys.argv[1:]])
  text = json.dumps(report, indent=2)
  temporary = args.weights / f".validation.{os.getpid()}.tmp"
  temporary.write_text(text + "\n")
  os.replace(temporary, args.weights / "validation.json")
  print(text)


if __name__ == "__main__":
  main()
