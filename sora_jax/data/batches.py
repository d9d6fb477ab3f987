"""Encoded clips to batches of about one number of tokens, three ways.

  pack    samples of any size share sequences of one length: one program; or, where the packer cuts
          its sequences, shapes that fit into the parts share those, in batches of their own: two
  bucket  a batch holds samples of one grid, one in each sequence: a program per grid
  pad     one sample in each sequence, all of one length: one program

Samples, shares and loss are the same; what is computed on padding is not.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grain
import numpy as np

from sora_jax.data.encode import STRETCHES
from sora_jax.data.packing import Packer
from sora_jax.data.pipeline import Source
from sora_jax.data.shards import shard, split
from sora_jax.diffusion import conditioning
from sora_jax.diffusion.conditioning import TIME_STRIDE, Mixture, Sample
from sora_jax.diffusion.time import LevelSampler
from sora_jax.errors import UserError
from sora_jax.models.patch import Patch, grid_shape
from sora_jax.models.text import Prompts
from sora_jax.typing import REFERENCE_FPS

Part = Callable[[grain.MapDataset, int], grain.MapDataset]  # stream, rows of a batch -> shard


@dataclass(frozen=True, kw_only=True)
class Batches:
  """Draws training samples from caches of encoded clips and lays them out.

  Attributes:
    caches, shares: encoded clips of each shape, and how much of the samples it has.
    mixture, levels, patch, cond_features: of `conditioning.draw`.
    packer: its rows times their length are the tokens of a batch, in each of the three ways; a
      bucket has a multiple of its rows, so that what divides these divides all batches.
    samples: drawn per packed batch. Where shapes have batches of their own, each has as many as
      make as many tokens, rounded to multiples of what divides both these and the packer's rows:
      so that any number of hosts that divides both draws the same.
    reference_fps: the rate at which latent frames are one unit of time apart.
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
  reference_fps: float = REFERENCE_FPS

  def __call__(
    self, batching: str, shard_index: int = 0, shard_count: int = 1
  ) -> Iterator[dict[str, Any]]:
    """An endless, resumable iterator over one host's rows of the batches (`shards.py`).

    Hosts that pack draw their samples of each batch, and fill their own rows with them.

    Batches have the fields of `Packer` and "id", the names of their samples.

    Raises:
      UserError: there is no such way of batching, a sample of some shape could never fit, there
        are no samples or parts, or rows or samples cannot be divided among the shards.
    """
    ways = {"pack": Batches._packed, "bucket": Batches._buckets, "pad": Batches._padded}
    if batching not in ways:
      raise UserError(f"Unknown batching {batching!r}: choose one of {', '.join(ways)}.")
    if batching != "bucket":
      self._check_lengths(packed=batching == "pack")
    split("train.batch_size", self.packer.rows, shard_count)
    part = functools.partial(shard, shard_index=shard_index, shard_count=shard_count)
    batches, ahead = ways[batching](self, part, shard_count)
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=ahead)
    return iter(batches(options))

  def _check_lengths(self, packed: bool) -> None:
    """What does not fit an empty sequence would never be trained on, and nobody would know."""
    if packed:
      for setting, value in (("packing.short", self.packer.short), ("data.samples", self.samples)):
        if value < 1:
          raise UserError(f"{setting}={value} must be at least 1: set {setting}=1 or more.")
      if self.packer.text_length < self.prompts.length:
        raise UserError(
          f"Prompts have up to {self.prompts.length} word pieces, but a sequence has room for "
          f"{self.packer.text_length}: set packing.text_length to {self.prompts.length} or more."
        )
    for name in self.shares:
      longest, rows = self._length(name, image=False), self._cond_rows(name)
      if longest > self.packer.length:
        raise UserError(
          f"Samples of the shape {name} have up to {longest} tokens, what is known included: set "
          f"packing.length to {longest} or more, or the shape's share to 0."
        )
      if rows > self.packer.cond_rows:
        raise UserError(
          f"Samples of the shape {name} have up to {rows} noise levels: set packing.cond_rows to "
          f"{rows} or more, or the shape's share to 0."
        )

  def _cond_rows(self, name: str) -> int:
    return self.mixture.rows(len(self.caches[name][0]["latents"]))

  def _length(self, name: str, image: bool) -> int:
    """Tokens of the largest sample of a shape."""
    lt, lh, lw = self.caches[name][0]["latents"].shape[:3]
    t, h, w = grid_shape((1 if image else lt, lh, lw), self.patch)
    alone = 0
    if self.mixture.weights.get("stretch", 0) > 0 and t > 1:
      alone = min(lt, 1 + (max(STRETCHES) - 1) // TIME_STRIDE)
    return (t + alone) * h * w

  def _groups(self) -> dict[Packer, list[str]]:
    """The shapes that share sequences, by what packs them: short ones if all of a sample fits."""
    short = self.packer.cut()
    groups: dict[Packer, list[str]] = {}
    for name in self.shares:
      fits = (
        self._length(name, image=False) <= short.length
        and self._cond_rows(name) <= short.cond_rows
        and self.prompts.length <= short.text_length
      )
      groups.setdefault(short if fits else self.packer, []).append(name)
    return groups

  def _packed(self, part: Part, hosts: int) -> tuple[Callable, int]:
    split("data.samples", self.samples, hosts)
    unit = math.gcd(self.samples, self.packer.rows)  # all hosts that divide both divide it
    parts, weights = [], []
    for packer, names in self._groups().items():
      # As many samples as make about as many tokens.
      samples = self.samples * self._tokens(list(self.shares)) / self._tokens(names)
      samples = unit * max(1, round(samples / unit))
      mine = dataclasses.replace(packer, rows=packer.rows // hosts)
      pack = functools.partial(_pack, packer=mine, prompts=self.prompts)
      clips = part(self._mixed(names), samples // hosts)
      parts.append(clips.batch(samples // hosts, drop_remainder=True, batch_fn=pack))
      weights.append(sum(self.shares[name] for name in names) / samples)
    return grain.MapDataset.mix(parts, weights).to_iter_dataset, 2

  def _tokens(self, names: Sequence[str]) -> float:
    """Mean tokens of a sample of some shapes, but for what is known and encoded alone."""
    images, total = self.mixture.images, 0.0
    for name in names:
      t, h, w = grid_shape(self.caches[name][0]["latents"].shape[:3], self.patch)
      total += self.shares[name] * h * w * (images + (1 - images) * t)
    return total / sum(self.shares[name] for name in names)

  def _padded(self, part: Part, hosts: int) -> tuple[Callable, int]:
    rows = self.packer.rows // hosts
    clips = part(self._mixed(list(self.shares)), rows)
    lay = self._alone(rows, self.packer.length, self.packer.cond_rows)
    return lambda o: clips.to_iter_dataset(o).batch(rows, batch_fn=lay), 2 * rows

  def _buckets(self, part: Part, hosts: int) -> tuple[Callable, int]:
    parts, weights = [], []
    for number, (name, share) in enumerate(sorted(self.shares.items())):
      for image, fraction in ((False, 1 - self.mixture.images), (True, self.mixture.images)):
        if fraction == 0:
          continue
        length = self._length(name, image)
        rows = max(1, self.packer.length // length) * self.packer.rows
        weights.append(share * fraction / rows)
        rows //= hosts
        mixture = dataclasses.replace(self.mixture, images=float(image))
        clips = part(self._drawn(name, number, mixture), rows)
        lay = self._alone(rows, length, 1 + len(self.caches[name][0]["latents"]))
        parts.append(clips.batch(rows, drop_remainder=True, batch_fn=lay))
    mixed = grain.MapDataset.mix(parts, weights)
    return mixed.to_iter_dataset, 2

  def _mixed(self, names: Sequence[str]) -> grain.MapDataset:
    numbers = {name: number for number, name in enumerate(sorted(self.shares))}
    parts = [self._drawn(name, numbers[name], self.mixture) for name in sorted(names)]
    return grain.MapDataset.mix(parts, [self.shares[name] for name in sorted(names)])

  def _drawn(self, name: str, number: int, mixture: Mixture) -> grain.MapDataset:
    clips = grain.MapDataset.source(self.caches[name]).seed(self.seed + number).shuffle()
    draw = functools.partial(
      _draw, patch=self.patch, mixture=mixture, levels=self.levels,
      cond_features=self.cond_features, empty=self.prompts.padded,
      rate=REFERENCE_FPS / self.reference_fps,
    )  # fmt: skip
    return clips[:].repeat().random_map(draw)  # [:] for its depth, as in `pipeline.py`

  def _alone(self, rows: int, length: int, cond_rows: int) -> Callable:
    packer = dataclasses.replace(
      self.packer, rows=rows, length=length, cond_rows=cond_rows, text_length=self.prompts.length
    )
    return functools.partial(_one_each, packer=packer, prompts=self.prompts)


def _draw(
  clip: dict[str, Any], rng: np.random.Generator, rate: float, **settings: Any
) -> tuple[str, Sample]:
  return clip["id"], conditioning.draw(rng, clip | {"fps": rate * clip["fps"]}, **settings)


def _pack(drawn: Sequence[tuple[str, Sample]], packer: Packer, prompts: Prompts) -> dict[str, Any]:
  rows = packer.assign([sample for _, sample in drawn], prompts)
  return _filled([[drawn[i] for i in row] for row in rows], packer, prompts)


def _one_each(
  drawn: Sequence[tuple[str, Sample]], packer: Packer, prompts: Prompts
) -> dict[str, Any]:
  return _filled([[one] for one in drawn], packer, prompts)


def _filled(
  rows: Sequence[Sequence[tuple[str, Sample]]], packer: Packer, prompts: Prompts
) -> dict[str, Any]:
  ids = np.array([name for row in rows for name, _ in row], dtype=object)
  return {**packer.fill([[sample for _, sample in row] for row in rows], prompts), "id": ids}
