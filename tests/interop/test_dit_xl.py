"""Our ClassDiT computes what diffusers' DiTTransformer2DModel computes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import DiTTransformer2DModel

from sora_jax.errors import UserError
from sora_jax.interop import dit_xl, names
from sora_jax.models.dit_class import VARIANTS, ClassDiT

# heads, head width, layers, channels, outputs, size, patch, classes, grid given
CASES = (
  (2, 12, 3, 4, 8, 8, 2, 10, 8),
  (1, 16, 1, 3, 3, 9, 3, 5, 9),
  (4, 8, 2, 4, 8, 7, 1, 20, 7),
  (3, 8, 2, 5, 10, 16, 4, 7, 20),
  (2, 32, 2, 16, 32, 6, 2, 40, 10),
)  # fmt: skip


def reference(case):
  heads, head_width, layers, channels, outputs, size, patch, classes, _ = case
  torch.manual_seed(0)
  model = DiTTransformer2DModel(
    num_attention_heads=heads, attention_head_dim=head_width, num_layers=layers,
    in_channels=channels, out_channels=outputs, sample_size=size, patch_size=patch,
    num_embeds_ada_norm=classes, norm_eps=0.02,
  )  # fmt: skip
  first = model.transformer_blocks[0].norm1.emb
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.add_(0.1 * torch.randn_like(parameter))
    for block in model.transformer_blocks[1:]:
      block.norm1.emb.load_state_dict(first.state_dict())
  return model.eval()


def ported(model):
  dit = dit_xl.from_config(model.config)
  tensors = {name: x.numpy() for name, x in model.state_dict().items()}
  return dit, names.to_ours(tensors, dit_xl.rules(dit), dit_xl.shapes(dit)), tensors


def inputs(case, rng):
  channels, classes, grid = case[3], case[7], case[8]
  x = rng.normal(size=(3, grid, grid, channels)).astype(np.float32)
  time = np.array([999, 0, 431])
  return x, time, np.array([classes, 0, classes - 1])  # the null class among them


def channels_first(x):
  return torch.from_numpy(x).permute(0, 3, 1, 2)


def relative_error(a, b):
  return np.linalg.norm(np.asarray(a) - b) / np.linalg.norm(b)


@pytest.fixture(params=CASES, ids=str)
def case(request):
  return request.param


def test_same_output_and_exact_round_trip(case, rng):
  model = reference(case)
  dit, params, tensors = ported(model)
  x, time, label = inputs(case, rng)
  with torch.no_grad():
    expected = model(
      channels_first(x), torch.from_numpy(time), torch.from_numpy(label)
    ).sample.permute(0, 2, 3, 1)
  arrays = jnp.asarray(x), jnp.asarray(time, jnp.float32), jnp.asarray(label)
  got = jax.jit(dit.apply)({"params": params}, *arrays)
  assert got.shape == expected.shape
  assert relative_error(got, expected.numpy()) < 1e-5

  back = names.to_theirs(params, dit_xl.rules(dit))
  assert back.keys() == tensors.keys()
  for name, tensor in tensors.items():
    np.testing.assert_array_equal(back[name], tensor)
  config = dit_xl.to_config(dit)
  assert dit_xl.from_config(config) == dit
  assert config.pop("_class_name") == type(model).__name__
  assert type(model)(**config).state_dict().keys() == tensors.keys()


def test_same_gradients(rng):
  case = CASES[0]
  model = reference(case)
  dit, params, _ = ported(model)
  x, time, label = inputs(case, rng)
  weight = rng.normal(size=(*x.shape[:3], dit.outputs)).astype(np.float32)

  def loss(params, x):
    out = dit.apply({"params": params}, x, jnp.asarray(time, jnp.float32), jnp.asarray(label))
    return jnp.mean(weight * out**2)

  of_params, of_x = jax.jit(jax.grad(loss, (0, 1)))(params, jnp.asarray(x))
  given = channels_first(x).requires_grad_()
  out = model(given, torch.from_numpy(time), torch.from_numpy(label)).sample
  (channels_first(weight) * out**2).mean().backward()
  assert relative_error(of_x, given.grad.permute(0, 2, 3, 1).numpy()) < 1e-4
  theirs = {name: p.grad.numpy() for name, p in model.named_parameters() if p.grad is not None}
  checked = 0
  for name, grad in names.to_theirs(of_params, dit_xl.rules(dit)).items():
    if ".emb." not in name:  # of copies the gradients add up in ours, and are apart there
      # the bias of keys moves all scores of a query alike: its gradient is 0 but for rounding
      if "to_k.bias" not in name:
        assert relative_error(grad, theirs[name]) < 1e-4, name
      checked += 1
  summed = sum(
    g for name, g in theirs.items() if name.endswith("emb.timestep_embedder.linear_1.bias")
  )
  assert relative_error(of_params["time_in"]["bias"], summed) < 1e-4
  assert checked > 30


def test_published_size_has_the_same_names_and_shapes():
  with torch.device("meta"):
    model = DiTTransformer2DModel(out_channels=8)
  dit = dit_xl.from_config(model.config)
  published = ClassDiT(**VARIANTS["dit-xl/2"])
  assert dit == published.copy(freq_shift=1, mlp_eps=1e-5)
  state = {k: np.broadcast_to(np.float32(0), v.shape) for k, v in model.state_dict().items()}
  shapes = names.flatten(dit_xl.shapes(dit))
  positions = 256 * 1152  # are fixed, and counted in the paper's 675 M
  assert sum(np.prod(x.shape) for x in shapes.values()) == 675_129_632 - positions
  for rule in dit_xl.rules(dit):
    theirs = [rule.to_ours(state.pop(name)).shape for name in rule.names]
    ours = shapes.pop(rule.ours).shape
    assert set(theirs) == {ours[1:] if rule.stacked else ours}
  assert not state and not shapes


def test_what_does_not_fit_is_a_user_error():
  model = reference(CASES[0])
  dit, _, tensors = ported(model)
  name = "transformer_blocks.2.norm1.emb.class_embedder.embedding_table.weight"
  with pytest.raises(UserError, match=f"and {name} should be the same"):
    names.to_ours(tensors | {name: tensors[name] + 1}, dit_xl.rules(dit), dit_xl.shapes(dit))
  with pytest.raises(UserError, match="activation_fn='geglu'"):
    dit_xl.from_config({**model.config, "activation_fn": "geglu"})
  with pytest.raises(UserError, match="not a DiT"):
    dit_xl.from_config({**model.config, "out_channels": 5})
  with pytest.raises(UserError, match="train with model.freq_shift=1"):
    dit_xl.to_config(dit.copy(freq_shift=0))
  with pytest.raises(UserError, match="predicts='velocity'"):
    dit_xl.to_config(dit.copy(predicts="velocity"))
