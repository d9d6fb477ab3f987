"""Adapters are exchanged with diffusers and peft: same names, same outputs, both ways."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import WanTransformer3DModel
from diffusers.loaders import WanLoraLoaderMixin
from peft import LoraConfig
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from sora_jax.errors import UserError
from sora_jax.interop import lora as files
from sora_jax.interop import names, wan_dit
from sora_jax.interop.names import flatten
from sora_jax.models import lora
from sora_jax.models.lora import Lora
from sora_jax.models.patch import patchify
from sora_jax.models.tokens import Tokens

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]


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


@pytest.fixture(scope="module")
def ours():
  """Our module, its name table and shapes, and the reference's weights."""
  theirs = reference()
  dit = wan_dit.from_config(theirs.config)
  tensors = {name: x.numpy() for name, x in theirs.state_dict().items()}
  rules, shapes = wan_dit.rules(dit), wan_dit.shapes(dit)
  return dit, rules, shapes, names.to_ours(tensors, rules, shapes)


@pytest.fixture(scope="module")
def inputs():
  rng = np.random.default_rng(0)
  draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
  return draw(2, 4, 2, 4, 6), np.float32([731.0, 12.0]), draw(2, 7, 20)


def theirs_of(model, inputs):
  with torch.no_grad():
    out = model(*map(torch.tensor, inputs)).sample
  return patchify(jnp.asarray(out.permute(0, 2, 3, 4, 1).numpy()), (1, 2, 2))


def ours_of(dit, params, inputs):
  latents, level, text = inputs
  values = patchify(jnp.asarray(latents.transpose(0, 2, 3, 4, 1)), (1, 2, 2))
  n = values.shape[1]
  grid = jnp.stack(jnp.meshgrid(*map(jnp.arange, (2, 2, 3)), indexing="ij"), -1)
  ones = jnp.ones((2, n), jnp.int32)
  tokens = Tokens(
    values=values, positions=jnp.tile(grid.reshape(1, n, 3), (2, 1, 1)).astype(jnp.float32),
    period=jnp.zeros((2, n)), segments=ones, block=0 * ones,
    cond=jnp.asarray(level)[:, None, None] / 1000, cond_index=0 * ones, text=jnp.asarray(text),
    text_ids=jnp.ones((2, 7), jnp.int32), prompt=ones,
  )  # fmt: skip
  return jax.jit(lambda p, t: dit.apply({"params": p}, t))(params, tokens)


def near(a, b):
  return np.linalg.norm(np.asarray(a) - np.asarray(b)) < 1e-5 * np.linalg.norm(b)


@pytest.fixture(scope="module")
def adapter(ours):
  """Of all linear maps but the patch embedding, theirs being a convolution; one has no layer 1."""
  params = lora.add(ours[3], Lora(rank=3, alpha=2.0, targets="^(?!patch_in)"), jax.random.key(0))
  tree = lora.adapter_of(params)
  rng = np.random.default_rng(1)

  def draw(path, x):
    alpha = path[-1].key == "lora_alpha"
    return np.asarray(x) if alpha else np.float32(0.2 * rng.normal(size=x.shape))

  tree = jax.tree_util.tree_map_with_path(draw, tree)
  up = tree["blocks"]["mlp"]["up"]
  for name in lora.NAMES:
    up[name] = up[name].copy()
    up[name][1] = 0
  return tree


