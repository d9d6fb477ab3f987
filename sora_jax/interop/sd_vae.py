"""Stable Diffusion's image autoencoder (diffusers' `AutoencoderKL`) and our `ImageVAE`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange

from sora_jax.errors import UserError
from sora_jax.interop.names import Rule
from sora_jax.models.image_vae import ImageVAE
from sora_jax.typing import Params

NAME = "AutoencoderKL"

# The layers of the attention, as files written before diffusers 0.17 call them, today and here.
_ATTENTION = (
  ("query", "to_q", "q"), ("key", "to_k", "k"), ("value", "to_v", "v"),
  ("proj_attn", "to_out.0", "out"),
)  # fmt: skip


def from_config(config: Mapping[str, Any]) -> ImageVAE:
  """The autoencoder that a published config.json describes.

  Raises:
    UserError: another network under the same name.
  """
  widths = tuple(config["block_out_channels"])
  quant = config.get("use_quant_conv", True)
  fixed = dict(
    down_block_types=["DownEncoderBlock2D"] * len(widths),
    up_block_types=["UpDecoderBlock2D"] * len(widths),
    act_fn="silu",
    out_channels=config["in_channels"],
    use_post_quant_conv=quant,
    latents_mean=None,
    latents_std=None,
  )
  for key, value in fixed.items():
    found = config.get(key, value)
    if (list(found) if isinstance(found, tuple) else found) != value:
      raise UserError(f"This {NAME} has {key}={found!r}; only {value!r} can be loaded.")
  return ImageVAE(
    widths=widths,
    res_blocks=config["layers_per_block"],
    z_channels=config["latent_channels"],
    channels=config["in_channels"],
    groups=config.get("norm_num_groups", 32),
    mid_attention=config.get("mid_block_add_attention", True),
    quant=quant,
    scale=config.get("scaling_factor", 0.18215),
    shift=config.get("shift_factor") or 0.0,
  )


def to_config(vae: ImageVAE) -> dict[str, Any]:
  """The config.json with which diffusers builds `vae`."""
  levels = len(vae.widths)
  return dict(
    _class_name=NAME, in_channels=vae.channels, out_channels=vae.channels,
    down_block_types=["DownEncoderBlock2D"] * levels, up_block_types=["UpDecoderBlock2D"] * levels,
    block_out_channels=list(vae.widths), layers_per_block=vae.res_blocks, act_fn="silu",
    latent_channels=vae.z_channels, norm_num_groups=vae.groups, scaling_factor=vae.scale,
    shift_factor=vae.shift or None, use_quant_conv=vae.quant, use_post_quant_conv=vae.quant,
    mid_block_add_attention=vae.mid_attention,
  )  # fmt: skip


def shapes(vae: ImageVAE) -> Params:
  """Our parameters' shapes, computing nothing."""
  side = vae.space_stride
  image = jnp.zeros((1, side, side, vae.channels))
  return jax.eval_shape(vae.init, jax.random.key(0), image)["params"]


def rules(vae: ImageVAE) -> list[Rule]:
  """The name table. Convolutions there are 2-D, ours have one tap in time."""
  coarsest, n = len(vae.widths) - 1, vae.res_blocks
  table = []
  if vae.quant:
    table += [*_conv("quant_conv", "quant_in"), *_conv("post_quant_conv", "quant_out")]
  for part in ("encoder", "decoder"):
    for name in ("conv_in", "conv_out"):
      table += _conv(f"{part}.{name}", f"{part}/{name}")
    table += _norm(f"{part}.conv_norm_out", f"{part}/norm_out")
    for j in range(2):
      table += _block(f"{part}.mid_block.resnets.{j}", f"{part}/middle/block_{j}", False)
    if vae.mid_attention:
      table += _attention(f"{part}.mid_block.attentions.0", f"{part}/middle/attention")
  for i, width in enumerate(vae.widths):
    # The encoder's first block widens, and so does the decoder's, which comes from below.
    finer, coarser = vae.widths[max(0, i - 1)], vae.widths[min(coarsest, i + 1)]
    there, ours = f"encoder.down_blocks.{i}", f"encoder/level_{i}"
    for j in range(n):
      table += _block(f"{there}.resnets.{j}", f"{ours}_block_{j}", j == 0 and finer != width)
    if i < coarsest:
      table += _conv(f"{there}.downsamplers.0.conv", f"{ours}_down")
    there, ours = f"decoder.up_blocks.{coarsest - i}", f"decoder/level_{i}"
    for j in range(n + 1):
      table += _block(f"{there}.resnets.{j}", f"{ours}_block_{j}", j == 0 and coarser != width)
    if i:
      table += _conv(f"{there}.upsamplers.0.conv", f"{ours}_up")
  return table


def _conv(theirs: str, ours: str) -> list[Rule]:
  kernel = Rule(
    f"{theirs}.weight",
    f"{ours}/kernel",
    lambda x: rearrange(x, "o i h w -> 1 h w i o"),
    lambda x: rearrange(x, "1 h w i o -> o i h w"),
  )
  return [kernel, Rule(f"{theirs}.bias", f"{ours}/bias")]


def _norm(theirs: str, ours: str) -> list[Rule]:
  scale = Rule(f"{theirs}.weight", f"{ours}/norm/scale")
  return [scale, Rule(f"{theirs}.bias", f"{ours}/norm/bias")]


def _block(theirs: str, ours: str, shortcut: bool) -> list[Rule]:
  table = _conv(f"{theirs}.conv_shortcut", f"{ours}/shortcut") if shortcut else []
  for i in (1, 2):
    table += _norm(f"{theirs}.norm{i}", f"{ours}/norm{i}")
    table += _conv(f"{theirs}.conv{i}", f"{ours}/conv{i}")
  return table


def _attention(theirs: str, ours: str) -> list[Rule]:
  """Linear layers there (or 1x1 convolutions, in files made from the first code), those here."""
  table = _norm(f"{theirs}.group_norm", f"{ours}_norm")
  for old, name, b in _ATTENTION:
    kernel = Rule(
      f"{theirs}.{name}.weight",
      f"{ours}_{b}/kernel",
      lambda x: rearrange(x.reshape(x.shape[:2]), "o i -> 1 1 1 i o"),
      lambda x: rearrange(x, "1 1 1 i o -> o i"),
      tied=(f"{theirs}.{old}.weight",),
    )
    bias = Rule(f"{theirs}.{name}.bias", f"{ours}_{b}/bias", tied=(f"{theirs}.{old}.bias",))
    table += [kernel, bias]
  return table
