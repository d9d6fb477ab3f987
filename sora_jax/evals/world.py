"""The `world` suite: what a system knows of the physical world, beside what is known of others.

What continues clips is given the first frames of worlds of the validation split, of seeds no one
trains on, and judged by what it makes of the rest (`world_tests`). What is surprised by clips sees
pairs of possible and impossible ones (`worlds.impossible`), with and without distractors
(`worlds.distract`). Nothing is told in words unless that is asked for: a caption says what happens.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from sora_jax.data import video
from sora_jax.errors import UserError
from sora_jax.evals.control_systems import Frozen, Linear, Nearest, Shuffled, Truth
from sora_jax.evals.features import Clips
from sora_jax.evals.report import Results, median, proportion
from sora_jax.evals.suites import Autoencoder
from sora_jax.evals.surprise import expectation
from sora_jax.evals.systems import Continuer, Surprised
from sora_jax.evals.world_cases import KNOWN, SEED, World, nearest_of
from sora_jax.evals.world_tests import TESTS, Scores, Test
from sora_jax.typing import UInt8
from sora_jax.worlds.distract import distracted
from sora_jax.worlds.impossible import KINDS, ImpossiblePairs, Pair

SYSTEM = "system"  # what is measured, among the controls
TRAINED = 256  # training clips among which the nearest is looked for
PAIRS = 2  # times the count: one takes less time than a continuation
SHARES = (0.25, 0.5)  # of the frame that distractors cover
PAIR_FRAMES = 17
SHOWN = 8  # worlds of a contact sheet


def controls(test: Test, worlds: Sequence[World]) -> dict[str, Continuer]:
  """The systems that a continuation of these worlds is compared with."""
  clips = [world.video for world in worlds]
  return {
    "truth": Truth(clips), "frozen": Frozen(), "linear": Linear(), "shuffled": Shuffled(clips),
    "nearest": Nearest(nearest_of(test.scenes, test.frames, TRAINED)),
  }  # fmt: skip


def continuation(
  system: Continuer, worlds: Sequence[World], test: Test, seed: int, told: bool = False
) -> Clips:
  """Worlds as a system goes on with them; the given frames are as they were given.

  So a system that shows these through its autoencoder has neither gain nor loss of it.
  """
  known = np.stack([world.video[:KNOWN] for world in worlds])
  prompts = [world.prompt if told else "" for world in worlds]
  made = system.continued(known, prompts, seed=seed, frames=test.frames, progress=True).copy()
  made[:, :KNOWN] = known
  return made


def summary(scores: Sequence[Scores]) -> dict[str, Any]:
  """Shares of flags, medians of errors, each of the clips that have the score."""
  found: dict[str, list[Any]] = {}
  for row in scores:
    for name, value in row.items():
      found.setdefault(name, []).extend(value if isinstance(value, list) else [value])
  return {
    name: proportion(x) if isinstance(x[0], bool) else median(x) for name, x in found.items()
  }


def suite(
  system: Any, count: int, seed: int, folder: Path | None = None, told: bool = False
) -> Results:
  """All that a system can be asked, `count` worlds a test, each number beside the controls'.

  Args:
    system: a `Continuer`, a `Surprised`, or both; what it is not is said on stderr.
    folder: where contact sheets go (given, made and true frames of each test), if anywhere.
    told: whether it is told the captions.
  """
  results = Results()
  if isinstance(system, Continuer):
    for name, test in TESTS.items():
      _ask(system, name, test, results, count, seed, folder, told)
  else:
    print("note: the system continues no clips: it gets the rows of surprise only", file=sys.stderr)
  if isinstance(system, Surprised):
    results.metrics |= expectations(system, PAIRS * count, seed, results.rows)
  else:
    print("note: the system has no surprise: it gets the rows of continuations only",
          file=sys.stderr)  # fmt: skip
  return results


def _ask(
  system: Continuer, name: str, test: Test, results: Results, count: int, seed: int,
  folder: Path | None, told: bool,
) -> None:  # fmt: skip
  """One test, of the system and the controls; a length that it cannot make is left out."""
  worlds = test.worlds(count, seed)
  print(f"{name}: {count} worlds are continued", file=sys.stderr)
  try:
    made = continuation(system, worlds, test, seed, told)
  except UserError as error:
    print(f"note: {name} is left out: {error}", file=sys.stderr)
    return
  if folder is not None:
    video.write(folder / f"{name.replace(', ', ' ').replace(' ', '_')}.png",
                sheet(worlds, made)[None])  # fmt: skip
  clips = {SYSTEM: made}
  if isinstance(system, Autoencoder):
    clips["truth, reconstructed"] = np.concatenate([
      made[:, :KNOWN], system.reconstruct(np.stack([world.video for world in worlds]))[:, KNOWN:]
    ], axis=1)  # fmt: skip
  for other, control in controls(test, worlds).items():
    clips[other] = continuation(control, worlds, test, seed)
  table: dict[str, dict[str, Any]] = {}
  for other, shown in clips.items():
    scores = test.score(worlds, shown)
    for metric, number in summary(scores).items():
      table.setdefault(metric, {})[other] = number
    results.rows += [
      {"test": name, "system": other, "index": i, "prompt": world.prompt, **row}
      for i, (world, row) in enumerate(zip(worlds, scores, strict=True))
    ]
  results.metrics[name] = table


def expectations(
  system: Surprised, count: int, seed: int, rows: list[dict[str, Any]]
) -> dict[str, Any]:
  """Violation of expectation: shares of pairs whose impossible clip surprises more; chance 50 %.

  With distractors the pairs are those that happen on the floor, which the bands leave in sight. The
  `Truth` that stands beside knows the possible clip of each pair.
  """
  metrics: dict[str, Any] = {}
  plain = pairs(count, seed, KINDS)
  floor = [pair for pair in plain if pair.kind != "hover"]
  sets = {"violation of expectation": plain, "the same, on the floor": floor}
  for share in SHARES:
    sets[f"the same, distractors on {share:.0%}"] = [disturbed(x, share, seed) for x in floor]
  for name, some in sets.items():
    systems: Mapping[str, Surprised] = {
      SYSTEM: system, "truth": Truth([pair.possible for pair in some]), "frozen": Frozen(),
      "linear": Linear(),
    }  # fmt: skip
    for other, asked in systems.items():
      found = expectation(asked.surprise, some)
      rows += [{"test": name, "system": other, **row} for row in found.rows]
      for measure, groups in found.metrics.items():
        for group, number in groups.items():
          if group in ("all", "hidden", "open", "hover"):
            place = metrics.setdefault(name, {}).setdefault(f"{measure}, {group}", {})
            place[other] = number
  return metrics


def pairs(count: int, seed: int, kinds: Sequence[str]) -> list[Pair]:
  """Pairs of a possible and an impossible clip, as long as the other clips of the suite."""
  source = ImpossiblePairs(count, SEED + seed, PAIR_FRAMES, kinds=tuple(kinds))
  return [source[i] for i in tqdm(range(count), desc="pairs", unit="pair")]


def disturbed(pair: Pair, share: float, seed: int) -> Pair:
  """A pair with the same distractor on both its clips."""
  number = int(pair.id.rpartition("-")[2])
  clips = {
    name: distracted(getattr(pair, name), share, np.random.default_rng([seed, number]))
    for name in ("possible", "impossible")
  }
  return dataclasses.replace(pair, **clips)


def sheet(worlds: Sequence[World], made: Clips) -> UInt8[np.ndarray, "_ _ 3"]:
  """A row for each of the first worlds: given frames, what was made of them, and what was true."""
  frames = made.shape[1]
  given = np.linspace(0, KNOWN - 1, 3).round().astype(int)
  later = np.linspace(KNOWN, frames - 1, 6).round().astype(int)
  strips = []
  for world, clip in zip(worlds[:SHOWN], made, strict=False):
    line = np.full((clip.shape[1], 4, 3), 255, np.uint8)
    parts = [*world.video[given], line, *clip[later], line, *world.video[later]]
    row = np.concatenate(parts, axis=1)
    strips += [row, np.full((2, *row.shape[1:]), 255, np.uint8)]
  return np.concatenate(strips)
