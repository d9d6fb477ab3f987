"""Our DiT computes what the published Wan 2.1 transformer computes."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import WanTransformer3DModel

from sora_jax.errors import UserError
from sora_jax.interop import names, wan_dit
from sora_jax.models.patch import patchify, unpatchify
from sora_jax.models.tokens import Tokens

LATENT, TEXT = (3, 6, 8), 7


@pytest.fixture(scope="module")
def reference():
  torch.manual_seed(0)
  model = WanTransformer3DModel(
    patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=24, in_channels=4,
    out_channels=4, text_dim=20, freq_dim=32, ffn_dim=56, num_layers=3,
    cross_attn_norm=True, qk_norm="rms_norm_across_heads", rope_max_seq_len=32,
  )  # fmt: skip
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.add_(0.1 * torch.randn_like(parameter))
  return model.eval()


def ported(reference):
  model = wan_dit.from_config(reference.config)
  tensors = {name: x.numpy() for name, x in reference.state_dict().items()}
  return model, names.to_ours(tensors, wan_dit.rules(model), wan_dit.shapes(model))


def tokens_of(latents, text, level):
  b, n = latents.shape[0], int(np.prod([3, 3, 4]))
  grid = jnp.stack(jnp.meshgrid(*map(jnp.arange, (3, 3, 4)), indexing="ij"), -1)
  ones = jnp.ones((b, n), jnp.int32)
  return Tokens(
    values=patchify(latents, (1, 2, 2)),
    positions=jnp.broadcast_to(grid.reshape(1, n, 3), (b, n, 3)).astype(jnp.float32),
    period=jnp.zeros((b, n)),
    segments=ones,
    block=0 * ones,
    cond=level[:, None, None] / 1000,
    cond_index=0 * ones,
    text=text,
    text_ids=jnp.ones(text.shape[:2], jnp.int32),
    prompt=ones,
  )


def test_velocity_matches_reference(reference):
  rng = np.random.default_rng(0)
  latents = rng.normal(size=(2, *LATENT, 4)).astype(np.float32)
  text = rng.normal(size=(2, TEXT, 20)).astype(np.float32)
  level = np.float32([731.0, 12.0])
  with torch.no_grad():
    expected = reference(
      torch.tensor(latents).permute(0, 4, 1, 2, 3), torch.tensor(level), torch.tensor(text)
    ).sample.permute(0, 2, 3, 4, 1)
  model, params = ported(reference)
  values = model.apply({"params": params}, tokens_of(*map(jnp.asarray, (latents, text, level))))
  got = unpatchify(values, LATENT, (1, 2, 2))
  error = np.linalg.norm(got - expected.numpy()) / np.linalg.norm(expected.numpy())
  assert error < 1e-5


def test_round_trip_is_exact(reference):
  model, params = ported(reference)
  back = names.to_theirs(params, wan_dit.rules(model))
  theirs = reference.state_dict()
  assert back.keys() == theirs.keys()
  for name, tensor in theirs.items():
    np.testing.assert_array_equal(back[name], tensor.numpy())


def test_configs_round_trip(reference):
  model, _ = ported(reference)
  config = wan_dit.to_config(model)
  assert wan_dit.from_config(config) == model
  assert config.pop("_class_name") == type(reference).__name__
  assert type(reference)(**config).state_dict().keys() == reference.state_dict().keys()


def test_foreign_weights_are_refused(reference):
  model, params = ported(reference)
  rules, shapes = wan_dit.rules(model), wan_dit.shapes(model)
  tensors = names.to_theirs(params, rules)
  with pytest.raises(UserError, match="no rule knows, extra"):
    names.to_ours(tensors | {"extra": np.zeros(1)}, rules, shapes)
  with pytest.raises(UserError, match="proj_out.weight makes patch_out/kernel of shape"):
    names.to_ours(tensors | {"proj_out.weight": np.zeros((3, 3))}, rules, shapes)
  tensors.pop("proj_out.bias")
  with pytest.raises(UserError, match="lack the tensor proj_out.bias"):
    names.to_ours(tensors, rules, shapes)
