"""The recipes of VideoGPT: what is reported, what follows the whole batch, and the whole path."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sora_jax
from sora_jax import config as config_lib
from sora_jax.errors import UserError
from sora_jax.generate.videogpt import VideoGPT
from sora_jax.interop import native
from sora_jax.models import vqvae as models
from sora_jax.train import loop, program, videogpt, vqvae
from sora_jax.train.step import OUTPUTS
from tests.conftest import random_weights


def smoke(**train):
  config = config_lib.load("configs/vqvae_toy.py:smoke")
  config.model.linear = False
  config.train.update(train)
  return config


@pytest.fixture(scope="module")
def clips():
  rng = np.random.default_rng(0)
  return {"video": rng.integers(0, 256, size=(8, 5, 32, 32, 3), dtype=np.uint8)}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
  """A tiny autoencoder with random weights, as recipe vqvae exports it."""
  recipe = vqvae.build(smoke())
  params = random_weights(recipe.vqvae.init, jnp.zeros((1, 5, 32, 32, 3)))
  folder = tmp_path_factory.mktemp("vqvae")
  recipe.export({"vqvae": params}, folder)
  return folder / "export"


def prior_config(exported, folder):
  config = config_lib.load("configs/videogpt_toy.py:smoke", [f"vqvae={exported}"])
  config.data.cache = str(folder / "codes")
  return config


def test_the_first_batch_begins_the_codebook_and_the_others_move_it(clips):
  recipe = vqvae.build(smoke())
  vq = random_weights(recipe.vqvae.init, jnp.zeros((1, 5, 32, 32, 3)))
  state = vqvae.even(vq["codebook"])
  params = {"vqvae": vq, "running": {name: 0 * state[name] for name in ("count", "total")}}
  _, found = jax.jit(recipe.loss)(params, clips, jax.random.key(0), jnp.zeros((), jnp.int32))
  outputs = found[OUTPUTS]
  after = jax.jit(recipe.after)
  begun = after(params, jnp.asarray(0), outputs)
  error = lambda params: np.mean((  # noqa: E731
    models.residual_codes(params["vqvae"]["codebook"], outputs["z"])[1][-1] - outputs["z"]
  ) ** 2)  # fmt: skip
  assert error(begun) < 0.8 * np.var(outputs["z"]) and error(begun) < 0.5 * error(params)
  np.testing.assert_allclose(begun["running"]["count"], 1 / 16)
  codes, _ = models.residual_codes(begun["vqvae"]["codebook"], outputs["z"])
  moved = after(begun, jnp.asarray(1), outputs | {"codes": codes})
  state = vqvae.even(begun["vqvae"]["codebook"])
  key = jax.random.fold_in(jax.random.key(0), 1)
  q = recipe.quantising
  expected = models.update(state, outputs["z"], codes, key, q.decay, q.restart)
  np.testing.assert_allclose(moved["vqvae"]["codebook"], expected["codebook"], rtol=1e-4, atol=1e-5)
  assert moved["vqvae"]["encoder"] is not None and np.any(
    moved["vqvae"]["codebook"] != begun["vqvae"]["codebook"]
  )


def test_training_goes_on_from_what_was_exported(exported):
  config = smoke()
  config.init_from = str(exported)
  params = jax.jit(vqvae.build(config).init)(jax.random.key(1))
  _, stored = native.load_vqvae(exported)
  jax.tree.map(np.testing.assert_array_equal, params["vqvae"], stored)
  running = params["running"]
  np.testing.assert_allclose(
    running["total"] / running["count"][..., None], stored["codebook"], rtol=1e-6
  )


def test_the_loss_by_hand(exported, tmp_path, rng):
  config = prior_config(exported, tmp_path)
  config.text_dropout = 0.0
  recipe = videogpt.build(config)
  grid, depth = recipe.prior.grid, recipe.prior.depth
  assert grid == (2, 4, 4) and depth == 2
  shapes = recipe.batch()
  batch = {
    "codes": rng.integers(0, 16, size=shapes["codes"].shape).astype(np.uint16),
    "pieces": rng.integers(0, 1000, size=shapes["pieces"].shape).astype(np.int32),
    "text_ids": np.ones(shapes["text_ids"].shape, np.int32),
  }
  params = random_weights(lambda key: {"params": recipe.init(key)})
  key, step = jax.random.key(0), jnp.zeros((), jnp.int32)
  loss, found = jax.jit(recipe.loss)(params, batch, key, step)
  text = jax.jit(recipe.text.apply)({"params": params["text"]}, batch["pieces"], batch["text_ids"])
  codes = jnp.asarray(batch["codes"], jnp.int32)
  logits = jax.jit(recipe.prior.apply)({"params": params["prior"]}, codes, text, batch["text_ids"])
  logits = np.asarray(logits, np.float64)
  p = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
  bits = -np.log2(np.take_along_axis(p, np.asarray(codes)[..., None], axis=-1))[..., 0]
  np.testing.assert_allclose(loss, bits.mean() * np.log(2), rtol=1e-4)
  np.testing.assert_allclose(found["bits"], bits.mean(), rtol=1e-4)
  np.testing.assert_allclose(found["first_frame"], bits[:, 0].mean(), rtol=1e-4)
  np.testing.assert_allclose(found["later_frames"], bits[:, 1:].mean(), rtol=1e-4)
  np.testing.assert_allclose(found["first_codes"], bits[..., 0].mean(), rtol=1e-4)
  of_a_clip = bits.sum(axis=(1, 2, 3, 4)).mean()
  np.testing.assert_allclose(found["bits_per_dim"], of_a_clip / (5 * 32 * 32 * 3), rtol=1e-4)


def test_what_is_read_is_not_trained(exported, tmp_path):
  recipe = videogpt.build(prior_config(exported, tmp_path))
  params = jax.jit(recipe.init)(jax.random.key(0))
  _, stored = native.load_vqvae(exported)
  np.testing.assert_array_equal(params["prior"]["codebook"], stored["codebook"])
  made = program.build(recipe.config)
  frozen = [
    "/".join(str(k.key) for k in path)
    for path, leaf in jax.tree.leaves_with_path(made.state.frozen)
    if leaf is not None
  ]
  assert sorted(frozen) == ["prior/codebook", "text/pieces"]
  config = prior_config(exported, tmp_path)
  config.vqvae = ""
  with pytest.raises(UserError, match="set config.vqvae"):
    videogpt.build(config)
  config.vqvae = "toy"
  with pytest.raises(UserError, match="no discrete autoencoder"):
    videogpt.build(config)
  config = prior_config(exported, tmp_path)
  config.model.patch = (3, 1)
  with pytest.raises(UserError, match="3x1 do not divide"):
    videogpt.build(config)


@pytest.mark.slow
def test_codebooks_are_the_same_however_a_batch_is_divided(clips):
  found = []
  for train in (
    dict(mesh={"data": 1}), dict(mesh={"data": 1}, accumulate=2),
    dict(mesh={"data": 2, "fsdp": 2, "tensor": 2}),
  ):  # fmt: skip
    made = program.build(smoke(batch_size=8, **train))
    with jax.set_mesh(made.mesh):
      state = jax.jit(
        lambda key, made=made: made.create(made.recipe.init(key)), out_shardings=made.shardings
      )(jax.random.key(0))
      for _ in range(2):
        state, _ = made.step(state, loop.to_devices(clips, made.mesh))
      found.append(jax.device_get(state.followers))
  assert np.ptp(found[0]["running"]["count"]) > 0
  for other in found[1:]:
    close = lambda a, b: np.testing.assert_allclose(b, a, rtol=2e-3, atol=1e-4)  # noqa: E731
    jax.tree.map(close, found[0], other)


@pytest.mark.slow
def test_from_worlds_to_a_video(tmp_path):
  config = config_lib.load("configs/vqvae_toy.py:smoke")
  result = loop.fit(config, tmp_path / "vqvae")
  assert result["step"] == 4 and np.isfinite(result["loss"])
  config = prior_config(tmp_path / "vqvae" / "export", tmp_path)
  result = loop.fit(config, tmp_path / "videogpt")
  assert result["step"] == 4 and np.isfinite(result["loss"])
  assert list((tmp_path / "videogpt" / "previews").iterdir())
  folder = tmp_path / "videogpt" / "export"
  model = sora_jax.load(folder)
  assert isinstance(model, VideoGPT)
  assert model.sample("a red ball rolls to the left").shape == (5, 32, 32, 3)
  stored = native.read_config(folder)
  assert stored["vqvae_training"][0]["recipe"] == "vqvae" and "a" in stored["known_words"]
  config.init_from = str(folder)
  again = program.build_recipe(config).init(jax.random.key(1))
  for part in ("prior", "text"):
    jax.tree.map(np.testing.assert_array_equal, again[part], jax.device_get(model.params[part]))
