"""Recipe: VideoGPT's VQ-VAE.

  loss = |x - D(z)|^2 / variance + commitment |E(x) - sg(z)|^2

with z the vectors that E(x)'s codes stand for (models/vqvae.py). Parameters: `vqvae`, of which
encoder and decoder learn and the codebook follows, and `running`, the means that it follows from.
Usage and perplexity are of a (micro-)batch: what a few clips need of the codes.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from ml_collections import ConfigDict

from sora_jax import config as config_lib
from sora_jax import provenance
from sora_jax.data import pipeline, registry
from sora_jax.data.shards import split
from sora_jax.data.transforms import RandomCrop, to_float, to_uint8
from sora_jax.interop import native
from sora_jax.models.vae_linear import PatchComponents
from sora_jax.models.vqvae import VQVAE, Codebooks, begin, update, usage
from sora_jax.train.step import OUTPUTS
from sora_jax.train.vae import principal
from sora_jax.typing import Array, Params, PRNGKey, Scalar, Video


@dataclass(frozen=True, kw_only=True)
class Quantising:
  """How codes are learned.

  Attributes:
    variance: of the pixels, in [-1, 1]: what reconstruction is measured in.
    commitment: weight of the distance between vectors and their codes.
    decay: of the running means that codebooks are.
    restart: a code begins again as data below this share of an even use.
  """

  variance: float = 0.25
  commitment: float = 0.25
  decay: float = 0.99
  restart: float = 0.05


@dataclass(frozen=True, eq=False)
class VQVAERecipe:
  """See the module's docstring."""

  config: ConfigDict
  vqvae: VQVAE
  quantising: Quantising
  trainable: str = "^vqvae/(encoder|decoder)/"

  def init(self, key: PRNGKey) -> Params:
    data = self.config.data
    params = self.vqvae.init(key, jnp.zeros((1, 1, data.size, data.size, 3)))["params"]
    if self.config.init_from:
      stored = native.load_params(self.config.init_from, "vqvae", params)
      params = jax.tree.map(jnp.asarray, stored)
    elif self.vqvae.linear:
      params["principal"] = self.principal
    running = even(params["codebook"])
    del running["codebook"]
    if not self.config.init_from:  # nothing has been counted
      running = jax.tree.map(jnp.zeros_like, running)
    return {"vqvae": params, "running": running}

  @functools.cached_property
  def principal(self) -> Params:
    """Principal components of training clips, as they are: the codes' distances are pixels'."""
    v = self.vqvae
    components = PatchComponents(v.z_channels, v.time_stride, v.space_stride, v.channels)
    return principal(components, self.dataset(0, 1), whiten=0.0)

  def loss(
    self, params: Params, batch: Any, key: PRNGKey, step: Array
  ) -> tuple[Scalar, dict[str, Any]]:
    video = to_float(batch["video"])
    made, z, codes, commitment = self.vqvae.apply({"params": params["vqvae"]}, video)
    error = jnp.mean((video - made) ** 2)
    found = {"error": error, "commitment": commitment}
    found["psnr"] = -10 * jnp.log10(jnp.mean((video - jnp.clip(made, -1, 1)) ** 2) / 4)
    found["usage"], found["perplexity"] = usage(codes, self.vqvae.codes)
    found[OUTPUTS] = {"z": jax.lax.stop_gradient(z), "codes": codes}
    q = self.quantising
    return error / q.variance + q.commitment * commitment, found

  def after(self, params: Params, updates: Array, outputs: Mapping[str, Array]) -> Params:
    """The codebook follows what the encoder made of the batch, of which the first begins it."""
    q, z, codes = self.quantising, outputs["z"], outputs["codes"]
    key = jax.random.fold_in(jax.random.key(self.config.seed), updates)
    state = {"codebook": params["vqvae"]["codebook"], **params["running"]}
    first = (updates == 0) & (jnp.sum(state["count"]) == 0)
    state = jax.lax.cond(
      first,
      lambda: even(begin(state["codebook"], z, key)),
      lambda: update(state, z, codes, key, q.decay, q.restart),
    )
    vqvae = params["vqvae"] | {"codebook": state["codebook"]}
    return {"vqvae": vqvae, "running": {name: state[name] for name in params["running"]}}

  def batch(self) -> dict[str, jax.ShapeDtypeStruct]:
    data, rows = self.config.data, self.config.train.batch_size
    return {"video": jax.ShapeDtypeStruct((rows, data.frames, data.size, data.size, 3), np.uint8)}

  def dataset(self, shard_index: int, shard_count: int) -> Iterator[Any]:
    return self._clips(self.config.data.sources, shard_index, shard_count)

  def validation(self, shard_index: int, shard_count: int) -> Iterator[Any]:
    return self._clips(self.config.data.validation, shard_index, shard_count)

  def _clips(self, sources: ConfigDict, shard_index: int, shard_count: int) -> Iterator[Any]:
    data, train = self.config.data, self.config.train
    return pipeline.make(
      registry.open_sources(sources),
      split("train.batch_size", train.batch_size, shard_count),
      self.config.seed,
      data.frames,
      transform=RandomCrop(data.size, data.size),
      short="repeat",
      shard_index=shard_index,
      shard_count=shard_count,
    )

  def preview(self, params: Params, key: PRNGKey) -> dict[str, np.ndarray]:
    """Held-out clips on the left, their reconstructions on the right."""
    clips = next(self.validation(0, 1))["video"][:4]
    made = to_uint8(self._reconstruct(params["vqvae"], to_float(clips)))
    return {"reconstruction": rearrange(np.stack([clips, made]), "s b t h w c -> t (b h) (s w) c")}

  @functools.partial(jax.jit, static_argnums=0)
  def _reconstruct(self, params: Params, video: Video) -> Video:
    return self.vqvae.apply({"params": params}, video)[0]

  def export(self, params: Params, workdir: Path) -> None:
    """Writes what `interop.native.load_vqvae` reads."""
    training = provenance.training(self.config)
    config = {"vqvae": self.config.model.to_dict(), "vqvae_training": [training]}
    native.save(workdir / "export", {"vqvae": params["vqvae"]}, config, dtype=np.float16)


def even(codebook: Codebooks) -> Params:
  """The state of codebooks (`models.vqvae.update`) whose codes are used alike."""
  count = jnp.full(codebook.shape[:2], 1 / codebook.shape[1])
  return {"codebook": codebook, "count": count, "total": codebook * count[..., None]}


def build(config: ConfigDict) -> VQVAERecipe:
  """The recipe of a config."""
  return VQVAERecipe(
    config, config_lib.build(VQVAE, config.model), config_lib.build(Quantising, config.quantising)
  )
