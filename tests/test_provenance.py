"""The commit is that of this project, not of one it is installed in."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from sora_jax import provenance
from sora_jax.train import loop


def copy_in(folder):
  path = folder / "site" / "provenance.py"
  path.parent.mkdir(parents=True)
  path.write_text(Path(provenance.__file__).read_text())
  spec = importlib.util.spec_from_file_location("installed", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return path, module


def test_a_package_in_a_strangers_checkout_is_not_of_its_commit(tmp_path, monkeypatch):
  monkeypatch.setattr(sys, "dont_write_bytecode", True)  # or the checkout would be changed
  git = lambda *args: subprocess.run(  # noqa: E731
    ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", *args],
    check=True, capture_output=True, text=True,
  )  # fmt: skip
  path, module = copy_in(tmp_path)
  git("init")
  git("commit", "--allow-empty", "-m", "theirs")
  theirs = git("rev-parse", "--short=12", "HEAD").stdout.strip()
  assert theirs not in (module.commit() or "")
  git("add", str(path))
  git("commit", "-m", "ours")
  module.commit.cache_clear()
  ours = git("rev-parse", "--short=12", "HEAD").stdout.strip()
  assert module.commit() == ours
  path.write_text(path.read_text() + "\n")
  assert module.commit() == ours  # what runs is what was there


def test_a_run_asks_before_anything_is_built(monkeypatch, tmp_path):
  asked = []
  monkeypatch.setattr(provenance, "commit", lambda: asked.append("commit"))
  monkeypatch.setattr(loop.program_lib, "build", lambda config: 1 / (0 if asked else 1))
  with pytest.raises(ZeroDivisionError):
    loop.fit(ConfigDict(), tmp_path)
