"""The suites of `sora-jax eval`: which clips are made, and which judges look at them.

`recon`: what the autoencoder keeps, of worlds it never saw and of a folder of real clips.
`text`: whether samples show what their prompts say, and how far they are from real clips.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from tqdm import tqdm

from sora_jax.data import images, video
from sora_jax.errors import UserError
from sora_jax.evals import controls, fvd, i3d
from sora_jax.evals.adherence import ATTRIBUTES, Judge
from sora_jax.evals.reconstruction import Appearance, Reconstruction, flicker_ratio
from sora_jax.evals.report import Results, proportion
from sora_jax.typing import Float, UInt8
from sora_jax.worlds import WorldSource

Clips = UInt8[np.ndarray, "b t h w 3"]
FRAMES, SIZE = 17, 64
RECON_SIZES = ((64, 64), (96, 96), (128, 128), (96, 160))
BATCH = 8
# Clip i of a suite's seed must not be clip i of a training seed: an offset no one would train on.
SEED = 1_000_000
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
  model: Autoencoder, folder: str | os.PathLike[str], short_side: int = 128, frames: int = 33
) -> Results:
  """Each video of a folder: its first frames at its own rate, the shorter side resized.

  Raises:
    UserError: no video in the folder. One that cannot be read is reported and left out.
  """
  root = Path(folder)
  if not root.is_dir():
    raise UserError(f"{root} is not a folder; --videos takes a folder of videos.")
  files = sorted(p for p in root.iterdir() if p.suffix.lower() in video.VIDEO_SUFFIXES)
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
    results.metrics[f"adherence {name}"] = _adherence(
      judge, source, clips[:count], name, results.rows
    )
    if sheet is not None and name == "seen":
      prompts = [source.caption(i) for i in range(min(16, count))]
      video.write(sheet, video.contact_sheet(list(clips[: len(prompts)]), prompts)[None])
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


def _adherence(
  judge: Judge, source: WorldSource, clips: Clips, name: str, rows: list[dict[str, Any]]
) -> dict[str, Any]:
  flags: dict[str, list[bool]] = {key: [] for key in (*ATTRIBUTES, "valid", "all")}
  for index, reading in enumerate(judge(clips)):
    labels = source.spec(index).labels
    for key in ATTRIBUTES:
      flags[key].append(getattr(reading, key) == labels[key])
    flags["valid"].append(reading.valid)
    flags["all"].append(reading.matches(**_asked(labels)))
    read = {key: getattr(reading, key) for key in (*ATTRIBUTES, "valid")}
    asked = {key: labels[key] for key in (*ATTRIBUTES, "scene")}
    rows.append({
      "set": name, "index": index, "prompt": source.caption(index), "asked": asked, "read": read,
      "right": flags["all"][-1],
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
    "flicker ratio": {"mean": flicker_ratio(s["flicker"]["mean"], r["flicker"]["mean"])},
  }


def distances(model: Model, samples: Clips, seed: int) -> dict[str, Any]:
  """FVD and kernel distance of samples, of reconstructions and of real clips to 4 n real clips."""
  n = len(samples)
  features = i3d.Features()
  reference = real_features(
    WorldSource(4 * n, SEED + seed + 100, "validation"), features, "reference"
  )
  others = WorldSource(n, SEED + seed + 200, "validation")
  remade = [
    features(model.reconstruct(clips)) for _, clips in batches(others, "reconstructions for FVD")
  ]
  made = [
    features(samples[i : i + BATCH])
    for i in tqdm(range(0, n, BATCH), desc="samples for FVD", unit="batch")
  ]
  sets = {
    "samples": np.concatenate(made),
    "reconstructions": np.concatenate(remade),
    "floor (real)": real_features(others, features, "floor"),
  }
  out: dict[str, Any] = {}
  for name, rows in sets.items():
    kernel = fvd.kernel_distance(rows, reference)
    out[f"FVD {name}"] = {"mean": fvd.frechet_of(rows, reference), "n": n}
    out[f"kernel {name}"] = {"mean": kernel.value, "low": kernel.low, "high": kernel.high, "n": n}
  return out


def real_features(
  source: WorldSource, features: Callable[[Clips], np.ndarray], name: str
) -> Float[np.ndarray, "n 400"]:
  """I3D features of a source, kept in the user's cache; an interrupted pass goes on from there."""
  # The first clip's pixels are part of the key: another renderer makes other features.
  key = hashlib.sha256(repr(source).encode() + source[0]["video"].tobytes()).hexdigest()[:16]
  root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sora_jax" / "i3d"
  root.mkdir(parents=True, exist_ok=True)
  path = root / f"{key}.npy"
  rows = np.load(path) if path.is_file() else np.zeros((0, i3d.FEATURES), np.float32)
  start = len(rows)
  for indices, clips in batches(source, f"real clips for FVD: {name}", start):
    rows = np.concatenate([rows, features(clips)])
    if indices[-1] == len(source) - 1 or len(rows) % (8 * BATCH) < BATCH:
      temporary = path.with_name(f".{key}.{os.getpid()}.npy")
      np.save(temporary, rows)
      os.replace(temporary, path)
  return rows


def batches(source: WorldSource, name: str, start: int = 0) -> Iterator[tuple[list[int], Clips]]:
  """Indices and clips of a source, with a progress bar."""
  with tqdm(total=len(source), initial=start, desc=name, unit="clip") as bar:
    for first in range(start, len(source), BATCH):
      indices = list(range(first, min(first + BATCH, len(source))))
      yield indices, np.stack([source[i]["video"] for i in indices])
      bar.update(len(indices))


def _asked(labels: dict[str, Any]) -> dict[str, str]:
  return {key: labels[key] for key in controls.ASKED}


def _rows(ids: Sequence[str], numbers: dict[str, np.ndarray]) -> list[dict[str, Any]]:
  return [
    {"id": name, **{key: float(values[i]) for key, values in numbers.items()}}
    for i, name in enumerate(ids)
  ]
