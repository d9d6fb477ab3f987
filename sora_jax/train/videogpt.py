"""Recipe: VideoGPT's prior. The codes of clips, one after the other, given their captions.

  loss = mean over codes of -log p(code | codes before it, caption)

Parameters: `prior` (models/videogpt.py), whose codebook is the autoencoder's and is not trained,
and `text`, the encoder trained with it over a frozen table of word pieces. Clips are encoded once
(data/codes.py). Captions are left out now and then, for guidance and for clips without one.

Reported beside the loss (nats per code): `bits` per code, `bits_per_dim` (see `codes_per_dim`), and
bits per code of the first frame, of later ones, and of the first codes of cells, which say most.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from sora_jax import config as config_lib
from sora_jax import provenance
from sora_jax.data import codes as code_data
from sora_jax.data.records import RecordSource
from sora_jax.data.shards import split
from sora_jax.errors import UserError
from sora_jax.generate.codes import Sampling
from sora_jax.generate.videogpt import VideoGPT, fresh, learned
from sora_jax.interop import native, wordpieces
from sora_jax.models.text import Prompts, TextEncoder
from sora_jax.models.videogpt import Prior, surprisal
from sora_jax.models.vqvae import VQVAE
from sora_jax.typing import Array, Params, PRNGKey, Scalar


@dataclass(frozen=True, eq=False)
class VideoGPTRecipe:
  """See the module's docstring."""

  config: ConfigDict
  prior: Prior
  text: TextEncoder
  vqvae: VQVAE
  vqvae_params: Params
  trainable: str = "^(?!prior/codebook$|text/pieces$)"

  def init(self, key: PRNGKey) -> Params:
    """Fresh weights, or those of `config.init_from`, over the codes and the word pieces."""
    params = fresh(self.prior, self.text, key)
    if source := self.config.init_from:
      params = native.load_params(source, "prior", learned(params))
      wordpieces.check(native.read_config(native.find(source))["text"]["vocabulary"], source)
    params["prior"]["codebook"] = self.vqvae_params["codebook"]
    params["text"]["pieces"] = jnp.asarray(wordpieces.table())
    return params

  @functools.cached_property
  def prompts(self) -> Prompts:
    """The tokenizer; longer captions are cut."""
    return Prompts.load(wordpieces.TOKENIZER, self.text.length, cut=True)

  def loss(
    self, params: Params, batch: Any, key: PRNGKey, step: Array
  ) -> tuple[Scalar, dict[str, Scalar]]:
    codes = batch["codes"].astype(jnp.int32)
    drop = jax.random.bernoulli(key, self.config.text_dropout, (len(codes), 1))
    ids = jnp.where(drop, 0, batch["text_ids"])
    states = self.text.apply({"params": params["text"]}, batch["pieces"], ids)
    logits = self.prior.apply({"params": params["prior"]}, codes, states, ids)
    nats = surprisal(logits, codes)
    loss = jnp.mean(nats)
    parts = {
      "bits": nats, "first_frame": nats[:, :1], "later_frames": nats[:, 1:],
      "first_codes": nats[..., 0],
    }  # fmt: skip
    found = {name: jnp.mean(x) / math.log(2) for name, x in parts.items()}
    return loss, found | {"bits_per_dim": found["bits"] * self.codes_per_dim}

  @property
  def codes_per_dim(self) -> float:
    """Codes of a clip over its frames x rows x columns x 3 numbers.

    Times the bits of a code this is bits per dimension of what the codes say: what the decoder
    leaves of the pixels is not in it, so it is no likelihood of them.
    """
    data = self.config.data
    codes = math.prod(self.prior.grid) * self.prior.depth
    return codes / (data.frames * math.prod(data.size) * self.vqvae.channels)

  def batch(self) -> dict[str, jax.ShapeDtypeStruct]:
    rows = self.config.train.batch_size
    words = jax.ShapeDtypeStruct((rows, self.text.length), np.int32)
    grid = (rows, *self.prior.grid, self.prior.depth)
    return {
      "codes": jax.ShapeDtypeStruct(grid, np.uint16), "pieces": words, "text_ids": words
    }  # fmt: skip

  @functools.cached_property
  def cache(self) -> RecordSource:
    """The codes of the training clips; encoding them the first time."""
    return self._encoded({"clips": self.config.data.clips, "sources": self.config.data.sources})

  @functools.cached_property
  def held_out(self) -> RecordSource:
    """Those of `config.data.validation`."""
    return self._encoded(self.config.data.validation)

  def _encoded(self, what: Mapping[str, Any] | ConfigDict) -> RecordSource:
    data = self.config.data
    return code_data.cache(
      Path(data.cache), self.vqvae, self.vqvae_params, what["sources"], clips=what["clips"],
      frames=data.frames, size=tuple(data.size), fps=data.fps, seed=self.config.seed,
    )  # fmt: skip

  def dataset(self, shard_index: int, shard_count: int) -> Iterator[Any]:
    return self._batches(self.cache, shard_index, shard_count)

  def validation(self, shard_index: int, shard_count: int) -> Iterator[Any]:
    return self._batches(self.held_out, shard_index, shard_count)

  def _batches(self, source: RecordSource, shard_index: int, shard_count: int) -> Iterator[Any]:
    rows = split("train.batch_size", self.config.train.batch_size, shard_count)
    return code_data.batches(source, self.prompts, rows, self.config.seed, shard_index, shard_count)

  def preview(self, params: Params, key: PRNGKey) -> dict[str, np.ndarray]:
    """Samples of the config's prompts, side by side."""
    model = VideoGPT(
      vqvae=self.vqvae, prior=self.prior, text=self.text, prompts=self.prompts,
      params=params | {"vqvae": self.vqvae_params}, config=self.description(),
    )  # fmt: skip
    return {"samples": np.concatenate(list(model.sample(list(self.config.preview))), axis=2)}

  def description(self) -> dict[str, Any]:
    """The config.json of what is exported."""
    source, data = native.read_config(native.find(self.config.vqvae)), self.config.data
    return {
      "vqvae": source["vqvae"],
      "vqvae_training": source.get("vqvae_training", []),
      "videogpt": self.config.model.to_dict(),
      "text": self.config.text.to_dict() | {"vocabulary": self.text.vocabulary},
      "known_words": self.cache.info["words"],
      "sampling": self.config.sampling.to_dict()
      | dict(frames=data.frames, size=list(data.size), fps=data.fps),
      "training": provenance.training(self.config),
    }

  def export(self, params: Params, workdir: Path) -> None:
    """Writes a complete checkpoint folder: autoencoder, prior and text encoder, and the log."""
    log = workdir / "metrics.jsonl"
    files = {"training.jsonl": log} if log.exists() else {}
    files |= native.files(native.find(self.config.vqvae), "vqvae")
    components = {"prior": learned(params)}
    native.save(workdir / "export", components, self.description(), files, dtype=np.float16)


def build(config: ConfigDict) -> VideoGPTRecipe:
  """The recipe of a config.

  Raises:
    UserError: there is no such autoencoder, or it has no grid for such clips, or patches do not
      divide that.
  """
  if not config.vqvae:
    raise UserError("A prior needs an autoencoder: set config.vqvae to what recipe vqvae exported.")
  vqvae, vqvae_params = native.load_vqvae(config.vqvae)
  config_lib.build(Sampling, config.sampling)  # a mistake in it is found now, not after training
  rows, table = wordpieces.table().shape
  text = config_lib.build(TextEncoder, config.text, vocabulary=rows, table_width=table)
  prior = config_lib.build(
    Prior, config.model, text_width=text.width, codes=vqvae.codes, depth=vqvae.depth,
    z_channels=vqvae.z_channels, grid=vqvae.grid(config.data.frames, *config.data.size),
  )  # fmt: skip
  prior.tokens(prior.grid)  # patches that do not divide it are found now
  return VideoGPTRecipe(config, prior, text, vqvae, vqvae_params)
