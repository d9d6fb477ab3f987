"""Clips in ArrayRecord files: a folder of shards plus an `info.json`.

A record is a little-endian uint32, a JSON header of that many bytes, and the raw bytes of the
arrays the header mentions. Videos are stored as differences between consecutive frames (modulo
256): still backgrounds become runs of zeros, which the record's zstd then removes, and the sum
that undoes it costs less than reading the bytes. Any nested sample fits: ground truth and
latents use the same format.
"""

from __future__ import annotations

import errno
import json
import math
import os
import platform
import shutil
import struct
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from array_record.python import array_record_module
from array_record.python.array_record_data_source import ArrayRecordDataSource

from sora_jax.errors import UserError

FORMAT = 1
WRITER_OPTIONS = "group_size:1,zstd:1"  # one record per chunk: random access reads no neighbours
_ARRAY = "__array__"
_DTYPES = {"bfloat16": np.dtype(ml_dtypes.bfloat16)}


def encode(sample: dict[str, Any]) -> bytes:
  """Turns a nested dict of arrays, numbers, strings, lists and None into bytes."""
  buffers: list[bytes] = []

  def pack(value: Any) -> Any:
    if isinstance(value, np.generic):
      return value.item()
    if isinstance(value, np.ndarray):
      delta = value.dtype == np.uint8 and value.ndim == 4
      stored = np.diff(value, axis=0, prepend=value[:1] * 0) if delta else value
      buffers.append(np.ascontiguousarray(stored).tobytes())
      return {_ARRAY: value.dtype.name, "shape": value.shape, "delta": delta}
    if isinstance(value, dict):
      return {str(k): pack(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
      return [pack(v) for v in value]
    return value

  header = json.dumps(pack(sample), separators=(",", ":")).encode()
  return b"".join([struct.pack("<I", len(header)), header, *buffers])


def decode(record: bytes) -> dict[str, Any]:
  """Undoes `encode`; tuples come back as lists. Raises ValueError on damaged bytes."""
  (length,) = struct.unpack_from("<I", record)
  offset = 4 + length

  def unpack(value: Any) -> Any:
    nonlocal offset
    if isinstance(value, list):
      return [unpack(v) for v in value]
    if not isinstance(value, dict):
      return value
    if _ARRAY not in value:
      return {k: unpack(v) for k, v in value.items()}
    dtype = _DTYPES.get(value[_ARRAY]) or np.dtype(value[_ARRAY])
    shape = value["shape"]
    array = np.frombuffer(record, dtype, math.prod(shape), offset).reshape(shape)
    offset += array.nbytes
    array = array.copy()
    if value["delta"]:
      # Frame by frame: NumPy's accumulate over the first axis is 200 times slower.
      for before, frame in zip(array[:-1], array[1:], strict=True):
        np.add(before, frame, out=frame)
    return array

  return unpack(json.loads(record[4 : 4 + length]))


def _shard_name(index: int) -> str:
  return f"clips-{index:05d}.array_record"


def _write_shards(folder: Path, samples: Iterator[dict[str, Any]], shard_size: int) -> list[int]:
  """Writes the shards and returns how many records each holds."""
  sizes: list[int] = []
  writer = None
  try:
    for sample in samples:
      if writer is None or sizes[-1] == shard_size:
        if writer is not None:
          _written(writer.close)
        writer = array_record_module.ArrayRecordWriter(
          str(folder / _shard_name(len(sizes))), WRITER_OPTIONS
        )
        sizes.append(0)
      _written(writer.write, encode(sample))
      sizes[-1] += 1
  finally:
    if writer is not None:
      _written(writer.close)
  return sizes


def _written(act: Callable[..., Any], *args: Any) -> None:
  """Calls a method of a writer, whose failures are RuntimeErrors; those of samples are others."""
  try:
    act(*args)
  except RuntimeError as e:
    raise OSError(errno.EIO, str(e).split(";")[0]) from e


def _sweep(folder: Path, prefix: str) -> None:
  """Removes what writers that were killed on this machine left behind."""
  for left in folder.glob(f"{prefix}*.tmp"):
    process = left.name.removeprefix(prefix).removesuffix(".tmp")
    if process.isdecimal() and not _alive(int(process)):
      shutil.rmtree(left, ignore_errors=True)


def _alive(process: int) -> bool:
  try:
    os.kill(process, 0)
  except ProcessLookupError:
    return False
  except OSError:  # somebody else's
    pass
  return True


def write_records(
  path: str | os.PathLike[str],
  samples: Iterable[dict[str, Any]],
  info: dict[str, Any] | None = None,
  *,
  shard_size: int = 4096,
) -> dict[str, Any]:
  """Writes samples as a folder that `RecordSource` reads; nothing is left under `path` on failure.

  Everything is written to a temporary folder beside `path`, which is renamed at the end.

  Args:
    path: the folder to make, its parents too; it must not exist or be an empty folder.
    samples: dicts with "video" uint8 t h w 3, "caption", "fps", "id" and any nested extras.
    info: stored in `info.json` (seed, command, licence...) beside the record counts.
    shard_size: records per file.

  Returns:
    what `info.json` holds.

  Raises:
    UserError: the folder is in use or cannot be made, there are no samples, or the disk is full.
  """
  path = Path(path)
  if path.exists() and not (path.is_dir() and not any(path.iterdir())):
    raise UserError(f"{path} exists and is not an empty folder: choose another or remove it.")
  try:
    path.absolute().parent.mkdir(parents=True, exist_ok=True)
  except OSError as e:
    raise UserError(f"{path} cannot be made: {e.strerror}.") from e
  # Hosts that share a disk may have processes of the same number.
  prefix = f".{path.absolute().name}.{platform.node()}."
  _sweep(path.absolute().parent, prefix)
  temporary = path.absolute().parent / f"{prefix}{os.getpid()}.tmp"
  shutil.rmtree(temporary, ignore_errors=True)
  try:
    temporary.mkdir()
    sizes = _write_shards(temporary, iter(samples), shard_size)
    if not sizes:
      raise UserError(f"There are no clips to write to {path}.")
    content = {**(info or {}), "format": FORMAT, "count": sum(sizes), "shards": sizes}
    # Compression errors of a full disk surface only here: the writer does not raise them.
    if RecordSource._count(temporary, len(sizes)) != content["count"]:
      raise OSError(errno.ENOSPC, "short write")
    (temporary / "info.json").write_text(json.dumps(content, indent=2) + "\n")
    if path.is_dir():
      path.rmdir()
    os.replace(temporary, path)
    return content
  except OSError as e:
    full = shutil.disk_usage(path.absolute().parent).free < 1 << 20
    reason = "the disk is full" if full else e.strerror or e
    raise UserError(f"Writing {path} failed: {reason}.") from e
  finally:
    shutil.rmtree(temporary, ignore_errors=True)


class RecordSource:
  """Random access to the clips of a folder made by `write_records`.

  `info` is the content of `info.json`. Reading is safe from threads and after pickling.

  Raises:
    UserError: not such a folder, or its files are damaged or incomplete.
  """

  def __init__(self, path: str | os.PathLike[str]):
    self.path = Path(path)
    try:
      self.info = json.loads((self.path / "info.json").read_text())
      version, count, shards = (self.info[k] for k in ("format", "count", "shards"))
    except FileNotFoundError:
      raise UserError(
        f"{self.path} holds no info.json: give a folder written by `sora-jax data`."
      ) from None
    except (OSError, ValueError, KeyError, TypeError) as e:
      raise UserError(f"{self.path / 'info.json'} is damaged: write the records again.") from e
    if version != FORMAT:
      raise UserError(
        f"{self.path} has record format {version}, this version reads {FORMAT}: write it again."
      )
    found = self._count(self.path, len(shards))
    if found != count:
      raise UserError(
        f"{self.path} holds {found} readable clips of {count}: a shard is missing or damaged, "
        "write the records again."
      )
    self._records = ArrayRecordDataSource([str(p) for p in self._shards(self.path, len(shards))])

  @staticmethod
  def _shards(path: Path, count: int) -> list[Path]:
    return [path / _shard_name(i) for i in range(count)]

  @staticmethod
  def _count(path: Path, shards: int) -> int:
    """Counts the records of the shards that can be opened."""
    total = 0
    for shard in RecordSource._shards(path, shards):
      try:
        reader = array_record_module.ArrayRecordReader(str(shard))
        total += reader.num_records()
        reader.close()
      except (RuntimeError, ValueError):
        continue
    return total

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> dict[str, Any]:
    try:
      return decode(self._records[index])
    except (RuntimeError, ValueError, KeyError, struct.error) as e:
      if not 0 <= index < len(self):
        raise IndexError(index) from None
      raise UserError(f"Clip {index} of {self.path} is damaged: write the records again.") from e

  def identity(self) -> list[Path | str]:
    """What tells these clips from others written to this place before or after."""
    return [self.path / "info.json", json.dumps(self.info)]

  def __repr__(self) -> str:
    return f"RecordSource({str(self.path)!r})"
