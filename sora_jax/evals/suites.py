"""The suites of `sora-jax eval`: which clips are made, and which judges look at them.

`recon`: what the autoencoder keeps, of worlds it never saw and of a folder of real clips.
`text`: whether samples show what their prompts say, and how far they are from real clips.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from tqdm import tqdm

from sora_jax.data import images, video
from sora_jax.errors import UserError
from sora_jax.evals import controls, i3d, reference
from sora_jax.evals.adherence import ATTRIBUTES, Judge, Reading
from sora_jax.evals.reconstruction import Appearance, Reconstruction, grey_ratio
from sora_jax.evals.reference import BATCH, FRAMES, SEED, SIZE, Clips, batches
from sora_jax.evals.report import Results, proportion
from sora_jax.worlds import WorldSource

RECON_SIZES = ((64, 64), (96, 96), (128, 128), (96, 160))
# name -> (split, wording)
PROMPTS = {
  "seen": ("validation", "train"),
  "heldout_combinations": ("heldout", "train"),
  "heldout_wordings": ("validation", "heldout"),
}


@runtime_checkable
class Model(Protocol):
  """What a suite needs of `sora_jax.load(...)`."""

  def sample(
    self, prompts: Sequence[str], *, seed: int, frames: int, size: tuple[int, int], progress: bool
  ) -> Clips:
    """A video per prompt."""

  def reconstruct(self, video: Clips) -> Clips:
    """The round trip through the latents."""


@runtime_checkable
class Autoencoder(Protocol):
  """What the `recon` suite needs."""

  def reconstruct(self, video: Clips) -> Clips:
    """The round trip through the latents."""


def recon(model: Autoencoder, count: int, seed: int) -> Results:
  """Worlds of the validation split at several sizes; what the oracle reads off them at 64 px."""
  results = Results()
  judge = Judge()
  for height, width in RECON_SIZES:
    name = f"worlds {height}x{width}"
    source = WorldSource(count, SEED + seed, "validation", FRAMES, height, width)
    score = Reconstruction()
    read: dict[str, list[bool]] = {"clean": [], "reconstruction": []}
    for indices, clips in batches(source, name):
      made = model.reconstruct(clips)
      numbers = score.update(clips, made)
      ids = [f"{name} {i}" for i in indices]
      results.rows += _rows(ids, numbers)
      if (height, width) == (SIZE, SIZE):
        for key, shown in (("clean", clips), ("reconstruction", made)):
          labels = [source.spec(i).labels for i in indices]
          read[key] += [r.matches(**_asked(x)) for r, x in zip(judge(shown), labels, strict=True)]
    results.metrics[name] = score.summary()
    if read["clean"]:
      results.metrics["oracle right"] = {k: proportion(flags) for k, flags in read.items()}
  return results


def recon_files(
  model: Autoencoder,
  folder: str | os.PathLike[str],
  count: int | None = None,
  short_side: int = 128,
  frames: int = 33,
) -> Results:
  """Each video of a folder: its first frames at its own rate, the shorter side resized.

  Args:
    count: how many, in the order of their names; None is all.

  Raises:
    UserError: no video in the folder. One that cannot be read is reported and left out.
  """
  root = Path(folder)
  if not root.is_dir():
    raise UserError(f"{root} is not a folder; --videos takes a folder of videos.")
  files = sorted(p for p in root.iterdir() if p.suffix.lower() in video.VIDEO_SUFFIXES)[:count]
  results, score = Results(), Reconstruction()
  for path in tqdm(files, desc="real clips", unit="clip"):
    try:
      info = video.probe(path)
      clip, _ = video.read(path, frames=min(frames, (info.frames - 1) // 4 * 4 + 1))
    except UserError as error:
      print(f"warning: skipped: {error}", file=sys.stderr)
      continue
    scale = short_side / min(clip.shape[1:3])
    height, width = (max(16, round(side * scale / 16) * 16) for side in clip.shape[1:3])
    clip = images.resize(clip, height, width)[None]
    numbers = score.update(clip, model.reconstruct(clip))
    results.rows += [row | {"shape": clip.shape[1:4]} for row in _rows([path.name], numbers)]
    results.metrics[path.name] = {k: float(v[0]) for k, v in numbers.items()}
  if not results.rows:
    raise UserError(f"{root} holds no video that can be read.")
  results.metrics["all files"] = score.summary()
  return results


def text(
  model: Model, count: int, seed: int, fvd_count: int | None = None, sheet: Path | None = None
) -> Results:
  """Samples of seen, held-out-combination and held-out-wording prompts before all judges.

  Args:
    count: prompts per set; half as many for permanence.
    fvd_count: samples for FVD (default 2 x count, against four times as many real clips; 0: none).
    sheet: where to write a contact sheet of the first samples.
  """
  fvd_count = 2 * count if fvd_count is None else fvd_count
  judge, results = Judge(), Results()
  seen: Clips | None = None
  for name, (split, wording) in PROMPTS.items():
    total = max(count, fvd_count) if name == "seen" else count
    source = WorldSource(total, SEED + seed, split, wording=wording)
    clips = sample(model, source, seed, name)
    seen = clips if seen is None else seen
    prompts = [source.caption(i) for i in range(count)]
    asked = [source.spec(i).labels for i in range(count)]
    results.metrics[f"adherence {name}"] = adherence(
      judge(clips[:count]), asked, prompts, name, results.rows
    )
    if sheet is not None and name == "seen":
      video.write(sheet, video.contact_sheet(list(clips[:16][:count]), prompts[:16])[None])
  assert seen is not None
  permanence = WorldSource(max(count // 2, 1), SEED + seed + 1, "validation", scenes=("occlusion",))
  clips = sample(model, permanence, seed, "permanence")
  results.metrics["permanence"] = _permanence(judge, permanence, clips, results.rows)
  results.metrics["appearance"] = _appearance(seed, seen[:count])
  if fvd_count:
    results.metrics["distance"] = distances(model, seen[:fvd_count], seed)
  return results


def sample(model: Model, source: WorldSource, seed: int, name: str) -> Clips:
  """A sample per caption of a source."""
  print(f"sampling {len(source)} prompts: {name}", file=sys.stderr)
  prompts = [source.caption(i) for i in range(len(source))]
  return model.sample(prompts, seed=seed, frames=FRAMES, size=(SIZE, SIZE), progress=True)


def adherence(
  readings: Iterable[Reading],
  asked: Sequence[Mapping[str, Any]],
  prompts: Sequence[str],
  name: str,
  rows: list[dict[str, Any]],
) -> dict[str, Any]:
  """Shares of clips in which the oracle reads each attribute as asked, and of valid ones.

  "all" is what a clip counts as right by: colour, shape and motion as asked, and valid. The look is
  a number of its own.

  Args:
    readings: of each clip.
    asked: the attributes that its caption states: the same ones for all clips. Without a motion
      they are stills, which count as no valid clips: only what is asked is judged.
    rows: gets a row per clip.
  """
  stated = [key for key in ATTRIBUTES if key in asked[0]]
  still = "motion" not in stated
  names = [*stated, "all"] if still else [*stated, "valid", "all"]
  flags: dict[str, list[bool]] = {key: [] for key in names}
  for index, (reading, labels) in enumerate(zip(readings, asked, strict=True)):
    right = {key: getattr(reading, key) == labels[key] for key in stated}
    right["valid"] = reading.valid
    right["all"] = all(right[k] for k in controls.ASKED if k in stated)
    right["all"] &= still or reading.valid
    for key in names:
      flags[key].append(right[key])
    read = {key: getattr(reading, key) for key in (*ATTRIBUTES, "valid")}
    wanted = {key: labels[key] for key in (*ATTRIBUTES, "scene") if key in labels}
    rows.append({
      "set": name, "index": index, "prompt": prompts[index], "asked": wanted, "read": read,
      "right": right["all"],
    })  # fmt: skip
  return {key: proportion(values) for key, values in flags.items()}


def _permanence(
  judge: Judge, source: WorldSource, clips: Clips, rows: list[dict[str, Any]]
) -> dict[str, Any]:
  """Identity after the wall, the controls (hides, stays) apart and in all."""
  flags: dict[str, list[bool]] = {key: [] for key in ("passes", "hides", "stays", "all")}
  for index, reading in enumerate(judge(clips)):
    labels = source.spec(index).labels
    right = reading.permanent(**_asked(labels))
    flags[labels["motion"].partition("_")[0]].append(right)
    flags["all"].append(right)
    rows.append({
      "set": "permanence", "index": index, "prompt": source.caption(index),
      "asked": _asked(labels), "ends": reading.ends(), "valid": reading.valid, "right": right,
    })  # fmt: skip
  return {key: proportion(values) for key, values in flags.items()}


def _appearance(seed: int, samples: Clips) -> dict[str, Any]:
  """Sharpness and flicker of samples and of the real clips of the same prompts."""
  made, real = Appearance(), Appearance()
  source = WorldSource(len(samples), SEED + seed, "validation")
  for indices, clips in batches(source, "real clips"):
    real.update(clips)
    made.update(samples[indices])
  s, r = made.summary(), real.summary()
  return {
    "sharpness samples": s["sharpness"],
    "sharpness real": r["sharpness"],
    "sharpness ratio": {"mean": s["sharpness"]["mean"] / r["sharpness"]["mean"]},
    "flicker samples": s["flicker"],
    "flicker real": r["flicker"],
    "flicker ratio": {"mean": grey_ratio(s["flicker"]["mean"], r["flicker"]["mean"])},
  }


def distances(model: Model, samples: Clips, seed: int) -> dict[str, Any]:
  """FVD and kernel distance of samples, of reconstructions and of real clips to 4 n real clips."""
  features = i3d.Features()
  real, others = reference.worlds(len(samples), seed)
  remade = [
    features(model.reconstruct(clips)) for _, clips in batches(others, "reconstructions for FVD")
  ]
  made = [
    features(samples[i : i + BATCH])
    for i in tqdm(range(0, len(samples), BATCH), desc="samples for FVD", unit="batch")
  ]
  sets = {
    "samples": np.concatenate(made),
    "reconstructions": np.concatenate(remade),
    "floor (real)": reference.cached(others, features, "floor"),
  }
  return reference.distances(sets, reference.cached(real, features, "reference"))


def _asked(labels: dict[str, Any]) -> dict[str, str]:
  return {key: labels[key] for key in controls.ASKED}


def _rows(ids: Sequence[str], numbers: dict[str, np.ndarray]) -> list[dict[str, Any]]:
  return [
    {"id": name, **{key: float(values[i]) for key, values in numbers.items()}}
    for i, name in enumerate(ids)
  ]
