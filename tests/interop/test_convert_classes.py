"""DiT, the image autoencoder and V-JEPA: converted bit for bit, checked beside their references."""

import dataclasses
import json
import re

import numpy as np
import pytest
import torch
from diffusers import DiTPipeline
from transformers import VJEPA2Config, VJEPA2ForVideoClassification, VJEPA2Model

from sora_jax.errors import UserError
from sora_jax.generate import classes
from sora_jax.interop import (
  check,
  convert,
  dit_xl,
  native,
  pipelines,
  probes,
  published,
  vjepa2,
)
from sora_jax.interop.shards import Weights
from tests.interop.conftest import perturbed
from tests.interop.test_convert import run, same_weights

SIZES = dict(
  patch_size=8, crop_size=16, frames_per_clip=4, hidden_size=24, num_attention_heads=2,
  num_hidden_layers=2, pred_hidden_size=16, pred_num_attention_heads=2, pred_num_hidden_layers=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def vjepas(tmp_path_factory):
  """Folders of the model and of its classifier."""
  torch.manual_seed(0)
  names = {i: f"an action, {i}" for i in range(3)}
  classifier = VJEPA2Config(**SIZES, num_pooler_layers=1, id2label=names)
  folders = {}
  for kind, config in (
    (VJEPA2Model, VJEPA2Config(**SIZES)),
    (VJEPA2ForVideoClassification, classifier),
  ):
    folders[kind] = tmp_path_factory.mktemp(kind.__name__)
    perturbed(kind(config)).to(torch.bfloat16).save_pretrained(folders[kind])
  return folders


@pytest.fixture(scope="module")
def ours(class_repository, tmp_path_factory):
  folder = tmp_path_factory.mktemp("ours") / "dit"
  convert.convert(class_repository, folder, "sora_jax")
  return folder


@pytest.mark.parametrize("part", ["transformer", "vae", VJEPA2Model, VJEPA2ForVideoClassification])
def test_components_there_and_back_are_exact(part, class_repository, vjepas, tmp_path):
  source = vjepas[part] if part in vjepas else class_repository / part
  run(source, tmp_path / "ours", "--to", "sora_jax")
  run("--check", tmp_path / "ours")
  run(tmp_path / "ours", tmp_path / "back", "--to", "diffusers")
  same_weights(source, tmp_path / "back")
  one, other = (json.loads((x / "config.json").read_text()) for x in (source, tmp_path / "back"))
  assert one == other  # names of labels too
  if part in vjepas:
    part.from_pretrained(tmp_path / "back")


def test_a_converted_vjepa_is_one_to_use(vjepas, tmp_path):
  convert.convert(vjepas[VJEPA2Model], tmp_path / "ours", "sora_jax")
  model, params = native.load_vjepa(tmp_path / "ours")
  assert (model.width, model.predictor_width) == (24, 16)
  assert params["target"] is params["encoder"] and "blocks" in params["predictor"]
  convert.convert(vjepas[VJEPA2ForVideoClassification], tmp_path / "other", "sora_jax")
  with pytest.raises(UserError, match="VJEPA2ForVideoClassification, which is no VJEPA"):
    native.load_vjepa(tmp_path / "other")
  config = native.read_config(tmp_path / "ours")
  two = {name: params[name] for name in ("encoder", "predictor", "target")}
  native.save(tmp_path / "trained", {"vjepa": two}, config)
  with pytest.raises(UserError, match="has two encoders"):
    convert.convert(tmp_path / "trained", tmp_path / "back", "diffusers")


def test_a_model_of_classes_there_and_back_is_exact(class_repository, ours, tmp_path):
  back = tmp_path / "back"
  run(ours, back, "--to", "diffusers")
  for part in ("transformer", "vae"):
    same_weights(class_repository / part, back / part)
  index, was = (json.loads((x / "model_index.json").read_text()) for x in (back, class_repository))
  assert index == {key: value for key, value in was.items() if key != "_diffusers_version"}
  one, other = (DiTPipeline.from_pretrained(x) for x in (class_repository, back))
  assert type(other.scheduler) is type(one.scheduler)
  for key, value in one.scheduler.config.items():
    assert key.startswith("_") or other.scheduler.config[key] == value, key
  assert one.labels == other.labels and one.labels["alias 7"] == 7


def test_our_folder_makes_the_images_of_the_repository(class_repository, ours):
  one, other = (classes.load(x) for x in (class_repository, ours))
  assert one.classes == other.classes and one.sampling == other.sampling
  np.testing.assert_array_equal(*(x.sample(["thing 3", 5], steps=2) for x in (one, other)))
  assert classes.holds(ours) and classes.holds(class_repository)


def test_what_a_pipeline_of_classes_cannot_have_is_refused(ours, tmp_path):
  config = native.read_config(ours)
  parts = {"vae": native.read_component(ours, "vae")}
  parts["transformer"] = native.read_component(ours, "transformer")
  for number, (changes, says) in enumerate((
    (dict(channels=3), "channels=3, only None"),
    (dict(variance="learned"), "variance='learned'"),
    (dict(sampler="euler"), "samples by ddim or ddpm, not by euler"),
  )):  # fmt: skip
    changed = config | {"sampling": config["sampling"] | changes}
    native.save(tmp_path / f"model{number}", parts, changed)
    with pytest.raises(UserError, match=says):
      convert.convert(tmp_path / f"model{number}", tmp_path / "out", "diffusers")
  with pytest.raises(UserError, match="AutoencoderKL, which is no VideoVAE"):
    native.load_vae(ours)


def test_videos_are_not_made_of_images(class_repository):
  with pytest.raises(UserError, match="one of images"):
    pipelines.load_vae(class_repository)
  with pytest.raises(UserError, match="is a DiTPipeline, which does not load here"):
    pipelines.open_model(class_repository)


def test_every_class_that_loads_has_a_probe():
  known = {name for module in published.MODULES for name in published.classes(module)}
  assert probes.PROBES.keys() == known


def test_a_check_compares_every_layer_of_a_model_of_classes(class_repository, ours, capsys):
  run("--check", class_repository, "--json")
  report = json.loads(capsys.readouterr().out)
  assert [x["kind"] for x in report["structure"]] == ["DiTTransformer2DModel", "AutoencoderKL"]
  assert report["structure"][0]["tensors"] == len(Weights.open(class_repository / "transformer"))
  assert set(report["parity"]["transformer"]) == {"blocks.0", "blocks.1", "whole"}
  assert set(report["parity"]["vae"]) == {"encoder", "decoder"}
  for errors in report["parity"].values():
    assert max(errors.values()) < 1e-5
  assert [x.kind for x in check.structure(ours)] == ["DiTTransformer2DModel", "AutoencoderKL"]


def test_the_class_that_dit_was_once_part_of_is_known(class_repository, tmp_path):
  source = class_repository / "transformer"
  config = json.loads((source / "config.json").read_text())
  (tmp_path / "config.json").write_text(json.dumps(config | {"_class_name": "Transformer2DModel"}))
  for file in source.glob("*.safetensors"):
    (tmp_path / file.name).symlink_to(file)
  errors = dict(check.parity(tmp_path))
  assert len(errors) == 3 and max(errors.values()) < 1e-5


@pytest.mark.parametrize(
  ("kind", "parts"),
  [(VJEPA2Model, {"encoder", "predictor"}), (VJEPA2ForVideoClassification, {"whole"})],
)
def test_a_check_compares_vjepa(kind, parts, vjepas):
  errors = dict(check.parity(vjepas[kind]))
  assert errors.keys() == parts and max(errors.values()) < 1e-5


@pytest.mark.parametrize("contract", [dit_xl, vjepa2])
def test_a_check_finds_swapped_weights(contract, class_repository, vjepas, monkeypatch):
  rules = contract.rules

  def wrong(model):
    """Queries and outputs of the attention are taken for each other."""
    swapped = {"q": "out", "out": "q"}
    swap = lambda match: f"attention/{swapped[match[1]]}/"  # noqa: E731
    return [
      dataclasses.replace(rule, ours=re.sub("attention/(q|out)/", swap, rule.ours))
      for rule in rules(model)
    ]

  monkeypatch.setattr(contract, "rules", wrong)
  folder = vjepas[VJEPA2Model] if contract is vjepa2 else class_repository / "transformer"
  assert max(dict(check.parity(folder)).values()) > 1e-3
