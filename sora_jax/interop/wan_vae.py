"""The autoencoders of Wan 2.1 and 2.2 (diffusers' `AutoencoderKLWan`) and our `VideoVAE`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from einops import rearrange

from sora_jax.errors import UserError
from sora_jax.interop.names import Rule
from sora_jax.models.vae import VARIANTS, VideoVAE
from sora_jax.typing import Params

NAME = "AutoencoderKLWan"


def from_config(config: Mapping[str, Any]) -> VideoVAE:
  """The autoencoder that a published config.json describes; what it lacks is as in Wan 2.1.

  Raises:
    UserError: a kind of it that is not supported, or there is not one mean for each channel.
  """
  config = to_config(VideoVAE(**VARIANTS["wan2.1"])) | dict(config)
  unsupported = {
    "attn_scales": bool(config["attn_scales"]),
    "dim_mult": config["dim_mult"][0] != 1,
    "out_channels": config["out_channels"] != config["in_channels"],
  }
  for key in (key for key, found in unsupported.items() if found):
    raise UserError(f"This {NAME} has {key} = {config[key]}, which is not supported.")
  for key in ("latents_mean", "latents_std"):
    if len(config[key]) != config["z_dim"]:
      raise UserError(
        f"This {NAME} has {config['z_dim']} channels (z_dim) and {len(config[key])} numbers in "
        f"{key}: give one for each."
      )
  base, patch, multiples = config["base_dim"], config["patch_size"] or 1, config["dim_mult"]
  other = config["decoder_base_dim"] not in (None, base)
  return VideoVAE(
    z_channels=config["z_dim"],
    widths=tuple(base * m for m in multiples),
    decoder_widths=tuple(config["decoder_base_dim"] * m for m in multiples) if other else None,
    res_blocks=config["num_res_blocks"],
    patch=patch,
    time_down=tuple(config["temperal_downsample"]),
    kernel_t=(3,) * len(multiples),
    mid_attention=True,
    shortcuts=config["is_residual"],
    latent_mean=tuple(config["latents_mean"]),
    latent_std=tuple(config["latents_std"]),
    channels=config["in_channels"] // patch**2,
  )


def to_config(vae: VideoVAE) -> dict[str, Any]:
  """The config.json with which diffusers builds `vae`.

  Raises:
    UserError: diffusers' class cannot express it.
  """
  base, other = vae.widths[0], vae.decoder_widths
  wan = set(vae.kernel_t) == {3} and vae.mid_attention and not vae.linear and vae.patch_time == 1
  multiples = [width // base for width in vae.widths]
  for widths in (vae.widths, other or vae.widths):
    wan &= list(widths) == [widths[0] * m for m in multiples]
  if not wan:
    raise UserError(
      f"Only an autoencoder with kernel_t = 3 at every level, attention in the middle, widths that "
      f"are multiples of the first and learned levels alone can be written as an {NAME}."
    )
  channels = vae.channels * vae.patch**2
  return dict(
    _class_name=NAME, base_dim=base, decoder_base_dim=other[0] if other else None,
    z_dim=vae.z_channels, dim_mult=multiples, num_res_blocks=vae.res_blocks, attn_scales=[],
    temperal_downsample=list(vae.time_down), dropout=0.0, is_residual=vae.shortcuts,
    in_channels=channels, out_channels=channels, patch_size=vae.patch if vae.patch > 1 else None,
    scale_factor_temporal=vae.time_stride, scale_factor_spatial=vae.space_stride,
    latents_mean=list(vae.latent_mean or [0.0] * vae.z_channels),
    latents_std=list(vae.latent_std or [1.0] * vae.z_channels),
  )  # fmt: skip


def shapes(vae: VideoVAE) -> Params:
  """Our parameters' shapes, computing nothing."""
  key, side = jax.random.key(0), vae.space_stride
  video = jax.ShapeDtypeStruct((1, 1, side, side, vae.channels), np.float32)
  return jax.eval_shape(vae.init, key, video, key)["params"]


