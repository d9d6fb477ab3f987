"""`sora-jax sample`: images of classes, adapters and step caching from the command line."""

import json
import shutil

import jax
import numpy as np
import pytest

import sora_jax
from sora_jax.cli import main, sample
from sora_jax.data import video
from sora_jax.diffusion.caching import LEVELS
from sora_jax.generate import classes
from sora_jax.generate import model as generate
from sora_jax.interop import lora as adapters
from sora_jax.interop import wan_dit
from sora_jax.models import lora
from tests.generate.conftest import folder  # noqa: F401
from tests.interop.conftest import save_dit_pipeline


@pytest.fixture(scope="module")
def classy(tmp_path_factory):
  return save_dit_pipeline(tmp_path_factory.mktemp("classes") / "dit")


def run(*words):
  return main.main(["sample", *map(str, words)])


def test_images_of_classes_side_by_side(classy, tmp_path, capsys):
  words = ("--checkpoint", classy, "--out", tmp_path / "a.png", "--seed=3", "--steps=2", "--json")
  settings = ("--guidance=2", "--sampler=ddpm", "--dtype=float32")
  assert run("alias 7; thing 8, alias 8;9", *words, *settings) == 0
  report = json.loads(capsys.readouterr().out)
  assert report == {"out": str(tmp_path / "a.png"), "images": 3, "size": [8, 8]}
  shown, _ = video.read(tmp_path / "a.png")
  model = sora_jax.load(classy)
  assert isinstance(model, sora_jax.ClassModel)
  made = model.sample([7, 8, 9], seed=3, steps=2, guidance=2.0, sampler="ddpm")
  np.testing.assert_array_equal(shown[0], np.concatenate(made, axis=1))


def test_what_a_model_of_classes_cannot_do_is_one_sentence(classy, tmp_path, capsys):
  out = tmp_path / "a.png"
  for says, *words in (
    ("cannot use --frames", "thing 1", "--frames=1"),
    ("cannot use --size", "thing 1", "--size=8x8"),
    ("cannot use --negative", "thing 1", "--negative=x"),
    ("cannot use --mesh", "thing 1", "--mesh=data=1"),
    ("cannot use --cache", "thing 1", "--cache=0.1"),
    ("cannot use --lora", "thing 1", f"--lora={classy}"),
    ("cannot use --task", "thing 1", "--task=loop"),
    ("no class 'thin 1'; did you mean 'thing 1'", "thin 1"),
    ("ddpm or ddim", "thing 1", "--sampler=heun"),
    ("prompt is empty", ""),
  ):
    assert run(*words, "--checkpoint", classy, "--out", out) == 2
    assert says in capsys.readouterr().err
  assert run("thing 1", "--checkpoint", classy, "--out", tmp_path / "a.mp4") == 2
  assert "must be a .png" in capsys.readouterr().err
  assert not list(tmp_path.iterdir())


def test_flags_of_videos_are_all_known():
  """Every option is one of those that images of classes have too, or is refused for them."""
  args = vars(main.make_parser().parse_args(["sample", "x", "--out", "x.png"]))
  both = {"prompt", "out", "checkpoint", "seed", "steps", "guidance", "sampler", "shift", "dtype"}
  assert (
    args.keys() - {"verb", "module", "json", "debug", "version"}
    == both | sample.VIDEO_ONLY.keys() | sample.CODES_ONLY.keys()
  )
  for name, value in (sample.VIDEO_ONLY | sample.CODES_ONLY | sample.NOT_CODES).items():
    assert args[name] == value, name


def test_loaded_models_are_of_the_right_kind(classy, folder):  # noqa: F811
  assert isinstance(sora_jax.load(folder, mesh={"data": 1}), sora_jax.VideoModel)
  with pytest.raises(sora_jax.UserError, match="give no mesh"):
    sora_jax.load(classy, mesh={"data": 1})
  low = classes.load(classy, "bfloat16")
  assert low.dit.dtype == "bfloat16" and low.sample("thing 1", steps=2).shape == (8, 8, 3)


def test_an_adapter_and_step_caching(folder, tmp_path, capsys):  # noqa: F811
  source = tmp_path / "model"
  shutil.copytree(folder, source)
  config = json.loads((source / "config.json").read_text())
  config["sampling"]["residuals"] = [[level, 1 + level] for level in LEVELS]
  (source / "config.json").write_text(json.dumps(config))
  model = generate.load(source, mesh={"data": 1})
  adapter = lora.Lora(rank=2, alpha=2.0, targets="mlp")
  params = lora.add(model.params["dit"], adapter, jax.random.key(0))
  params = jax.tree_util.tree_map_with_path(
    lambda path, x: x + 0.3 if "lora_up" in str(path[-1]) else x, params
  )
  adapters.write(tmp_path / "it.safetensors", params, wan_dit.rules(model.dit))
  out = tmp_path / "a.png"
  words = ("a red ball", "--checkpoint", source, "--frames=1", "--mesh=data=1", "--out", out)
  adapter = f"--lora={tmp_path / 'it.safetensors'}:0.5"
  assert run(*words, adapter, "--cache=10") == 0
  shown = video.read(out)[0]
  tuned = model.adapted(tmp_path / "it.safetensors", 0.5)
  for other, same in ((tuned, True), (model, False)):
    made = other.sample("a red ball", frames=1, cache=10.0)
    assert np.array_equal(made, shown) == same
  assert not np.array_equal(tuned.sample("a red ball", frames=1, cache=0.0), shown)
  out.unlink()
  for says, *more in (
    ("There is no adapter nothing.safetensors", "--lora=nothing.safetensors:0.5"),
    ("There is no adapter a:b", "--lora=a:b"),
    ("cache is -1.0", "--cache=-1"),
    ("give --cache too", "--curve=curve.json"),
    ("give --cache too", "--curve=curve.json", "--cache=-1"),
    ("the weight must be finite", "--lora=a:nan"),
  ):
    assert run(*words, *more) == 2
    assert says in capsys.readouterr().err
  plain = [folder if word is source else word for word in words]
  assert run(*plain, "--cache=0.1") == 2
  assert "no curve of residuals" in capsys.readouterr().err
  assert not out.exists()
  assert run(*plain, "--cache=0.1", f"--curve={tmp_path / 'curve.json'}") == 0
  assert out.exists() and (tmp_path / "curve.json").exists()


def test_adapters_have_weights():
  for text, found in (
    ("a.safetensors", ("a.safetensors", 1.0)),
    ("a:0.8", ("a", 0.8)),
    ("c:/a:-1", ("c:/a", -1.0)),
    ("a:b", ("a:b", 1.0)),
  ):
    assert sample.parse_adapter(text) == found
