"""Several processes are one: the same batches, weights and end, on any number of hosts."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import jax
import numpy as np
import pytest
import run_hosts
from test_loop import held_out, lines, losses, saved

from sora_jax.errors import UserError
from sora_jax.parallel import hosts, sharding

MESH = {"data": 2, "fsdp": 2}
TRAIN = {"steps": 6, "checkpoint_every": 3, "preview_every": 3, "validate_every": 3, "mesh": MESH}


def free_port() -> int:
  with socket.socket() as s:
    s.bind(("localhost", 0))
    return s.getsockname()[1]


def environment(**more: str) -> dict[str, str]:
  return os.environ | {
    "PYTHONPATH": os.pathsep.join(sys.path),
    "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
    **more,
  }


def launch(workdirs, count, devices, runs_of, environment_of=None, timeout=900) -> list:
  """The output of `count` processes, each a list of what came of its runs, and their statuses."""
  start = [f"localhost:{free_port()}", count]
  processes = []
  for i in range(count):
    own = environment_of and environment_of(i)
    task = {
      "workdirs": str(workdirs), "devices": devices, "runs": runs_of(i),
      "start": [] if own else [*start, i],
    }  # fmt: skip
    processes.append(
      subprocess.Popen(
        [sys.executable, run_hosts.__file__, json.dumps(task)],
        env=environment(**(own or {})),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
      )
    )
  try:
    outputs = [p.communicate(timeout=timeout) for p in processes]
  finally:
    for p in processes:
      p.kill()
  for (_, err), p in zip(outputs, processes, strict=True):
    print(err[-3000:], p.returncode)  # shown if the test fails
  return [
    ([json.loads(line) for line in out.splitlines() if line.startswith("{")], p.returncode)
    for (out, _), p in zip(outputs, processes, strict=True)
  ]


def same_weights(a, b) -> None:
  expected = saved(b)
  for path, value in saved(a).items():
    np.testing.assert_allclose(value, expected[path], rtol=1e-5, atol=1e-6, err_msg=path)


def same_losses(a, b) -> None:
  for found in (losses, held_out):
    expected = found(b)
    assert expected and found(a).keys() == expected.keys()
    np.testing.assert_allclose(list(found(a).values()), list(expected.values()), rtol=1e-5)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
  """Six steps of one process on four devices: its workdir and the ids of its batches."""
  workdirs = tmp_path_factory.mktemp("one")
  done = run_hosts.train(workdirs, {"name": "run", "train": TRAIN})
  return workdirs / "run", done["ids"]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
  """What came of these runs in two processes with two devices each."""
  workdirs = tmp_path_factory.mktemp("two")
  run_hosts.train(workdirs, {"name": "continued", "train": TRAIN | {"steps": 3}})

  def runs(i):
    return [
      {"name": "fresh", "train": TRAIN},
      {"name": "continued", "train": TRAIN},
      {"name": "stopped", "train": TRAIN, "signal": 3 if i == 1 else None},
      {"name": "undivided", "train": TRAIN | {"mesh": None, "batch_size": 6}},
      {"name": "left out", "train": TRAIN | {"mesh": {"data": 2}}},
      {"name": "differing", "train": TRAIN | {"batch_size": 8 + 8 * i}},
    ]

  results = launch(workdirs, 2, 2, runs)
  assert [status for _, status in results] == [0, 0]
  one, other = ({run["name"]: run for run in done} for done, _ in results)
  return workdirs, one, other


def test_two_processes_are_one(reference, pair):
  workdir, ids = reference
  workdirs, one, other = pair
  assert (one["fresh"]["shard"], other["fresh"]["shard"]) == ([0, 2], [1, 2])
  assert [a + b for a, b in zip(one["fresh"]["ids"], other["fresh"]["ids"], strict=True)] == ids
  assert one["fresh"]["loss"] == other["fresh"]["loss"]
  same_losses(workdirs / "fresh", workdir)
  same_weights(workdirs / "fresh", workdir)


def test_one_process_writes_for_all(reference, pair):
  workdir, _ = reference
  workdirs, one, other = pair
  kernel = saved(workdir)[".ema['mid']['kernel']"]
  with np.load(workdirs / "fresh" / "export.npz") as export:
    np.testing.assert_allclose(export["kernel"], kernel, rtol=1e-5, atol=1e-6)
  assert one["fresh"]["preview"] == pytest.approx(kernel.sum(), rel=1e-4)
  assert "preview" not in other["fresh"]
  assert len(list((workdirs / "fresh" / "previews").iterdir())) == 2
  own = [json.loads(x) for x in (workdirs / "fresh" / "metrics.1.jsonl").read_text().splitlines()]
  assert [x["loss"] for x in own] == [x["loss"] for x in lines(workdirs / "fresh")]


def test_one_process_goes_on_as_two(reference, pair):
  workdirs, one, other = pair
  _, ids = reference
  rest = [a + b for a, b in zip(one["continued"]["ids"], other["continued"]["ids"], strict=True)]
  assert rest == ids[3:]
  same_losses(workdirs / "continued", reference[0])
  same_weights(workdirs / "continued", reference[0])


def test_a_signal_to_one_stops_both_at_one_step_and_one_goes_on(reference, pair):
  workdirs, one, other = pair
  assert one["stopped"]["stopped"] == other["stopped"]["stopped"] == "SIGTERM"
  assert one["stopped"]["step"] == other["stopped"]["step"] in (4, 5)
  run_hosts.train(workdirs, {"name": "stopped", "train": TRAIN})
  same_losses(workdirs / "stopped", reference[0])
  same_weights(workdirs / "stopped", reference[0])


@pytest.mark.parametrize(
  ("name", "of_one", "of_other"),
  [
    ("undivided", "nearest batch size that can be is 8", "nearest batch size that can be is 8"),
    ("left out", "use all 4 devices", "use all 4 devices"),
    ("differing", "Process 1 failed", r"another config: train.batch_size \(8 there"),
  ],
)
def test_what_does_not_fit_is_said_by_all(pair, name, of_one, of_other):
  _, one, other = pair
  for done, message in ((one, of_one), (other, of_other)):
    with pytest.raises(UserError, match=message):
      raise UserError(done[name]["error"])


def answers(*calls) -> list[str]:
  """What `hosts._roll_call` raises in threads that stand for processes."""
  said = [""] * len(calls)

  def call(i, arguments):
    try:
      hosts._roll_call(*arguments)
    except UserError as e:
      said[i] = str(e)

  threads = [threading.Thread(target=call, args=x) for x in enumerate(calls)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  return said


def test_who_is_missing_or_twice_is_named_to_all():
  at = f"localhost:{free_port()}"
  assert answers(*[(at, 3, i, 20) for i in range(3)]) == ["", "", ""]
  said = answers((at, 4, 0, 1), (at, 4, 2, 1))
  assert said[0] == said[1] and "these did not come in time: 1, 3" in said[0]
  said = answers(*[(at, 3, i, 20) for i in (0, 1, 1)])
  assert len(set(said)) == 1 and "Two processes have --process-id=1" in said[0]
  said = answers((at, 2, 0, 20), (at, 3, 1, 20))
  assert len(set(said)) == 1 and "--process-count=2 and process 1 3" in said[0]
  said = answers((at, 3, 0, 20), (at, 4, 1, 20), (at, 4, 2, 20))
  assert len(set(said)) == 1 and "--process-count=3 and process" in said[0]
  assert "Process 0 did not answer" in answers((at, 2, 1, 1))[0]
  with socket.create_server(("", int(at.partition(":")[2]))):
    assert "choose another" in answers((at, 2, 0, 1))[0]


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (("a:1", 2, None), "give all three"),
    (("a:1", 2, 2), "the 2 processes are 0 to 1"),
    (("a", 2, 0), "take e.g. a:1234"),
    ((), "neither Cloud TPU nor GKE, Slurm or Open MPI"),
  ],
)
def test_bad_starts(monkeypatch, arguments, message):
  def nothing_found(*args, **settings):
    raise ValueError("coordinator_address should be defined.")

  monkeypatch.setattr(jax.distributed, "initialize", nothing_found)
  with pytest.raises(UserError, match=message):
    hosts.start(*arguments)


def slurm(index, count, job):
  return {
    "SLURM_JOB_ID": str(job), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": str(count),
    "SLURM_PROCID": str(index), "SLURM_LOCALID": "0",
  }  # fmt: skip


def test_a_host_that_slurm_started_and_never_came(tmp_path):
  command = [
    sys.executable, "-m", "sora_jax.cli.main", "train", "--config=configs/toy.py:smoke",
    f"--workdir={tmp_path}", "--multihost", "--multihost-timeout=1",
  ]  # fmt: skip
  root = Path(__file__).parents[2]
  env = environment(**slurm(0, 2, free_port()))
  done = subprocess.run(command, env=env, cwd=root, capture_output=True, text=True, timeout=100)
  assert done.returncode == 2
  assert "Not all processes came within 1 s" in done.stderr and not list(tmp_path.iterdir())


def test_a_single_process_reads_all():
  for sizes in ({"data": 8}, {"fsdp": 2}, {"tensor": 8}):
    assert hosts.batch_shard(sharding.make_mesh(sizes)) == (0, 1)


@pytest.mark.slow
def test_four_processes_share_rows_and_weights_and_two_go_on(reference, tmp_path):
  """Found by Slurm; the pairs that split weights read the same rows; killed, and resumed by two."""
  job = free_port()
  train = TRAIN | {"mesh": {"data": 2, "tensor": 2}}

  def runs(i):
    return [
      {"name": "run", "train": train | {"steps": 3}},
      {"name": "run", "train": train, "kill": 1},
    ]

  results = launch(tmp_path, 4, 1, runs, lambda i: slurm(i, 4, job))
  assert [done[0]["shard"] for done, _ in results] == [[0, 2], [0, 2], [1, 2], [1, 2]]
  assert [len(done) for done, _ in results] == [1] * 4
  results = launch(tmp_path, 2, 2, lambda i: [{"name": "run", "train": TRAIN}])
  assert [status for _, status in results] == [0, 0]
  same_losses(tmp_path / "run", reference[0])
  same_weights(tmp_path / "run", reference[0])


@pytest.mark.slow
def test_when_one_dies_the_other_ends(tmp_path):
  runs = lambda i: [{"name": "run", "train": TRAIN, "kill": 2 if i == 1 else None}]  # noqa: E731
  results = launch(tmp_path, 2, 2, runs)
  assert [len(done) for done, _ in results] == [0, 0] and results[0][1] != 0