def rules(vae: VideoVAE) -> list[Rule]:
  """The name table. Wan 2.2 names the parts of a level, 2.1 numbers all the encoder's in a row."""
  table = [*_conv("quant_conv", "quant"), *_conv("post_quant_conv", "post_quant")]
  for part in ("encoder", "decoder"):
    table += [*_conv(f"{part}.conv_in", f"{part}/conv_in")]
    table += [*_norm(f"{part}.norm_out", f"{part}/norm_out")]
    table += [*_conv(f"{part}.conv_out", f"{part}/conv_out")]
    theirs, ours = f"{part}.mid_block", f"{part}/middle"
    for j in range(2):
      table += _block(f"{theirs}.resnets.{j}", f"{ours}/block_{j}", False)
    theirs, ours = f"{theirs}.attentions.0", f"{ours}/attention"
    table += [
      *_norm(f"{theirs}.norm", f"{ours}/norm", per_frame=True),
      *_conv(f"{theirs}.to_qkv", f"{ours}/qkv", per_frame=True),
      *_conv(f"{theirs}.proj", f"{ours}/out", per_frame=True),
    ]
  return table + _encoder_levels(vae) + _decoder_levels(vae)


def _encoder_levels(vae: VideoVAE) -> list[Rule]:
  table, width, parts = [], vae.widths[0], vae.res_blocks + 1
  for i, features in enumerate(vae.widths):
    level, number = f"encoder.down_blocks.{i}", i * parts
    for j in range(vae.res_blocks):
      theirs = f"{level}.resnets.{j}" if vae.shortcuts else f"encoder.down_blocks.{number + j}"
      table += _block(theirs, f"encoder/level_{i}_block_{j}", width != features)
      width = features
    if i < len(vae.time_down):
      last = f"encoder.down_blocks.{number + vae.res_blocks}"
      theirs = f"{level}.downsampler" if vae.shortcuts else last
      table += _resampling(theirs, f"encoder/level_{i}_down", vae.time_down[i])
  return table


def _decoder_levels(vae: VideoVAE) -> list[Rule]:
  widths = vae.decoder_widths or vae.widths
  table, width = [], widths[-1]
  for i in reversed(range(len(widths))):
    level = f"decoder.up_blocks.{len(widths) - 1 - i}"
    for j in range(vae.res_blocks + 1):
      ours = f"decoder/level_{i}_block_{j}"
      table += _block(f"{level}.resnets.{j}", ours, width != widths[i])
      width = widths[i]
    if i:
      theirs = f"{level}.upsampler" if vae.shortcuts else f"{level}.upsamplers.0"
      table += _resampling(theirs, f"decoder/level_{i}_up", vae.time_down[i - 1])
      width = width if vae.shortcuts else width // 2
  return table


def _block(theirs: str, ours: str, widens: bool) -> list[Rule]:
  table = _conv(f"{theirs}.conv_shortcut", f"{ours}/shortcut") if widens else []
  for n in (1, 2):
    table += _norm(f"{theirs}.norm{n}", f"{ours}/norm{n}")
    table += _conv(f"{theirs}.conv{n}", f"{ours}/conv{n}")
  return table


def _resampling(theirs: str, ours: str, time: bool) -> list[Rule]:
  table = _conv(f"{theirs}.resample.1", f"{ours}/conv", per_frame=True)
  return table + (_conv(f"{theirs}.time_conv", f"{ours}/time_conv") if time else [])


def _conv(theirs: str, ours: str, per_frame: bool = False) -> list[Rule]:
  """Kernel and bias; where theirs sees single frames and is 2-D, ours has one tap in time."""
  there, here = ("o i h w", "1 h w i o") if per_frame else ("o i t h w", "t h w i o")
  kernel = Rule(
    f"{theirs}.weight",
    f"{ours}/kernel",
    lambda x: rearrange(x, f"{there} -> {here}"),
    lambda x: rearrange(x, f"{here} -> {there}"),
  )
  return [kernel, Rule(f"{theirs}.bias", f"{ours}/bias")]


def _norm(theirs: str, ours: str, per_frame: bool = False) -> list[Rule]:
  there = (-1, 1, 1) if per_frame else (-1, 1, 1, 1)
  names = f"{theirs}.gamma", f"{ours}/scale"
  return [Rule(*names, lambda x: x.reshape(-1), lambda x: x.reshape(there))]
