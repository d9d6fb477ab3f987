"""The experiments: tables are those of the results, and what is counted is what was done."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from sora_jax import config as config_lib
from sora_jax.plan.measure import model_flops

SYSTEMS = Path(__file__).parent.parent / "experiments" / "systems"


def script(name):
  spec = importlib.util.spec_from_file_location(name, SYSTEMS / f"{name}.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def test_the_table_is_that_of_the_results():
  plot = script("plot")
  assert plot.table(plot.read()) == (SYSTEMS / "table.md").read_text()


def test_a_line_for_each_number():
  measure = script("measure")
  metrics = {"a": {"b": {"mean": 0.5, "low": 0.4, "high": 0.6, "n": 8}}, "c": {"median": 2.0}}
  document = {"commit": "abc", "metrics": metrics}
  found = list(measure.lines("toy", "world", Path("nowhere"), document, seed=3))
  assert [(line["metric"], line["value"]) for line in found] == [("a/b", 0.5), ("c", 2.0)]
  assert found[0]["n"] == 8 and found[0]["low"] == 0.4
  for line in found:
    assert (line["system"], line["checkpoint"], line["seed"]) == ("sora", "toy", 3)
    assert 10e6 < line["params"] < 20e6 and line["flops"] is None


def test_what_was_measured_of_other_weights_or_another_count_is_measured_again(
  tmp_path, monkeypatch
):
  measure = script("measure")
  export = tmp_path / "vjepa" / "export"
  export.mkdir(parents=True)
  asked = []

  def run(command, check):
    asked.append(command)
    out = Path(command[command.index("--out") + 1])
    out.mkdir()
    (out / "metrics.json").write_text(json.dumps({"run": len(asked)}))

  monkeypatch.setattr(measure.subprocess, "run", run)
  found = []
  for weights, count in ((1, 16), (1, 16), (2, 16), (2, 8)):
    (export / "config.json").write_text(json.dumps({"weights": weights}))
    found.append(measure.measure("vjepa", "world", tmp_path, count, 0)["run"])
  assert found == [1, 1, 2, 3]


def test_a_target_encoder_is_no_parameter_of_its_own(tmp_path):
  measure = script("measure")
  tensors = {
    "encoder/a": np.zeros((2, 3)),
    "target/a": np.zeros((2, 3)),
    "predictor/b": np.zeros(4),
  }
  save_file(tensors, tmp_path / "vjepa.safetensors")
  assert measure.parameters(tmp_path) == 10


@pytest.mark.parametrize("before", [0, 2])
def test_training_is_counted_with_the_autoencoder_before_it(tmp_path, before):
  measure = script("measure")
  config = config_lib.load("configs/vjepa_toy.py:smoke")
  stored = {"training": config.to_dict(), "vqvae_training": [config.to_dict()] * before}
  (tmp_path / "config.json").write_text(json.dumps(stored))
  steps = (1 + before) * config.train.steps
  assert measure.training_flops(tmp_path) == steps * model_flops(config, "train")
