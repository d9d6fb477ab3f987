"""Our ImageVAE computes what diffusers' AutoencoderKL computes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from sora_jax.errors import UserError
from sora_jax.interop import names, sd_vae
from sora_jax.models.image_vae import VARIANTS, ImageVAE

CASES = (
  (dict(block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4), (16, 24)),
  (dict(block_out_channels=(8, 8, 16), layers_per_block=2, norm_num_groups=2), (20, 12)),
  (dict(block_out_channels=(6,), layers_per_block=1, norm_num_groups=3, latent_channels=3), (7, 5)),
  (
    dict(block_out_channels=(4, 12), layers_per_block=1, norm_num_groups=4, latent_channels=16,
         use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.1, scaling_factor=0.36),
    (11, 9),
  ),
  (
    dict(block_out_channels=(16, 8), layers_per_block=1, norm_num_groups=8, in_channels=1,
         out_channels=1, mid_block_add_attention=False),
    (13, 22),
  ),
)  # fmt: skip


def reference(fields):
  blocks = len(fields["block_out_channels"])
  torch.manual_seed(0)
  model = AutoencoderKL(
    down_block_types=("DownEncoderBlock2D",) * blocks,
    up_block_types=("UpDecoderBlock2D",) * blocks, **fields,
  )  # fmt: skip
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.add_(0.1 * torch.randn_like(parameter))
  return model.eval()


def ported(model):
  vae = sd_vae.from_config(model.config)
  tensors = {name: x.numpy() for name, x in model.state_dict().items()}
  return vae, names.to_ours(tensors, sd_vae.rules(vae), sd_vae.shapes(vae)), tensors


def channels_last(x):
  return x.permute(0, 2, 3, 1).numpy()


def channels_first(x):
  return torch.from_numpy(x).permute(0, 3, 1, 2)


def relative_error(a, b):
  return np.linalg.norm(np.asarray(a) - b) / np.linalg.norm(b)


@pytest.mark.parametrize(("fields", "size"), CASES)
def test_same_function_and_exact_round_trip(fields, size, rng):
  model = reference(fields)
  vae, params, tensors = ported(model)
  image = rng.uniform(-1, 1, (2, *size, vae.channels)).astype(np.float32)
  with torch.no_grad():
    posterior = model.encode(channels_first(image)).latent_dist
    pixels = channels_last(model.decode(posterior.mean).sample)
  mean, logvar = jax.jit(lambda p, x: vae.apply({"params": p}, x, method=vae.encode))(params, image)
  assert relative_error(mean, channels_last(posterior.mean)) < 1e-5
  assert relative_error(logvar, channels_last(posterior.logvar)) < 1e-5
  decode = jax.jit(lambda p, z: vae.apply({"params": p}, z, method=vae.decode))
  assert relative_error(decode(params, channels_last(posterior.mean)), pixels) < 1e-5

  back = names.to_theirs(params, sd_vae.rules(vae))
  assert back.keys() == tensors.keys()
  for name, tensor in tensors.items():
    np.testing.assert_array_equal(back[name], tensor)
  config = sd_vae.to_config(vae)
  assert sd_vae.from_config(config) == vae
  assert config.pop("_class_name") == type(model).__name__
  assert AutoencoderKL(**config).state_dict().keys() == tensors.keys()


def test_same_gradients(rng):
  model = reference(CASES[0][0])
  vae, params, _ = ported(model)
  image = rng.uniform(-1, 1, (2, 10, 8, 3)).astype(np.float32)
  weight = rng.normal(size=image.shape).astype(np.float32)

  def loss(params, image):
    return jnp.mean(weight * vae.apply({"params": params}, image) ** 2)

  of_params, of_image = jax.jit(jax.grad(loss, (0, 1)))(params, jnp.asarray(image))
  given = channels_first(image).requires_grad_()
  out = model.decode(model.encode(given).latent_dist.mean).sample
  (channels_first(weight) * out**2).mean().backward()
  assert relative_error(of_image, channels_last(given.grad)) < 1e-4
  theirs = {name: p.grad.numpy() for name, p in model.named_parameters()}
  for name, grad in names.to_theirs(of_params, sd_vae.rules(vae)).items():
    if "to_k.bias" not in name:  # moves all scores of a query alike: 0 but for rounding
      assert relative_error(grad, theirs[name]) < 1e-4, name


def test_published_size_has_the_same_names_and_shapes():
  with torch.device("meta"):
    model = AutoencoderKL(
      down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
      block_out_channels=(128, 256, 512, 512), layers_per_block=2, sample_size=256,
    )  # fmt: skip
  vae = sd_vae.from_config(model.config)
  assert vae == ImageVAE(**VARIANTS["sd"])
  state = {k: np.broadcast_to(np.float32(0), v.shape) for k, v in model.state_dict().items()}
  params = names.to_ours(state, sd_vae.rules(vae), sd_vae.shapes(vae))
  assert sum(x.size for x in jax.tree.leaves(params)) == 83_653_863


def test_old_names_are_known():
  model = reference(CASES[0][0])
  vae, params, tensors = ported(model)
  old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
  files = dict(tensors)
  for today, then in old.items():
    files = {name.replace(f".{today}.", f".{then}."): x for name, x in files.items()}
  assert sum("proj_attn" in name for name in files) == 4
  again = names.to_ours(files, sd_vae.rules(vae), sd_vae.shapes(vae))
  jax.tree.map(np.testing.assert_array_equal, again, params)


def test_attention_may_be_stored_as_convolutions():
  vae, params, tensors = ported(reference(CASES[0][0]))
  linear = [name for name in tensors if "attentions" in name and tensors[name].ndim == 2]
  files = tensors | {name: tensors[name][..., None, None] for name in linear}
  again = names.to_ours(files, sd_vae.rules(vae), sd_vae.shapes(vae))
  jax.tree.map(np.testing.assert_array_equal, again, params)
  files[linear[0]] = np.zeros((*tensors[linear[0]].shape, 3, 3))
  with pytest.raises(UserError, match=f"{linear[0]} of shape .*, 3, 3. makes no encoder"):
    names.to_ours(files, sd_vae.rules(vae), sd_vae.shapes(vae))


def test_another_network_is_a_user_error():
  config = dict(reference(CASES[0][0]).config)
  for key, value in (
    ("down_block_types", ["AttnDownEncoderBlock2D", "DownEncoderBlock2D"]),
    ("act_fn", "gelu"),
    ("use_post_quant_conv", False),
    ("latents_mean", [0.0] * 4),
  ):
    with pytest.raises(UserError, match=f"{key}="):
      sd_vae.from_config({**config, key: value})
