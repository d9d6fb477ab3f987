"""Our DiT computes what the published Wan transformers compute."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import WanTransformer3DModel

from sora_jax.errors import UserError
from sora_jax.interop import names, wan_dit
from sora_jax.models.dit import VARIANTS, DiT
from sora_jax.models.patch import grid_shape, patchify, unpatchify
from sora_jax.models.tokens import Tokens

CONFIGS = {  # heads, their width, other fields; size of the latents: frames, rows, columns
  "video": (2, 24, dict(num_layers=3), (3, 6, 8)),
  "image": (3, 12, dict(in_channels=5, out_channels=5), (1, 10, 6)),
  "one row": (1, 44, dict(text_dim=12), (5, 2, 14)),
  "patches in time": (2, 32, dict(patch_size=(2, 1, 3)), (4, 5, 9)),
  "one block": (4, 16, dict(num_layers=1, eps=1e-3), (7, 6, 2)),
}
WORDS = 7


@functools.cache
def reference(name):
  torch.manual_seed(0)
  heads, width, fields, _ = CONFIGS[name]
  small = dict(
    num_attention_heads=heads, attention_head_dim=width, in_channels=4, out_channels=4,
    text_dim=20, freq_dim=32, ffn_dim=56, num_layers=2,
    cross_attn_norm=True, qk_norm="rms_norm_across_heads", rope_max_seq_len=32,
  )  # fmt: skip
  model = WanTransformer3DModel(**(small | fields))
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.add_(0.1 * torch.randn_like(parameter))
  return model.eval()


@functools.cache
def ported(name):
  model = wan_dit.from_config(reference(name).config)
  tensors = {name: x.numpy() for name, x in reference(name).state_dict().items()}
  return model, names.to_ours(tensors, wan_dit.rules(model), wan_dit.shapes(model))


def inputs(name):
  """Latents and text states of two samples, exact in bfloat16."""
  config, rng = reference(name).config, np.random.default_rng(0)
  sizes = (2, *CONFIGS[name][-1], config.in_channels), (2, WORDS, config.text_dim)
  return [np.asarray(jnp.asarray(rng.normal(size=s), jnp.bfloat16), np.float32) for s in sizes]


def run_reference(model, latents, levels, text):
  """Latents channels last, levels up to 1000 per sample or per token."""
  kind = model.patch_embedding.weight.dtype
  arrays = torch.tensor(latents).permute(0, 4, 1, 2, 3), torch.tensor(text)
  out = model(arrays[0].to(kind), torch.tensor(levels), arrays[1].to(kind)).sample
  return out.permute(0, 2, 3, 4, 1).float()


def run_ours(model, params, latents, cond, text, index=0):
  """`cond` has the levels of each sample's rows, `index` the row of each token."""
  grid = grid_shape(latents.shape[1:4], model.patch)
  axes = np.meshgrid(*map(np.arange, grid), indexing="ij")
  b, n = len(latents), int(np.prod(grid))
  positions = np.broadcast_to(np.stack(axes, -1).reshape(n, 3), (b, n, 3))
  ones = jnp.ones((b, n), jnp.int32)
  tokens = Tokens(
    values=patchify(jnp.asarray(latents), model.patch), positions=jnp.asarray(positions, "f"),
    period=jnp.zeros((b, n)), segments=ones, block=0 * ones,
    cond=jnp.asarray(cond, "f")[..., None] / 1000, cond_index=index * ones,
    text=jnp.asarray(text), text_ids=jnp.ones(text.shape[:2], jnp.int32), prompt=ones,
  )  # fmt: skip
  values = model.apply({"params": params}, tokens)
  return unpatchify(values, latents.shape[1:4], model.patch)


def error(a, b):
  return np.linalg.norm(np.asarray(a) - np.asarray(b)) / np.linalg.norm(b)


@pytest.mark.parametrize("name", CONFIGS)
def test_velocities_and_gradients(name):
  theirs, (latents, text) = reference(name), inputs(name)
  levels = np.float32([731.0, 12.0])
  expected = run_reference(theirs, latents, levels, text)
  weights = np.random.default_rng(1).normal(size=expected.shape).astype(np.float32)
  (expected * torch.tensor(weights)).sum().backward()
  gradients = {name: p.grad.numpy().copy() for name, p in theirs.named_parameters()}
  theirs.zero_grad()
  model, params = ported(name)

  @jax.jit
  def ours(params):
    def loss(params):
      velocity = run_ours(model, params, latents, levels[:, None], text)
      return (velocity * weights).sum(), velocity

    return jax.grad(loss, has_aux=True)(params)

  gradient, velocity = ours(params)
  assert error(velocity, expected.detach()) < 1e-5
  gradient = names.to_theirs(gradient, wan_dit.rules(model))
  flat = [np.concatenate([g[k].ravel() for k in gradients]) for g in (gradient, gradients)]
  assert error(*flat) < 1e-4


