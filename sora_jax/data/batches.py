"""Encoded clips to batches of about one number of tokens, three ways.

  pack    samples of any size share sequences of one length: one program
  bucket  a batch holds samples of one grid, one in each sequence: a program per grid
  pad     one sample in each sequence, all as long as the longest: one program

The samples, the loss and their shares are the same; only what is computed on padding is not.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grain
import numpy as np

from sora_jax.data.encode import STRETCHES
from sora_jax.data.packing import Packer
from sora_jax.data.pipeline import Source
from sora_jax.diffusion import conditioning
from sora_jax.diffusion.conditioning import TIME_STRIDE, Mixture, Sample
from sora_jax.diffusion.time import LevelSampler
from sora_jax.errors import UserError
from sora_jax.models.patch import Patch, grid_shape
from sora_jax.models.text import Prompts


@dataclass(frozen=True, kw_only=True)
class Batches:
  """Draws training samples from caches of encoded clips and lays them out.

  Attributes:
    caches, shares: encoded clips of each shape, and how much of the samples it has.
    mixture, levels, patch, cond_features: of `conditioning.draw`.
    packer: its rows times their length are the tokens of a batch, in each of the three ways.
    samples: drawn per packed batch.
    multiple: what the number of rows must be a multiple of (devices that share a batch).
  """

  caches: Mapping[str, Source]
  shares: Mapping[str, float]
  mixture: Mixture
  levels: LevelSampler
  patch: Patch
  cond_features: int
  packer: Packer
  prompts: Prompts
  samples: int
  seed: int
  multiple: int = 1

  def __call__(
    self, batching: str, process_index: int = 0, process_count: int = 1
  ) -> Iterator[dict[str, Any]]:
    """An endless, resumable iterator; batches have the fields of `Packer` and "id".

    Raises:
      UserError: there is no such way of batching.
    """
    ways = {"pack": self._packed, "bucket": self._buckets, "pad": self._padded}
    if batching not in ways:
      raise UserError(f"Unknown batching {batching!r}: choose one of {', '.join(ways)}.")
    batches, ahead = ways[batching](slice(process_index, None, process_count), process_count)
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=ahead)
    return iter(batches(options))

  def _packed(self, part: slice, processes: int) -> tuple[Callable, int]:
    count = self.samples // processes
    clips = self._mixed(part, self.mixture)
    pack = functools.partial(_pack, packer=self.packer, prompts=self.prompts)
    return lambda o: clips.to_iter_dataset(o).batch(count, batch_fn=pack), 2 * count

  def _padded(self, part: slice, processes: int) -> tuple[Callable, int]:
    clips = self._mixed(part, self.mixture)
    lay = self._alone(self.packer.rows, self.packer.length, self.packer.cond_rows)
    count = self.packer.rows // processes
    return lambda o: clips.to_iter_dataset(o).batch(count, batch_fn=lay), 2 * count

  def _buckets(self, part: slice, processes: int) -> tuple[Callable, int]:
    parts, weights = [], []
    for number, (name, share) in enumerate(sorted(self.shares.items())):
      lt, lh, lw = self.caches[name][0]["latents"].shape[:3]
      for images, fraction in ((0.0, 1 - self.mixture.images), (1.0, self.mixture.images)):
        if fraction == 0:
          continue
        t, h, w = grid_shape((1 if images else lt, lh, lw), self.patch)
        longest = 1 + (max(STRETCHES) - 1) // TIME_STRIDE
        extra = longest * (self.mixture.weights.get("stretch", 0) > 0 and t > 1)
        length = (t + extra) * h * w
        budget = self.packer.rows * self.packer.length // length
        rows = max(1, budget // self.multiple) * self.multiple
        mixture = dataclasses.replace(self.mixture, images=images)
        clips = self._drawn(name, number, part, mixture)
        batch = self._alone(rows, length, t + 1)
        parts.append(clips.batch(rows // processes, drop_remainder=True, batch_fn=batch))
        weights.append(share * fraction / rows)
    mixed = grain.MapDataset.mix(parts, weights)
    return mixed.to_iter_dataset, 2

  def _mixed(self, part: slice, mixture: Mixture) -> grain.MapDataset:
    names = sorted(self.shares)
    parts = [self._drawn(name, number, part, mixture) for number, name in enumerate(names)]
    return grain.MapDataset.mix(parts, [self.shares[name] for name in names])

  def _drawn(self, name: str, number: int, part: slice, mixture: Mixture) -> grain.MapDataset:
    clips = grain.MapDataset.source(self.caches[name]).seed(self.seed + number).shuffle()
    draw = functools.partial(
      _draw, patch=self.patch, mixture=mixture, levels=self.levels,
      cond_features=self.cond_features,
    )  # fmt: skip
    return clips[part].repeat().random_map(draw)

  def _alone(self, rows: int, length: int, cond_rows: int) -> Callable:
    packer = Packer(rows=rows, length=length, cond_rows=cond_rows, text_length=self.prompts.length)
    return functools.partial(_one_each, packer=packer, prompts=self.prompts)


def _draw(clip: dict[str, Any], rng: np.random.Generator, **settings: Any) -> tuple[str, Sample]:
  return clip["id"], conditioning.draw(rng, clip, **settings)


def _pack(drawn: Sequence[tuple[str, Sample]], packer: Packer, prompts: Prompts) -> dict[str, Any]:
  rows = packer.assign([sample for _, sample in drawn], prompts)
  return _filled([[drawn[i] for i in row] for row in rows], packer, prompts)


def _one_each(
  drawn: Sequence[tuple[str, Sample]], packer: Packer, prompts: Prompts
) -> dict[str, Any]:
  fits = [one for one in drawn if len(one[1].values) <= packer.length]
  return _filled([[one] for one in fits] + [[]] * (len(drawn) - len(fits)), packer, prompts)


def _filled(
  rows: Sequence[Sequence[tuple[str, Sample]]], packer: Packer, prompts: Prompts
) -> dict[str, Any]:
  ids = np.array([name for row in rows for name, _ in row], dtype=object)
  return {**packer.fill([[sample for _, sample in row] for row in rows], prompts), "id": ids}
