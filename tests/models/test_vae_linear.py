"""The linear part of the autoencoder is the best there is, and is where training starts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.errors import UserError
from sora_jax.models.vae import VideoVAE
from sora_jax.models.vae_linear import PatchComponents, fit

Z = 4


@pytest.fixture(scope="module")
def video():
  """Clips whose patches have a few loud directions and many faint ones."""
  rng = np.random.default_rng(0)
  loud = rng.normal(size=(3, 6, 9, 16, 16, 3)).cumsum(2).cumsum(3).cumsum(4)
  return (0.01 * loud[0] + 0.1).astype(np.float32)


def reconstruct(components, params, video):
  return np.asarray(components.apply({"params": params}, jnp.asarray(video), True))


@pytest.mark.parametrize("z", [Z, 6])  # mixed by a Hadamard matrix, and where there is none
def test_no_linear_map_of_this_width_is_better(video, z):
  components = PatchComponents(z, time=4, space=8)
  params = fit(components, video)
  error = video - reconstruct(components, params, video)
  squares = video[:, 0].reshape(-1, 2, 8, 2, 8, 3).swapaxes(2, 3).reshape(-1, 192)
  lost = np.linalg.svd(squares - squares.mean(0), compute_uv=False)[z:]
  assert np.sum(error[:, :1] ** 2) == pytest.approx(np.sum(lost**2), rel=1e-3)
  best = np.mean(error**2)
  rng = np.random.default_rng(1)
  for _ in range(4):  # any other map near it loses more
    other = jax.tree.map(lambda x: x + 0.01 * rng.normal(size=x.shape) * np.abs(x).max(), params)
    assert np.mean((video - reconstruct(components, other, video)) ** 2) > best


def test_grey_clips_have_components_too():
  components, grey = (
    PatchComponents(Z, time=4, space=8),
    np.full((2, 5, 16, 16, 3), 0.25, np.float32),
  )
  made = reconstruct(components, fit(components, grey), grey)
  np.testing.assert_allclose(made, grey, atol=1e-5)


def test_single_frames_are_refused():
  with pytest.raises(UserError, match="at least 5 frames, not 1"):
    fit(PatchComponents(Z, time=4, space=8), np.zeros((2, 1, 16, 16, 3), np.float32))


def test_latents_have_unit_mean_square_and_no_silent_channel(video):
  components = PatchComponents(Z, time=4, space=8)
  params = {"params": fit(components, video)}
  latents = np.asarray(components.apply(params, jnp.asarray(video), True, method="encode"))
  for part in (latents[:, :1], latents[:, 1:]):
    std = part.reshape(-1, Z).std(axis=0)
    assert np.mean(std**2) == pytest.approx(1, rel=0.05) and std.min() > 0.5


def test_no_rotation_brings_still_pictures_nearer_to_first_frames(video):
  components = PatchComponents(Z, time=4, space=8)
  still = np.repeat(video[:, :1], 5, axis=1)
  params = {"params": fit(components, video)}
  latents = np.asarray(components.apply(params, jnp.asarray(still), True, method="encode"))
  first, later = latents[:, 0], latents[:, 1]
  apart = np.mean((first - later) ** 2)
  rng = np.random.default_rng(2)
  for _ in range(8):
    turn = np.linalg.qr(np.eye(Z) + 0.1 * rng.normal(size=(Z, Z)))[0]
    turn *= np.sign(np.diag(turn))
    assert np.mean((first @ turn - later) ** 2) > apart


@pytest.mark.parametrize("learned", [("encoder", "decoder"), ("decoder",), ()])
def test_an_autoencoder_starts_as_its_linear_part(video, learned):
  vae = VideoVAE(
    z_channels=Z, widths=(6, 8), patch=4, patch_time=4, time_down=(False,), kernel_t=(1, 3),
    linear=True, learned=learned,
  )  # fmt: skip
  key, pixels = jax.random.key(0), jnp.asarray(video)
  params = jax.jit(vae.init)(key, pixels[:1, :1], key)["params"]
  components = PatchComponents(Z, vae.time_stride, vae.space_stride)
  params["principal"] = fit(components, video)
  mean, _ = vae.apply({"params": params}, pixels, method="encode")
  made = vae.apply({"params": params}, mean, method="decode")
  np.testing.assert_allclose(made, reconstruct(components, params["principal"], video), atol=1e-5)
