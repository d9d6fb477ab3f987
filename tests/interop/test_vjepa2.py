"""Our VJEPA computes what the published V-JEPA 2 computes, and so do its gradients."""

import copy
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import VJEPA2Config, VJEPA2Model

from sora_jax.errors import UserError
from sora_jax.interop import names, vjepa2
from sora_jax.models.vjepa import VARIANTS, VJEPA, tubelets

# Sizes that no patch divides, odd frames, a clip shorter than a tubelet, heads with channels left
# over by the three axes, ratios that are no integers, a single kind of mask.
CASES = [
  (dict(), 4),
  (dict(num_attention_heads=4, crop_size=20, num_hidden_layers=1, pred_mlp_ratio=2.5), 7),
  (dict(hidden_size=40, num_attention_heads=2, pred_num_mask_tokens=1, in_chans=2), 5),
  (dict(tubelet_size=1, patch_size=4, crop_size=12, pred_num_attention_heads=4), 3),
  (dict(tubelet_size=3, mlp_ratio=4.363636363636363, hidden_size=44, num_attention_heads=1), 2),
  (dict(crop_size=8, frames_per_clip=2, layer_norm_eps=1e-3, pred_num_hidden_layers=1), 1),
]


@functools.cache
def reference(case: int) -> VJEPA2Model:
  base = dict(
    patch_size=8, crop_size=24, frames_per_clip=4, tubelet_size=2, hidden_size=32,
    num_attention_heads=2, num_hidden_layers=3, pred_hidden_size=24, pred_num_attention_heads=2,
    pred_num_hidden_layers=2, pred_num_mask_tokens=3,
  )  # fmt: skip
  torch.manual_seed(case)
  model = VJEPA2Model(VJEPA2Config(**(base | CASES[case][0])))
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.add_(0.1 * torch.randn_like(parameter))
  return model.eval()


def ported(model: VJEPA2Model):
  ours = vjepa2.from_config(model.config.to_dict())
  tensors = {name: x.float().numpy() for name, x in model.state_dict().items()}
  return ours, names.to_ours(tensors, vjepa2.rules(ours), vjepa2.shapes(ours))


def inputs(case: int):
  """A clip, and masks that neither cover it nor are in order."""
  rng, config = np.random.default_rng(case), reference(case).config
  size, frames = config.crop_size, CASES[case][1]
  video = rng.normal(size=(2, frames, size, size, config.in_chans)).astype(np.float32)
  tokens = tubelets(jnp.asarray(video), vjepa2.from_config(config.to_dict()).patch)[0].shape[1]
  shown = max(1, tokens // 3)
  order = np.stack([rng.permutation(tokens) for _ in range(2)])
  return (
    video,
    order[:, :shown],
    order[:, shown : max(shown + 1, tokens - 1)] if tokens > 1 else order,
  )


def theirs(model: VJEPA2Model, video, context, targets):
  out = model(
    torch.tensor(video).permute(0, 1, 4, 2, 3), [torch.tensor(context)], [torch.tensor(targets)]
  )
  return out.last_hidden_state, out.predictor_output.last_hidden_state


def run(model: VJEPA, params, video, context, targets):
  values, positions = tubelets(jnp.asarray(video), model.patch)
  pick = lambda x, index: jnp.take_along_axis(x, index[..., None], 1)  # noqa: E731
  features = model.apply({"params": params}, values, positions, method="encode")
  where = pick(positions, context), pick(positions, targets)
  return features, model.apply(
    {"params": params}, pick(features, context), *where, method="predict"
  )


def distance(got, expected) -> float:
  got, expected = np.asarray(got, np.float32), expected.detach().float().numpy()
  return np.linalg.norm(got - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("case", range(len(CASES)))
def test_features_and_predictions_match(case):
  expected = theirs(reference(case), *inputs(case))
  model, params = ported(reference(case))
  got = jax.jit(functools.partial(run, model))(params, *inputs(case))
  for ours, other in zip(got, expected, strict=True):
    assert ours.shape == other.shape
    assert distance(ours, other) < 1e-5


def test_gradients_match():
  model = reference(1)
  video, context, targets = inputs(1)
  features, predicted = theirs(model, video, context, targets)
  (torch.cos(features).sum() + (predicted**2).mean()).backward()
  tensors = {name: x.grad.numpy() for name, x in model.named_parameters()}
  model.zero_grad()
  ours, params = ported(model)
  expected = names.to_ours(tensors, vjepa2.rules(ours), vjepa2.shapes(ours))

  def loss(params):
    features, predicted = run(ours, params, video, context, targets)
    return jnp.sum(jnp.cos(features)) + jnp.mean(predicted**2)

  got = names.flatten(jax.jit(jax.grad(loss))(params))
  for path, want in names.flatten(expected).items():
    assert np.linalg.norm(got[path] - want) < 1e-4 * np.linalg.norm(want), path


def test_bfloat16_is_no_worse_than_the_reference():
  model, params = ported(reference(0))
  exact = theirs(reference(0), *inputs(0))
  coarse = theirs(copy.deepcopy(reference(0)).bfloat16(), *inputs(0))
  got = jax.jit(functools.partial(run, model.clone(dtype=jnp.bfloat16)))(params, *inputs(0))
  for ours, low, high in zip(got, coarse, exact, strict=True):
    assert distance(ours, high) < 1.1 * distance(low.detach().float().numpy(), high)


@pytest.mark.parametrize("case", range(len(CASES)))
def test_round_trips_are_exact(case):
  model, params = ported(reference(case))
  back = names.to_theirs(params, vjepa2.rules(model))
  expected = reference(case).state_dict()
  assert back.keys() == expected.keys()
  for name, tensor in expected.items():
    np.testing.assert_array_equal(back[name], tensor.numpy())
  config = vjepa2.to_config(model)
  assert vjepa2.from_config(config) == model
  rebuilt = VJEPA2Config(**config)
  for name, value in reference(case).config.to_dict().items():
    if name.startswith(("pred_", "num_", "hidden")) or name in ("crop_size", "mlp_ratio"):
      if name not in ("num_pooler_layers", "pred_zero_init_mask_tokens"):
        assert getattr(rebuilt, name) == value, name


@pytest.mark.parametrize("name", VARIANTS)
def test_published_sizes_fit(name):
  model = VJEPA(**VARIANTS[name])
  config = vjepa2.to_config(model)
  assert vjepa2.from_config(config) == model
  with torch.device("meta"):
    expected = {
      k: tuple(x.shape) for k, x in VJEPA2Model(VJEPA2Config(**config)).state_dict().items()
    }
  rules, shapes = vjepa2.rules(model), names.flatten(vjepa2.shapes(model))
  assert sorted(expected) == sorted(name for rule in rules for name in rule.names)
  assert shapes.keys() == {rule.ours for rule in rules}
  for rule in rules:
    zeros = np.broadcast_to(np.float32(0), expected[rule.names[0]])
    layers = (rule.layers,) if rule.layers else ()
    assert layers + rule.to_ours(zeros).shape == shapes[rule.ours].shape


def test_what_the_reference_cannot_say_is_refused():
  config = reference(0).config.to_dict()
  with pytest.raises(UserError, match="qkv_bias=False"):
    vjepa2.from_config(config | {"qkv_bias": False})
  with pytest.raises(UserError, match="square patches"):
    vjepa2.to_config(VJEPA(**VARIANTS["vjepa2-vitl"], patch=(2, 16, 8)))
