"""A tiny checkpoint with random weights."""

import jax
import numpy as np
import pytest

from sora_jax.generate import model as generate
from sora_jax.interop import native
from sora_jax.models.dit import DiT, blank_tokens
from sora_jax.models.text import TextEncoder
from sora_jax.models.vae import VideoVAE

CONFIG = {
  "vae": dict(
    z_channels=4, widths=[8, 8, 8], latent_mean=[0.1, -0.2, 0.0, 0.3],
    latent_std=[1.0, 0.5, 2.0, 1.0],
  ),
  "transformer": dict(
    width=48, layers=2, heads=2, mlp_width=64, text_width=32, channels=4, cond_features=4
  ),
  "text": dict(vocabulary=27_628, width=32, layers=1, heads=2, length=16),
  "known_words": ["a", "ball", "red"],
  "sampling": dict(steps=6, guidance=2.0, frames=5, size=[32, 32], fps=8.0),
}  # fmt: skip


def perturbed(params, key):
  """Random numbers everywhere: zero-initialised gates would make every prompt alike."""
  leaves, tree = jax.tree.flatten(params)
  keys = jax.random.split(key, len(leaves))
  noisy = [x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
  return jax.tree.unflatten(tree, noisy)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
  key = jax.random.key(0)
  dit, text = DiT(**CONFIG["transformer"]), TextEncoder(**CONFIG["text"])
  vae = VideoVAE(**{k: tuple(v) if isinstance(v, list) else v for k, v in CONFIG["vae"].items()})
  pieces = np.ones((1, 16), np.int32)
  components = {
    "vae": jax.jit(vae.init)(key, np.zeros((1, 1, 16, 16, 3), np.float32), key)["params"],
    "transformer": {
      "dit": perturbed(jax.jit(dit.init)(key, blank_tokens(dit))["params"], key),
      "text": jax.jit(text.init)(key, pieces, pieces)["params"],
    },
  }
  del components["transformer"]["text"]["pieces"]  # those of the package
  native.save(folder, components, CONFIG)
  return folder


@pytest.fixture(scope="module")
def model(folder):
  return generate.load(folder, mesh={"data": 1})