def test_diffusers_reads_what_is_written(ours, adapter, inputs, tmp_path):
  dit, rules, shapes, params = ours
  params = lora.apply(params, adapter)
  files.write(tmp_path / files.FILE, params, rules)
  back = files.read(tmp_path, rules, shapes)
  jax.tree.map(np.testing.assert_array_equal, back, adapter)
  model = reference()
  plain = theirs_of(model, inputs)
  tensors, metadata = WanLoraLoaderMixin.lora_state_dict(tmp_path, return_lora_metadata=True)
  WanLoraLoaderMixin.load_lora_into_transformer(tensors, model, metadata=metadata)
  expected = theirs_of(model, inputs)
  assert np.linalg.norm(expected - plain) > 0.1 * np.linalg.norm(expected)
  assert near(ours_of(dit, params, inputs), expected)
  assert near(ours_of(dit, lora.merge(params), inputs), expected)


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}], ids=["plain", "rslora"])
def test_what_diffusers_writes_is_read(ours, inputs, tmp_path, settings):
  dit, rules, shapes, params = ours
  model = reference()
  model.add_adapter(LoraConfig(
    r=4, lora_alpha=3, target_modules=[*ATTENTION, "ffn.net.2"],
    alpha_pattern={"ffn.net.2": 5, r"^blocks\.1\.attn2\.to_k": 7}, init_lora_weights=False,
    **settings,
  ))  # fmt: skip
  expected = theirs_of(model, inputs)
  model.save_lora_adapter(tmp_path)
  adapter = files.read(tmp_path / files.FILE, rules, shapes)
  if not settings:
    alpha = adapter["blocks"]["text_attention"]["k"]["lora_alpha"]
    np.testing.assert_array_equal(alpha, [3, 7, 3])
  assert near(ours_of(dit, lora.apply(params, adapter), inputs), expected)


@pytest.mark.parametrize("prefix", ["diffusion_model.", "lora_unet_"])
def test_wans_own_names_are_read(ours, inputs, tmp_path, prefix):
  """diffusers converts the same files to its own names, from which it is read alike."""
  _, rules, shapes, _ = ours
  rng = np.random.default_rng(2)
  maps = {f"{kind}_attn.{x}": (48, 48) for kind in ("self", "cross") for x in "qkvo"}
  maps |= {"ffn.0": (48, 56), "ffn.2": (56, 48)}
  tensors = {}
  for i in range(3):
    for name, (width, out) in maps.items():
      module = f"blocks.{i}.{name}"
      module = prefix + (module if prefix.endswith(".") else module.replace(".", "_"))
      tensors[f"{module}.lora_down.weight"] = rng.normal(size=(4, width)).astype(np.float32)
      tensors[f"{module}.lora_up.weight"] = rng.normal(size=(out, 4)).astype(np.float32)
      tensors[f"{module}.alpha"] = np.array(2.0, np.float32)
  save_file(tensors, tmp_path / "a.safetensors")
  got = files.read(tmp_path / "a.safetensors", rules, shapes)
  (tmp_path / "b").mkdir()
  converted = WanLoraLoaderMixin.lora_state_dict(str(tmp_path / "a.safetensors"))
  converted = {f"transformer.{k.removeprefix('transformer.')}": x for k, x in converted.items()}
  save_file({k: x.numpy() for k, x in converted.items()}, tmp_path / "b" / files.FILE)
  expected = files.read(tmp_path / "b", rules, shapes)
  kernels = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), shapes)
  a, b = (flatten(lora.merge(lora.apply(kernels, x))) for x in (got, expected))
  for path in a:
    np.testing.assert_allclose(a[path], b[path], rtol=1e-5, atol=1e-6)
  assert sum(np.abs(a[path]).max() > 0 for path in a) == len(maps)


