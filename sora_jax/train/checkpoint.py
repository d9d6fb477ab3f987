"""Checkpoints of a run: the only file that knows Orbax.

A checkpoint is the training state but for its frozen weights, of which it has a checksum, and the
position of the data, saved asynchronously and complete or not there at all: Orbax writes to a
temporary folder and renames it. Of several processes each writes the parts of the state that it
holds, and its own position, so the workdir must be on a disk that all of them see. The next run may
have another number of them: the state is restored onto any mesh, and the data goes on at the batch
where shard 0 was (`data.shards`). A workdir holds

  config.json     the config it was started with
  checkpoints/N   after step N
  damaged/N       a checkpoint that could not be read, moved out of the way of one before it
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
from orbax.checkpoint import v1 as ocp

from sora_jax.config import flatten
from sora_jax.errors import UserError
from sora_jax.parallel import hosts
from sora_jax.train.state import TrainState
from sora_jax.typing import Array, Params

# What may change between the first run in a workdir and the one that resumes it.
FREE = (
  "train.steps", "train.log_every", "train.checkpoint_every", "train.preview_every",
  "train.validate_every", "train.validate_batches", "train.keep",
  "train.mesh", "train.max_bad_steps",
)  # fmt: skip

_OS_ERROR = re.compile(r"os_error_code='(\d+)'")  # as TensorStore, which raises none, writes it


def claim(workdir: Path, config: ConfigDict) -> None:
  """Makes `workdir`, or checks that it belongs to `config`; without a checkpoint it is anybody's.

  Raises:
    UserError: the folder was made by another config (names the keys), or cannot be written, or
      another process sees another folder or has another config than process 0.
  """
  path = workdir / "config.json"
  with hosts.together():
    if jax.process_index() == 0:
      begun = path.exists() and any(p.name.isdigit() for p in workdir.glob("checkpoints/*"))
      _check(path, config) if begun else _write(path, config)
  with hosts.together():
    if jax.process_index() > 0:
      _check(path, config)


def _check(path: Path, config: ConfigDict) -> None:
  wanted = flatten(json.loads(config.to_json_best_effort()))
  try:
    stored = flatten(json.loads(path.read_text()))
  except FileNotFoundError:
    raise UserError(
      f"Process {jax.process_index()} does not see {path}, which process 0 wrote: give a --workdir "
      "on a disk that all hosts share."
    ) from None
  except ValueError:
    raise UserError(f"{path} is damaged; restore it or use another --workdir.") from None
  keys = sorted(stored.keys() | wanted.keys())
  missing = object()
  differing = [k for k in keys if stored.get(k, missing) != wanted.get(k, missing)]
  if differing := [k for k in differing if not k.startswith(FREE)]:
    shown = ", ".join(f"{k} ({stored.get(k)!r} there)" for k in differing[:5])
    more = f" and {len(differing) - 5} more" if len(differing) > 5 else ""
    raise UserError(
      f"The workdir {path.parent} belongs to another config: {shown}{more} differ; "
      "use another --workdir or the config it was started with."
    )


def _write(path: Path, config: ConfigDict) -> None:
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".tmp")
    partial.write_text(config.to_json_best_effort(indent=2))
    os.replace(partial, path)
  except (FileExistsError, NotADirectoryError, PermissionError) as e:
    raise UserError(f"The workdir {path.parent} cannot be written: {e.strerror}.") from e


class Position(NamedTuple):
  """Where the data was: what `get_state()` returned, of a shard of so many.

  That of this process' shard, or, if a run with another number of shards wrote it, of shard 0.
  """

  state: Any
  shard_count: int


class Checkpoints:
  """The checkpoints of one workdir; at most one is being written at a time.

  All processes make it, save and restore together.

  Args:
    shard: (index, count) of the shard of the data whose position this process saves.
  """

  def __init__(self, workdir: Path, keep: int = 3, shard: tuple[int, int] = (0, 1)) -> None:
    self._damaged = workdir / "damaged"
    self._shard = shard
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
      with hosts.together():
        self._check_space(state.replace(frozen=None))
      kept = state.replace(frozen=checksum(state.frozen))
      content = {"state": kept, "data": _JsonPosition(self._shard, data)}
      self._checkpointer.save_checkpointables_async(step, content, force=True)

  def restore(
    self, abstract: TrainState, frozen: Params
  ) -> tuple[int, TrainState, Position] | None:
    """The newest readable checkpoint as (step, state, data position); None if there is none.

    A damaged one is reported and the one before it is tried; when one could be read, those are
    moved to `damaged/`.

    Args:
      abstract: shapes, dtypes and shardings to restore to; the mesh may differ from the saved one.
      frozen: the weights that a checkpoint does not hold.

    Raises:
      UserError: there are checkpoints and none of them can be read, or they were made with other
        frozen weights.
      MemoryError, OSError, or what JAX or TensorStore make of them: the machine or the disk is to
        blame, not the checkpoint. All stay where they are.
    """
    total = checksum(frozen)
    place = jax.ShapeDtypeStruct((), total.dtype, sharding=abstract.step.sharding)
    abstract = abstract.replace(frozen=place)
    self.wait()  # the newest may still be on its way to the disk
    steps = sorted((c.step for c in self._checkpointer.checkpoints), reverse=True)
    damaged: list[int] = []
    for step in steps:
      data = _JsonPosition(self._shard)
      try:
        content = {"state": abstract, "data": data}
        with hosts.together():
          state = self._checkpointer.load_checkpointables(step, content)["state"]
      except Exception as e:  # Orbax and TensorStore raise many kinds
        with hosts.together():  # what is no damage to one ends all
          if not _is_damage(e):
            raise
        reason = (str(e).strip().splitlines() or [type(e).__name__])[0][:200]
        print(f"WARNING: checkpoint {step} is damaged ({reason}).", file=sys.stderr)
        damaged.append(step)
        continue
      if int(state.frozen) != int(total):
        raise UserError(
          f"{self._checkpointer.directory} was made with other frozen weights than these: give "
          "init_from the files it had, or start again in another --workdir."
        )
      if damaged:
        self._set_aside(damaged)
        moved = ", ".join(map(str, damaged))
        hosts.say(f"WARNING: going back to the one before, {step}; moved to damaged/: {moved}.")
      return step, state.replace(frozen=frozen), data.position
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

  def _set_aside(self, steps: Sequence[int]) -> None:
    with hosts.together():
      if jax.process_index() == 0:
        self._damaged.mkdir(exist_ok=True)
        for step in steps:
          target = self._damaged / str(step)
          shutil.rmtree(target, ignore_errors=True)
          os.replace(self._checkpointer.directory / str(step), target)
    self._checkpointer.reload()

  def _check_space(self, state: TrainState) -> None:
    need = sum(x.nbytes for x in jax.tree.leaves(state))
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


@jax.jit
def checksum(tree: Params) -> Array:
  """A number that other weights hardly have, whatever the mesh: of the bits of all leaves."""
  total = jnp.zeros((), jnp.uint32)
  for leaf in jax.tree.leaves(tree):
    bits = jax.lax.bitcast_convert_type(leaf, jnp.dtype(f"uint{8 * leaf.dtype.itemsize}"))
    total = 31 * total + jnp.sum(bits, dtype=jnp.uint32)
  return total


class _JsonPosition:
  """A position, one file per shard (Orbax' StatefulCheckpointable protocol)."""

  def __init__(self, shard: tuple[int, int], state: Any = None) -> None:
    self._shard = shard
    self.position = Position(state, shard[1])

  async def save(self, directory: Any) -> Any:
    state = self.position.state
    is_bytes = isinstance(state, bytes)
    text = json.dumps(state.decode() if is_bytes else state)

    async def write() -> None:
      path = await directory.await_creation()
      record = json.dumps({"bytes": is_bytes, "state": text})
      await asyncio.to_thread((path / _name(*self._shard)).write_text, record)

    return write()

  async def load(self, directory: Any) -> Any:
    async def read() -> None:
      self.position = await asyncio.to_thread(self._read, directory)

    return read()

  def _read(self, directory: Any) -> Position:
    file = directory / _name(*self._shard)
    if not file.exists():
      file = next(directory.glob(_name(0, "*")), file)
    record = json.loads(file.read_text())
    state = json.loads(record["state"])
    count = int(file.stem.rpartition("_")[2])
    return Position(state.encode() if record["bytes"] else state, count)


def _name(index: int, count: int | str) -> str:
  return f"process_{index}_of_{count}.json"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
  """An error and those it came from."""
  while error is not None:
    yield error
    error = error.__cause__ or error.__context__


def _is_disk_full(error: BaseException) -> bool:
  for e in _chain(error):
    if isinstance(e, OSError) and e.errno in (errno.ENOSPC, errno.EDQUOT):
      return True
    if "No space left on device" in str(e) or "Disk quota exceeded" in str(e):
      return True
  return False


def _is_damage(error: BaseException) -> bool:
  """Whether what could not be read is to blame, and neither the memory nor the disk."""
  for e in _chain(error):
    if isinstance(e, MemoryError) or "RESOURCE_EXHAUSTED" in str(e):
      return False
    if isinstance(e, OSError) and not isinstance(e, FileNotFoundError):
      return False
    if any(int(code) != errno.ENOENT for code in _OS_ERROR.findall(str(e))):
      return False
  return True
