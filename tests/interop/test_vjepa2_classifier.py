"""Our classifier computes what the published one does, behind the same attentive pooler."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import VJEPA2Config, VJEPA2ForVideoClassification

from sora_jax.interop import names, vjepa2_classifier
from sora_jax.models.vjepa import tubelets


@functools.cache
def reference(pooler_layers: int, labels: int) -> VJEPA2ForVideoClassification:
  torch.manual_seed(pooler_layers)
  config = VJEPA2Config(
    patch_size=8, crop_size=16, frames_per_clip=4, hidden_size=24, num_attention_heads=2,
    num_hidden_layers=1, pred_hidden_size=16, pred_num_attention_heads=2, pred_num_hidden_layers=1,
    num_pooler_layers=pooler_layers, num_labels=labels,
  )  # fmt: skip
  model = VJEPA2ForVideoClassification(config)
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.add_(0.1 * torch.randn_like(parameter))
  return model.eval()


@pytest.mark.parametrize(("pooler_layers", "labels"), [(0, 3), (2, 7)])
def test_logits_match_and_weights_go_both_ways(pooler_layers, labels, rng):
  theirs = reference(pooler_layers, labels)
  video = rng.normal(size=(3, 5, 16, 16, 3)).astype(np.float32)
  with torch.no_grad():
    expected = theirs(torch.tensor(video).permute(0, 1, 4, 2, 3)).logits.numpy()
  model = vjepa2_classifier.from_config(theirs.config.to_dict())
  rules, tensors = vjepa2_classifier.rules(model), theirs.state_dict()
  tensors = {name: x.numpy() for name, x in tensors.items()}
  params = names.to_ours(tensors, rules, vjepa2_classifier.shapes(model))
  tokens = tubelets(jnp.asarray(video), model.vjepa.patch)
  got = jax.jit(lambda params, tokens: model.apply({"params": params}, *tokens))(params, tokens)
  assert np.linalg.norm(got - expected) < 1e-5 * np.linalg.norm(expected)

  back = names.to_theirs(params, rules)
  assert back.keys() == tensors.keys()
  for name, tensor in tensors.items():
    np.testing.assert_array_equal(back[name], tensor)
  config = vjepa2_classifier.to_config(model)
  assert vjepa2_classifier.from_config(config) == model
  rebuilt = VJEPA2Config(**config)
  assert (rebuilt.num_labels, rebuilt.num_pooler_layers) == (labels, pooler_layers)
