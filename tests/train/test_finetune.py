"""Training further from a model's weights: an adapter, and the whole transformer."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from sora_jax import config as config_lib
from sora_jax.errors import UserError
from sora_jax.generate import model as generate
from sora_jax.interop import lora as files
from sora_jax.interop import native, wan_dit
from sora_jax.interop.names import flatten
from sora_jax.models.dit import DiT, blank_tokens
from sora_jax.models.text import TextEncoder
from sora_jax.train import loop, program, t2v

MODEL = dict(width=32, layers=2, heads=2, mlp_width=48, text_width=16, channels=64)
TEXT = dict(width=16, layers=1, heads=2, length=12)


def perturbed(tree):
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape).astype(np.float32), tree)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
  """A tiny checkpoint in our layout, whose autoencoder is the shipped one."""
  folder = tmp_path_factory.mktemp("source") / "tiny"
  dit, text = DiT(**MODEL), TextEncoder(**TEXT, vocabulary=27_628)
  pieces = np.ones((1, 12), np.int32)
  weights = {
    "dit": perturbed(jax.jit(dit.init)(jax.random.key(0), blank_tokens(dit))["params"]),
    "text": jax.jit(text.init)(jax.random.key(1), pieces, pieces)["params"],
  }
  del weights["text"]["pieces"]
  toy = native.find("toy")
  config = native.read_config(toy) | {
    "transformer": MODEL, "text": TEXT | {"vocabulary": 27_628}, "known_words": [],
    "sampling": dict(steps=2, guidance=1.0, frames=5, size=[32, 32], fps=8.0),
  }  # fmt: skip
  vae = native.read_component(toy, "vae")
  native.save(folder, {"vae": vae, "transformer": weights}, config, dtype=np.float32)
  return folder


@pytest.fixture(scope="module")
def config(source, tmp_path_factory):
  config = config_lib.load("configs/wan_1_3b_finetune.py:smoke")
  config.init_from = str(source)
  config.data.cache = str(tmp_path_factory.mktemp("latents"))
  with config.unlocked():
    for name in ("absolute", "affine", "cond_features"):
      del config.model[name]
  config.model.update(MODEL)
  config.packing.text_length = 12
  config.optim.lr, config.optim.warmup, config.lora.rank = 1e-2, 0, 4
  config.train.checkpoint_every = 2
  return config


def test_an_adapter_is_trained_exported_and_used(config, source, tmp_path):
  result = loop.fit(config, tmp_path / "run")
  assert result["step"] == 4 and np.isfinite(result["loss"])
  held = json.loads((tmp_path / "run/checkpoints/4/state/_METADATA").read_text())
  arrays = [
    k for k, v in held["tree_metadata"].items() if v["value_metadata"]["value_type"] != "None"
  ]
  assert any("lora_down" in k for k in arrays) and not any("kernel" in k for k in arrays)
  model = generate.load(source, mesh={"data": 1})
  rules = wan_dit.rules(model.dit)
  adapter = files.read(tmp_path / "run" / "export", rules, wan_dit.shapes(model.dit))
  assert len(flatten(adapter)) == 2 * 4 * 3
  for path, x in flatten(adapter).items():
    assert np.abs(x).max() > 0, path
  tuned = model.adapted(tmp_path / "run" / "export")
  plain = model.sample("a red ball")
  assert np.abs(tuned.sample("a red ball").astype(int) - plain).max() > 0
  np.testing.assert_array_equal(
    model.adapted(tmp_path / "run" / "export", 0.0).sample("a red ball"), plain
  )


@pytest.mark.slow
def test_a_resumed_run_takes_its_frozen_weights_from_the_source(config, source, tmp_path):
  whole, parts = config.copy_and_resolve_references(), config.copy_and_resolve_references()
  loop.fit(whole, tmp_path / "whole")
  parts.train.steps = 2
  loop.fit(parts, tmp_path / "parts")
  parts.train.steps = 4
  loop.fit(parts, tmp_path / "parts")
  a, b = (load_file(tmp_path / name / "export" / files.FILE) for name in ("whole", "parts"))
  assert a.keys() == b.keys()
  for name, x in a.items():
    np.testing.assert_array_equal(x, b[name])


@pytest.mark.slow
def test_all_of_it_is_trained_and_exported(config, source, tmp_path):
  config = config.copy_and_resolve_references()
  config.lora.rank = 0
  recipe = program.build_recipe(config)
  read = recipe.read(jax.random.key(0))
  stored = native.read_component(source, "transformer")
  jax.tree.map(np.testing.assert_array_equal, read, {"dit": stored["dit"]})
  assert jax.tree.map(np.shape, jax.eval_shape(recipe.init, jax.random.key(0))) == jax.tree.map(
    np.shape, read
  )
  loop.fit(config, tmp_path)
  tuned = native.read_component(tmp_path / "export", "transformer")
  moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), tuned["dit"], stored["dit"])
  assert min(jax.tree.leaves(moved)) >= 0 and max(jax.tree.leaves(moved)) > 1e-3
  assert "text" not in tuned


def test_what_does_not_fit_is_refused(config, tmp_path):
  config = config.copy_and_resolve_references()
  config.model.text_width = 24
  with pytest.raises(UserError, match="set model.text_width=16"):
    program.build_recipe(config).dataset(0, 1)
  with pytest.raises(UserError, match="text_in/up/kernel"):
    program.build_recipe(config).read(jax.random.key(0))
  config.lora.targets = "no_such"
  with pytest.raises(UserError, match="lora.targets='no_such'"):
    loop.fit(config, tmp_path)


def test_a_transformer_of_low_noise_needs_a_model_to_join():
  config = config_lib.load("configs/toy.py:smoke")
  config.levels.highest = 0.65
  with pytest.raises(UserError, match="joins a model: name it in text_from"):
    t2v.build(config)


def test_a_transformer_of_low_noise_joins_a_model_that_then_samples_its_levels(tmp_path):
  recipe = t2v.build(config_lib.load("configs/toy.py:low"))
  recipe.export({"dit": {"weight": np.zeros(1, np.float32)}}, tmp_path)
  whole, found = (native.read_config(native.find(x)) for x in ("toy", tmp_path / "export"))
  assert found["sampling"] == whole["sampling"] | dict(
    boundary=0.65, steps=30, schedule={"lowest": 0.0}
  )
  assert found["low"]["split"] and found["transformer"] == whole["transformer"]
