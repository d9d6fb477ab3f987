"""The training loop: the only one, for every recipe.

A recipe (`sora_jax/train/<config.recipe>.py`) says what is learned; the loop does the rest: the
guard against non-finite steps, previews, checkpoints that resume bit for bit, and reports. What a
step is, and on which mesh, is in `program.py`; what happens within one in `step.py`.
"""

from __future__ import annotations

import contextlib
import functools
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from sora_jax import provenance
from sora_jax.data import shards
from sora_jax.errors import UserError
from sora_jax.parallel import hosts, sharding
from sora_jax.train import checkpoint, metrics
from sora_jax.train import program as program_lib
from sora_jax.train.program import Program
from sora_jax.train.state import TrainState


def fit(config: ConfigDict, workdir: str | Path) -> dict[str, Any]:
  """Trains until `config.train.steps`; in a workdir with a checkpoint, from there on.

  From the first step on, SIGTERM and Ctrl-C end the run after saving a checkpoint; of several
  processes, a signal to any one ends all of them at the same step. Before it, while clips may be
  encoded for hours, they do what they do elsewhere.

  Returns:
    The last `step`, its `loss`, how many steps were `skipped`, the number of `compilations`, and
    `stopped`: the signal's name, or None when the run came to its end.

  Raises:
    UserError: what the config, the workdir, the disk or the data make impossible; checkpoints
      written so far stay intact.
  """
  if jax.process_count() > 1 and not jax.distributed.is_initialized():  # a TPU knows its slice
    raise UserError(f"This is one of {jax.process_count()} hosts: add --multihost, on each.")
  provenance.commit()  # the checkout may change before the first export asks
  with hosts.together():
    program = program_lib.build(config)
  shard = hosts.batch_shard(program.mesh)
  checkpoint.claim(Path(workdir), config)
  with jax.set_mesh(program.mesh):
    with contextlib.closing(_Run(config, program, shard, Path(workdir))) as run:
      with stop_signals() as stop:
        return run.until_done(stop)


