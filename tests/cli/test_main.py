"""The command line's promises: one sentence for a mistake, an exit status, JSON alone on stdout."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
import types

import pytest

from sora_jax.cli import main as cli
from sora_jax.cli import train
from sora_jax.errors import UserError


@pytest.fixture
def verb(monkeypatch):
  """Replaces what `train` runs; returns a function that sets it."""

  def set_run(run):
    monkeypatch.setattr(train, "run", run)

  return set_run


ARGS = ["train", "--config=c.py", "--workdir", "w"]


def _raise(error):
  def run(args):
    raise error

  return run


@pytest.mark.parametrize(
  ("argv", "word"),
  [
    ([], "VERB"),
    (["trian"], "trian"),
    (["train"], "--workdir"),
    (["train", "--config=nothing.py", "--workdir", "w"], "nothing.py"),
    ([*ARGS, "--stepz=3"], "--stepz"),
    (["--config.a=3", "data"], ""),
  ],
)
def test_mistakes_are_one_line_and_status_2(argv, word, capsys):
  assert cli.main(argv) == 2
  captured = capsys.readouterr()
  lines = captured.err.strip().splitlines()
  assert len(lines) == 1 and lines[0].startswith("sora-jax: error: ") and word in lines[0]
  assert captured.out == ""


def test_user_error_shows_its_traceback_only_with_debug(verb, capsys):
  verb(_raise(UserError("The size\n  is odd; use 64.")))
  assert cli.main(ARGS) == 2
  assert capsys.readouterr().err == "sora-jax: error: The size is odd; use 64.\n"
  assert cli.main([*ARGS, "--debug"]) == 2
  assert "Traceback" in capsys.readouterr().err
  assert cli.main(["--debug", *ARGS]) == 2
  assert "Traceback" in capsys.readouterr().err


def test_interrupts_and_a_full_disk(verb, capsys):
  verb(_raise(KeyboardInterrupt()))
  assert cli.main(ARGS) == 130
  capsys.readouterr()
  verb(_raise(OSError(errno.ENOSPC, "No space left on device", "out.mp4")))
  assert cli.main(ARGS) == 2
  assert "The disk with out.mp4 is full" in capsys.readouterr().err
  verb(_raise(RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 7 bytes")))
  assert cli.main(ARGS) == 2
  assert "smaller batch" in capsys.readouterr().err
  verb(_raise(OSError(errno.EIO, "Input/output error")))
  with pytest.raises(OSError, match="Input/output"):
    cli.main(ARGS)


def test_json_is_alone_on_stdout(verb, capsys):
  def run(args):
    print("a message")
    return {"step": 3, "workdir": args.workdir}

  verb(run)
  assert cli.main([*ARGS, "--json"]) == 0
  captured = capsys.readouterr()
  assert json.loads(captured.out) == {"step": 3, "workdir": "w"}
  assert "a message" in captured.err
  assert cli.main(["--json", *ARGS]) == 0
  assert json.loads(capsys.readouterr().out)["step"] == 3
  assert cli.main(ARGS) == 0
  assert capsys.readouterr().out == "a message\n"


def test_overrides_reach_the_verb(verb):
  seen = types.SimpleNamespace()

  def run(args):
    seen.overrides = args.overrides

  verb(run)
  assert cli.main([*ARGS, "--config.a.b=1", "--config.c", "x y"]) == 0
  assert seen.overrides == ["a.b=1", "c=x y"]


@pytest.mark.parametrize(("stopped", "status"), [(None, 0), ("SIGINT", 130), ("SIGTERM", 143)])
def test_train_hands_the_config_to_the_loop(monkeypatch, tmp_path, capsys, stopped, status):
  from sora_jax.train import loop

  path = tmp_path / "toy.py"
  path.write_text(
    "from ml_collections import ConfigDict\n"
    "def get_config(arg=''):\n"
    "  return ConfigDict({'arg': arg, 'optim': {'lr': 1.0}})\n"
  )

  def fit(config, workdir):
    summary = {"lr": config.optim.lr, "arg": config.arg, "workdir": workdir, "stopped": stopped}
    return summary | {"step": 3, "loss": 0.5, "skipped": 0, "compilations": 1}

  monkeypatch.setattr(loop, "fit", fit)
  argv = ["train", f"--config={path}:smoke", "--config.optim.lr=2", "--workdir", "w", "--json"]
  if stopped == "SIGTERM":
    with pytest.raises(SystemExit) as stop:
      cli.main(argv)
    assert stop.value.code == status
    return
  assert cli.main(argv) == status
  if not stopped:
    result = json.loads(capsys.readouterr().out)
    assert (result["lr"], result["arg"], result["workdir"]) == (2.0, "smoke", "w")


def test_help_and_version(capsys):
  for argv in (["--help"], ["train", "--help"], ["--version"]):
    with pytest.raises(SystemExit) as stop:
      cli.main(argv)
    assert stop.value.code == 0
  assert "examples:" in capsys.readouterr().out


def test_help_does_not_import_jax():
  code = (
    "import sys; from sora_jax.cli import main; main.make_parser(); print('jax' in sys.modules)"
  )
  result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
  assert result.stdout.strip() == "False"
