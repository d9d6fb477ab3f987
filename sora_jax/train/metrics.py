"""What a run reports: a JSONL file always, a progress bar, TensorBoard where it is installed.

Numbers are fetched one step late, so that reading them never stalls the device. Of several
processes each writes a file: the ids of skipped samples and the time spent waiting for data are its
own. Everything else is process 0's.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from sora_jax.errors import UserError
from sora_jax.typing import REFERENCE_FPS

_COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"
_compilations = 0


def _count_compilation(event: str, duration_secs: float, **kwargs: Any) -> None:
  global _compilations
  _compilations += event == _COMPILE_EVENT


jax.monitoring.register_event_duration_secs_listener(_count_compilation)


def compilations() -> int:
  """Programs compiled (or loaded from the compilation cache) by this process so far."""
  return _compilations


class Metrics:
  """The report of one run; a resumed run continues the file after the restored step.

  Each line of `metrics.jsonl` is either `{"step": N, "loss": ..., ...}`, the mean of each scalar
  over the steps since the line before, or `{"step": N, "event": ..., ...}`. That of process 3 is
  `metrics.3.jsonl`.
  """

  def __init__(
    self,
    workdir: Path,
    step: int,
    steps: int,
    batch_size: int,
    log_every: int,
    shard_count: int = 1,
  ) -> None:
    self._log_every = log_every
    self._shard_count = shard_count
    self._batch_size = batch_size
    self._pending: tuple[int, dict[str, Any], list[str]] | None = None
    self._window: list[dict[str, float]] = []
    self._wait = 0.0
    self._samples = 0
    self._mark: float | None = None  # set once the first step, with its compilation, is over
    self._main = jax.process_index() == 0
    self._bar = tqdm(
      total=steps, initial=step, unit="step", dynamic_ncols=True, file=sys.stderr,
      mininterval=0.2 if sys.stderr.isatty() else 20, disable=not self._main,
    )  # fmt: skip
    number = "" if self._main else f".{jax.process_index()}"
    self._path = workdir / f"metrics{number}.jsonl"
    truncate(self._path, step)
    self._file = self._path.open("a")
    self._board = _tensorboard(workdir / "tensorboard", step) if self._main else None

  def waited(self, seconds: float) -> None:
    """Adds time spent fetching a batch, if the devices had nothing else to do at its end."""
    if self._pending is None or self._pending[1]["loss"].is_ready():
      self._wait += seconds

  def step(self, step: int, values: dict[str, jax.Array], ids: list[str]) -> dict[str, float]:
    """Takes the still-running step's numbers; returns those of the step before ({} at first).

    Args:
      ids: this process' sample ids, written to the file if the step turns out to be skipped; where
        there are any, their number and not the batch size counts as samples.
    """
    done = self.flush()
    self._pending = (step, values, ids)
    self._bar.update(step - self._bar.n)
    return done

  def flush(self) -> dict[str, float]:
    """Waits for the last step given to `step` and records its numbers."""
    if self._pending is None:
      return {}
    step, values, ids = self._pending
    self._pending = None
    scalars = {k: float(v) for k, v in jax.device_get(values).items()}
    if scalars["bad_streak"]:
      self.event(step, "skipped", loss=scalars["loss"], grad_norm=scalars["grad_norm"], ids=ids)
    else:
      self._window.append({k: v for k, v in scalars.items() if k != "bad_streak"})
    self._samples += len(ids) * self._shard_count or self._batch_size
    if step % self._log_every == 0:
      self._record(step)
    elif self._mark is None:
      self._wait, self._samples, self._mark = 0.0, 0, time.perf_counter()
    return scalars

  def cut(self, step: int) -> None:
    """Ends the current window at a checkpoint, so that a resumed run writes the same lines."""
    self.flush()
    self._record(step)

  def discard(self) -> None:
    """Forgets the step that is still running, and the numbers not yet written."""
    self._pending = None
    self._window = []

  def event(self, step: int, event: str, **details: Any) -> None:
    """Writes something that is not a series of numbers, and says it on the terminal."""
    self._write({"step": step, "event": event, **details})
    if self._main:
      self._bar.write(f"step {step}: {event} {_short(details)}", file=sys.stderr)

  def validated(self, step: int, found: list[dict[str, Any]]) -> None:
    """Writes the means of what held-out batches gave, and says the loss on the terminal."""
    means = {key: float(np.mean([numbers[key] for numbers in found])) for key in found[0]}
    self._write({"step": step, "event": "validation", **means})
    if self._main:
      self._bar.write(f"step {step}: validation loss {means['loss']:.4g}", file=sys.stderr)
    if self._board:
      for key, value in means.items():
        self._board.add_scalar(f"validation/{key}", value, step)

  def videos(self, step: int, videos: dict[str, np.ndarray], folder: Path) -> None:
    """Sample videos (uint8 `t h w 3`) as GIFs under `folder`, and in TensorBoard."""
    if not self._main:
      return
    from sora_jax.data import video as video_file

    folder.mkdir(parents=True, exist_ok=True)
    for name, video in videos.items():
      path = folder / f"{step:08d}_{name}.gif"
      video_file.write(path, np.asarray(video), fps=REFERENCE_FPS)
      if self._board:
        _add_gif(self._board, name, path, video.shape, step)

  def close(self) -> None:
    """Writes what is left and closes the files and the bar."""
    self._bar.close()
    with contextlib.suppress(OSError):  # a full disk has been reported by the write that failed
      self._file.close()
      if self._board:
        self._board.close()

  def _record(self, step: int) -> None:
    if not self._window:
      return
    means = {k: float(np.mean([w[k] for w in self._window])) for k in self._window[-1]}
    shown = {"loss": f"{means['loss']:.4g}"}
    if self._mark is not None:
      elapsed = time.perf_counter() - self._mark
      means["samples_per_second"] = self._samples / elapsed
      means["data_wait"] = min(1.0, self._wait / elapsed)
      shown["samples/s"] = f"{means['samples_per_second']:.3g}"
      shown["data wait"] = f"{means['data_wait']:.0%}"
    line = {"step": step, **{k: float(f"{v:.6g}") for k, v in means.items()}}
    self._write(line | {"compilations": compilations(), "time": round(time.time(), 1)})
    self._bar.set_postfix(shown, refresh=False)
    if self._board:
      for key, value in means.items():
        self._board.add_scalar(key, value, step)
    self._restart()

  def _restart(self) -> None:
    self._window, self._wait, self._samples, self._mark = [], 0.0, 0, time.perf_counter()

  def _write(self, line: dict[str, Any]) -> None:
    try:
      self._file.write(json.dumps({name: _plain(x) for name, x in line.items()}) + "\n")
      self._file.flush()
    except OSError as e:
      raise UserError(f"{self._path} cannot be written ({e.strerror}); free some space.") from e


def _plain(value: Any) -> Any:
  """JSON has no NaN, which the loss of a skipped step may be."""
  return None if isinstance(value, float) and not math.isfinite(value) else value


def truncate(path: Path, step: int) -> None:
  """Drops the lines of steps after `step`, and a last line that was cut off by a kill."""
  if not path.exists():
    return
  kept = []
  for line in path.read_text().splitlines():
    try:
      if json.loads(line)["step"] <= step:
        kept.append(line + "\n")
    except (ValueError, KeyError, TypeError):
      continue
  partial = path.with_suffix(".tmp")
  partial.write_text("".join(kept))
  os.replace(partial, path)


def _tensorboard(folder: Path, step: int) -> Any:
  try:
    from tensorboardX import SummaryWriter
  except ImportError:
    return None
  return SummaryWriter(str(folder), purge_step=step + 1)


def _add_gif(board: Any, name: str, path: Path, shape: tuple[int, ...], step: int) -> None:
  # The library's own add_video needs moviepy; the format is just an image summary holding a GIF.
  from tensorboardX.proto.summary_pb2 import Summary

  _, height, width, channels = shape
  image = Summary.Image(
    height=height, width=width, colorspace=channels, encoded_image_string=path.read_bytes()
  )
  value = Summary.Value(tag=name, image=image)
  board.file_writer.add_summary(Summary(value=[value]), step)


def _short(details: dict[str, Any]) -> str:
  text = ", ".join(f"{k}={v}" for k, v in details.items())
  return text if len(text) <= 300 else text[:297] + "..."
