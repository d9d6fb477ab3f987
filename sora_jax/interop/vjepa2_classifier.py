"""V-JEPA 2 with its attentive probe (transformers' `VJEPA2ForVideoClassification`).

The weights hold the predictor, too, which classifies nothing.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from sora_jax.interop import vjepa2
from sora_jax.interop.names import Rule, linear, norm, stacked
from sora_jax.models.vjepa import VideoClassifier
from sora_jax.typing import Params

NAME = "VJEPA2ForVideoClassification"


def from_config(config: Mapping[str, Any]) -> VideoClassifier:
  """The classifier that a published config.json describes; labels that it does not name are two."""
  labels = len(config["id2label"]) if config.get("id2label") else 2
  return VideoClassifier(vjepa2.from_config(config), labels, config["num_pooler_layers"])


def to_config(model: VideoClassifier) -> dict[str, Any]:
  """The config.json with which transformers builds `model`."""
  names = {i: f"LABEL_{i}" for i in range(model.labels)}
  return vjepa2.to_config(model.vjepa) | dict(
    architectures=[NAME], num_pooler_layers=model.pooler_layers, id2label=names,
    label2id={name: i for i, name in names.items()},
  )  # fmt: skip


def shapes(model: VideoClassifier) -> Params:
  """Our parameters' shapes, computing nothing."""
  values = jnp.zeros((1, 1, math.prod(model.vjepa.patch) * model.vjepa.channels))
  made = jax.eval_shape(model.init, jax.random.key(0), values, jnp.zeros((1, 1, 3)))["params"]
  return {**made, "vjepa": vjepa2.shapes(model.vjepa)}


def rules(model: VideoClassifier) -> list[Rule]:
  """The name table."""
  within = [
    dataclasses.replace(rule, theirs=f"vjepa2.{rule.theirs}", ours=f"vjepa/{rule.ours}")
    for rule in vjepa2.rules(model.vjepa)
  ]
  cross = "pooler.cross_attention_layer"
  table = [
    Rule("pooler.query_tokens", "pooler/queries", lambda x: x[0], lambda x: x[None]),
    *_layer(cross, "pooler"),
    *linear("classifier", "head"),
  ]
  for name in "qkv":
    table += linear(f"{cross}.cross_attn.{name}_proj", f"pooler/{name}")
  theirs, ours = "pooler.self_attention_layers.{i}", "pooler/blocks"
  block = _layer(theirs, ours)
  for a, b in (("q_proj", "q"), ("k_proj", "k"), ("v_proj", "v"), ("out_proj", "out")):
    block += linear(f"{theirs}.self_attn.{a}", f"{ours}/attention/{b}")
  return [*within, *table, *(stacked(model.pooler_layers, block) if model.pooler_layers else ())]


def _layer(theirs: str, ours: str) -> list[Rule]:
  """What both kinds of the pooler's layers have."""
  return [
    *norm(f"{theirs}.layer_norm1", f"{ours}/norm1"),
    *norm(f"{theirs}.layer_norm2", f"{ours}/norm2"),
    *linear(f"{theirs}.mlp.fc1", f"{ours}/mlp/up"),
    *linear(f"{theirs}.mlp.fc2", f"{ours}/mlp/down"),
  ]
