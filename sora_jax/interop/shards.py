"""A component's weights on disk, as the hub has them: one safetensors file, or shards and an index.

  X.safetensors                       or    X.safetensors.index.json
                                            X-00001-of-00003.safetensors ...

with X = `diffusion_pytorch_model`, `model` or, if it is the folder's only one, anything. A file is
a little-endian length, a JSON header of that length (names, types, shapes, offsets) and the data.
Headers are checked against the size of their files when a folder is opened; a tensor is read when
it is asked for, and what is written goes out tensor by tensor.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import jax
import ml_dtypes
import numpy as np

from sora_jax.errors import UNREADABLE, UserError

DTYPES: dict[str, np.dtype] = {
  name: np.dtype(dtype)
  for name, dtype in dict(
    F64=np.float64, F32=np.float32, F16=np.float16, BF16=ml_dtypes.bfloat16,
    F8_E4M3=ml_dtypes.float8_e4m3fn, F8_E5M2=ml_dtypes.float8_e5m2,
    I64=np.int64, I32=np.int32, I16=np.int16, I8=np.int8,
    U64=np.uint64, U32=np.uint32, U16=np.uint16, U8=np.uint8, BOOL=np.bool_,
  ).items()
}  # fmt: skip
STEMS = ("diffusion_pytorch_model", "model")
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
MAX_HEADER = 100_000_000  # bytes; the format's own limit
SHARD = 5_000_000_000  # bytes of a shard that is written, as the hub expects


@dataclass(frozen=True)
class Entry:
  """Where a tensor is: `start` counts from the beginning of the file."""

  file: Path
  start: int
  shape: tuple[int, ...]
  dtype: np.dtype

  @property
  def nbytes(self) -> int:
    """Bytes of its data."""
    return nbytes(self)


class Weights(Mapping[str, np.ndarray]):
  """The tensors of a component, by their published names; each is mapped when it is asked for.

  What it gives are read-only views of the file, in the type stored there. A view holds the file's
  pages no longer than it lives itself.
  """

  def __init__(self, entries: Mapping[str, Entry]):
    self.entries = dict(entries)

  @classmethod
  def open(cls, folder: Path) -> Weights:
    """The weights in a component's folder.

    Raises:
      UserError: there are none, only pickled ones or several; a file is damaged or missing; an
        index names a file outside the folder or does not fit the files. Nothing is read by then
        but headers.
    """
    index, files = find(folder)
    entries: dict[str, Entry] = {}
    for file in files:
      for name, entry in header(file).items():
        if name in entries:
          raise UserError(
            f"The tensor {name} is in {entries[name].file.name} and in {file}: get them again."
          )
        entries[name] = entry
    for name, where in index.items():
      if name not in entries or entries[name].file.name != where:
        raise UserError(f"The index lists the tensor {name} in {folder / where}, which lacks it.")
    if index and (extra := entries.keys() - index.keys()):
      name = min(extra)
      raise UserError(f"{entries[name].file} holds the tensor {name}, which the index lacks.")
    return cls(entries)

  def within(self, prefix: str) -> Weights:
    """Those whose names begin so, called by the rest."""
    found = ((name, entry) for name, entry in self.entries.items() if name.startswith(prefix))
    return Weights({name.removeprefix(prefix): entry for name, entry in found})

  def __getitem__(self, name: str) -> np.ndarray:
    entry = self.entries[name]
    if not math.prod(entry.shape):
      return np.empty(entry.shape, entry.dtype)
    return np.memmap(entry.file, entry.dtype, mode="r", offset=entry.start, shape=entry.shape)

  def __iter__(self) -> Iterator[str]:
    return iter(self.entries)

  def __len__(self) -> int:
    return len(self.entries)


def find(folder: Path) -> tuple[dict[str, str], list[Path]]:
  """The index (tensor -> file name; empty for a single file) and the files of a folder.

  Raises:
    UserError: see `Weights.open`.
  """
  for stem in STEMS:
    if (single := folder / f"{stem}.safetensors").exists():
      return {}, [single]
    if (index := folder / f"{stem}.safetensors.index.json").exists():
      return _read_index(index)
  indices = sorted(folder.glob("*.safetensors.index.json"))
  files = sorted(folder.glob("*.safetensors"))
  if len(indices) == 1:
    return _read_index(indices[0])
  if len(files) == 1:
    return {}, files
  if files:
    raise UserError(
      f"{folder} holds several weights, {files[0].name} and {files[1].name}: "
      f"name the one to read {STEMS[0]}.safetensors."
    )
  if pickled := sorted(p.name for p in folder.glob("*") if p.suffix in PICKLED):
    raise UserError(
      f"{folder / pickled[0]} is a pickle, and reading one runs whatever code it holds: get the "
      "weights as safetensors, or load them where you trust them and write them with "
      "save_pretrained(..., safe_serialization=True)."
    )
  raise UserError(f"{folder} holds no weights: there is no .safetensors file.")


def header(file: Path) -> dict[str, Entry]:
  """The tensors of a file, checked: their data lie side by side and end with the file.

  Raises:
    UserError: it is missing or damaged; names the tensor that is.
  """
  try:
    size = os.stat(file).st_size
    with open(file, "rb") as stream:
      (length,) = struct.unpack("<Q", stream.read(8))
      if length > min(MAX_HEADER, size - 8):
        raise ValueError(f"its header would have {length} bytes and the file has {size}")
      table = json.loads(stream.read(length), object_pairs_hook=_once)
    table.pop("__metadata__", None)
    entries = {name: _entry(file, 8 + length, name, x) for name, x in table.items()}
  except FileNotFoundError as error:
    raise UserError(f"{file} is missing: get it again.") from error
  except (OSError, ValueError, struct.error, AttributeError, TypeError, *UNREADABLE) as error:
    raise UserError(f"{file} is damaged ({error}): get it again.") from error
  place = 8 + length
  for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].nbytes)):
    if entry.start != place:
      raise UserError(f"{file} is damaged (the tensor {name} has no place of its own).")
    place += entry.nbytes
    if place > size:
      raise UserError(f"{file} is damaged (cut off within the tensor {name}): get it again.")
  if place != size:
    raise UserError(f"{file} is damaged (it has {size - place} bytes after its last tensor).")
  return entries


def write(
  folder: Path,
  specs: Mapping[str, jax.ShapeDtypeStruct],
  tensors: Iterable[tuple[str, np.ndarray]],
  stem: str = STEMS[0],
  limit: int = SHARD,
) -> None:
  """Writes tensors as they come, in shards of at most `limit` bytes (a larger tensor is alone).

  Args:
    folder: an existing one, not yet under its final name (`folders.new`).
    specs: shape and type of each, in the order in which they come.
  """
  shards: list[dict[str, jax.ShapeDtypeStruct]] = [{}]
  room = limit
  for name, spec in specs.items():
    if shards[-1] and nbytes(spec) > room:
      shards.append({})
      room = limit
    shards[-1][name] = spec
    room -= nbytes(spec)
  count = len(shards)
  names = [f"{stem}-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
  if count == 1:
    names = [f"{stem}.safetensors"]
  coming = iter(tensors)
  for file, shard in zip(names, shards, strict=True):
    _write_file(folder / file, shard, coming)
  if count > 1:
    index = {
      "metadata": {"total_size": sum(map(nbytes, specs.values()))},
      "weight_map": {
        name: file for file, shard in zip(names, shards, strict=True) for name in shard
      },
    }
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def nbytes(spec: Any) -> int:
  """Bytes of the data of what has this shape and dtype."""
  return math.prod(spec.shape) * np.dtype(spec.dtype).itemsize


def _write_file(path: Path, specs: Mapping[str, jax.ShapeDtypeStruct], tensors: Iterator) -> None:
  kinds = {dtype: name for name, dtype in DTYPES.items()}
  table: dict[str, Any] = {"__metadata__": {"format": "pt"}}
  place = 0
  for name, spec in specs.items():
    kind = kinds.get(np.dtype(spec.dtype))
    if kind is None:
      raise UserError(f"The tensor {name} is {spec.dtype}, which safetensors cannot hold.")
    table[name] = dict(
      dtype=kind, shape=list(spec.shape), data_offsets=[place, place + nbytes(spec)]
    )
    place += nbytes(spec)
  text = json.dumps(table, separators=(",", ":")).encode()
  text += b" " * (-len(text) % 8)
  with open(path, "wb") as stream:
    stream.write(struct.pack("<Q", len(text)) + text)
    for name, spec in specs.items():
      given, array = next(tensors)
      assert given == name and array.shape == tuple(spec.shape) and array.dtype == spec.dtype, name
      stream.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def _read_index(path: Path) -> tuple[dict[str, str], list[Path]]:
  try:
    index = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_once)["weight_map"]
    files = sorted(set(index.values()))
    outside = [x for x in files if PurePosixPath(x).name != x or x == ".." or "\\" in x]
  except (OSError, ValueError, KeyError, TypeError, AttributeError, *UNREADABLE) as error:
    raise UserError(f"{path} is damaged ({error}): get it again.") from error
  if outside:
    raise UserError(f"{path} names {outside[0]!r}, which is not a file of its folder.")
  if not index:
    raise UserError(f"{path} lists no tensor: get it again.")
  return index, [path.parent / name for name in files]


def _entry(file: Path, start: int, name: str, fields: Mapping[str, Any]) -> Entry:
  """What a header says of a tensor. Raises ValueError: that makes no sense."""
  try:
    first, last = fields["data_offsets"]
    shape = tuple(fields["shape"])
    if any(type(n) is not int or not 0 <= n < 2**63 for n in (first, last, *shape)):
      raise ValueError("not whole numbers, or of more than 63 bits")
    entry = Entry(file, start + first, shape, DTYPES[fields["dtype"]])
  except (KeyError, TypeError, ValueError) as error:
    raise ValueError(f"its header is wrong about the tensor {name}") from error
  if last - first != entry.nbytes:
    raise ValueError(f"the place of the tensor {name} does not fit its shape {list(shape)}")
  return entry


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
  """A JSON object whose keys differ."""
  twice = [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]
  if twice:
    raise ValueError(f"{twice[0]} is there twice")
  return dict(pairs)
