"""Images by class: from the config to a checkpoint that samples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax import config as config_lib
from sora_jax.errors import UserError
from sora_jax.generate import classes
from sora_jax.train import dit, loop, program


@pytest.fixture
def config():
  return config_lib.load("configs/dit_toy.py:smoke")


def test_a_frame_has_the_class_of_its_only_object(rng):
  sample = {"truth": {"labels": {"colour": "cyan", "shape": "cone", "count": 1}}, "id": "a"}
  out = dit.labelled(dict(sample), rng)
  assert dit.CLASSES[out["label"]] == "cyan cone" and "truth" not in out
  sample["truth"]["labels"]["count"] = 2
  assert dit.labelled(sample, rng) is None
  assert len(set(dit.CLASSES)) == 40


def test_another_autoencoder_is_refused(config):
  config.model.channels = 4
  with pytest.raises(UserError, match="set model.channels=64"):
    program.build_recipe(config)


def test_velocity_loss_is_0_for_the_truth(rng):
  x = jnp.asarray(rng.normal(size=(3, 4, 4, 2)), jnp.float32)

  def truth(x_t, time):  # with the data known, noise is what is left
    level = (1 - time)[:, None, None, None]
    return x - (x_t - (1 - level) * x) / level

  loss, _ = dit.flow_loss(truth, x, jax.random.key(0))
  assert loss < 1e-6
  wrong, _ = dit.flow_loss(lambda x_t, time: -truth(x_t, time), x, jax.random.key(0))
  assert wrong > 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dit", "sit"])
def test_the_path_ends_in_images(config, kind, tmp_path):
  if kind == "sit":
    config.model.update(config_lib.load("configs/dit_toy.py:sit").model.to_dict())
    config.model.update(width=32, layers=2, heads=2)
    config.sampling.sampler = "heun"
  result = loop.fit(config, tmp_path)
  assert result["step"] == 4 and np.isfinite(result["loss"])
  assert list((tmp_path / "previews").iterdir())
  model = classes.load(tmp_path / "export")
  images = model.sample(["red ball", 39], steps=2)
  assert images.shape == (2, 64, 64, 3) and images.dtype == np.uint8
  config.init_from = str(tmp_path / "export")
  params = program.build_recipe(config).init(jax.random.key(1))
  jax.tree.map(np.testing.assert_array_equal, params["dit"], model.params["dit"])
