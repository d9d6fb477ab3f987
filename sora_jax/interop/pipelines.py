"""Whole models on disk, in the hub's layout or ours, as parts that a video can be made of.

model_index.json      the pipeline's class, and the class of each component
transformer/ vae/ text_encoder/       components (`published`)
transformer_2/        a second transformer, for noise levels below `boundary_ratio`
tokenizer/            a vocabulary (`tokenizer`)
scheduler/            scheduler_config.json (`schedulers`)
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from sora_jax import config as config_lib
from sora_jax.errors import UserError
from sora_jax.interop import (
  hub,
  names,
  native,
  published,
  schedulers,
  tokenizer,
  wan_dit,
  wan_vae,
  wordpieces,
)
from sora_jax.interop.folders import read_json
from sora_jax.interop.published import Component
from sora_jax.interop.shards import Weights
from sora_jax.models.dit import DiT
from sora_jax.models.text import Prompts, TextEncoder
from sora_jax.models.vae import VideoVAE
from sora_jax.typing import Params

INDEX = "model_index.json"
COMPONENTS = ("transformer", "vae", "text_encoder")
SECOND = "transformer_2"

# What the pipelines' own defaults are, where a repository does not say. `expand_timesteps` tells
# Wan 2.2's 5B, which is published for another size and rate.
WAN = dict(
  steps=50, guidance=5.0, frames=81, size=[480, 832], fps=16.0, reference_fps=16.0,
  text_length=512,
)  # fmt: skip
WAN_5B = WAN | dict(
  frames=121, size=[704, 1280], fps=24.0, reference_fps=24.0, expand_timesteps=True
)  # fmt: skip


@dataclass(frozen=True)
class Parts:
  """What `generate.model.VideoModel` is made of; weights are not read yet.

  Attributes:
    components: `dit`, `vae` and `text`, and perhaps `low`.
    prompts: the tokenizer. config: what our config.json says (`sampling`, `known_words`).
  """

  components: dict[str, Component]
  prompts: Prompts
  config: dict[str, Any]


def open_model(name: str | os.PathLike[str], dtype: Any = None) -> Parts:
  """Opens a model: a shipped name, a folder of ours or in the hub's layout, or `hf:ORG/NAME`.

  Args:
    dtype: what transformer and text encoder compute in; None: what the checkpoint says, and float32
      where it does not say.

  Raises:
    UserError: there is none, it cannot make videos, or a file of it is missing or damaged.
  """
  folder = hub.find(name)
  if (folder / INDEX).is_file():
    return _published(folder, dtype)
  config = native.read_config(folder)
  if published.class_of(config):
    raise UserError(
      f"{folder} is one component of a model: give the folder above it, which holds {INDEX}."
    )
  return _own(folder, config, dtype)


def open_transformer(name: str | os.PathLike[str], dit: DiT) -> Component:
  """The transformer of a model in either layout, as `dit`; the rest of the model need not be there.

  Raises:
    UserError: there is none, or it is of another shape than `dit`.
  """
  folder = hub.find(name)
  if (folder / INDEX).is_file():
    return published.of(wan_dit, dit, Weights.open(folder / "transformer"))
  weights = native.open_weights(folder, "transformer").within("dit/")
  return published.own(dit, wan_dit.shapes(dit), weights)


def is_split(name: str | os.PathLike[str]) -> bool:
  """Whether the transformer of a model works on single latents (`DiT.split`)."""
  folder = hub.find(name)
  if (folder / INDEX).is_file():
    return False
  return bool(native.read_config(folder).get("transformer", {}).get("split"))


def load_vae(name: str | os.PathLike[str]) -> tuple[VideoVAE, Params]:
  """The autoencoder of a model in either layout, in float32.

  Raises:
    UserError: there is none, or it is damaged.
  """
  folder = hub.find(name)
  if not (folder / INDEX).is_file():
    return native.load_vae(folder)
  vae = published.read_component(folder / "vae")
  if not isinstance(vae.module, VideoVAE):
    raise UserError(f"The autoencoder of {folder} is one of images: give a model of videos.")
  params = names.to_ours(vae.tensors, vae.rules, vae.shapes)
  return vae.module, jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)


def sampling_of(folder: Path) -> dict[str, Any]:
  """The settings of sampling of a repository.

  Raises:
    UserError: its pipeline or its scheduler is not known here.
  """
  index = read_json(folder / INDEX)
  if (kind := index.get("_class_name")) != "WanPipeline":
    raise UserError(f"{folder / INDEX} is a {kind}, which does not load here: WanPipeline does.")
  if has_second(folder) and not index.get("boundary_ratio"):
    raise UserError(f"{folder / INDEX} has two transformers and no boundary_ratio between them.")
  file = folder / "scheduler" / "scheduler_config.json"
  defaults = WAN_5B if index.get("expand_timesteps") else WAN
  boundary = (index.get("boundary_ratio") or 0.0) * has_second(folder)
  return defaults | schedulers.from_config(read_json(file), file) | dict(boundary=boundary)


def has_second(folder: Path) -> bool:
  """Whether a repository has a second transformer."""
  return bool((read_json(folder / INDEX).get(SECOND) or [None])[0])


def _published(folder: Path, dtype: Any) -> Parts:
  sampling = sampling_of(folder)
  transformer, vae, text = (
    published.read_component(folder / name, None if name == "vae" else dtype) for name in COMPONENTS
  )
  components = {"dit": transformer, "vae": vae, "text": text}
  if has_second(folder):
    components["low"] = published.read_component(folder / SECOND, dtype)
  prompts = _prompts(folder, sampling, text.module.vocabulary)
  return Parts(components, prompts, {"sampling": sampling, "known_words": []})


def _own(folder: Path, config: dict[str, Any], dtype: Any) -> Parts:
  lacking = {"vae", "transformer", "text", "sampling"} - config.keys()
  if lacking:
    raise UserError(f"The checkpoint {folder} has no {min(lacking)}: it cannot make videos.")
  try:
    told = {"known_words": [], **config, "sampling": dict(config["sampling"])}
    return _described(folder, told, dtype)
  except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
    file = folder / "config.json"
    raise UserError(f"{file} is damaged ({error}): export the checkpoint again.") from error


def _described(folder: Path, config: dict[str, Any], dtype: Any) -> Parts:
  """The parts that our config.json describes."""
  compute = {} if dtype is None else {"dtype": dtype}
  dit = config_lib.build(DiT, config["transformer"], **compute)
  vae = config_lib.build(VideoVAE, config["vae"])
  if vae.latent_mean is None:
    raise UserError(f"The autoencoder of {folder} has no latent statistics: export it again.")
  weights = native.open_weights(folder, "transformer")
  text, prompts = _own_text(folder, config, weights, dtype)
  components = {
    "dit": published.own(dit, wan_dit.shapes(dit), weights.within("dit/")),
    "vae": published.own(vae, wan_vae.shapes(vae), native.open_weights(folder, "vae")),
    "text": text,
  }
  if "low" in config:
    low = config_lib.build(DiT, config["low"], **compute)
    weights = native.open_weights(folder, "low")
    components["low"] = published.own(low, wan_dit.shapes(low), weights)
  return Parts(components, prompts, config)


def _own_text(
  folder: Path, config: dict[str, Any], weights: Weights, dtype: Any
) -> tuple[Component, Prompts]:
  """Our encoder over the word pieces that ship; or a published one, with its own tokenizer."""
  if "architectures" in config["text"]:
    contract = published.module_of(config["text"], folder / "config.json")
    module = published.described(contract, config["text"], folder / "config.json")
    module = module if dtype is None else module.clone(dtype=dtype)
    stored = native.open_weights(folder, "text")
    prompts = _prompts(folder, config["sampling"], module.vocabulary)
    return published.own(module, contract.shapes(module), stored), prompts
  encoder = config_lib.build(TextEncoder, config["text"])
  wordpieces.check(encoder.vocabulary, folder)
  blank = jnp.zeros((1, 1), jnp.int32)
  shapes = jax.eval_shape(encoder.init, jax.random.key(0), blank, blank)["params"]
  tensors = dict(weights.within("text/")) | {"pieces": wordpieces.table()}
  prompts = Prompts.load(wordpieces.TOKENIZER, encoder.length, config["known_words"])
  return published.own(encoder, shapes, tensors), prompts


def _prompts(folder: Path, sampling: Mapping[str, Any], rows: int) -> Prompts:
  return tokenizer.load(folder / "tokenizer", sampling["text_length"], padded=True, rows=rows)
