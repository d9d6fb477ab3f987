"""Laws of the discriminator: one class for images and videos, local and causal."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.models.discriminator import PatchDiscriminator


@pytest.fixture(scope="module")
def untrained():
  model = PatchDiscriminator(widths=(4, 6, 8))
  return model, model.init(jax.random.key(0), jnp.zeros((1, 1, 16, 16, 3)))


@pytest.fixture(scope="module")
def model(untrained):
  model, variables = untrained
  rng = np.random.default_rng(1)
  return model, jax.tree.map(lambda x: x + 0.2 * rng.normal(size=x.shape).astype("f"), variables)


def video(frames, height=64, width=72, seed=2):
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.uniform(-1.0, 1.0, (2, frames, height, width, 3)), jnp.float32)


def test_a_logit_per_patch_and_frame(model):
  model, variables = model
  for frames in (1, 5):
    assert model.apply(variables, video(frames)).shape == (2, frames, 8, 9)


def test_untrained_it_judges_frames_as_images(untrained):
  model, variables = untrained
  x = video(5, 16, 24)
  each = jnp.concatenate([model.apply(variables, x[:, i : i + 1]) for i in range(5)], axis=1)
  np.testing.assert_allclose(model.apply(variables, x), each, atol=1e-5)


def test_causal_and_sees_motion(model):
  model, variables = model
  x = video(5, 16, 24)
  before, after = model.apply(variables, x), model.apply(variables, x.at[:, 2].add(0.5))
  np.testing.assert_allclose(after[:, :2], before[:, :2], atol=1e-5)
  assert (np.abs(after - before)[:, 2:].max(axis=(0, 2, 3)) > 1e-4).all()


def test_receptive_field(model):
  """31 x 31 pixels, aligned with the patch."""
  model, variables = model
  seen = jax.grad(lambda x: model.apply(variables, x)[0, 0, 4, 4])(video(1, 72, 72))
  rows = np.flatnonzero(np.abs(seen[0, 0]).max(axis=(1, 2)))
  columns = np.flatnonzero(np.abs(seen[0, 0]).max(axis=(0, 2)))
  assert (rows.min(), rows.max()) == (columns.min(), columns.max()) == (24, 54)
