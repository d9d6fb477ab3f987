"""Checkpoints of a run: the only file that knows Orbax.

A checkpoint is the training state and the position of the data, saved asynchronously and complete
or not there at all: Orbax writes to a temporary folder and renames it. A workdir holds

  config.json     the config it was started with
  checkpoints/N   after step N
  damaged/N       a checkpoint that could not be read, moved out of the way
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict
from orbax.checkpoint import v1 as ocp

from sora_jax.config import flatten
from sora_jax.errors import UserError
from sora_jax.train.state import TrainState

# What may change between the first run in a workdir and the one that resumes it.
FREE = (
  "train.steps", "train.log_every", "train.checkpoint_every", "train.preview_every", "train.keep",
  "train.mesh", "train.max_bad_steps", "data.workers",
)  # fmt: skip


def claim(workdir: Path, config: ConfigDict) -> None:
  """Makes `workdir`, or checks that it belongs to `config`; without a checkpoint it is anybody's.

  Raises:
    UserError: the folder was made by another config (names the keys), or cannot be written.
  """
  path = workdir / "config.json"
  wanted = flatten(json.loads(config.to_json_best_effort()))
  folders = workdir.glob("checkpoints/*")
  if path.exists() and any(folder.name.isdigit() for folder in folders):
    try:
      stored = flatten(json.loads(path.read_text()))
    except ValueError:
      raise UserError(f"{path} is damaged; restore it or use another --workdir.") from None
    keys = sorted(stored.keys() | wanted.keys())
    missing = object()
    differing = [k for k in keys if stored.get(k, missing) != wanted.get(k, missing)]
    if differing := [k for k in differing if not k.startswith(FREE)]:
      shown = ", ".join(f"{k} ({stored.get(k)!r} there)" for k in differing[:5])
      more = f" and {len(differing) - 5} more" if len(differing) > 5 else ""
      raise UserError(
        f"The workdir {workdir} belongs to another config: {shown}{more} differ; "
        "use another --workdir or the config it was started with."
      )
    return
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    if jax.process_index() == 0:
      partial = path.with_suffix(".tmp")
      partial.write_text(config.to_json_best_effort(indent=2))
      os.replace(partial, path)
  except (FileExistsError, NotADirectoryError, PermissionError) as e:
    raise UserError(f"The workdir {workdir} cannot be written: {e.strerror}.") from e


class Checkpoints:
  """The checkpoints of one workdir; at most one is being written at a time."""

  def __init__(self, workdir: Path, keep: int = 3) -> None:
    self._damaged = workdir / "damaged"
    # Orbax' own policy may skip a save; the loop decides when to save.
    self._checkpointer = ocp.training.Checkpointer(
      (workdir / "checkpoints").absolute(),
      preservation_policy=ocp.training.preservation_policies.LatestN(keep),
      cleanup_tmp_directories=True,
    )

  @property
  def latest(self) -> int | None:
    """The newest complete step."""
    return self._checkpointer.latest.step if self._checkpointer.latest else None

  def save(self, step: int, state: TrainState, data: Any) -> None:
    """Starts saving; returns once the device's arrays have been copied.

    Args:
      data: what the data iterator's `get_state()` returned for the last batch in `state`.

    Raises:
      UserError: the disk is full; earlier checkpoints are intact.
    """
    with self._disk_errors():
      self._checkpointer.wait()
      self._check_space(state)
      content = {"state": state, "data": _JsonState(data)}
      self._checkpointer.save_checkpointables_async(step, content, force=True)

  def restore(self, abstract: TrainState) -> tuple[int, TrainState, Any] | None:
    """The newest readable checkpoint as (step, state, data position); None if there is none.

    A damaged one is reported, moved to `damaged/`, and the one before it is tried.

    Args:
      abstract: shapes, dtypes and shardings to restore to; the mesh may differ from the saved one.

    Raises:
      UserError: there are checkpoints and none of them can be read.
    """
    self.wait()  # the newest may still be on its way to the disk
    steps = sorted((c.step for c in self._checkpointer.checkpoints), reverse=True)
    for step in steps:
      data = _JsonState(None)
      try:
        content = {"state": abstract, "data": data}
        state = self._checkpointer.load_checkpointables(step, content)["state"]
      except Exception as e:  # Orbax and TensorStore raise many kinds
        reason = (str(e).strip().splitlines() or [type(e).__name__])[0][:200]
        print(f"WARNING: checkpoint {step} is damaged ({reason}).", file=sys.stderr)
        if step != steps[-1]:
          self._set_aside(step)
          print(f"WARNING: going back to the one before; {step} is in damaged/.", file=sys.stderr)
        continue
      return step, state, data.value
    if steps:
      raise UserError(
        f"No checkpoint in {self._checkpointer.directory} can be read; "
        "restore one from a copy, or start again in another --workdir."
      )
    return None

  def wait(self) -> None:
    """Blocks until nothing is being written."""
    with self._disk_errors():
      self._checkpointer.wait()

  def close(self) -> None:
    """Waits, then releases Orbax' threads."""
    with self._disk_errors():
      self._checkpointer.close()

  def _set_aside(self, step: int) -> None:
    if jax.process_index() == 0:
      self._damaged.mkdir(exist_ok=True)
      target = self._damaged / str(step)
      shutil.rmtree(target, ignore_errors=True)
      os.replace(self._checkpointer.directory / str(step), target)
    self._checkpointer.reload()

  def _check_space(self, state: TrainState) -> None:
    need = sum(x.nbytes for x in jax.tree.leaves(state)) // jax.process_count()
    free = shutil.disk_usage(self._checkpointer.directory).free
    if free < need:
      raise OSError(errno.ENOSPC, f"{need / 2**20:.0f} MiB needed, {free / 2**20:.0f} MiB free")

  @contextlib.contextmanager
  def _disk_errors(self) -> Iterator[None]:
    try:
      yield
    except Exception as e:
      if not _is_disk_full(e):
        raise
      self._checkpointer.reload()
      last = "there is none yet" if self.latest is None else f"step {self.latest} is intact"
      raise UserError(
        f"The disk with {self._checkpointer.directory} is full; the last checkpoint ({last}): "
        "free some space and run the same command again."
      ) from e


class _JsonState:
  """The data position, one file per process (Orbax' StatefulCheckpointable protocol)."""

  def __init__(self, value: Any) -> None:
    self.value = value

  async def save(self, directory: Any) -> Any:
    text = json.dumps(self.value.decode() if isinstance(self.value, bytes) else self.value)
    is_bytes = isinstance(self.value, bytes)

    async def write() -> None:
      path = await directory.await_creation()
      record = json.dumps({"bytes": is_bytes, "state": text})
      await asyncio.to_thread((path / self._name()).write_text, record)

    return write()

  async def load(self, directory: Any) -> Any:
    async def read() -> None:
      record = json.loads(await asyncio.to_thread((directory / self._name()).read_text))
      value = json.loads(record["state"])
      self.value = value.encode() if record["bytes"] else value

    return read()

  @staticmethod
  def _name() -> str:
    return f"process_{jax.process_index()}_of_{jax.process_count()}.json"


def _is_disk_full(error: BaseException | None) -> bool:
  while error is not None:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
      return True
    if "No space left on device" in str(error) or "Disk quota exceeded" in str(error):
      return True
    error = error.__cause__ or error.__context__
  return False
