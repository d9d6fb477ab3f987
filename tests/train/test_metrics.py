"""The report: every number reaches the file once, bad steps apart, and resuming leaves no trace."""

from __future__ import annotations

import json

import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.errors import UserError
from sora_jax.train import metrics


def _lines(path):
  return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def _values(loss, bad=0):
  return {"loss": jnp.float32(loss), "grad_norm": jnp.float32(1), "bad_streak": jnp.int32(bad)}


def test_means_between_lines_leave_out_bad_steps(tmp_path, rng):
  report = metrics.Metrics(tmp_path, step=0, steps=9, batch_size=2, log_every=3)
  losses = rng.normal(size=9)
  for i, loss in enumerate(losses, 1):
    bad = i == 5
    report.step(i, _values(np.nan if bad else loss, bad), ids=["a", "b"])
  assert [line["step"] for line in _lines(tmp_path)] == [3, 5, 6]  # one step late
  assert report.flush()["loss"] == pytest.approx(losses[8])
  assert report.flush() == {}
  report.close()
  lines = _lines(tmp_path)
  assert lines[1]["loss"] is None  # NaN is no JSON
  assert lines[1]["event"] == "skipped" and lines[1]["ids"] == ["a", "b"]
  means = {line["step"]: line["loss"] for line in lines if "event" not in line}
  expected = {3: losses[:3].mean(), 6: losses[[3, 5]].mean(), 9: losses[6:].mean()}
  assert means == pytest.approx(expected, rel=1e-4)
  assert all(line["samples_per_second"] > 0 and 0 <= line["data_wait"] <= 1 for line in lines[2:])


def test_a_checkpoint_between_lines_leaves_the_same_lines(tmp_path, rng):
  losses = rng.normal(size=9)
  found = []
  for pieces in ([range(1, 10)], [range(1, 5), range(5, 10)]):  # in one run, or killed after 4
    for piece in pieces:
      report = metrics.Metrics(tmp_path, piece[0] - 1, steps=9, batch_size=2, log_every=3)
      for i in piece:
        report.step(i, _values(losses[i - 1]), [])
        if i == 4:
          report.cut(i)
      report.flush()
      report.close()
    found.append({line["step"]: line["loss"] for line in _lines(tmp_path)})
    metrics.truncate(tmp_path / "metrics.jsonl", 0)
  assert found[0] == found[1] and sorted(found[0]) == [3, 4, 6, 9]


def test_values_come_one_step_late(tmp_path):
  report = metrics.Metrics(tmp_path, step=0, steps=3, batch_size=1, log_every=1)
  assert report.step(1, _values(1.0), []) == {}
  assert report.step(2, _values(2.0), [])["loss"] == 1.0
  report.discard()
  assert report.flush() == {}
  report.close()


def test_a_resumed_file_ends_at_the_restored_step(tmp_path):
  path = tmp_path / "metrics.jsonl"
  lines = [{"step": 1, "loss": 0.5}, {"step": 2, "event": "skipped"}, {"step": 3, "loss": 0.25}]
  path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 4, "lo')
  metrics.truncate(path, 2)
  assert _lines(tmp_path) == lines[:2]
  metrics.truncate(path, 0)
  assert _lines(tmp_path) == []
  metrics.truncate(tmp_path / "none.jsonl", 0)
  assert not (tmp_path / "none.jsonl").exists()


def test_tensorboard_gets_scalars_and_videos(tmp_path, rng):
  from tensorboardX.proto.event_pb2 import Event

  report = metrics.Metrics(tmp_path, step=0, steps=2, batch_size=1, log_every=1)
  report.step(1, _values(0.5), [])
  report.step(2, _values(0.25), [])
  video = rng.integers(0, 255, (5, 16, 24, 3), dtype=np.uint8)
  report.videos(2, {"prompt_0": video}, tmp_path / "previews")
  report.flush()
  report.close()
  (path,) = (tmp_path / "tensorboard").iterdir()
  found = {}
  for record in _records(path.read_bytes()):
    for value in Event.FromString(record).summary.value:
      found[value.tag] = value
  assert found["loss"].simple_value == pytest.approx(0.25)
  image = found["prompt_0"].image
  assert image.encoded_image_string[:4] == b"GIF8" and (image.height, image.width) == (16, 24)
  assert (tmp_path / "previews" / "00000002_prompt_0.gif").exists()


def _records(data):
  """TFRecord framing: length (8), its checksum (4), the record, its checksum (4)."""
  at = 0
  while at < len(data):
    length = int.from_bytes(data[at : at + 8], "little")
    yield data[at + 12 : at + 12 + length]
    at += 16 + length


def test_a_full_disk_is_one_sentence(tmp_path):
  report = metrics.Metrics(tmp_path, step=0, steps=1, batch_size=1, log_every=1)
  report._file.close()
  report._file = open("/dev/full", "a")
  report.step(1, _values(0.5), [])
  with pytest.raises(UserError, match="cannot be written .No space left"):
    report.flush()
  report.close()


def test_compilations_are_counted():
  import jax

  before = metrics.compilations()
  jax.jit(lambda x: x * 3.25 + before)(jnp.arange(7.0))
  assert metrics.compilations() > before
