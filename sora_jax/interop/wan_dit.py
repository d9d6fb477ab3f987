"""Wan 2.1's text-to-video transformer (diffusers' `WanTransformer3DModel`) and our `DiT`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
from einops import rearrange

from sora_jax.errors import UserError
from sora_jax.interop.names import Rule, linear, norm, stacked
from sora_jax.models.dit import DiT, blank_tokens
from sora_jax.typing import Params

NAME = "WanTransformer3DModel"
# What a config.json must say, or leave out: other values make another architecture.
FIXED = dict(
  cross_attn_norm=True, qk_norm="rms_norm_across_heads", image_dim=None, added_kv_proj_dim=None,
  pos_embed_seq_len=None,
)  # fmt: skip


def from_config(config: Mapping[str, Any]) -> DiT:
  """The transformer that a published config.json describes.

  Raises:
    UserError: it is of another architecture (Wan's image-to-video transformers are).
  """
  required = FIXED | {"out_channels": config["in_channels"]}
  for key in required:
    if (value := config.get(key, required[key])) != required[key]:
      raise UserError(
        f"This {NAME} has {key} = {value}, which is not supported: it must be {required[key]}."
      )
  return DiT(
    width=config["num_attention_heads"] * config["attention_head_dim"],
    layers=config["num_layers"],
    heads=config["num_attention_heads"],
    mlp_width=config["ffn_dim"],
    text_width=config["text_dim"],
    channels=config["in_channels"],
    patch=tuple(config["patch_size"]),
    freq_width=config["freq_dim"],
    eps=config["eps"],
  )


def to_config(dit: DiT) -> dict[str, Any]:
  """The config.json with which diffusers builds `dit`.

  Raises:
    UserError: its class cannot express it.
  """
  if dit.absolute or dit.affine or dit.split or dit.cond_features != 1:
    raise UserError(
      "Only a transformer with cond_features = 1 and without absolute positions, an affine "
      f"velocity and split patches can be written as a {NAME}."
    )
  return FIXED | dict(
    _class_name=NAME, patch_size=list(dit.patch), num_attention_heads=dit.heads,
    attention_head_dim=dit.width // dit.heads, in_channels=dit.channels, out_channels=dit.channels,
    text_dim=dit.text_width, freq_dim=dit.freq_width, ffn_dim=dit.mlp_width,
    num_layers=dit.layers, eps=dit.eps, rope_max_seq_len=1024,
  )  # fmt: skip


def shapes(dit: DiT) -> Params:
  """Our parameters' shapes, computing nothing."""
  return jax.eval_shape(dit.init, jax.random.key(0), blank_tokens(dit))["params"]


def rules(dit: DiT) -> list[Rule]:
  """The name table. The patch embedding is a strided convolution there and a linear map here."""
  pt, ph, pw = dit.patch
  patches = "out z pt ph pw -> (pt ph pw z) out"
  sizes = dict(pt=pt, ph=ph, pw=pw)
  table = [
    Rule(
      "patch_embedding.weight",
      "patch_in/kernel",
      lambda x: rearrange(x, patches),
      lambda x: rearrange(x, " -> ".join(reversed(patches.split(" -> "))), **sizes),
    ),
    Rule("patch_embedding.bias", "patch_in/bias"),
    *linear("condition_embedder.time_embedder.linear_1", "time_in"),
    *linear("condition_embedder.time_embedder.linear_2", "time_out"),
    *linear("condition_embedder.time_proj", "time_modulation"),
    *linear("condition_embedder.text_embedder.linear_1", "text_in/up"),
    *linear("condition_embedder.text_embedder.linear_2", "text_in/down"),
    *linear("proj_out", "patch_out"),
    Rule("scale_shift_table", "modulation", lambda x: x[0], lambda x: x[None]),
  ]
  block = [
    Rule("blocks.{i}.scale_shift_table", "blocks/modulation", lambda x: x[0], lambda x: x[None]),
    *norm("blocks.{i}.norm2", "blocks/text_norm"),
    *linear("blocks.{i}.ffn.net.0.proj", "blocks/mlp/up"),
    *linear("blocks.{i}.ffn.net.2", "blocks/mlp/down"),
  ]
  for theirs, ours in (("attn1", "self_attention"), ("attn2", "text_attention")):
    for a, b in (("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "out")):
      block += linear(f"blocks.{{i}}.{theirs}.{a}", f"blocks/{ours}/{b}")
    block.append(Rule(f"blocks.{{i}}.{theirs}.norm_q.weight", f"blocks/{ours}/q_norm/scale"))
    block.append(Rule(f"blocks.{{i}}.{theirs}.norm_k.weight", f"blocks/{ours}/k_norm/scale"))
  return table + stacked(dit.layers, block)
