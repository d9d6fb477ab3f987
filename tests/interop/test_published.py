"""Components of the hub: read as they are, placed as they are read, foreign ones refused."""

import json
import shutil
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import WanTransformer3DModel

from sora_jax.errors import UserError
from sora_jax.interop import names, published, wan_dit
from sora_jax.parallel import sharding
from tests.interop.conftest import make_transformer


@pytest.fixture(scope="module")
def reference():
  return make_transformer(num_layers=3)


@pytest.fixture(scope="module")
def folder(reference, tmp_path_factory):
  folder = tmp_path_factory.mktemp("component")
  reference.save_pretrained(folder, max_shard_size="20KB")
  assert len(list(folder.glob("*.safetensors"))) > 3
  return folder


def flat_of(component, mesh):
  return names.flatten(component.place(sharding.make_mesh(mesh)))


def test_parameters_are_those_of_the_reference_on_any_mesh(reference, folder):
  tensors = {name: x.numpy() for name, x in reference.state_dict().items()}
  component = published.read_component(folder)
  expected = names.flatten(names.to_ours(tensors, component.rules, component.shapes))
  for mesh in ({"data": 1}, {"fsdp": 2, "context": 2, "tensor": 2}):
    placed = flat_of(component, mesh)
    wanted = sharding.param_shardings(component.shapes, sharding.make_mesh(mesh))
    assert placed.keys() == expected.keys()
    for path, x in placed.items():
      np.testing.assert_array_equal(x, expected[path])
      assert x.sharding.is_equivalent_to(names.flatten(wanted)[path], x.ndim)


def test_kernels_take_the_type_asked_for_and_the_rest_stays_float32(folder):
  component = published.read_component(folder, jnp.bfloat16)
  assert component.module.dtype == jnp.bfloat16
  full = flat_of(published.read_component(folder), {"data": 1})
  for path, x in flat_of(component, {"data": 1}).items():
    kernel = path.startswith("blocks/") and path.endswith("/kernel")
    assert x.dtype == (jnp.bfloat16 if kernel else jnp.float32), path
    np.testing.assert_array_equal(x, full[path].astype(x.dtype))


def test_the_host_holds_a_tensor_or_two_at_a_time(tmp_path):
  """Besides the parameters, of which numpy keeps some on a CPU, less than the largest shard."""
  torch.manual_seed(0)
  model = make_transformer(num_attention_heads=8, attention_head_dim=48, ffn_dim=1536, num_layers=4)
  model.save_pretrained(tmp_path, max_shard_size="6MB")
  sizes = [file.stat().st_size for file in tmp_path.glob("*.safetensors")]
  assert len(sizes) > 6 and sum(sizes) > 6 * max(sizes)  # each holds a few tensors
  component = published.read_component(tmp_path)
  mesh = sharding.make_mesh({"data": 1})
  component.place(mesh)  # compiles
  tracemalloc.start()
  placed = component.place(mesh)
  kept, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert peak - kept < 1.2 * max(sizes) and kept < sum(sizes) / 4
  del placed


def test_what_does_not_load_is_named(folder, tmp_path):
  other = tmp_path / "other"
  shutil.copytree(folder, other)
  config = json.loads((folder / "config.json").read_text())

  def refused(match, **changes):
    (other / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(UserError, match=match):
      published.read_component(other)

  refused(
    "class LTXVideoTransformer3DModel.*WanTransformer3DModel",
    _class_name="LTXVideoTransformer3DModel",
  )
  refused("has image_dim = 1280", image_dim=1280)
  refused(r"makes blocks/mlp/up/kernel of shape \(3, 24, 40\) where", ffn_dim=48)
  refused("lack the tensor blocks.3", num_layers=4)
  refused("no rule knows, blocks.2", num_layers=2)
  broken = {key: value for key, value in config.items() if key != "freq_dim"}
  (other / "config.json").write_text(json.dumps(broken))
  with pytest.raises(UserError, match="does not say 'freq_dim'"):
    published.read_component(other)
  refused("is damaged .*NoneType", patch_size=None)
  refused("(?s)is damaged .*layers.*'3'", num_layers="3")
  refused("(?s)is damaged .*eps.*'small'", eps="small")
  refused("is of class None", _class_name=None, architectures={"a": "b"})


@pytest.mark.parametrize(
  "sizes",
  [
    dict(num_attention_heads=12, ffn_dim=8960, num_layers=30),
    dict(num_attention_heads=40, ffn_dim=13824, num_layers=40),
  ],
  ids=["1.3B", "14B"],
)
def test_the_published_sizes_are_consumed_whole(sizes):
  with torch.device("meta"):
    model = WanTransformer3DModel(attention_head_dim=128, **sizes)
  zero = np.zeros((), np.float32)
  tensors = {name: np.broadcast_to(zero, x.shape) for name, x in model.state_dict().items()}
  component = published.of(wan_dit, wan_dit.from_config(model.config), tensors)  # checks all
  count = sum(x.size for x in jax.tree.leaves(component.shapes))
  assert count == sum(x.numel() for x in model.parameters())
