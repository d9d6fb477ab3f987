"""Wan 2.1's autoencoder: diffusers' implementation and ours are one function."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan
from flax.traverse_util import flatten_dict

from sora_jax.errors import UserError
from sora_jax.interop import wan_vae
from sora_jax.models.vae import VARIANTS, VideoVAE, decode_latents, encode_video

SMALL = dict(
  base_dim=4, z_dim=4, dim_mult=[1, 2, 4, 4], num_res_blocks=1, attn_scales=[],
  temperal_downsample=[False, True, True], dropout=0.0,
  latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[1.5, 0.5, 1.0, 2.0],
)  # fmt: skip


@pytest.fixture(scope="module")
def theirs():
  torch.manual_seed(0)
  model = AutoencoderKLWan(**SMALL).eval()
  with torch.no_grad():
    for parameter in model.parameters():  # no scale is one, no bias is zero
      parameter.add_(0.2 * parameter.abs().mean().clamp(min=0.1) * torch.randn_like(parameter))
  return model


@pytest.fixture(scope="module")
def state(theirs):
  return {name: value.numpy() for name, value in theirs.state_dict().items()}


@pytest.fixture(scope="module")
def ours(theirs, state):
  vae = wan_vae.from_config(theirs.config)
  return vae, jax.tree.map(jnp.asarray, wan_vae.from_diffusers(vae, state))


def channels_last(x):
  return x.permute(0, 2, 3, 4, 1).numpy()


def relative_error(a, b):
  return np.abs(np.asarray(a) - np.asarray(b)).max() / np.abs(b).max()


@pytest.mark.parametrize("size", [(1, 16, 24), (5, 24, 8), (9, 16, 24)])
def test_same_function_whole_and_in_chunks(theirs, ours, size):
  vae, params = ours
  video = np.random.default_rng(1).uniform(-1, 1, (2, *size, 3)).astype(np.float32)
  with torch.no_grad():
    posterior = theirs.encode(torch.from_numpy(video).permute(0, 4, 1, 2, 3)).latent_dist
    pixels = channels_last(theirs.decode(posterior.mean).sample)
  mean = channels_last(posterior.mean)
  latents = (mean - np.array(SMALL["latents_mean"], "f")) / np.array(SMALL["latents_std"], "f")
  for chunk in (None, 1) if size[0] > 1 else (None,):
    assert relative_error(encode_video(vae, params, jnp.asarray(video), chunk), latents) < 1e-5
    assert relative_error(decode_latents(vae, params, jnp.asarray(latents), chunk), pixels) < 1e-5
  if size[0] == 1:
    _, logvar = jax.jit(lambda p, x: vae.apply({"params": p}, x, method=vae.encode))(params, video)
    assert relative_error(logvar, channels_last(posterior.logvar)) < 1e-5


def test_round_trip_is_bit_exact(ours, state):
  vae, params = ours
  back = wan_vae.to_diffusers(vae, params)
  assert back.keys() == state.keys()
  for name, value in state.items():
    assert back[name].shape == value.shape
    np.testing.assert_array_equal(back[name], value)
  again = flatten_dict(wan_vae.from_diffusers(vae, back))
  for path, value in flatten_dict(params).items():
    np.testing.assert_array_equal(again[path], value)


def test_published_size_has_the_same_names_and_shapes():
  with torch.device("meta"):
    published = AutoencoderKLWan()
  vae = wan_vae.from_config(published.config)
  assert vae == VideoVAE(**VARIANTS["wan2.1"])
  state = {k: np.broadcast_to(np.float32(0), v.shape) for k, v in published.state_dict().items()}
  params = wan_vae.from_diffusers(vae, state)
  assert sum(x.size for x in jax.tree.leaves(params)) == sum(v.size for v in state.values())


def test_configs_round_trip(theirs):
  vae = wan_vae.from_config(theirs.config)
  config = wan_vae.to_config(vae)
  assert wan_vae.from_config(config) == vae
  for key, value in SMALL.items():
    assert config[key] == value
  assert wan_vae.from_config(wan_vae.to_config(vae.copy(patch=2))).patch == 2


def test_what_does_not_fit_is_a_user_error(ours, state):
  vae, _ = ours
  name = "encoder.conv_in.weight"
  without = {key: value for key, value in state.items() if key != name}
  for weights, says in (
    (without, f"lack {name}"),
    (without | {name: state[name][:, :, :2]}, f"{name} has shape"),
    (state | {"extra": state[name]}, "contain extra"),
  ):
    with pytest.raises(UserError, match=says):
      wan_vae.from_diffusers(vae, weights)
  with pytest.raises(UserError, match="is_residual"):
    wan_vae.from_config(SMALL | {"is_residual": True})
  with pytest.raises(UserError, match="kernel_t"):
    wan_vae.to_config(VideoVAE(**VARIANTS["toy"]))
