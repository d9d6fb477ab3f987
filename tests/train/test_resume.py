"""Killed and asked to stop: the same command goes on as if nothing had happened."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import fake_recipe
import jax
import numpy as np
import pytest
from test_loop import losses, saved

from sora_jax.train import checkpoint, loop

SCRIPT = Path(__file__).parent / "run_fake.py"


def test_killed_while_saving_then_resumed_is_uninterrupted(tmp_path, capsys):
  env = os.environ | {
    "PYTHONPATH": os.pathsep.join(sys.path),
    "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
  }
  killed, whole = tmp_path / "killed", tmp_path / "whole"
  command = [sys.executable, str(SCRIPT), str(killed), "--kill-while-saving", "8"]
  assert subprocess.run(command, env=env, capture_output=True).returncode == -signal.SIGKILL
  left = {p.name for p in (killed / "checkpoints").iterdir()}
  assert "4" in left and "8" not in left
  assert any(name.startswith("8.") for name in left)  # half-written, under a temporary name

  assert loop.fit(fake_recipe.get_config(), killed)["step"] == 12
  assert "after step 4" in capsys.readouterr().err
  assert sorted(p.name for p in (killed / "checkpoints").iterdir()) == ["12", "8"]

  loop.fit(fake_recipe.get_config(), whole)
  expected = saved(whole)
  for path, value in saved(killed).items():
    np.testing.assert_array_equal(value, expected[path], err_msg=path)
  assert losses(killed) == losses(whole)


class Signalled(fake_recipe.Recipe):
  """Before the sixth batch comes a SIGTERM."""

  def dataset(self, index, count):
    inner = super().dataset(index, count)

    class Stream:
      read = 0

      def __next__(self):
        Stream.read += 1
        if Stream.read == 6:
          signal.raise_signal(signal.SIGTERM)
        return next(inner)

      get_state, set_state = inner.get_state, inner.set_state

    return Stream()


def test_asked_to_stop_saves_first(tmp_path):
  before = signal.getsignal(signal.SIGTERM)
  config = fake_recipe.get_config()
  fake_recipe.use(Signalled)
  summary = loop.fit(config, tmp_path)
  assert (summary["step"], summary["stopped"]) == (6, "SIGTERM")
  assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["4", "6"]
  assert signal.getsignal(signal.SIGTERM) is before
  assert loop.fit(fake_recipe.get_config(), tmp_path)["step"] == 12


class Stopped(Signalled):
  """Notes what is done."""

  done: list[str] = []

  def validation(self, index, count):
    self.done.append("validation")
    return super().validation(index, count)

  def preview(self, params, key):
    self.done.append("preview")
    return {}

  def export(self, params, workdir):
    there = {p.name for p in (workdir / "checkpoints").iterdir()}
    self.done.append(f"export, 6 is there: {'6' in there}")


def test_asked_to_stop_saves_at_once_and_measures_nothing(tmp_path, monkeypatch):
  write = checkpoint._JsonPosition.save

  async def slowly(self, directory):
    inner = await write(self, directory)

    async def late():
      await asyncio.sleep(1)
      await inner

    return late()

  monkeypatch.setattr(checkpoint._JsonPosition, "save", slowly)
  config = fake_recipe.get_config(validate_every=6, preview_every=6)
  fake_recipe.use(Stopped)
  Stopped.done.clear()
  assert loop.fit(config, tmp_path)["step"] == 6
  # Validation is opened at the start, and step 4 exported.
  assert Stopped.done == ["validation", "export, 6 is there: False", "export, 6 is there: True"]


def test_a_signal_before_the_first_step_does_what_it_does_elsewhere(tmp_path):
  before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background: none
  handlers = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)}

  class Encoding(fake_recipe.Recipe):
    def dataset(self, index, count):
      assert {s: signal.getsignal(s) for s in handlers} == handlers
      signal.raise_signal(signal.SIGINT)

  config = fake_recipe.get_config()
  fake_recipe.use(Encoding)
  try:
    with pytest.raises(KeyboardInterrupt):
      loop.fit(config, tmp_path)
  finally:
    signal.signal(signal.SIGINT, before)


def test_a_second_interrupt_does_not_wait():
  with loop.stop_signals() as stop:
    signal.raise_signal(signal.SIGINT)
    assert stop == {"signal": signal.SIGINT}
    with pytest.raises(KeyboardInterrupt):
      signal.raise_signal(signal.SIGINT)
