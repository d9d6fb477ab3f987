"""Wan 2.1's text-to-video transformer (diffusers' `WanTransformer3DModel`) and our `DiT`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from einops import rearrange

from sora_jax.interop.names import Rule, linear
from sora_jax.models.patch import Patch


def fields(config: Mapping[str, Any]) -> dict[str, Any]:
  """`DiT` fields from a published config.json."""
  return dict(
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


def rules(patch: Patch) -> list[Rule]:
  """The name table. The patch embedding is a strided convolution there and a linear map here."""
  pt, ph, pw = patch
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
    Rule("blocks.{i}.scale_shift_table", "blocks/modulation", lambda x: x[0], lambda x: x[None]),
    Rule("blocks.{i}.norm2.weight", "blocks/text_norm/LayerNorm_0/scale"),
    Rule("blocks.{i}.norm2.bias", "blocks/text_norm/LayerNorm_0/bias"),
    *linear("blocks.{i}.ffn.net.0.proj", "blocks/mlp/up"),
    *linear("blocks.{i}.ffn.net.2", "blocks/mlp/down"),
  ]
  for theirs, ours in (("attn1", "self_attention"), ("attn2", "text_attention")):
    for a, b in (("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "out")):
      table += linear(f"blocks.{{i}}.{theirs}.{a}", f"blocks/{ours}/{b}")
    table.append(Rule(f"blocks.{{i}}.{theirs}.norm_q.weight", f"blocks/{ours}/q_norm/scale"))
    table.append(Rule(f"blocks.{{i}}.{theirs}.norm_k.weight", f"blocks/{ours}/k_norm/scale"))
  return table
