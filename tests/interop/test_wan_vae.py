"""Wan's autoencoders, 2.1 and 2.2: diffusers' implementation and ours are one function."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan

from sora_jax.errors import UserError
from sora_jax.interop import names, wan_vae
from sora_jax.models.vae import VARIANTS, VideoVAE, decode_latents, encode_video

WAN22 = dict(is_residual=True, patch_size=2, in_channels=12, out_channels=12)
CONFIGS = {  # with a size: frames, rows, columns
  "2.1": (dict(dim_mult=[1, 2, 3], temperal_downsample=[False, True]), (9, 12, 20)),
  "2.1, one step": (dict(dim_mult=[1, 3], temperal_downsample=[True], num_res_blocks=2),
                    (5, 6, 10)),
  "2.1, no time": (dict(dim_mult=[1, 2], temperal_downsample=[False], in_channels=5,
                        out_channels=5), (1, 2, 14)),
  "2.2": (dict(WAN22, dim_mult=[1, 2, 4, 4], temperal_downsample=[False, True, True],
               decoder_base_dim=6), (9, 16, 48)),
  "2.2, time first": (dict(WAN22, dim_mult=[1, 2, 2], temperal_downsample=[True, False]),
                      (17, 8, 24)),
  "2.2, no patches": (dict(is_residual=True, dim_mult=[1, 1], temperal_downsample=[True],
                           decoder_base_dim=4), (1, 10, 6)),
}  # fmt: skip


@functools.cache
def pair(name):
  """The reference with no scale one and no bias zero, and ours with its weights."""
  torch.manual_seed(0)
  statistics = dict(latents_mean=[0.1, -0.2, 0.3], latents_std=[1.5, 0.5, 1.0])
  config = dict(base_dim=4, z_dim=3, num_res_blocks=1) | statistics | CONFIGS[name][0]
  theirs = AutoencoderKLWan(**config).eval()
  with torch.no_grad():
    for parameter in theirs.parameters():
      parameter.add_(0.2 * parameter.abs().mean().clamp(min=0.1) * torch.randn_like(parameter))
  vae = wan_vae.from_config(theirs.config)
  params = names.to_ours(state_of(theirs), wan_vae.rules(vae), wan_vae.shapes(vae))
  return theirs, vae, jax.tree.map(jnp.asarray, params)


def state_of(theirs):
  return {name: value.float().numpy() for name, value in theirs.state_dict().items()}


def clip(vae, frames, height, width):
  """Random pixels; exact in bfloat16."""
  video = np.random.default_rng(1).uniform(-1, 1, (1, frames, height, width, vae.channels))
  return np.asarray(jnp.asarray(video, jnp.bfloat16), np.float32)


def first(x):
  return torch.from_numpy(x).permute(0, 4, 1, 2, 3)


def last(x):
  return x.detach().permute(0, 2, 3, 4, 1).float().numpy()


def error(a, b):
  return np.linalg.norm(np.asarray(a, np.float32) - b) / np.linalg.norm(b)


@pytest.mark.parametrize("name", CONFIGS)
def test_outputs_and_gradients(name):
  theirs, vae, params = pair(name)
  video, rng = clip(vae, *CONFIGS[name][1]), np.random.default_rng(2)
  posterior = theirs.encode(first(video)).latent_dist
  outputs = [posterior.mean, posterior.logvar, theirs.decode(posterior.mean).sample]
  weights = [rng.normal(size=last(x).shape).astype(np.float32) for x in outputs]
  sum((x * first(w)).sum() for x, w in zip(outputs, weights, strict=True)).backward()
  # One frame leaves the convolutions over time out of it.
  expected = {
    name: (torch.zeros_like(p) if p.grad is None else p.grad).numpy()
    for name, p in theirs.named_parameters()
  }
  theirs.zero_grad()

  @jax.jit
  def ours(params, video):
    def loss(params):
      mean, logvar = vae.apply({"params": params}, video, method=vae.encode)
      pixels = vae.apply({"params": params}, mean, method=vae.decode).clip(-1, 1)
      parts = mean, logvar, pixels
      return sum((x * w).sum() for x, w in zip(parts, weights, strict=True)), parts

    return jax.grad(loss, has_aux=True)(params)

  gradient, parts = ours(params, video)
  for part, output in zip(parts, outputs, strict=True):
    assert error(part, last(output)) < 1e-5
  gradient = names.to_theirs(gradient, wan_vae.rules(vae))
  flat = [np.concatenate([g[k].ravel() for k in expected]) for g in (gradient, expected)]
  assert error(*flat) < 1e-4


@pytest.mark.parametrize("name", ["2.1", "2.2"])
def test_any_length_in_chunks(name):
  theirs, vae, params = pair(name)
  mean, std = (np.float32(theirs.config[k]) for k in ("latents_mean", "latents_std"))
  for frames in (1, 5, 9, 17):
    video = clip(vae, frames, 48, 16)
    with torch.no_grad():
      latents = theirs.encode(first(video)).latent_dist.mean
      pixels = last(theirs.decode(latents).sample)
    latents = (last(latents) - mean) / std
    assert error(encode_video(vae, params, jnp.asarray(video), 1), latents) < 1e-5
    assert error(decode_latents(vae, params, jnp.asarray(latents), 1), pixels) < 1e-5


@pytest.mark.parametrize("name", ["2.1", "2.2"])
def test_bfloat16_is_no_worse_than_theirs(name):
  """Distances to the float32 reference, of the means and of pixels from the same latents."""
  theirs, vae, params = pair(name)
  video, half = clip(vae, *CONFIGS[name][1]), vae.copy(dtype=jnp.bfloat16)
  with torch.no_grad():
    exact = theirs.encode(first(video)).latent_dist.mean.bfloat16().float()
    pixels = theirs.decode(exact).sample
    low = AutoencoderKLWan(**theirs.config).eval()
    low.load_state_dict(theirs.state_dict())
    low.bfloat16()
    rough = low.encode(first(video).bfloat16()).latent_dist.mean
    reference = [(rough, exact), (low.decode(exact.bfloat16()).sample, pixels)]
  means, _ = jax.jit(functools.partial(half.apply, method=half.encode))({"params": params}, video)
  made = jax.jit(functools.partial(half.apply, method=half.decode))({"params": params}, last(exact))
  for ours, (a, b) in zip((means, made.clip(-1, 1)), reference, strict=True):
    assert 0 < error(ours, last(b)) <= error(last(a), last(b))


@pytest.mark.parametrize("name", CONFIGS)
def test_round_trip_is_bit_exact(name):
  theirs, vae, params = pair(name)
  back, state = names.to_theirs(params, wan_vae.rules(vae)), state_of(theirs)
  assert back.keys() == state.keys()
  for key, value in state.items():
    np.testing.assert_array_equal(back[key], value)
  config = wan_vae.to_config(vae)
  assert wan_vae.from_config(config) == vae
  assert config.pop("_class_name") == wan_vae.NAME
  again = AutoencoderKLWan(**config)
  assert {k: v.shape for k, v in again.state_dict().items()} == {
    k: v.shape for k, v in back.items()
  }


@pytest.mark.parametrize("variant, millions", [("wan2.1", 126.89), ("wan2.2", 704.69)])
def test_published_sizes_have_the_same_names_and_shapes(variant, millions):
  vae = VideoVAE(**VARIANTS[variant])
  config = wan_vae.to_config(vae)
  with torch.device("meta"):
    published = AutoencoderKLWan(**{k: v for k, v in config.items() if k != "_class_name"})
  state = {k: np.broadcast_to(np.float32(0), v.shape) for k, v in published.state_dict().items()}
  params = names.to_ours(state, wan_vae.rules(vae), wan_vae.shapes(vae))
  assert sum(x.size for x in jax.tree.leaves(params)) / 1e6 == pytest.approx(millions, abs=0.01)


def test_published_configs_say_less_or_more():
  """Wan 2.1's has no fields of 2.2; newer versions of diffusers may add others."""
  published = dict(
    _class_name="AutoencoderKLWan", _diffusers_version="0.33.0", attn_scales=[], base_dim=96,
    dim_mult=[1, 2, 4, 4], num_res_blocks=2, temperal_downsample=[False, True, True], z_dim=16,
    clip_output=False,
  )  # fmt: skip
  assert wan_vae.from_config(published) == VideoVAE(**VARIANTS["wan2.1"])


def test_what_does_not_fit_is_a_user_error():
  _, vae, _ = pair("2.2")
  config = wan_vae.to_config(vae)
  for change, says in (
    (dict(attn_scales=[0.5]), "attn_scales"),
    (dict(out_channels=3), "out_channels = 3"),
    (dict(dim_mult=[2, 4, 4, 4]), "dim_mult = "),
    (dict(z_dim=4), "4 channels .z_dim. and 3 numbers in latents_mean"),
  ):
    with pytest.raises(UserError, match=says):
      wan_vae.from_config(config | change)
  for other in (VideoVAE(**VARIANTS["toy"]), vae.copy(decoder_widths=(6, 12, 24, 30))):
    with pytest.raises(UserError, match="kernel_t"):
      wan_vae.to_config(other)
