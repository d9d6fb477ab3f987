"""Numbers with their spread, stored so that they can be read back."""

import json

import numpy as np
import pytest

from sora_jax.errors import UserError
from sora_jax.evals import report


def test_wilson_interval():
  number = report.proportion([True] * 9 + [False])
  # Wilson 1927 for 9 of 10.
  assert number["low"] == pytest.approx(0.5958, abs=1e-3)
  assert number["high"] == pytest.approx(0.9821, abs=1e-3)
  assert report.proportion([]) == {"mean": None, "n": 0}
  assert report.proportion([True] * 20)["low"] > 0.8


def test_stored_numbers_come_back(tmp_path):
  results = report.Results(
    {"a": {"b": {"mean": np.float32(0.25), "std": float("nan"), "n": 3}}, "c": 2},
    [{"id": "x", "value": np.float64(1.5)}, {"id": "y", "value": float("nan")}],
  )
  report.store(tmp_path, results, {"command": "sora-jax eval", "seed": 0})
  document = json.loads((tmp_path / "metrics.json").read_text())
  assert document["metrics"]["a"]["b"] == {"mean": 0.25, "std": None, "n": 3}
  assert document["command"] == "sora-jax eval"
  rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
  assert rows == [{"id": "x", "value": 1.5}, {"id": "y", "value": None}]
  assert sorted(p.name for p in tmp_path.iterdir()) == ["metrics.json", "results.jsonl"]
  text = report.table(results.metrics)
  assert "a/b" in text and "0.25" in text and "n=3" in text and "nan" not in text


def test_output_folder(tmp_path):
  assert report.open_folder(tmp_path / "new").is_dir()
  assert report.open_folder(tmp_path / "not" / "there").is_dir()
  file = tmp_path / "file"
  file.write_text("x")
  with pytest.raises(UserError, match="is a file"):
    report.open_folder(file)
  with pytest.raises(UserError, match="cannot be made"):
    report.open_folder(file / "below")


def test_a_folder_that_is_read_only_is_noticed_before_the_work(tmp_path, monkeypatch):
  monkeypatch.setattr("os.access", lambda path, mode: False)
  with pytest.raises(UserError, match="cannot be written to"):
    report.open_folder(tmp_path)
