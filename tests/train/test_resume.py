"""Killed and asked to stop: the same command goes on as if nothing had happened."""

from __future__ import annotations

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

from sora_jax.train import loop

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


def test_asked_to_stop_saves_first(tmp_path):
  before = signal.getsignal(signal.SIGTERM)

  class Signalled(fake_recipe.Recipe):
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

  config = fake_recipe.get_config()
  fake_recipe.use(Signalled)
  summary = loop.fit(config, tmp_path)
  assert (summary["step"], summary["stopped"]) == (6, "SIGTERM")
  assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["4", "6"]
  assert signal.getsignal(signal.SIGTERM) is before
  assert loop.fit(fake_recipe.get_config(), tmp_path)["step"] == 12


def test_a_second_interrupt_does_not_wait():
  with loop.stop_signals() as stop:
    signal.raise_signal(signal.SIGINT)
    assert stop == {"signal": signal.SIGINT}
    with pytest.raises(KeyboardInterrupt):
      signal.raise_signal(signal.SIGINT)
