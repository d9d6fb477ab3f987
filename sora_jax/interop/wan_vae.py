"""Wan 2.1's autoencoder as published (diffusers' AutoencoderKLWan), to and from `VideoVAE`.

`modules` is the one table of names. Values are copied bit for bit; a convolution's axes are
(out, in, t, h, w) there and (t, h, w, in, out) here, and where theirs is 2-D ours has one tap in
time.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import numpy as np
from einops import rearrange
from flax.traverse_util import flatten_dict, unflatten_dict

from sora_jax.errors import UserError
from sora_jax.interop.names import Rule
from sora_jax.models.vae import VideoVAE
from sora_jax.typing import Params

NAME = "AutoencoderKLWan"
LEAVES = {"kernel": "weight", "bias": "bias", "scale": "gamma"}
BLOCK = {"norm1": "norm1", "conv1": "conv1", "norm2": "norm2", "conv2": "conv2",
         "shortcut": "conv_shortcut"}  # fmt: skip
ATTENTION = {"norm": "norm", "qkv": "to_qkv", "out": "proj"}
PER_FRAME = re.compile(r"\.(resample|attentions)\.")  # modules without a time axis there


def modules(vae: VideoVAE) -> dict[str, str]:
  """Path of each of our modules that holds parameters -> the name of theirs."""
  table = {"quant": "quant_conv", "post_quant": "post_quant_conv"}
  coarsest, n = len(vae.widths) - 1, vae.res_blocks
  # The encoder numbers blocks and downsamplings of all levels in one list; the decoder counts
  # levels from the coarsest.
  blocks, samplings = {}, {}
  for i in range(coarsest + 1):
    there = f"decoder.up_blocks.{coarsest - i}"
    for j in range(n):
      blocks[f"encoder/level_{i}_block_{j}"] = f"encoder.down_blocks.{i * (n + 1) + j}"
    for j in range(n + 1):
      blocks[f"decoder/level_{i}_block_{j}"] = f"{there}.resnets.{j}"
    samplings[f"encoder/level_{i}_down"] = f"encoder.down_blocks.{i * (n + 1) + n}"
    samplings[f"decoder/level_{i}_up"] = f"{there}.upsamplers.0"
  for part in ("encoder", "decoder"):
    table |= {f"{part}/{name}": f"{part}.{name}" for name in ("conv_in", "norm_out", "conv_out")}
    blocks |= {f"{part}/middle/block_{j}": f"{part}.mid_block.resnets.{j}" for j in range(2)}
    for ours, theirs in ATTENTION.items():
      table[f"{part}/middle/attention/{ours}"] = f"{part}.mid_block.attentions.0.{theirs}"
  table |= {f"{a}/{x}": f"{b}.{y}" for a, b in blocks.items() for x, y in BLOCK.items()}
  table |= {f"{a}/conv": f"{b}.resample.1" for a, b in samplings.items()}
  table |= {f"{a}/time_conv": f"{b}.time_conv" for a, b in samplings.items()}
  return table


def from_config(config: Mapping[str, Any]) -> VideoVAE:
  """The autoencoder that a diffusers `config.json` describes.

  Raises:
    UserError: a kind of AutoencoderKLWan that is not supported (Wan 2.2's residual one).
  """
  config = {key: value for key, value in config.items() if not key.startswith("_")}
  base = config.get("base_dim", 96)
  unsupported = {
    "is_residual": bool(config.get("is_residual")),
    "attn_scales": bool(config.get("attn_scales")),
    "decoder_base_dim": config.get("decoder_base_dim") not in (None, base),
    "out_channels": config.get("out_channels", 3) != config.get("in_channels", 3),
  }
  for key in (key for key, found in unsupported.items() if found):
    raise UserError(
      f"This AutoencoderKLWan has {key} = {config[key]}, which is not supported; "
      "use the autoencoder of Wan 2.1."
    )
  patch = config.get("patch_size") or 1
  widths = tuple(base * m for m in config.get("dim_mult", (1, 2, 4, 4)))
  statistics = {
    ours: tuple(config[theirs])
    for ours, theirs in (("latent_mean", "latents_mean"), ("latent_std", "latents_std"))
    if config.get(theirs) is not None
  }
  return VideoVAE(
    z_channels=config.get("z_dim", 16),
    widths=widths,
    res_blocks=config.get("num_res_blocks", 2),
    patch=patch,
    time_down=tuple(config.get("temperal_downsample", (False, True, True))),
    kernel_t=(3,) * len(widths),
    mid_attention=True,
    channels=config.get("in_channels", 3) // patch**2,
    **statistics,
  )


def to_config(vae: VideoVAE) -> dict[str, Any]:
  """The `config.json` with which diffusers builds `vae`.

  Raises:
    UserError: diffusers' class cannot express it.
  """
  base = vae.widths[0]
  if set(vae.kernel_t) != {3} or not vae.mid_attention or any(w % base for w in vae.widths):
    raise UserError(
      "Only an autoencoder with kernel_t = 3 at every level, attention in the middle and widths "
      "that are multiples of the first can be written as an AutoencoderKLWan."
    )
  config = {
    "_class_name": "AutoencoderKLWan",
    "base_dim": base,
    "z_dim": vae.z_channels,
    "dim_mult": [w // base for w in vae.widths],
    "num_res_blocks": vae.res_blocks,
    "attn_scales": [],
    "temperal_downsample": list(vae.time_down),
    "dropout": 0.0,
    "in_channels": vae.channels * vae.patch**2,
    "out_channels": vae.channels * vae.patch**2,
    "patch_size": vae.patch if vae.patch > 1 else None,
    "scale_factor_temporal": vae.time_stride,
    "scale_factor_spatial": vae.space_stride,
    "latents_mean": list(vae.latent_mean or [0.0] * vae.z_channels),
    "latents_std": list(vae.latent_std or [1.0] * vae.z_channels),
  }
  return config


def shapes(vae: VideoVAE) -> Params:
  """Our parameters' shapes, computing nothing."""
  size = jax.ShapeDtypeStruct((1, 1, *[vae.space_stride] * 2, vae.channels), np.float32)
  return jax.eval_shape(vae.init, jax.random.key(0), size, jax.random.key(0))["params"]


def rules(vae: VideoVAE) -> list[Rule]:
  """The name table."""
  names = modules(vae)
  return [
    Rule(name, "/".join(path), _to_ours, partial(_to_theirs, name=name))
    for path in _shapes(vae)
    for name in [_their_name(names, path)]
  ]


def from_diffusers(vae: VideoVAE, state: Mapping[str, np.ndarray]) -> Params:
  """Our parameters from a diffusers state dict (as numpy arrays).

  Raises:
    UserError: a parameter is missing, superfluous or has another shape.
  """
  names, left, params = modules(vae), dict(state), {}
  for path, shape in _shapes(vae).items():
    name = _their_name(names, path)
    if name not in left:
      raise UserError(f"The weights lack {name}; are they those of this autoencoder's config?")
    value = _to_ours(left.pop(name))
    if value.shape != shape:
      raise UserError(f"{name} has shape {value.shape} where the config asks for {shape}.")
    params[path] = value
  if left:
    raise UserError(f"The weights contain {min(left)}, which this autoencoder's config has not.")
  return unflatten_dict(params)


def to_diffusers(vae: VideoVAE, params: Params) -> dict[str, np.ndarray]:
  """A diffusers state dict (numpy arrays) from our parameters."""
  names = modules(vae)
  return {
    _their_name(names, path): _to_theirs(np.asarray(value), _their_name(names, path))
    for path, value in flatten_dict(params).items()
  }


def _their_name(names: Mapping[str, str], path: tuple[str, ...]) -> str:
  return f"{names['/'.join(path[:-1])]}.{LEAVES[path[-1]]}"


def _to_ours(value: np.ndarray) -> np.ndarray:
  if value.ndim == 5:
    return rearrange(value, "o i t h w -> t h w i o")
  if value.ndim == 4 and value.shape[1:] != (1, 1, 1):
    return rearrange(value, "o i h w -> 1 h w i o")
  return value.reshape(-1)


def _to_theirs(value: np.ndarray, name: str) -> np.ndarray:
  if name.endswith(".weight"):
    pattern = "1 h w i o -> o i h w" if PER_FRAME.search(name) else "t h w i o -> o i t h w"
    return rearrange(value, pattern)
  if name.endswith(".gamma"):
    return value.reshape(-1, 1, 1) if PER_FRAME.search(name) else value.reshape(-1, 1, 1, 1)
  return value


def _shapes(vae: VideoVAE) -> dict[tuple[str, ...], tuple[int, ...]]:
  """Path -> shape of all parameters."""
  return {path: leaf.shape for path, leaf in flatten_dict(shapes(vae)).items()}
