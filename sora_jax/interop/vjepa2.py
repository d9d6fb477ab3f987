"""V-JEPA 2 (transformers' `VJEPA2Model`): encoder and predictor, and our `VJEPA`.

The reference sorts the predictor's tokens by position, which attention cannot tell, and lets the
encoder see all patches before it masks them; ours is given those that are to be seen. Its input is
normalised by ImageNet's mean and deviation per channel.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange

from sora_jax.errors import UserError
from sora_jax.interop.names import Rule, linear, norm, stacked
from sora_jax.models.vjepa import VJEPA
from sora_jax.typing import Params

NAME = "VJEPA2Model"


def from_config(config: Mapping[str, Any]) -> VJEPA:
  """The model that a published config.json describes.

  Raises:
    UserError: it has no biases at queries, keys and values, or another activation than GELU.
  """
  for name, value in (("qkv_bias", True), ("hidden_act", "gelu")):
    if config.get(name, value) != value:
      raise UserError(f"V-JEPA 2 with {name}={config[name]!r} is not supported, only {value!r}.")
  width, narrow = config["hidden_size"], config["pred_hidden_size"]
  return VJEPA(
    width=width,
    layers=config["num_hidden_layers"],
    heads=config["num_attention_heads"],
    mlp_width=int(width * config["mlp_ratio"]),
    predictor_width=narrow,
    predictor_layers=config["pred_num_hidden_layers"],
    predictor_heads=config["pred_num_attention_heads"],
    predictor_mlp_width=int(narrow * config["pred_mlp_ratio"]),
    channels=config["in_chans"],
    patch=(config["tubelet_size"], config["patch_size"], config["patch_size"]),
    mask_tokens=config["pred_num_mask_tokens"],
    frames=config["frames_per_clip"],
    size=config["crop_size"],
    eps=config["layer_norm_eps"],
  )


def to_config(model: VJEPA) -> dict[str, Any]:
  """The config.json with which transformers builds `model`.

  Raises:
    UserError: its patches are not square, which the reference cannot say.
  """
  frames, rows, columns = model.patch
  if rows != columns:
    raise UserError(f"VJEPA2Model has square patches only, not {rows} x {columns}.")
  return dict(
    architectures=[NAME], model_type="vjepa2", patch_size=rows, crop_size=model.size,
    frames_per_clip=model.frames, tubelet_size=frames, hidden_size=model.width,
    in_chans=model.channels, num_attention_heads=model.heads, num_hidden_layers=model.layers,
    mlp_ratio=_ratio(model.mlp_width, model.width), layer_norm_eps=model.eps, qkv_bias=True,
    hidden_act="gelu", pred_hidden_size=model.predictor_width,
    pred_num_attention_heads=model.predictor_heads, pred_num_hidden_layers=model.predictor_layers,
    pred_num_mask_tokens=model.mask_tokens,
    pred_mlp_ratio=_ratio(model.predictor_mlp_width, model.predictor_width),
  )  # fmt: skip


def _ratio(wide: int, width: int) -> float:
  """What `width` is multiplied with and rounded down to be `wide`."""
  ratio = wide / width
  return ratio if int(width * ratio) == wide else math.nextafter(ratio, math.inf)


def shapes(model: VJEPA) -> Params:
  """Our parameters' shapes, computing nothing."""
  values = jnp.zeros((1, 1, math.prod(model.patch) * model.channels))
  where = jnp.zeros((1, 1, 3))
  return jax.eval_shape(model.init, jax.random.key(0), values, where, where)["params"]


def rules(model: VJEPA) -> list[Rule]:
  """The name table. The patch embedding is a strided convolution there and a linear map here."""
  pt, ph, pw = model.patch
  patches = "out c pt ph pw -> (pt ph pw c) out"
  sizes = dict(pt=pt, ph=ph, pw=pw)
  embedding = "encoder.embeddings.patch_embeddings.proj"
  return [
    Rule(
      f"{embedding}.weight",
      "encoder/patch_in/kernel",
      lambda x: rearrange(x, patches),
      lambda x: rearrange(x, " -> ".join(reversed(patches.split(" -> "))), **sizes),
    ),
    Rule(f"{embedding}.bias", "encoder/patch_in/bias"),
    Rule(
      "predictor.embeddings.mask_tokens",
      "predictor/mask_tokens",
      lambda x: x[:, 0, 0],
      lambda x: x[:, None, None],
    ),
    *linear("predictor.embeddings.predictor_embeddings", "predictor/context_in"),
    *linear("predictor.proj", "predictor/out"),
    *_half("encoder", model.layers),
    *_half("predictor", model.predictor_layers),
  ]


def _half(name: str, layers: int) -> list[Rule]:
  """The transformer of the encoder or the predictor."""
  theirs, ours = f"{name}.layer.{{i}}", f"{name}/blocks"
  block = [
    *norm(f"{theirs}.norm1", f"{ours}/norm1"),
    *norm(f"{theirs}.norm2", f"{ours}/norm2"),
    *linear(f"{theirs}.mlp.fc1", f"{ours}/mlp/up"),
    *linear(f"{theirs}.mlp.fc2", f"{ours}/mlp/down"),
  ]
  for a, b in (("query", "q"), ("key", "k"), ("value", "v"), ("proj", "out")):
    block += linear(f"{theirs}.attention.{a}", f"{ours}/attention/{b}")
  return [*norm(f"{name}.layernorm", f"{name}/norm"), *stacked(layers, block)]
