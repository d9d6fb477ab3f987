"""Folders that are written whole or not at all, and the JSON files in them."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sora_jax.errors import UNREADABLE, UserError


@contextlib.contextmanager
def written(folder: str | os.PathLike[str], replace: bool = False) -> Iterator[Path]:
  """A folder to write into, which gets its name when everything is in it.

  Args:
    replace: whether an older one of this name makes room then.

  Raises:
    UserError: there is one already.
  """
  folder = Path(folder)
  if not replace:
    check_new(folder)
  if folder.is_symlink():
    folder = folder.resolve()  # the link stays
  folder.parent.mkdir(parents=True, exist_ok=True)
  # Hosts that share a disk may have processes of the same number.
  own = f".{folder.name}.{platform.node()}.{os.getpid()}"
  temporary, old = (folder.parent / f"{own}.{x}" for x in ("tmp", "old"))
  shutil.rmtree(temporary, ignore_errors=True)
  temporary.mkdir()
  try:
    yield temporary
    if folder.exists():
      os.replace(folder, old)
    os.replace(temporary, folder)
    shutil.rmtree(old, ignore_errors=True)
  finally:
    shutil.rmtree(temporary, ignore_errors=True)
    if old.exists() and not folder.exists():  # the new one did not get its name
      os.replace(old, folder)


def check_new(folder: Path) -> None:
  """Raises UserError: there is something of this name, or its parent is no folder."""
  if folder.exists() or folder.is_symlink():
    raise UserError(f"{folder} exists already: give the name of a new folder.")
  parents = [p for p in folder.absolute().parents if p.exists()]
  if not parents[0].is_dir():
    raise UserError(f"{parents[0]} is not a folder: nothing can be written below it.")


def read_json(path: Path) -> dict[str, Any]:
  """An object in a JSON file.

  Raises:
    UserError: it is missing, or holds something else.
  """
  try:
    content = json.loads(path.read_text(encoding="utf-8"))
  except FileNotFoundError as error:
    raise UserError(f"{path} is missing: get it again.") from error
  except (OSError, ValueError, *UNREADABLE) as error:
    raise UserError(f"{path} is damaged ({error}): get it again.") from error
  if not isinstance(content, dict):
    raise UserError(f"{path} is damaged (it holds no object): get it again.")
  return content


def write_json(path: Path, content: dict[str, Any]) -> None:
  """Writes an object as JSON, for readers too."""
  path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
