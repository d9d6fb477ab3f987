"""T5 v1.1 and umT5 (transformers' `T5EncoderModel`, `UMT5EncoderModel`) and our `T5Encoder`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from sora_jax.errors import UserError
from sora_jax.interop.names import Rule, linear, stacked
from sora_jax.models.t5 import T5Encoder
from sora_jax.typing import Params

NAMES = ("UMT5EncoderModel", "T5EncoderModel")
TYPES = ("umt5", "t5")  # `model_type` of each
ACTIVATIONS = {"gated-gelu": True, "relu": False}


def from_config(config: Mapping[str, Any]) -> T5Encoder:
  """The encoder that a published config.json describes.

  Raises:
    UserError: it is of another family, or has an activation that neither has.
  """
  family, activation = config["model_type"], config["feed_forward_proj"]
  if family not in TYPES:
    raise UserError(
      f"A text encoder of type {family} is not known: only {' and '.join(TYPES)} are."
    )
  if activation not in ACTIVATIONS:
    raise UserError(f"The text encoder's {activation} is not known: it must be gated-gelu or relu.")
  return T5Encoder(
    vocabulary=config["vocab_size"],
    width=config["d_model"],
    layers=config["num_layers"],
    heads=config["num_heads"],
    head_width=config["d_kv"],
    mlp_width=config["d_ff"],
    gated=ACTIVATIONS[activation],
    shared_bias=family == "t5",
    buckets=config["relative_attention_num_buckets"],
    distance=config.get("relative_attention_max_distance", 128),  # older files do not say
    eps=config["layer_norm_epsilon"],
  )


def to_config(encoder: T5Encoder) -> dict[str, Any]:
  """The config.json with which transformers builds `encoder`."""
  activation = next(name for name, gated in ACTIVATIONS.items() if gated == encoder.gated)
  return dict(
    architectures=[NAMES[encoder.shared_bias]], model_type=TYPES[encoder.shared_bias],
    vocab_size=encoder.vocabulary, d_model=encoder.width, d_kv=encoder.head_width,
    d_ff=encoder.mlp_width, num_layers=encoder.layers, num_heads=encoder.heads,
    relative_attention_num_buckets=encoder.buckets,
    relative_attention_max_distance=encoder.distance, feed_forward_proj=activation,
    layer_norm_epsilon=encoder.eps, is_encoder_decoder=False, use_cache=False, pad_token_id=0,
    eos_token_id=1,
  )  # fmt: skip


def shapes(encoder: T5Encoder) -> Params:
  """Our parameters' shapes, computing nothing."""
  pieces = jnp.zeros((1, 1), jnp.int32)
  return jax.eval_shape(encoder.init, jax.random.key(0), pieces, pieces)["params"]


def rules(encoder: T5Encoder) -> list[Rule]:
  """The name table. The table of word pieces has two names, of which files hold either or both."""
  attention, mlp = "encoder.block.{i}.layer.0", "encoder.block.{i}.layer.1"
  block = [
    Rule(f"{attention}.layer_norm.weight", "blocks/attention_norm/scale"),
    Rule(f"{mlp}.layer_norm.weight", "blocks/mlp_norm/scale"),
  ]
  for theirs, ours in zip("qkvo", ("q", "k", "v", "out"), strict=True):
    block += linear(f"{attention}.SelfAttention.{theirs}", f"blocks/attention/{ours}", bias=False)
  maps = {"wi_0": "gate", "wi_1": "up"} if encoder.gated else {"wi": "up"}
  for theirs, ours in (maps | {"wo": "down"}).items():
    block += linear(f"{mlp}.DenseReluDense.{theirs}", f"blocks/mlp/{ours}", bias=False)
  relative = Rule(f"{attention}.SelfAttention.relative_attention_bias.weight", "relative")
  return [
    Rule("shared.weight", "pieces", tied=("encoder.embed_tokens.weight",)),
    Rule("encoder.final_layer_norm.weight", "norm_out/scale"),
    *stacked(1 if encoder.shared_bias else encoder.layers, [relative]),
    *stacked(encoder.layers, block),
  ]
