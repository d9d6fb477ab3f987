"""DiT for images as diffusers has it (`DiTTransformer2DModel`) and our `ClassDiT`.

Every block there has an embedding of time and class of its own, but published ones are copies of
one, as in the paper: we keep one, refuse blocks that differ, and write copies. Two constants
are not those of the first code: the sinusoid's `freq_shift` is 1 and the epsilon before the MLPs
1e-5. Weights read from here are run as diffusers runs them.

Files as old as facebook/DiT-XL-2-256's name the class that it was once part of, the second one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange

from sora_jax.errors import UserError
from sora_jax.interop.names import Rule, linear, stacked
from sora_jax.models.dit_class import ClassDiT
from sora_jax.typing import Params

NAMES = ("DiTTransformer2DModel", "Transformer2DModel")
NAME = NAMES[0]

# What the reference class can be told and we do not compute otherwise.
_FIXED = dict(
  norm_type="ada_norm_zero", activation_fn="gelu-approximate", attention_bias=True,
  norm_elementwise_affine=False,
)  # fmt: skip


def from_config(config: Mapping[str, Any]) -> ClassDiT:
  """The transformer that a published config.json describes.

  Raises:
    UserError: another network under the same name.
  """
  for key, value in _FIXED.items():
    if config.get(key, value) != value:
      raise UserError(f"This {NAME} has {key}={config[key]!r}; only {value!r} can be loaded.")
  channels = config["in_channels"]
  outputs = config.get("out_channels") or channels
  if outputs not in (channels, 2 * channels):
    raise UserError(f"This {NAME} has {channels} channels in and {outputs} out: not a DiT.")
  return ClassDiT(
    width=config["num_attention_heads"] * config["attention_head_dim"],
    layers=config["num_layers"],
    heads=config["num_attention_heads"],
    classes=config["num_embeds_ada_norm"],
    channels=channels,
    size=config["sample_size"],
    patch=config["patch_size"],
    learned_sigma=outputs != channels,
    freq_shift=1,
    mlp_eps=config.get("norm_eps", 1e-5),
  )


def to_config(dit: ClassDiT) -> dict[str, Any]:
  """The config.json with which diffusers builds `dit`.

  Raises:
    UserError: diffusers' class computes something else, whatever it is told.
  """
  needed = dict(predicts="noise", freq_shift=1, freq_width=256, mlp_ratio=4, eps=1e-6)
  for key, value in needed.items():
    if getattr(dit, key) != value:
      raise UserError(
        f"diffusers' {NAME} cannot have {key}={getattr(dit, key)!r}: train with "
        f"model.{key}={value!r} to write it."
      )
  return dict(
    _class_name=NAME, num_attention_heads=dit.heads, attention_head_dim=dit.width // dit.heads,
    in_channels=dit.channels, out_channels=dit.outputs, num_layers=dit.layers,
    sample_size=dit.size, patch_size=dit.patch, num_embeds_ada_norm=dit.classes,
    norm_eps=dit.mlp_eps, **_FIXED,
  )  # fmt: skip


def shapes(dit: ClassDiT) -> Params:
  """Our parameters' shapes, computing nothing."""
  image = jnp.zeros((1, dit.size, dit.size, dit.channels))
  label = jnp.zeros(1, jnp.int32)
  return jax.eval_shape(dit.init, jax.random.key(0), image, jnp.zeros(1), label)["params"]


def rules(dit: ClassDiT) -> list[Rule]:
  """The name table. The patch embedding is a strided convolution there and a linear map here."""
  sizes = dict(p=dit.patch, q=dit.patch)
  table = [
    Rule(
      "pos_embed.proj.weight",
      "patch_in/kernel",
      lambda x: rearrange(x, "d z p q -> (p q z) d"),
      lambda x: rearrange(x, "(p q z) d -> d z p q", **sizes),
    ),
    Rule("pos_embed.proj.bias", "patch_in/bias"),
    *linear("proj_out_1", "time_modulation"),
    *linear("proj_out_2", "patch_out"),
  ]
  there = "transformer_blocks.{i}"
  embedding = [
    *linear(f"{there}.norm1.emb.timestep_embedder.linear_1", "time_in"),
    *linear(f"{there}.norm1.emb.timestep_embedder.linear_2", "time_out"),
    Rule(f"{there}.norm1.emb.class_embedder.embedding_table.weight", "label/embedding"),
  ]
  block = [
    *linear(f"{there}.norm1.linear", "blocks/time_modulation"),
    *linear(f"{there}.ff.net.0.proj", "blocks/mlp/up"),
    *linear(f"{there}.ff.net.2", "blocks/mlp/down"),
  ]
  for a, b in (("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "out")):
    block += linear(f"{there}.attn1.{a}", f"blocks/attention/{b}")
  return [*table, *stacked(dit.layers, embedding, copies=True), *stacked(dit.layers, block)]
