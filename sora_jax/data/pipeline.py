"""From sources to batches, with Grain: seeded, sharded by host, resumable bit for bit.

source → shuffle (each epoch anew) → repeat → random window, resize → mixture → transform → this
host's shard (`shards.py`) → drop unreadable clips → batch. Reading runs ahead in threads or, with
`workers`, in processes; neither changes what comes out.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast, runtime_checkable

import grain
import numpy as np
from absl import flags

from sora_jax.data.images import resize
from sora_jax.data.shards import shard
from sora_jax.data.transforms import KEYS, RandomFilter, Sample, take
from sora_jax.errors import UserError


@runtime_checkable
class Source(Protocol):
  """Random access to samples: "video" uint8 t h w 3, "caption", "fps", "id".

  A source of long files may also offer `clip(index, rng, frames, fps, size)`, which decodes only
  a random window and returns a sample, or raises UserError if it cannot.
  """

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Sample: ...


class _Skips:
  """Reports each unreadable clip once, and gives up when nothing at all can be read."""

  def __init__(self, limit: int):
    self.limit = limit
    self._seen: set[Any] = set()
    self._in_a_row = 0
    self._lock = threading.Lock()

  def __reduce__(self):
    return (_Skips, (self.limit,))

  def success(self) -> None:
    self._in_a_row = 0

  def failure(self, key: Any, reason: str) -> None:
    with self._lock:
      self._in_a_row += 1
      if key not in self._seen:
        self._seen.add(key)
        print(f"warning: skipped ({len(self._seen)} so far): {reason}", file=sys.stderr)
      if self._in_a_row > self.limit:
        raise UserError(
          f"None of the last {self._in_a_row} clips could be used; the last one: {reason}"
        )


@dataclass(frozen=True)
class _Load:
  """Reads one sample as a clip of the wanted length, rate and size; None if that fails."""

  source: Source
  frames: int | None
  size: tuple[int, int] | None
  fps: float | None
  fit: str
  short: str
  keep: tuple[str, ...]
  skips: _Skips = field(compare=False)

  def __call__(self, index: int, rng: np.random.Generator) -> Sample | None:
    try:
      sample = self._read(index, rng)
    except UserError as e:
      self.skips.failure(index, str(e))
      return None
    self.skips.success()
    if lacking := {*KEYS, *self.keep} - {"captions"} - sample.keys():  # then all of them lack it
      raise UserError(f"{sample.get('id', self.source)} holds no {min(lacking)!r}.")
    video = sample["video"]
    if self.size is not None:
      video = resize(video, *self.size, fit=self.fit)
    # A clip may come in several wordings; one with a single caption has a list of one.
    sample = {"captions": [sample["caption"]], **sample}
    out = {k: sample[k] for k in (*KEYS, *self.keep)}
    return {**out, "video": video, "fps": np.float32(sample["fps"])}

  def _read(self, index: int, rng: np.random.Generator) -> Sample:
    if self.frames is not None and hasattr(self.source, "clip"):
      size = self.size if self.fit == "crop" else None
      return self.source.clip(
        index, rng, frames=self.frames, fps=self.fps, size=size, short=self.short
      )
    sample = self.source[index]
    if "video" in sample and not len(sample["video"]):
      raise UserError(f"{sample['id']} has no frames.")
    if self.frames is None or "video" not in sample:
      return sample
    video = take(sample["video"], sample["fps"], self.frames, self.fps, rng, self.short)
    if video is None:
      raise UserError(
        f"{sample['id']} has {len(sample['video'])} frames at {sample['fps']:g} fps, too few for "
        f"{self.frames} at {self.fps or sample['fps']:g}."
      )
    return {**sample, "video": video, "fps": self.fps or sample["fps"]}


def _collate(samples: Sequence[Sample]) -> dict[str, np.ndarray]:
  """Stacks numbers; anything else becomes an array of objects, so that all leaves are arrays."""
  shapes = {s["video"].shape for s in samples}
  if len(shapes) > 1:
    raise UserError(f"Clips of different shapes in one batch {sorted(shapes)}: set a size.")
  batch = {}
  for key in samples[0]:
    values = [s[key] for s in samples]
    if isinstance(values[0], np.ndarray | np.generic | float | int):
      batch[key] = np.stack(values)
    else:
      batch[key] = np.empty(len(values), dtype=object)
      batch[key][:] = values
  return batch


def make(
  source: Source | Sequence[tuple[Source, float]],
  batch_size: int,
  seed: int,
  frames: int | None = None,
  size: tuple[int, int] | None = None,
  *,
  fps: float | None = None,
  fit: str = "crop",
  short: str = "skip",
  keep: tuple[str, ...] = (),
  transform: RandomFilter | None = None,
  shuffle: bool = True,
  epochs: int | None = None,
  workers: int = 0,
  threads: int = 2,
  shard_index: int = 0,
  shard_count: int = 1,
) -> grain.DatasetIterator:
  """Makes an iterator of batches from a source, or from several with weights.

  Batches hold "video" uint8 b t h w 3, "fps" float32 b, "caption" and "id" (arrays of str), the
  keys of `keep` ("captions": all wordings, a list per clip) and whatever `transform` adds. The
  iterator's `get_state` and `set_state` resume it bit for bit, given the same arguments.
  `batch_size` is per shard.

  Args:
    frames: length of the random window cut from each clip; None takes clips whole.
    size: (height, width) after resizing; None keeps the source's.
    fps: frame rate of the result; None keeps the source's.
    fit: how to resize: "crop", "pad" or "stretch".
    short: what to do with clips too short: "skip" them, or "repeat" their last frame.
    keep: further keys of the samples to put into the batch.
    transform: called as `transform(sample, rng)` after resizing; None drops the sample.
    epochs: how often to go through a single source; None is for ever. A mixture ends never.
    workers: processes that read ahead, started afresh (safe with EGL); 0 reads in this one.
    threads: threads that read ahead if there are no workers; 0 reads when a batch is asked for.
    shard_index, shard_count: which rows of each batch to read, see `shards.py`.

  Raises:
    UserError: an empty source, a bad weight, a batch size that does not fit, or, while
      iterating, data of which nothing can be read.
  """
  mixture: list[tuple[Source, float]]
  mixture = list(source) if isinstance(source, list | tuple) else [(cast(Source, source), 1.0)]
  if not mixture or any(not weight > 0 for _, weight in mixture):
    raise UserError("A mixture needs at least one source, and weights above 0.")
  if batch_size < 1:
    raise UserError(f"The batch size must be at least 1, not {batch_size}.")
  if epochs is not None and len(mixture) > 1:
    raise UserError("A mixture has no epochs: leave `epochs` out.")
  parts = []
  for number, (part, _) in enumerate(mixture):
    if not len(part):
      raise UserError(f"{part!r} holds no clips.")
    skips = _Skips(limit=2 * len(part) + 16)
    load = _Load(part, frames, size, fps, fit, short, tuple(keep), skips)
    parts.append(_part(load, seed + number, shuffle, epochs))
  weights = [weight for _, weight in mixture]
  clips = parts[0] if len(parts) == 1 else grain.MapDataset.mix(parts, weights)
  if transform is not None:
    clips = clips.seed(seed + 1000).random_map(_Optional(transform))
  clips = shard(clips, batch_size, shard_index, shard_count)
  clips = _read_ahead(clips, batch_size, workers, threads)
  return iter(clips.batch(batch_size, drop_remainder=True, batch_fn=_collate))


def _read_ahead(
  clips: grain.MapDataset, batch_size: int, workers: int, threads: int
) -> grain.IterDataset:
  """Reads clips before they are asked for, in processes or threads, and drops unreadable ones."""
  if workers == 0:
    ahead = 2 * batch_size if threads else 0
    return clips.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead))
  if not flags.FLAGS.is_parsed():  # Grain's workers read absl flags, also outside absl's app
    flags.FLAGS.mark_as_parsed()
  serial = clips.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
  # Workers take clips in turn, before batching: their number does not change the batches.
  return serial.mp_prefetch(
    grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=batch_size)
  )


def _part(load: _Load, seed: int, shuffle: bool, epochs: int | None) -> grain.MapDataset:
  """One source as a dataset of loaded clips: shuffled, then repeated."""
  dataset = grain.MapDataset.range(len(load.source)).seed(seed)
  if shuffle:
    dataset = dataset.shuffle()
  # [:] changes nothing but the depth, from which Grain makes seeds: runs go on as they began.
  return dataset[:].repeat(epochs).random_map(load)


@dataclass(frozen=True)
class _Optional:
  """Applies a transform to the clips that could be read."""

  transform: RandomFilter

  def __call__(self, sample: Sample | None, rng: np.random.Generator) -> Sample | None:
    return None if sample is None else self.transform(sample, rng)
