"""Clips as codes: the cache a prior is trained from, and batches of it with their prompts."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from sora_jax.data import pipeline
from sora_jax.data.encode import Opened, stored, weights, windows
from sora_jax.data.records import RecordSource
from sora_jax.data.shards import shard
from sora_jax.data.transforms import to_float
from sora_jax.models.text import Prompts
from sora_jax.models.vqvae import VQVAE, encode_codes
from sora_jax.parallel import sharding
from sora_jax.typing import Params

ENCODER = ("encoder", "principal", "codebook")  # the parameters that codes depend on


def cache(
  folder: Path,
  vqvae: VQVAE,
  params: Params,
  sources: Mapping[str, Any] | ConfigDict,
  *,
  clips: int,
  frames: int,
  size: tuple[int, int],
  fps: float,
  seed: int,
  batch_size: int = 16,
) -> RecordSource:
  """Opens the cache of these clips' codes under `folder`, encoding them first if it is not there.

  Args: as of `data.encode.cache`.

  Raises:
    UserError: the sources cannot be read, clips have no codes, or the disk is full.
  """
  vqvae.grid(frames, *size)
  settings = dict(sources=sources, clips=clips, frames=frames, size=size, fps=fps, seed=seed)

  def parts() -> Iterator[bytes]:
    yield repr(vqvae).encode()
    yield from weights({name: x for name, x in params.items() if name in ENCODER})

  def records(opened: Opened) -> Iterator[dict[str, Any]]:
    return encode(windows(settings, batch_size, opened), vqvae, params, -(-clips // batch_size))

  return stored(folder, settings, parts(), records)


def encode(
  batches: Iterator[dict[str, Any]], vqvae: VQVAE, params: Params, count: int
) -> Iterator[dict[str, Any]]:
  """Encodes `count` batches, clip by clip in their order, with a progress bar."""
  mesh = sharding.make_mesh(devices=jax.local_devices())
  for _ in tqdm(range(count), desc="encoding", unit="batch", file=sys.stderr):
    batch = next(batches)
    grid = (len(batch["video"]), *vqvae.grid(*batch["video"].shape[1:4]), vqvae.z_channels)
    with jax.set_mesh(mesh):
      video = sharding.place(to_float(batch["video"]), "video", mesh, grid)
      codes = np.asarray(encode_codes(vqvae, params, video), np.uint16)
    for i in range(len(codes)):
      yield dict(
        codes=codes[i], fps=float(batch["fps"][i]), captions=list(batch["captions"][i]),
        id=str(batch["id"][i]),
      )  # fmt: skip


def batches(
  source: pipeline.Source | RecordSource,
  prompts: Prompts,
  batch_size: int,
  seed: int,
  shard_index: int = 0,
  shard_count: int = 1,
) -> grain.DatasetIterator:
  """Endless, resumable batches of a cache: each clip with one of its captions.

  They hold "codes" uint16 b lt lh lw q, "pieces" and "text_ids" int32 b s, and "id".

  Args:
    batch_size: rows of this shard. shard_index, shard_count: see `data.shards`.
  """
  clips = grain.MapDataset.source(source).seed(seed).shuffle()
  clips = clips[:].repeat().random_map(_Captioned(prompts))  # [:] for its depth, as in `pipeline`
  clips = shard(clips, batch_size, shard_index, shard_count)
  options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2 * batch_size)
  return iter(clips.to_iter_dataset(options).batch(batch_size, drop_remainder=True, batch_fn=_join))


@dataclass(frozen=True)
class _Captioned:
  """A clip's codes with the word pieces of one of its captions."""

  prompts: Prompts

  def __call__(self, clip: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    caption = clip["captions"][rng.integers(len(clip["captions"]))]
    pieces, ids = self.prompts.in_rows([caption])
    return {"codes": clip["codes"], "pieces": pieces[0], "text_ids": ids[0], "id": clip["id"]}


def _join(clips: Sequence[dict[str, Any]]) -> dict[str, np.ndarray]:
  ids = np.array([clip.pop("id") for clip in clips], dtype=object)
  return {name: np.stack([clip[name] for clip in clips]) for name in clips[0]} | {"id": ids}