class _Run:
  """The moving parts of one `fit`."""

  def __init__(
    self, config: ConfigDict, program: Program, shard: tuple[int, int], workdir: Path
  ) -> None:
    self.config = config
    self.program, self.recipe, self.train = program, program.recipe, program.train
    self.workdir, self.key, self.shard = workdir, jax.random.key(int(config.seed)), shard
    with hosts.together():
      self.data = self.recipe.dataset(*shard)
      if self.train.validate_every and hasattr(self.recipe, "validation"):
        self.recipe.validation(*shard)  # what is wrong with it is said now, not after hours
    self.checkpoints = checkpoint.Checkpoints(workdir, self.train.keep, shard)
    restored = None
    if self.checkpoints.latest is not None:
      frozen = self._first(lambda state: state.frozen)
      restored = self.checkpoints.restore(program.state, frozen)
    if restored is not None:
      self.step, self.state, position = restored
      self._resume_data(position, shard[1])
      hosts.say(f"Resuming {workdir} after step {self.step}.")
    else:
      self.step, self.state = 0, self._first(lambda state: state)
    self.saved = self.step
    self.exported = -1
    self.rolled_back = False
    self.last: dict[str, float] = {}
    self.report = metrics.Metrics(
      workdir, self.step, self.train.steps, self.train.batch_size, self.train.log_every, shard[1]
    )
    trained, others = (
      sum(leaf.size for leaf in jax.tree.leaves(tree)) / 1e6
      for tree in (program.state.params, program.state.others)
    )
    besides = f" and {others:.2f} M other" if others else ""
    hosts.say(f"{trained:.2f} M trained{besides} parameters on {describe(program.mesh)}.")

  def _first(self, part: Callable[[TrainState], Any]) -> Any:
    """A part of the state before the first step; what does not belong to it is not computed."""
    shardings = part(self.program.shardings)
    if not jax.tree.leaves(shardings):
      return shardings
    create = lambda params: part(self.program.create(params))  # noqa: E731
    if self.config.get("init_from"):  # what is read is data, not a program to compile
      read = getattr(self.recipe, "read", self.recipe.init)
      params = jax.device_put(read(self.key), self.program.shardings.weights)
      return jax.jit(create, out_shardings=shardings)(params)
    # Born sharded: no device ever holds a whole copy.
    return jax.jit(lambda key: create(self.recipe.init(key)), out_shardings=shardings)(self.key)

  def _resume_data(self, position: checkpoint.Position, shard_count: int) -> None:
    if position.shard_count == shard_count:
      self.data.set_state(position.state)
      return
    saved = self.recipe.dataset(0, position.shard_count)
    saved.set_state(position.state)
    shards.move(self.data, saved)

  def until_done(self, stop: Mapping[str, int]) -> dict[str, Any]:
    vote, stopped = hosts.Vote(), 0
    while self.step < self.train.steps:
      self.advance()
      stopped = vote(stop.get("signal", 0))
      done = self.step >= self.train.steps
      if done or stopped or self.step % self.train.checkpoint_every == 0:
        self.save(final=done or bool(stopped))
      if stopped:
        break
      if self._due(self.train.validate_every):
        self.validate()
      if self._due(self.train.preview_every):
        self.preview()
    self.checkpoints.wait()
    if not stopped:
      self.export()
    return {
      "workdir": str(self.workdir),
      "step": self.step,
      "loss": self.last.get("loss"),
      "skipped": int(self.state.skipped),
      "compilations": metrics.compilations(),
      "stopped": signal.Signals(stopped).name if stopped else None,
    }

  def advance(self) -> None:
    """Starts the next step, then looks at the numbers of the one before."""
    start = time.perf_counter()
    try:
      batch = next(self.data)
    except StopIteration:
      raise UserError(
        f"The data ended after step {self.step} of {self.train.steps}; "
        "it must repeat, and hold at least one batch."
      ) from None
    self.report.waited(time.perf_counter() - start)
    ids = [str(i) for i in batch.get("id", ())]
    arrays = to_devices(numeric(batch), self.program.mesh)
    with jax.transfer_guard("disallow"):
      self.state, values = self.program.step(self.state, arrays)
    self.step += 1
    self.guard(self.report.step(self.step, values, ids))

  def guard(self, values: dict[str, float]) -> None:
    """Goes back to the last checkpoint, but on with the data, after too many bad steps."""
    self.last = values or self.last
    if values.get("bad_streak", 0) < self.train.max_bad_steps:
      return
    bad = f"{self.train.max_bad_steps} steps in a row had a loss or gradient that is not finite"
    advice = "lower optim.lr, or look at the samples named in metrics.jsonl."
    # Two whole states may be too much. Nobody else reads these arrays: the next step takes them.
    for leaf in jax.tree.leaves(self.state.replace(frozen=None)):
      leaf.delete()
    restored = (
      None if self.rolled_back else self.checkpoints.restore(self.program.state, self.state.frozen)
    )
    if restored is None:
      when = "again after going back to a checkpoint" if self.rolled_back else "with no checkpoint"
      raise UserError(f"Training stopped at step {self.step}: {bad}, {when}; {advice}")
    self.report.discard()
    self.report.event(self.step, "rolled back", to=restored[0])
    self.step, self.state, _ = restored
    self.saved, self.rolled_back = self.step, True

  def save(self, final: bool = False) -> None:
    """Saves state and data position, unless the last batch was bad.

    A final save always, and it is on the disk before anything else is done: who asks to stop may
    not wait long.
    """
    self.guard(self.report.flush())
    if self.step == self.saved or (self.last.get("bad_streak") and not final):
      return
    self.report.cut(self.step)
    self.checkpoints.save(self.step, self.state, self.data.get_state())
    self.saved, self.rolled_back = self.step, False
    if final:
      self.checkpoints.wait()
    self.export()

  def _due(self, every: int) -> bool:
    return every > 0 and self.step % every == 0

  def validate(self) -> None:
    """Measures the averaged weights, in all processes together."""
    assert hasattr(self.recipe, "validation")  # `program.build` saw to it
    with hosts.together():
      data = self.recipe.validation(*self.shard)
    found = []
    for number in range(self.train.validate_batches):
      arrays = to_devices(numeric(next(data)), self.program.mesh)
      found.append(self.program.validate(self.state.average, arrays, np.int32(number)))
    self.report.validated(self.step, jax.device_get(found))

  def preview(self) -> None:
    if not hasattr(self.recipe, "preview") or not self.config.get("preview", True):  # no prompts
      return
    with hosts.on_first(self.state.average) as params:
      if params is not None:
        videos = self.recipe.preview(params, self.key)
        self.report.videos(self.step, videos, self.workdir / "previews")

  def export(self) -> None:
    if not hasattr(self.recipe, "export") or self.exported == self.step:
      return
    with hosts.on_first(self.state.average) as params:
      if params is not None:
        self.recipe.export(params, self.workdir)
    self.exported = self.step

  def close(self) -> None:
    with contextlib.ExitStack() as stack:  # the last first, and each whatever the others raise
      stack.callback(self.checkpoints.close)
      if hasattr(self.data, "close"):
        stack.callback(self.data.close)
      stack.callback(self.report.close)


def numeric(batch: Mapping[str, Any]) -> dict[str, Any]:
  """`batch` without what cannot go to a device: strings, objects."""
  kept: dict[str, Any] = {}
  for key, value in batch.items():
    if isinstance(value, Mapping):
      kept[key] = numeric(value)
    elif (array := np.asarray(value)).dtype.kind not in "OSU":
      kept[key] = array
  return kept


def to_devices(batch: Any, mesh: Mesh) -> Any:
  """This process' rows of a batch as global arrays, split over the mesh along their first axis."""
  place = functools.partial(jax.make_array_from_process_local_data, sharding.batch_sharding(mesh))
  return jax.tree.map(place, batch)


def describe(mesh: Mesh) -> str:
  """For people: the number of devices and the axes they are arranged along."""
  sizes = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items() if size > 1)
  return f"{mesh.size} device(s){' (' + sizes + ')' if sizes else ''}"


@contextlib.contextmanager
def stop_signals() -> Iterator[dict[str, int]]:
  """A dict that SIGTERM or Ctrl-C fills with {"signal": number}; a second Ctrl-C interrupts."""
  stop: dict[str, int] = {}
  if threading.current_thread() is not threading.main_thread():
    yield stop
    return

  def ask(number: int, frame: Any) -> None:
    if stop and number == signal.SIGINT:
      raise KeyboardInterrupt
    stop["signal"] = number
    print("\nStopping after this step; saving a checkpoint.", file=sys.stderr)

  previous = {s: signal.signal(s, ask) for s in (signal.SIGTERM, signal.SIGINT)}
  try:
    yield stop
  finally:
    for number, handler in previous.items():
      signal.signal(number, handler)
