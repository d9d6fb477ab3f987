"""A second transformer for low noise takes over at the boundary, and may work on single latents."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.errors import UserError
from sora_jax.models.dit import DiT, blank_tokens, split_params, split_patches
from sora_jax.models.patch import patchify
from tests.generate.conftest import perturbed

FIELDS = dict(
  width=32, layers=2, heads=2, mlp_width=48, text_width=16, channels=4, cond_features=4,
  absolute=True, affine=True,
)  # fmt: skip
GRID = (3, 4, 6)


def tokens_of(rng, dit, latents, cells):
  """A clip's tokens: of patches, or (`cells`) of single latents at the places they have in them."""
  lt, lh, lw, _ = latents.shape[1:]
  patch = (1, 1, 1) if cells else dit.patch
  values = patchify(latents, patch)
  rows, columns = (np.arange(n) / 2 - 0.25 if cells else np.arange(n // 2) for n in (lh, lw))
  places = np.stack(np.meshgrid(np.arange(lt), rows, columns, indexing="ij"), -1).reshape(1, -1, 3)
  n = values.shape[1]
  ones = jnp.ones((1, n), jnp.int32)
  return dataclasses.replace(
    blank_tokens(dit), values=values, positions=jnp.asarray(places, jnp.float32),
    period=jnp.zeros((1, n)), segments=ones, block=0 * ones, cond=jnp.full((1, 1, 4), 0.4),
    cond_index=0 * ones, text=jnp.asarray(rng.normal(size=(1, 5, 16)), jnp.float32),
    text_ids=jnp.ones((1, 5), jnp.int32), prompt=ones,
  )  # fmt: skip


def test_a_split_transformer_is_one_of_smaller_patches(rng):
  split = DiT(**FIELDS, split=True)
  latents = jnp.asarray(rng.normal(size=(1, *GRID, 4)), jnp.float32)
  given = tokens_of(np.random.default_rng(1), split, latents, cells=False)
  cells = tokens_of(np.random.default_rng(1), split, latents, cells=True)
  params = perturbed(split.init(jax.random.key(0), given)["params"], jax.random.key(1))
  made = split.apply({"params": params}, given)
  small = DiT(**FIELDS, patch=(1, 1, 1)).apply({"params": params}, cells)
  back = patchify(small.reshape(1, *GRID, 4), split.patch)
  np.testing.assert_allclose(made, back, rtol=2e-4, atol=2e-5)
  parts = split_patches(given, split.patch)
  assert parts.values.shape == (1, 72, 4) and split.pieces == 4


def test_it_begins_from_weights_of_patches(rng):
  """Of uniform patches a block of its latents is embedded as the patch was."""
  whole, split = DiT(**FIELDS), DiT(**FIELDS, split=True)
  params = whole.init(jax.random.key(0), blank_tokens(whole))["params"]
  params = perturbed(params, jax.random.key(1))
  begun = split_params(params, split)
  like = jax.eval_shape(split.init, jax.random.key(0), blank_tokens(split))["params"]
  assert jax.tree.map(jnp.shape, begun) == jax.tree.map(jnp.shape, like)
  latent = rng.normal(size=4).astype(np.float32)
  one = latent @ begun["patch_in"]["kernel"]
  np.testing.assert_allclose(one, np.tile(latent, 4) @ params["patch_in"]["kernel"], rtol=1e-4)
  y = rng.normal(size=32).astype(np.float32)
  mean = (y @ params["patch_out"]["kernel"]).reshape(2, 4, 4).mean(1).reshape(-1)
  np.testing.assert_allclose(y @ begun["patch_out"]["kernel"], mean, rtol=1e-4, atol=1e-5)


def test_each_has_its_levels(model):
  """The same weights in both change nothing; others change what follows the boundary alone."""
  ask = dict(prompts="a red ball", steps=4, seed=1)
  alone = model.sample(**ask)
  config = {**model.config, "sampling": {**model.config["sampling"], "boundary": 0.5}}
  same = dataclasses.replace(
    model, low=model.dit, params={**model.params, "low": model.params["dit"]}, config=config
  )
  assert np.abs(same.sample(**ask).astype(int) - alone).max() <= 1
  zeros = jax.tree.map(jnp.zeros_like, model.params["dit"])
  other = dataclasses.replace(same, params={**model.params, "low": zeros})
  assert np.abs(other.sample(**ask).astype(int) - alone).max() > 5
  never = dataclasses.replace(other, config=model.config)  # no level is below 0
  np.testing.assert_array_equal(never.sample(**ask), alone)
  with pytest.raises(UserError, match="a second one for low noise"):
    same.sample(**ask, cache=0.1)
