"""From worlds to an autoencoder, from there to a transformer, from there to a video: the path."""

import collections
import shutil

import jax
import numpy as np
import pytest

from sora_jax import config as config_lib
from sora_jax.errors import UserError
from sora_jax.generate import model as generate
from sora_jax.interop import native
from sora_jax.train import loop, program
from sora_jax.train import vae as vae_recipe

pytestmark = pytest.mark.slow
SHAPES = {"square": (5, (32, 32)), "wide": (9, (32, 48)), "loops": (8, (32, 32))}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp("path")


@pytest.fixture(scope="module")
def vae(folder):
  config = config_lib.load("configs/vae_toy.py:smoke")
  result = loop.fit(config, folder / "vae")
  assert result["step"] == 4 and np.isfinite(result["loss"])
  return folder / "vae" / "export"


@pytest.fixture(scope="module")
def config(folder, vae):
  config = config_lib.load("configs/toy.py:smoke")
  config.vae, config.data.cache = str(vae), str(folder / "latents")
  for shape, (frames, size) in SHAPES.items():
    config.data.shapes[shape].update(frames=frames, size=size)
  config.train.preview_every = 4
  config.sampling = dict(config.sampling, shift=4.0)  # not that of training
  return config


@pytest.fixture(scope="module")
def checkpoint(folder, config):
  result = loop.fit(config, folder / "t2v")
  assert result["step"] == 4 and np.isfinite(result["loss"])
  return folder / "t2v" / "export"


def test_the_path_ends_in_a_video(checkpoint, folder):
  model = generate.load(checkpoint)
  clip = model.sample("a red ball rolls to the left", steps=2)
  assert clip.shape == (5, 32, 32, 3) and clip.dtype == np.uint8
  assert list((folder / "t2v" / "previews").iterdir())
  stored = native.read_config(checkpoint)
  assert stored["vae_training"][0]["recipe"] == "vae" and stored["training"]["recipe"] == "t2v"
  assert "ball" in stored["known_words"]
  assert stored["sampling"]["frames"] == 5 and stored["sampling"]["longest"] == 9
  assert stored["sampling"]["shift"] == 4.0 and stored["sampling"]["steps"] == 20
  assert 0 < stored["sampling"]["schedule"]["lowest"] < 1


def test_mistakes_about_sampling_are_found_before_training():
  config = config_lib.load("configs/toy.py:smoke")
  for given, nearest in (({"stepz": 3}, "'steps'"), ({"schedule": {"lowst": 0.1}}, "'lowest'")):
    config.sampling = given
    with pytest.raises(UserError, match=f"did you mean {nearest}"):
      program.build_recipe(config)


def test_every_shape_comes_at_its_share(config):
  config = config.copy_and_resolve_references()
  config.data.shapes.loops.share = 0.3
  config.packing.short = 1  # all batches are then as `batch` says
  recipe = program.build_recipe(config)
  seen = collections.Counter()
  data = recipe.dataset(0, 1)
  for _ in range(40):
    batch = next(data)
    drawn = {name: (x.shape, x.dtype) for name, x in batch.items() if name != "id"}
    assert drawn == {name: (x.shape, x.dtype) for name, x in recipe.batch().items()}
    for row, period in zip(batch["segments"], batch["period"], strict=True):
      for segment in set(row[row > 0]):
        seen["loops" if period[row == segment][0] else "clips"] += 1
  expected = 0.7 * recipe.shares["loops"] / sum(recipe.shares.values())  # 30 % are images
  assert seen["loops"] / seen.total() == pytest.approx(expected, rel=0.4)


def test_training_goes_on_from_an_exported_checkpoint(checkpoint, vae, config):
  config = config.copy_and_resolve_references()
  config.init_from = str(checkpoint)
  recipe = program.build_recipe(config)
  params = recipe.read(jax.random.key(1))
  loaded = generate.load(checkpoint).params
  jax.tree.map(np.testing.assert_array_equal, params, {k: loaded[k] for k in params})


def test_another_autoencoder_is_refused(config):
  config = config.copy_and_resolve_references()
  config.model.channels = 8
  with pytest.raises(UserError, match="set model.channels=64"):
    program.build_recipe(config).dataset(0, 1)


def test_an_autoencoder_goes_on_where_its_components_are_fitted_otherwise(
  folder, vae, tmp_path, monkeypatch
):
  """Their last bits depend on the machine."""
  shutil.copytree(vae.parent, tmp_path / "vae")
  fit = vae_recipe.principal
  others = lambda *args: jax.tree.map(lambda x: x * np.float32(1 + 1e-6), fit(*args))  # noqa: E731
  monkeypatch.setattr(vae_recipe, "principal", others)
  config = config_lib.load("configs/vae_toy.py:smoke", ["train.steps=6"])
  assert loop.fit(config, tmp_path / "vae")["step"] == 6


def test_a_polished_decoder_keeps_its_latents(folder, vae):
  config = config_lib.load("configs/vae_toy.py:smoke")
  polish = config_lib.load("configs/vae_toy.py:polish")
  config.init_from, config.trainable = str(vae), polish.trainable
  config.loss.update(polish.loss.to_dict() | dict(lpips=0.0))
  loop.fit(config, folder / "polished")
  before, after = (native.read_config(f) for f in (vae, folder / "polished" / "export"))
  assert after["vae"] == before["vae"] and len(after["vae_training"]) == 2
  old, new = (native.read_component(f, "vae") for f in (vae, folder / "polished" / "export"))
  jax.tree.map(np.testing.assert_array_equal, old["principal"], new["principal"])
  moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), old["decoder"], new["decoder"])
  assert max(jax.tree.leaves(moved)) > 0
