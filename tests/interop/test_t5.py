"""Our T5 encoder computes what the published T5 and umT5 encoders compute."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import T5Config, T5EncoderModel, UMT5Config, UMT5EncoderModel
from transformers.models.t5.modeling_t5 import T5Attention

from sora_jax.errors import UserError
from sora_jax.interop import names, t5
from sora_jax.models.t5 import relative_buckets
from sora_jax.parallel import sharding

CLASSES = {"t5": (T5Config, T5EncoderModel), "umt5": (UMT5Config, UMT5EncoderModel)}
# Of T5 v1.1 and of umT5 as transformers builds them, xxl.
XXL = dict(d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64)
ROWS = {"t5": 32128, "umt5": 256384}


def random_reference(family: str, seed: int, **fixed):
  rng = np.random.default_rng(seed)
  config, model = CLASSES[family]
  size = lambda low, high: int(rng.integers(low, high))  # noqa: E731
  sizes = dict(
    vocab_size=size(30, 90), d_model=size(9, 40), d_kv=size(3, 12), d_ff=size(11, 60),
    num_layers=size(1, 4), num_heads=size(1, 6), feed_forward_proj="gated-gelu",
    relative_attention_num_buckets=4 * size(2, 9), relative_attention_max_distance=size(20, 129),
    layer_norm_epsilon=float(10.0 ** -rng.integers(5, 8)),
  )  # fmt: skip
  torch.manual_seed(seed)
  reference = model(config(**sizes | fixed)).eval()
  with torch.no_grad():
    for parameter in reference.parameters():
      parameter.mul_(0.3 if parameter.std() > 0.5 else 1.0).add_(0.2 * torch.randn_like(parameter))
  return reference


def ported(reference):
  encoder = t5.from_config(reference.config.to_dict())
  tensors = {name: x.float().numpy() for name, x in reference.state_dict().items()}
  return encoder, names.to_ours(tensors, t5.rules(encoder), t5.shapes(encoder))


def prompts_of(rng, vocabulary, lengths):
  """Padded rows of one prompt each."""
  ids = np.arange(max(lengths)) < np.array(lengths)[:, None]
  pieces = rng.integers(2, vocabulary, ids.shape) * ids
  return pieces.astype(np.int32), ids.astype(np.int32)


def encode(encoder, params, pieces, ids):
  arrays = (jnp.asarray(x, jnp.int32) for x in (pieces, ids))
  return np.asarray(jax.jit(encoder.apply)({"params": params}, *arrays))


def states_of(reference, pieces, ids):
  with torch.no_grad():
    out = reference(torch.tensor(pieces), attention_mask=torch.tensor(ids)).last_hidden_state
  return out.float().numpy() * ids[..., None]


def apart(got, expected):
  return np.linalg.norm(np.asarray(got) - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("distance", [20, 128, 160, 1000])
@pytest.mark.parametrize("buckets", [8, 20, 32, 64])
def test_relative_positions_fall_into_the_published_buckets(buckets, distance):
  offset = np.arange(-2100, 2100)
  expected = T5Attention._relative_position_bucket(
    torch.tensor(offset), num_buckets=buckets, max_distance=distance
  )
  np.testing.assert_array_equal(relative_buckets(offset, buckets, distance), expected)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("family", CLASSES)
def test_states_match_reference(family, seed):
  rng = np.random.default_rng(seed)
  reference = random_reference(family, seed)
  pieces, ids = prompts_of(rng, reference.config.vocab_size, rng.integers(1, 70, 3))
  encoder, params = ported(reference)
  got = encode(encoder, params, pieces, ids)
  assert apart(got, states_of(reference, pieces, ids)) < 1e-5
  assert np.all(got[ids == 0] == 0)


def test_the_first_t5_has_relus_and_no_gate():
  rng = np.random.default_rng(0)
  reference = random_reference("t5", 0, feed_forward_proj="relu")
  pieces, ids = prompts_of(rng, reference.config.vocab_size, [9, 4])
  encoder, params = ported(reference)
  assert "gate" not in params["blocks"]["mlp"]
  got = encode(encoder, params, pieces, ids)
  assert apart(got, states_of(reference, pieces, ids)) < 1e-5


@pytest.mark.parametrize("family", CLASSES)
def test_gradients_match_reference(family, rng):
  reference = random_reference(family, 1)
  pieces, ids = prompts_of(rng, reference.config.vocab_size, [23, 7])
  encoder, params = ported(reference)
  weight = rng.normal(size=(*pieces.shape, encoder.width)).astype(np.float32) * ids[..., None]
  states = reference(torch.tensor(pieces), attention_mask=torch.tensor(ids)).last_hidden_state
  (states * torch.tensor(weight)).sum().backward()
  theirs = {name: x.grad.numpy() for name, x in reference.named_parameters()}
  expected = names.flatten(names.to_ours(theirs, t5.rules(encoder), t5.shapes(encoder)))

  def loss(encoder, params):
    states = encoder.apply({"params": params}, jnp.asarray(pieces), jnp.asarray(ids))
    return jnp.sum(states * weight)

  for remat in (False, True):
    grads = jax.jit(jax.grad(loss, 1), static_argnums=0)(encoder.clone(remat=remat), params)
    for path, grad in names.flatten(grads).items():
      assert apart(grad, expected[path]) < 1e-4, path


@pytest.mark.parametrize("family", CLASSES)
def test_bfloat16_is_as_exact_as_the_reference(family):
  ours, theirs = [], []
  for seed in range(4):
    rng = np.random.default_rng(seed)
    reference = random_reference(family, seed, d_model=48, d_ff=64, num_layers=3)
    pieces, ids = prompts_of(rng, reference.config.vocab_size, [40, 25])
    encoder, params = ported(reference.to(torch.bfloat16).float())
    exact = states_of(reference, pieces, ids)
    theirs.append(apart(states_of(reference.to(torch.bfloat16), pieces, ids), exact))
    ours.append(apart(encode(encoder.clone(dtype=jnp.bfloat16), params, pieces, ids), exact))
  assert np.all(np.array(ours) < 0.05)
  assert np.mean(ours) <= 1.2 * np.mean(theirs), (ours, theirs)


@pytest.mark.parametrize("family", CLASSES)
def test_packed_prompts_are_prompts_alone(family, rng):
  encoder, params = ported(random_reference(family, 2))
  lengths = [11, 1, 30, 6]
  pieces, ids = prompts_of(rng, encoder.vocabulary, lengths)
  alone = encode(encoder, params, pieces, ids)
  numbers = np.pad(np.repeat(np.arange(1, 5), lengths), (0, 5))
  together = np.pad(pieces[ids > 0], (0, 5))
  packed = encode(encoder, params, together[None], numbers[None])[0]
  for number, n in enumerate(lengths):
    assert apart(packed[numbers == number + 1], alone[number, :n]) < 1e-6
  assert np.all(packed[numbers == 0] == 0)


@pytest.mark.parametrize("family", CLASSES)
def test_weights_and_config_go_back_as_they_came(family, tmp_path):
  reference = random_reference(family, 3)
  encoder, params = ported(reference)
  back = names.to_theirs(params, t5.rules(encoder))
  reference.save_pretrained(tmp_path)
  stored = load_file(tmp_path / "model.safetensors")
  assert back.keys() == stored.keys()
  for name, tensor in stored.items():
    np.testing.assert_array_equal(back[name], tensor)
  config = t5.to_config(encoder)
  assert t5.from_config(config) == encoder
  assert config["architectures"] == reference.config.architectures
  settings, model = CLASSES[family]
  again = model(settings(**config))
  again.load_state_dict({name: torch.tensor(x) for name, x in back.items()}, strict=False)
  pieces = np.array([[3, 4, 5, 1]])
  np.testing.assert_array_equal(
    states_of(again.eval(), pieces, pieces > 0), states_of(reference, pieces, pieces > 0)
  )


def test_tied_tables_may_be_either_or_both_but_must_be_equal():
  encoder, params = ported(random_reference("umt5", 4))
  rules, shapes = t5.rules(encoder), t5.shapes(encoder)
  tensors = names.to_theirs(params, rules)
  table = tensors.pop("shared.weight")
  for held in ({"shared.weight": table}, {"encoder.embed_tokens.weight": table}):
    np.testing.assert_array_equal(names.to_ours(tensors | held, rules, shapes)["pieces"], table)
  held = {"shared.weight": table, "encoder.embed_tokens.weight": table + 1}
  with pytest.raises(UserError, match=r"shared\.weight and encoder\.embed_tokens\.weight should"):
    names.to_ours(tensors | held, rules, shapes)
  with pytest.raises(UserError, match=r"lack the tensor shared\.weight"):
    names.to_ours(tensors, rules, shapes)


@pytest.mark.parametrize(
  ("key", "value", "message"),
  [("model_type", "bert", "type bert"), ("feed_forward_proj", "gated-silu", "gated-silu is not")],
)
def test_other_families_are_refused(key, value, message):
  config = t5.to_config(t5.from_config(random_reference("t5", 0).config.to_dict()))
  with pytest.raises(UserError, match=message):
    t5.from_config(config | {key: value})


@pytest.mark.parametrize("family", CLASSES)
def test_full_size_weights_are_consumed_and_every_large_parameter_has_a_place(family):
  config, model = CLASSES[family]
  with torch.device("meta"):
    reference = model(config(vocab_size=ROWS[family], feed_forward_proj="gated-gelu", **XXL))
  encoder = t5.from_config(reference.config.to_dict())
  tensors = {name: np.broadcast_to(0, tuple(x.shape)) for name, x in reference.state_dict().items()}
  table, shapes = t5.rules(encoder), t5.shapes(encoder)
  like = names.flatten(shapes)
  assert {name for rule in table for name in (*rule.names, *rule.tied)} == tensors.keys()
  assert {rule.ours for rule in table} == like.keys()
  for rule in table:  # one by one: stacked they would fill the memory
    shape = like[rule.ours].shape[bool(rule.layers) :]
    assert {rule.to_ours(tensors[name]).shape for name in rule.names} == {shape}
  mesh = sharding.make_mesh({"fsdp": 4, "tensor": 2})
  places = names.flatten(sharding.param_shardings(shapes, mesh))
  for path, leaf in like.items():
    ways = leaf.size // np.prod(places[path].shard_shape(leaf.shape))
    assert ways == (1 if "norm" in path else 2 if "relative" in path else 8), path


@pytest.mark.parametrize("sizes", [{"tensor": 2}, {"data": 2, "context": 2, "tensor": 2}])
@pytest.mark.parametrize("family", CLASSES)
def test_sharded_is_single(family, sizes, rng):
  fixed = dict(d_model=32, d_kv=6, num_heads=4, d_ff=64, vocab_size=64)
  encoder, params = ported(random_reference(family, 5, **fixed))
  pieces, ids = prompts_of(rng, encoder.vocabulary, [16, 9, 3, 12])
  alone = encode(encoder, params, pieces, ids)
  mesh = sharding.make_mesh(sizes)
  split = jax.device_put(params, sharding.param_shardings(params, mesh))
  assert not split["blocks"]["mlp"]["gate"]["kernel"].sharding.is_fully_replicated
  with jax.set_mesh(mesh):
    assert apart(encode(encoder, split, pieces, ids), alone) < 1e-6