def test_half_precision_round_trip_is_exact(ours, adapter, tmp_path):
  _, rules, shapes, _ = ours
  half = jax.tree.map(lambda x: np.asarray(x, jnp.bfloat16) if x.ndim > 1 else x, adapter)
  files.write(tmp_path / "half.safetensors", half, rules)
  back = flatten(files.read(tmp_path / "half.safetensors", rules, shapes))
  for path, x in flatten(half).items():
    assert back[path].dtype == x.dtype
    np.testing.assert_array_equal(back[path], x)
  with safe_open(tmp_path / "half.safetensors", "numpy") as file:
    assert json.loads(file.metadata()[files.METADATA])["transformer.lora_alpha"] == 2.0


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda t: t.pop("Q.lora_B.weight"), "lacks the tensor Q.lora_B.weight"),
    (lambda t: t.pop("Q.lora_A.weight"), "lacks the tensor Q.lora_A.weight"),
    (lambda t: t.update({"Q.alpha": np.zeros(2)}), "alpha of the adapter of Q is no one finite"),
    (
      lambda t: t.update(
        {"Q.lora_A.weight": np.zeros((0, 48)), "Q.lora_B.weight": np.zeros((48, 0))}
      ),
      "of Q has rank 0",
    ),
    (lambda t: t.update({"Q.lora_A.weight": np.zeros((5, 48))}), "of Q disagree about its rank"),
    (lambda t: t.update({"Q.lora_B.weight": np.zeros((7, 3))}), "of Q is of another model.*48 x 7"),
    (lambda t: t.update({"Q.dora_scale": np.zeros(48)}), "no linear map of this model: Q.dora_s"),
    (lambda t: t.update({"Q.lora_down.weight": np.zeros((3, 48))}), "Q.lora_(A|down).weight twice"),
    (lambda t: t.update({"transformer.x.lora_A.weight": np.zeros(3)}), "map of this model: trans"),
    (
      lambda t: t.update(
        {"Q.lora_A.weight": np.zeros((5, 48)), "Q.lora_B.weight": np.zeros((48, 5))}
      ),
      "layers must have one rank",
    ),
  ],
)
def test_bad_adapters_are_refused_by_name(ours, adapter, tmp_path, change, message):
  _, rules, shapes, _ = ours
  q = "transformer.blocks.1.attn1.to_q"
  files.write(tmp_path / "good.safetensors", adapter, rules)
  named = {k.replace(q, "Q"): x for k, x in load_file(tmp_path / "good.safetensors").items()}
  change(named)
  tensors = {k.replace("Q.", f"{q}."): np.float32(x) for k, x in named.items()}
  save_file(tensors, tmp_path / "bad.safetensors")
  with pytest.raises(UserError, match=message.replace("Q", q)):
    files.read(tmp_path / "bad.safetensors", rules, shapes)


def test_files_that_are_none_are_refused(ours, tmp_path):
  _, rules, shapes, params = ours
  with pytest.raises(UserError, match="There is no adapter"):
    files.read(tmp_path, rules, shapes)
  with pytest.raises(UserError, match="can run code"):
    files.read("adapter.bin", rules, shapes)
  (tmp_path / files.FILE).write_bytes(b"nothing")
  with pytest.raises(UserError, match="is damaged"):
    files.read(tmp_path, rules, shapes)
  with pytest.raises(UserError, match="no adapter to write"):
    files.write(tmp_path / files.FILE, params, rules)
  everywhere = lora.add(params, Lora(rank=2, alpha=2.0, targets=".*"), jax.random.key(0))
  with pytest.raises(UserError, match="The layer patch_in has no published counterpart"):
    files.check(everywhere, rules)


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ("[1]", "settings are no object"),
    ('{"lora_alpha": NaN}', "alpha of lora_alpha is nan"),
    ('{"lora_alpha": 1e300}', "is no one finite number"),
    ('{"lora_alpha": null}', "alpha of lora_alpha is None"),
    ('{"alpha_pattern": []}', "alpha_pattern is no object"),
    ('{"alpha_pattern": {"to_q": Infinity}}', "alpha of to_q is inf"),
    ('{"alpha_pattern": {"to_(": 1}}', "'to_.' in its alpha_pattern is no regular expression"),
  ],
)
def test_bad_settings_are_refused(ours, adapter, tmp_path, settings, message):
  _, rules, shapes, _ = ours
  path = tmp_path / "adapter_model.safetensors"
  files.write(path, adapter, rules)
  save_file(load_file(path), path)  # without settings of its own
  (tmp_path / "adapter_config.json").write_text(settings)
  with pytest.raises(UserError, match=message):
    files.read(tmp_path, rules, shapes)


def test_a_failed_write_leaves_nothing(ours, adapter, tmp_path):
  (tmp_path / "taken.safetensors").mkdir()
  with pytest.raises(OSError):
    files.write(tmp_path / "taken.safetensors", adapter, ours[1])
  assert [p.name for p in tmp_path.iterdir()] == ["taken.safetensors"]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_refused(ours, adapter, tmp_path, value):
  path = tmp_path / "adapter_model.safetensors"
  files.write(path, adapter, ours[1])
  tensors = load_file(path)
  name = sorted(tensors)[1]
  tensors[name].flat[-1] = value
  save_file(tensors, path)
  with pytest.raises(UserError, match=f"{name} of the adapter holds numbers that are not finite"):
    files.read(path, ours[1], ours[2])
