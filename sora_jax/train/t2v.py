"""Recipe: text to video. Flow matching on packed sequences of latent patches.

Parameters: `dit`, the transformer, and `text`, the encoder trained with it over a frozen table of
word pieces. Every batch draws from the mixture of conditions of `diffusion.conditioning`, so the
model learns all tasks at once; images are videos of one frame. Clips come in the shapes of
`config.data.shapes`, all of them in the same packed sequences.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from sora_jax import config as config_lib
from sora_jax.data import encode
from sora_jax.data.batches import Batches
from sora_jax.data.packing import Packer
from sora_jax.data.records import RecordSource
from sora_jax.diffusion import conditioning
from sora_jax.diffusion.loss import flow_matching
from sora_jax.diffusion.time import LevelSampler
from sora_jax.errors import UserError
from sora_jax.generate.denoise import SAMPLING, read_prompts
from sora_jax.generate.model import VideoModel
from sora_jax.interop import native, wordpieces
from sora_jax.models.dit import DiT, blank_tokens
from sora_jax.models.patch import grid_shape
from sora_jax.models.text import Prompts, TextEncoder
from sora_jax.provenance import commit
from sora_jax.typing import Array, Params, PRNGKey, Scalar


@dataclass(frozen=True)
class T2VRecipe:
  """See the module's docstring."""

  config: ConfigDict
  dit: DiT
  text: TextEncoder
  prompts: Prompts
  packer: Packer
  sequence: bool = True
  trainable: str = "^(?!text/pieces$)"

  def init(self, key: PRNGKey) -> Params:
    """Fresh weights over the pretrained word pieces, or those of `config.init_from`."""
    keys = jax.random.split(key)
    pieces = jnp.zeros((1, self.prompts.length), jnp.int32)
    params = {
      "dit": self.dit.init(keys[0], blank_tokens(self.dit))["params"],
      "text": self.text.init(keys[1], pieces, pieces)["params"],
    }
    del params["text"]["pieces"]
    if self.config.init_from:
      params = native.load_params(self.config.init_from, "transformer", params)
    params["text"]["pieces"] = jnp.asarray(wordpieces.table())
    return params

  def loss(
    self, params: Params, batch: Any, key: PRNGKey, step: Array
  ) -> tuple[Scalar, dict[str, Scalar]]:
    read = read_prompts
    if self.dit.remat != "none":  # or the gathered encoder would be kept for the backward pass
      read = jax.checkpoint(read_prompts, static_argnums=0)
    tokens = read(self.text, params["text"], batch)
    model = lambda tokens: self.dit.apply({"params": params["dit"]}, tokens)  # noqa: E731
    return flow_matching(model, tokens, key)

  def batch(self) -> dict[str, jax.ShapeDtypeStruct]:
    """Of packed or padded samples; buckets come in several shapes of about as many tokens."""
    return self.packer.fields(self.packer.rows, self.dit.patch_width, self.dit.cond_features)

  @functools.cached_property
  def caches(self) -> dict[str, RecordSource]:
    """The encoded clips of each shape that has a share; encoding them the first time.

    Raises:
      UserError: the autoencoder is not that of the model, or the clips cannot be had.
    """
    return self._encoded({name: self.config.data.shapes[name] for name in self.shares})

  @functools.cached_property
  def held_out(self) -> dict[str, RecordSource]:
    """Clips like `caches`, of the usual shape and the sources of `config.data.validation`."""
    return self._encoded({"held out": dict(self.usual, **self.config.data.validation)})

  def _encoded(self, shapes: Mapping[str, Any]) -> dict[str, RecordSource]:
    data = self.config.data
    vae, params = native.load_vae(self.config.vae)
    if vae.z_channels != self.dit.channels:
      raise UserError(
        f"The latents of {self.config.vae} have {vae.z_channels} channels and those of the "
        f"transformer {self.dit.channels}: set model.channels={vae.z_channels}."
      )
    caches = {}
    for name, section in shapes.items():
      shape = dict(section, size=tuple(section["size"]))
      del shape["share"]
      sources = shape.pop("sources", data.sources)
      caches[name] = encode.cache(
        Path(data.cache), vae, params, sources, seed=self.config.seed, **shape
      )
    return caches

  @property
  def shares(self) -> dict[str, float]:
    """How much of the samples each shape has, of those that have any; the largest first.

    Raises:
      UserError: none has any, or most samples would be loops.
    """
    shapes = self.config.data.shapes
    shares = {name: float(shape.share) for name, shape in shapes.items() if shape.share > 0}
    if not shares:
      raise UserError("No shape of clips has a share: set config.data.shapes.NAME.share above 0.")
    largest = max(shares, key=lambda name: shares[name])
    if shapes[largest].loop:
      raise UserError(f"Most samples would be loops: give the shape {largest} a smaller share.")
    return dict(sorted(shares.items(), key=lambda item: -item[1]))

  @property
  def usual(self) -> ConfigDict:
    """The shape with the largest share: what a request that says nothing gets."""
    return self.config.data.shapes[next(iter(self.shares))]

  def dataset(self, shard_index: int, shard_count: int) -> Iterator[Any]:
    return self._batches(self.caches, self.shares)(shard_index, shard_count)

  def validation(self, shard_index: int, shard_count: int) -> Iterator[Any]:
    return self._batches(self.held_out, {"held out": 1.0})(shard_index, shard_count)

  def _batches(
    self, caches: Mapping[str, RecordSource], shares: Mapping[str, float]
  ) -> Callable[[int, int], Iterator[Any]]:
    config = self.config
    batches = Batches(
      caches=caches, shares=shares, packer=self.packer, prompts=self.prompts,
      mixture=config_lib.build(conditioning.Mixture, config.mixture),
      levels=config_lib.build(LevelSampler, config.levels),
      patch=self.dit.patch, cond_features=self.dit.cond_features, samples=config.data.samples,
      seed=config.seed,
    )  # fmt: skip
    return functools.partial(batches, config.data.batching)

  def preview(self, params: Params, key: PRNGKey) -> dict[str, np.ndarray]:
    """Samples of the config's prompts, side by side."""
    vae, vae_params = native.load_vae(self.config.vae)
    model = VideoModel(
      vae=vae, dit=self.dit, text=self.text, prompts=self.prompts,
      params={"vae": vae_params, **params}, config=self.description(),
    )  # fmt: skip
    prompts = list(self.config.preview)
    videos = model.sample(prompts, seed=0, frames=self.usual.frames)
    return {"samples": np.concatenate(list(videos), axis=2)}

  def description(self) -> dict[str, Any]:
    """The config.json of an exported checkpoint."""
    usual, shapes = self.usual, self.config.data.shapes
    source = native.read_config(native.find(self.config.vae))
    return {
      "vae": source["vae"],
      "vae_training": source.get("vae_training", []),
      "transformer": self.config.model.to_dict(),
      "text": self.config.text.to_dict() | {"vocabulary": self.text.vocabulary},
      "known_words": sorted(set().union(*(c.info["words"] for c in self.caches.values()))),
      "sampling": SAMPLING
      | dict(
        frames=usual.frames,
        size=list(usual.size),
        fps=usual.fps,
        longest=max(shapes[name].frames for name in self.shares if not shapes[name].loop),
        tokens=max(self._tokens(name) for name in self.shares),
        shift=self.config.levels.shift,
      ),
      "training": self.config.to_dict() | {"commit": commit()},
    }

  def _tokens(self, name: str) -> int:
    """Tokens of the grid of a shape's clips."""
    return math.prod(grid_shape(self.caches[name][0]["latents"].shape[:3], self.dit.patch))

  def export(self, params: Params, workdir: Path) -> None:
    """Writes a complete checkpoint folder: autoencoder, transformer and text, and the log."""
    source = native.find(self.config.vae)
    text = {name: x for name, x in params["text"].items() if name != "pieces"}
    components = {
      "vae": native.read_component(source, "vae"),
      "transformer": {"dit": params["dit"], "text": text},
    }
    log = workdir / "metrics.jsonl"
    files = {"training.jsonl": log} if log.exists() else {}
    native.save(workdir / "export", components, self.description(), files)


def build(config: ConfigDict) -> T2VRecipe:
  """The recipe of a config."""
  vocabulary, table_width = wordpieces.table().shape
  text = config_lib.build(TextEncoder, config.text, vocabulary=vocabulary, table_width=table_width)
  return T2VRecipe(
    config=config,
    dit=config_lib.build(DiT, config.model),
    text=text,
    prompts=Prompts.load(wordpieces.TOKENIZER, text.length, cut=True),
    packer=config_lib.build(Packer, config.packing, rows=config.train.batch_size),
  )
