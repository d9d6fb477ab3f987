"""One stream of samples, read by several hosts.

A stream is laid out (shuffled, repeated, randomly cut) as if one host read it. Batch k of size B is
its elements kB ... kB + B - 1, and shard i of n reads the i-th of n equal blocks of each batch. So
the shards of a batch, one after the other, are the batch that a single host would read; no sample
is in two of them; and a position is a number of batches, whatever the number of shards.
"""

from __future__ import annotations

from typing import Any

import grain

from sora_jax.errors import UserError


def split(name: str, size: int, shard_count: int) -> int:
  """`size` divided by `shard_count`.

  Raises:
    UserError: it is no multiple; `name` is the setting to change.
  """
  if size % shard_count:
    near = max(1, round(size / shard_count)) * shard_count
    raise UserError(f"{name}={size} cannot be divided among {shard_count} hosts: use {near}.")
  return size // shard_count


def shard(
  stream: grain.MapDataset, rows: int, shard_index: int, shard_count: int
) -> grain.MapDataset:
  """The elements of a shard, `rows` of each batch; of a single shard the stream itself."""
  return stream if shard_count == 1 else _Blocks(stream, rows, shard_index, shard_count)


def move(data: grain.DatasetIterator, saved: grain.DatasetIterator) -> None:
  """Sets `data` to the batch that `saved`, one shard of another number of shards, is at.

  Exact, unless clips were dropped as unreadable: shards then are not all at the same place, and a
  few samples are seen twice or not at all.
  """
  grain.experimental.set_next_index(data, grain.experimental.get_next_index(saved))


class _Blocks(grain.MapDataset):
  def __init__(self, stream: grain.MapDataset, rows: int, index: int, count: int) -> None:
    super().__init__(stream)
    self._rows, self._index, self._count = rows, index, count

  def __len__(self) -> int:
    return len(self._parent) // (self._rows * self._count) * self._rows

  def __getitem__(self, index: Any) -> Any:
    batch, row = divmod(index, self._rows)
    return self._parent[(batch * self._count + self._index) * self._rows + row]