def test_a_known_first_frame_is_noise_per_token():
  """Wan 2.2 TI2V: the first latent frame is given, its tokens' timestep is 0, the others' is t."""
  (latents, text), (model, params) = inputs("video"), ported("video")
  levels = np.float32([731.0, 12.0])
  noisy = np.ones(grid_shape(latents.shape[1:4], model.patch), np.int32)
  noisy[0] = 0
  noisy = noisy.ravel()
  with torch.no_grad():
    expected = run_reference(reference("video"), latents, levels[:, None] * noisy, text)
    unlike = run_reference(reference("video"), latents, levels, text)
  rows = np.stack([0 * levels, levels], axis=1)
  velocity = run_ours(model, params, latents, rows, text, index=noisy)
  assert error(velocity, expected) < 1e-5 < 1e-3 < error(velocity, unlike)


@pytest.mark.parametrize("name", ["video", "image"])
def test_bfloat16_is_no_worse_than_theirs(name):
  """Distances to the float32 reference; theirs keeps in float32 what `from_pretrained` does."""
  (latents, text), (model, params) = inputs(name), ported(name)
  levels = np.float32([731.0, 12.0])
  low = WanTransformer3DModel(**reference(name).config).eval()
  for path, parameter in low.named_parameters():
    exact = reference(name).get_parameter(path).detach()
    kept = set(path.split(".")) & set(low._keep_in_fp32_modules)
    parameter.data = exact if kept else exact.bfloat16()
  with torch.no_grad():
    expected = run_reference(reference(name), latents, levels, text)
    theirs = error(run_reference(low, latents, levels, text), expected)
  half = model.copy(dtype=jnp.bfloat16)
  ours = error(run_ours(half, half.stored(params), latents, levels[:, None], text), expected)
  assert 0 < ours <= theirs


def test_round_trip_is_exact():
  model, params = ported("video")
  back = names.to_theirs(params, wan_dit.rules(model))
  theirs = reference("video").state_dict()
  assert back.keys() == theirs.keys()
  for name, tensor in theirs.items():
    np.testing.assert_array_equal(back[name], tensor.numpy())


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_round_trip(name):
  model, _ = ported(name)
  config = wan_dit.to_config(model)
  assert wan_dit.from_config(config) == model
  assert config.pop("_class_name") == WanTransformer3DModel.__name__
  again = WanTransformer3DModel(**config).state_dict()
  assert again.keys() == reference(name).state_dict().keys()


@pytest.mark.parametrize(
  "variant, billions", [("wan2.1-1.3b", 1.419), ("wan2.1-14b", 14.289), ("wan2.2-5b", 5.000)]
)
def test_published_sizes_have_the_same_names_and_shapes(variant, billions):
  model = DiT(**VARIANTS[variant])
  config = wan_dit.to_config(model)
  with torch.device("meta"):
    state = WanTransformer3DModel(**{k: v for k, v in config.items() if k != "_class_name"})
  state, like = state.state_dict(), names.flatten(wan_dit.shapes(model))
  rules = wan_dit.rules(model)
  assert sorted(name for rule in rules for name in rule.names) == sorted(state)
  assert sorted(rule.ours for rule in rules) == sorted(like)
  for rule in rules:
    layers = (rule.layers,) if rule.layers else ()
    for name in rule.names:
      one = rule.to_ours(np.broadcast_to(np.int8(0), state[name].shape))
      assert (*layers, *one.shape) == like[rule.ours].shape
  assert sum(x.numel() for x in state.values()) / 1e9 == pytest.approx(billions, abs=0.001)


def test_a_split_transformer_is_not_written():
  model, _ = ported("video")
  with pytest.raises(UserError, match="split patches"):
    wan_dit.to_config(model.copy(split=True))


def test_foreign_weights_are_refused():
  model, params = ported("video")
  rules, shapes = wan_dit.rules(model), wan_dit.shapes(model)
  tensors = names.to_theirs(params, rules)
  with pytest.raises(UserError, match="no rule knows, extra"):
    names.to_ours(tensors | {"extra": np.zeros(1)}, rules, shapes)
  with pytest.raises(UserError, match="proj_out.weight makes patch_out/kernel of shape"):
    names.to_ours(tensors | {"proj_out.weight": np.zeros((3, 3))}, rules, shapes)
  with pytest.raises(
    UserError, match=r"patch_embedding.weight of shape \(3, 3\) makes no patch_in"
  ):
    names.to_ours(tensors | {"patch_embedding.weight": np.zeros((3, 3))}, rules, shapes)
  with pytest.raises(UserError, match=r"scale_shift_table of shape \(\) makes no modulation"):
    names.to_ours(tensors | {"scale_shift_table": np.zeros(())}, rules, shapes)
  tensors.pop("proj_out.bias")
  with pytest.raises(UserError, match="lack the tensor proj_out.bias"):
    names.to_ours(tensors, rules, shapes)
