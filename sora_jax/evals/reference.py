"""Real clips to hold samples against, their features, and the distances between sets of them."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from sora_jax.data.pipeline import Source
from sora_jax.evals import fvd
from sora_jax.typing import Float, UInt8
from sora_jax.worlds import WorldSource

Clips = UInt8[np.ndarray, "b t h w 3"]
Features = Callable[[Clips], np.ndarray]  # uint8 clips -> a row of numbers per clip
FRAMES, SIZE = 17, 64
BATCH = 16
# Clip i of a suite's seed must not be clip i of a training seed: an offset no one would train on.
SEED = 1_000_000
PROTOCOL = 2  # counts up when networks or what they are shown change: old features do not fit
TIMES = 4  # so many times as many reference clips as samples: they are cheap, and lower the floor


def worlds(
  count: int, seed: int, frames: int = FRAMES, height: int = SIZE, width: int = SIZE, fps: float = 8
) -> tuple[WorldSource, WorldSource]:
  """The reference for `count` samples, and as many other real clips, for the floor."""
  shape = (frames, height, width, float(fps))
  reference = WorldSource(TIMES * count, SEED + seed + 100, "validation", *shape)
  return reference, WorldSource(count, SEED + seed + 200, "validation", *shape)


def batches(source: Source, name: str, start: int = 0) -> Iterator[tuple[list[int], Clips]]:
  """Indices and clips of a source, with a progress bar."""
  with tqdm(total=len(source), initial=start, desc=name, unit="clip") as bar:
    for first in range(start, len(source), BATCH):
      indices = list(range(first, min(first + BATCH, len(source))))
      yield indices, np.stack([source[i]["video"] for i in indices])
      bar.update(len(indices))


def cached(
  source: Source, features: Features, name: str, kind: str = "i3d"
) -> Float[np.ndarray, "n d"]:
  """Features of a source, kept in the user's cache; an interrupted pass goes on from there.

  Args:
    name: of the clips, for the progress bar. kind: of the features, and the cache's folder.
  """
  # The first clip's pixels are part of the key: another renderer makes other features.
  known = f"{PROTOCOL} {source!r}".encode() + source[0]["video"].tobytes()
  key = hashlib.sha256(known).hexdigest()[:16]
  root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sora_jax" / kind
  root.mkdir(parents=True, exist_ok=True)
  path = root / f"{key}.npy"
  rows = np.load(path) if path.is_file() else None
  start = 0 if rows is None else len(rows)
  for indices, clips in batches(source, f"real clips: {name}, {kind}", start):
    more = features(clips)
    rows = more if rows is None else np.concatenate([rows, more])
    if indices[-1] == len(source) - 1 or len(rows) % (8 * BATCH) < BATCH:
      temporary = path.with_name(f".{key}.{os.getpid()}.npy")
      np.save(temporary, rows)
      os.replace(temporary, path)
  if rows is None:
    raise ValueError("a source without clips has no features")
  return rows


def distances(
  sets: Mapping[str, Float[np.ndarray, "_n d"]],
  reference: Float[np.ndarray, "m d"],
  frechet: str = "FVD",
  kernel: str = "kernel",
) -> dict[str, Any]:
  """Fréchet and kernel distance of each set of features to the reference, named `frechet SET`.

  A Fréchet distance of fewer clips than features is mostly its bias: that is said on stderr.
  """
  out: dict[str, Any] = {}
  for name, rows in sets.items():
    estimate = fvd.kernel_distance(rows, reference)
    out[f"{frechet} {name}"] = {"mean": fvd.frechet_of(rows, reference), "n": len(rows)}
    out[f"{kernel} {name}"] = {
      "mean": estimate.value, "low": estimate.low, "high": estimate.high, "n": len(rows)
    }  # fmt: skip
  count, width = min(len(rows) for rows in sets.values()), reference.shape[1]
  if count < width:
    floor = next((k for k in sets if k.startswith("floor")), None)
    beside = f", {out[f'{frechet} {floor}']['mean']:.4g}" if floor else ""
    print(
      f"warning: {count} clips are fewer than the {width} features: the {frechet} is mostly bias; "
      f"compare it with the floor{beside}, or read the kernel distance",
      file=sys.stderr,
    )
  return out
