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
from sora_jax.evals.report import Number, Results, median, proportion
from sora_jax.evals.suites import Autoencoder
from sora_jax.evals.surprise import expectation, told_apart
from sora_jax.evals.systems import Continuer, Surprised
from sora_jax.evals.world_cases import KNOWN, SEED, World, nearest_of
from sora_jax.evals.world_tests import TESTS, Scores, Test
from sora_jax.typing import UInt8
from sora_jax.worlds.distract import distracted
from sora_jax.worlds.impossible import KINDS, ImpossiblePairs, Pair

SYSTEM = "system"  # what is measured, among the controls
CEILING = "truth, reconstructed"  # by the system's own autoencoder: the best that it could do
SEARCHED = 128  # training clips among which the nearest is looked for
PAIRS = 2  # times the count, or some more: one takes less time than a continuation
SHARES = (0.25, 0.5)  # of the frame that distractors cover
PAIR_FRAMES = 17
EXPECTATION = "violation of expectation"
HOVER = "hover"  # the one kind that does not happen on the floor
# Of kinds. What happens in the open is in the rows only: the step from one frame to the next shows
# it as well as the truth does.
GROUPS = ("all", "hidden", HOVER)
SHOWN = 8  # worlds of a contact sheet


def controls(test: Test, worlds: Sequence[World]) -> dict[str, Continuer]:
  """The systems that a continuation of these worlds is compared with."""
  clips = [world.video for world in worlds]
  return {
    "truth": Truth(clips), "frozen": Frozen(), "linear": Linear(), "shuffled": Shuffled(clips),
    "nearest": Nearest(nearest_of(test.scenes, test.frames, SEARCHED)),
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
  return {name: proportion(x) if isinstance(x[0], bool) else median(x) for name, x in found.items()}


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
      worlds = test.worlds(count, seed)
      print(f"{name}: {count} worlds are continued", file=sys.stderr)
      try:
        made = continuation(system, worlds, test, seed, told)
      except UserError as error:
        print(f"note: {name} is left out: {error}", file=sys.stderr)
        continue
      if folder is not None:
        path = folder / f"{name.replace(',', '').replace(' ', '_')}.png"
        video.write(path, sheet(worlds, made)[None])
      clips = {SYSTEM: made}
      if isinstance(system, Autoencoder):
        clips[CEILING] = made.copy()
        true = system.reconstruct(np.stack([world.video for world in worlds]))
        clips[CEILING][:, KNOWN:] = true[:, KNOWN:]
      for other, control in controls(test, worlds).items():
        clips[other] = continuation(control, worlds, test, seed)
      results.metrics[name] = compared(name, test, worlds, clips, results.rows)
  else:
    print("note: no clips are continued by this system: surprise only", file=sys.stderr)
  if isinstance(system, Surprised):
    some = pairs(count, seed)
    results.metrics |= expectations(system, some, seed, results.rows)
  else:
    print("note: this system is not surprised by anything: continuations only", file=sys.stderr)
  return results


def compared(
  name: str, test: Test, worlds: Sequence[World], clips: Mapping[str, Clips], rows: list[Any]
) -> dict[str, dict[str, Number]]:
  """Number -> system -> its value. Args: clips: of each system. rows: what each did is added."""
  table: dict[str, dict[str, Number]] = {}
  for system, shown in clips.items():
    scores = test.score(worlds, shown)
    for metric, number in summary(scores).items():
      table.setdefault(metric, {})[system] = number
    rows += [
      {"test": name, "system": system, "index": i, "prompt": world.prompt, **row}
      for i, (world, row) in enumerate(zip(worlds, scores, strict=True))
    ]
  return table


def expectations(
  system: Surprised | None, plain: Sequence[Pair], seed: int, rows: list[dict[str, Any]]
) -> dict[str, Any]:
  """Violation of expectation: shares of pairs whose impossible clip surprises more.

  By the largest and by the mean surprise of a clip; chance is one half. Under distractors it is
  pairs that happen on the floor, which the bands leave in sight. `Truth` is told the possible clip
  of each pair, its distractors included.

  Args:
    system: None for the controls alone. plain: pairs without distractors.
    rows: what each system did is added.
  """
  floor = [pair for pair in plain if pair.kind != HOVER]
  tests = {EXPECTATION: plain}
  tests |= {
    f"distractors on {share:.0%}": [disturbed(pair, share, seed) for pair in floor]
    for share in SHARES
  }
  metrics: dict[str, Any] = {}
  for name, some in tests.items():
    asked: dict[str, Surprised] = {SYSTEM: system} if system else {}
    asked |= {"truth": Truth([pair.possible for pair in some]), "frozen": Frozen()}
    if some is plain:
      asked["linear"] = Linear()
    for other, one in asked.items():
      print(f"{name}: {len(some)} pairs, {other}", file=sys.stderr)
      found = expectation(one.surprise, some)
      rows += [{"test": name, "system": other, **row} for row in found.rows]
      _enter(metrics, name, other, found.metrics)
      if some is plain:
        without = told_apart([row for row in found.rows if row["kind"] != HOVER])
        _enter(metrics, f"distractors on {0:.0%}", other, without)
  return metrics


def _enter(
  metrics: dict[str, Any], name: str, system: str, found: Mapping[str, Mapping[str, Any]]
) -> None:
  """Puts what a system did into the table of a test."""
  table = metrics.setdefault(name, {})
  for measure, groups in found.items():
    for group in GROUPS:
      if group in groups:
        row = table.setdefault(f"{measure}, {group}", {"chance": {"mean": 0.5}})
        row[system] = groups[group]


def pairs(worlds: int, seed: int) -> list[Pair]:
  """Pairs of a possible and an impossible clip that go with so many worlds, as long as theirs.

  Of each kind equally many, in half of each (but mid-air) with the two worlds' roles exchanged.
  """
  even = 2 * len(KINDS)
  count = -(-PAIRS * worlds // even) * even
  source = ImpossiblePairs(count, SEED + seed, PAIR_FRAMES)
  return [source[i] for i in tqdm(range(count), desc="pairs", unit="pair")]


def disturbed(pair: Pair, share: float, seed: int) -> Pair:
  """A pair with distractors on its clips: the same until they part, or they would cancel out."""
  number = int(pair.id.rpartition("-")[2])
  possible, common, own = (
    distracted(clip, share, np.random.default_rng([seed, number, draw]))
    for clip, draw in ((pair.possible, 0), (pair.impossible, 0), (pair.impossible, 1))
  )
  impossible = np.concatenate([common[: pair.event], own[pair.event :]])
  return dataclasses.replace(pair, possible=possible, impossible=impossible)


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
