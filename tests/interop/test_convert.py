"""Models go from the hub's layout to ours and back: bit for bit, in their types, or not at all."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan, WanPipeline, WanTransformer3DModel

from sora_jax.cli import main
from sora_jax.errors import UserError
from sora_jax.generate import model as generate
from sora_jax.interop import check, convert, native, pipelines, wan_dit
from sora_jax.interop.shards import Weights
from tests.interop.conftest import make_transformer, relative_error

COMPONENTS = ("transformer", "vae", "text_encoder")


def run(*words):
  assert main.main(["convert", *map(str, words)]) == 0


@pytest.fixture(scope="module")
def ours(repository, tmp_path_factory):
  folder = tmp_path_factory.mktemp("ours") / "wan"
  convert.convert(repository, folder, "sora_jax")
  return folder


@pytest.fixture(scope="module")
def back(ours, tmp_path_factory):
  folder = tmp_path_factory.mktemp("back") / "wan"
  convert.convert(ours, folder, "diffusers")
  return folder


def same_weights(one, other):
  a, b = Weights.open(one), Weights.open(other)
  assert a.keys() == b.keys()
  for name, x in a.items():
    assert b[name].dtype == x.dtype and b[name].shape == x.shape
    assert b[name].tobytes() == x.tobytes()


def test_there_and_back_is_exact(repository, back):
  for name in COMPONENTS:
    same_weights(repository / name, back / name)
  for file in (repository / "tokenizer").iterdir():
    assert (back / "tokenizer" / file.name).read_bytes() == file.read_bytes()


def test_what_is_written_makes_the_same_in_diffusers(pipeline, back):
  written = WanPipeline.from_pretrained(back)
  written.set_progress_bar_config(disable=True)
  settings = dict(
    height=16, width=16, num_frames=5, num_inference_steps=3, output_type="latent",
    latents=torch.randn(1, 4, 2, 2, 2, generator=torch.manual_seed(0)),
  )  # fmt: skip
  one, other = (pipe("a red ball", **settings).frames for pipe in (pipeline, written))
  assert relative_error(other, one) < 1e-5  # torch's sums depend on where a tensor begins


def test_a_second_transformer_goes_with_the_first(pipeline, tmp_path):
  two, ours, back = (tmp_path / name for name in ("two", "ours", "back"))
  second = make_transformer(num_layers=1)
  parts = {**pipeline.components, "transformer_2": second, "boundary_ratio": 0.8}
  WanPipeline(**parts).save_pretrained(two)
  run(two, ours, "--to", "sora_jax")
  config = native.read_config(ours)
  assert config["low"]["layers"] == 1 and config["sampling"]["boundary"] == 0.8
  run(ours, back, "--to", "diffusers")
  same_weights(two / "transformer_2", back / "transformer_2")
  assert WanPipeline.from_pretrained(back).config.boundary_ratio == 0.8
  assert [x.component for x in check.structure(two)] == ["transformer", "vae", "text", "low"]


def test_wans_5b_stays_one(repository, tmp_path):
  source, ours, back = (tmp_path / name for name in ("source", "ours", "back"))
  shutil.copytree(repository, source)
  index = json.loads((source / "model_index.json").read_text())
  (source / "model_index.json").write_text(json.dumps(index | {"expand_timesteps": True}))
  convert.convert(source, ours, "sora_jax")
  convert.convert(ours, back, "diffusers")
  for folder in (source, back):
    assert pipelines.sampling_of(folder)["frames"] == 121
    assert WanPipeline.from_pretrained(folder).config.expand_timesteps


def test_our_folder_samples_as_the_repository_does(repository, ours):
  config = native.read_config(ours)
  assert config["sampling"]["shift"] == 3.0 and config["transformer"]["layers"] == 2
  settings = dict(steps=2, frames=5, size=(16, 16), seed=1)
  one, other = (
    generate.load(folder, {"data": 1}).sample("a red ball", **settings)
    for folder in (repository, ours)
  )
  np.testing.assert_array_equal(one, other)


def test_one_component_in_bfloat16_keeps_its_type(pipeline, tmp_path):
  source, folder, back = (tmp_path / name for name in ("source", "ours", "back"))
  pipeline.transformer.save_pretrained(source)
  model = WanTransformer3DModel.from_pretrained(source, torch_dtype=torch.bfloat16)
  shutil.rmtree(source)
  model.save_pretrained(source, max_shard_size="20KB")  # with some float32 islands
  assert len({str(x.dtype) for x in Weights.open(source).values()}) == 2
  run(source, folder, "--to", "sora_jax")
  run(folder, back, "--to", "diffusers")
  same_weights(source, back)
  again = WanTransformer3DModel.from_pretrained(back, torch_dtype=torch.bfloat16)
  for name, x in model.state_dict().items():
    assert torch.equal(x, again.state_dict()[name]), name


def test_an_autoencoder_goes_both_ways_through_the_command(repository, tmp_path, capsys):
  run(repository / "vae", tmp_path / "vae", "--to", "sora_jax")
  vae, params = native.load_vae(tmp_path / "vae")
  assert vae.z_channels == 4 and params
  capsys.readouterr()
  run(tmp_path / "vae", tmp_path / "back", "--to", "diffusers", "--json")
  assert json.loads(capsys.readouterr().out)["components"] == ["vae"]
  same_weights(repository / "vae", tmp_path / "back")
  AutoencoderKLWan.from_pretrained(tmp_path / "back")


def test_what_cannot_be_converted_is_refused_and_leaves_nothing(repository, ours, tmp_path, capsys):
  target = tmp_path / "out"

  def refused(says, *words):
    assert main.main(["convert", *map(str, words)]) == 2
    assert says in capsys.readouterr().err
    assert not list(tmp_path.iterdir())

  refused("layout of diffusers already", repository, target, "--to", "diffusers")
  refused("layout of sora_jax already", ours, target, "--to", "sora_jax")
  refused("exists already", repository, ours, "--to", "sora_jax")
  refused("Say what to write", repository)
  refused("Say what to write", repository, target)
  refused("A check writes nothing", repository, target, "--check")
  refused("no checkpoint", tmp_path / "nothing", target, "--to", "sora_jax")
  refused("Only a transformer with cond_features = 1", "toy", target, "--to", "diffusers")


def test_a_check_compares_every_layer_with_the_reference(repository, capsys):
  run("--check", repository, "--json")
  report = json.loads(capsys.readouterr().out)
  kinds = {entry["component"]: entry["kind"] for entry in report["structure"]}
  assert kinds["transformer"] == "WanTransformer3DModel" and len(kinds) == 3
  assert report["structure"][0]["tensors"] == len(Weights.open(repository / "transformer"))
  assert set(report["parity"]["transformer"]) == {"blocks.0", "blocks.1", "whole"}
  for errors in report["parity"].values():
    assert errors and max(errors.values()) < 5e-5  # of four random channels


def test_a_check_finds_what_was_changed(repository, ours, tmp_path, monkeypatch):
  assert [s.component for s in check.structure(ours)] == ["transformer", "vae", "text"]
  rules = wan_dit.rules
  swapped = {"to_q.weight": "to_k.weight", "to_k.weight": "to_q.weight"}

  def wrong(dit):
    """Queries and keys of the second attention are taken for each other."""
    changed = []
    for rule in rules(dit):
      *path, part = rule.theirs.split(".attn2.")
      name = ".attn2.".join([*path, swapped.get(part, part)]) if path else rule.theirs
      changed.append(dataclasses.replace(rule, theirs=name))
    return changed

  monkeypatch.setattr(wan_dit, "rules", wrong)
  errors = dict(check.parity(repository / "transformer"))
  assert errors["blocks.0"] > 1e-3 and errors["whole"] > 1e-3


def test_a_check_refuses_what_is_no_number(repository, monkeypatch, capsys):
  errors = [("good", 0.0), ("bad", float("nan")), ("large", 1.0)]
  for some in (errors, errors[::-1]):
    monkeypatch.setattr(check, "parity", lambda folder, some=some: iter(some))
    assert main.main(["convert", "--check", str(repository)]) == 2
    assert "bad of the transformer differs from the reference by nan" in capsys.readouterr().err


def test_a_written_transformer_computes_the_same(pipeline, back):
  again = WanTransformer3DModel.from_pretrained(back / "transformer").eval()
  inputs = torch.randn(1, 4, 2, 4, 4), torch.tensor([500.0]), torch.randn(1, 5, 20)
  with torch.no_grad():
    assert relative_error(again(*inputs).sample, pipeline.transformer(*inputs).sample) < 1e-6


def test_a_failed_conversion_leaves_nothing(repository, tmp_path):
  broken = tmp_path / "broken"
  shutil.copytree(repository, broken)
  (broken / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"")
  with pytest.raises(UserError, match="is damaged"):
    convert.convert(broken, tmp_path / "out", "sora_jax")
  shutil.rmtree(broken / "tokenizer")
  with pytest.raises(UserError, match="tokenizer is missing"):
    convert.convert(broken, tmp_path / "out", "sora_jax")
  assert [p.name for p in tmp_path.iterdir()] == ["broken"]


def test_a_section_of_our_config_of_the_wrong_kind_is_named(repository, tmp_path):
  convert.convert(repository / "text_encoder", tmp_path / "text", "sora_jax")
  config = native.read_config(tmp_path / "text")
  text = {key: value for key, value in config["text"].items() if key != "d_model"}
  for section, says in ((text, "does not say 'd_model'"), (config["text"] | {"d_ff": "9"}, "'9'")):
    (tmp_path / "text" / "config.json").write_text(json.dumps({"text": section}))
    with pytest.raises(UserError, match=says):
      convert.convert(tmp_path / "text", tmp_path / "back", "diffusers")
