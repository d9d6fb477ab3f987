"""Recipe: images by class. DiT (Peebles & Xie 2023), or SiT with `model.predicts="velocity"`.

Trained on the latents of frames of rendered worlds; a frame's class is colour and shape of the
main object. Worlds with several objects are left out, since a single frame does not tell which of
them is the main one. Parameters: `dit`, and `vae`, which is not trained. A tenth of the labels is
replaced by the null class, for guidance.
"""

from __future__ import annotations

from collections.abc import Iterator
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
from sora_jax.data.transforms import Sample, to_float
from sora_jax.diffusion import ddpm
from sora_jax.diffusion import process as flow
from sora_jax.errors import UserError
from sora_jax.generate.classes import ClassModel, Sampling
from sora_jax.interop import native
from sora_jax.models.dit_class import ClassDiT
from sora_jax.models.vae import VideoVAE, encode_video
from sora_jax.typing import Array, Float, Params, PRNGKey, Scalar
from sora_jax.worlds import VOCABULARY

CLASSES = tuple(f"{colour} {shape}" for colour in VOCABULARY.colours for shape in VOCABULARY.shapes)


@dataclass(frozen=True)
class DiTRecipe:
  """See the module's docstring."""

  config: ConfigDict
  dit: ClassDiT
  vae: VideoVAE
  chain: ddpm.Chain
  trainable: str = "^dit/"

  def init(self, key: PRNGKey) -> Params:
    """Fresh weights, or those of `config.init_from`, and the autoencoder's."""
    size = self.dit.size
    image = jnp.zeros((1, size, size, self.dit.channels))
    label = jnp.zeros(1, jnp.int32)
    params = {"dit": self.dit.init(key, image, jnp.zeros(1), label)["params"]}
    if self.config.init_from:
      params = native.load_params(self.config.init_from, "transformer", params)
    return params | {"vae": native.load_vae(self.config.vae)[1]}

  def loss(
    self, params: Params, batch: Any, key: PRNGKey, step: Array
  ) -> tuple[Scalar, dict[str, Scalar]]:
    keys = jax.random.split(key)
    x = encode_video(self.vae, params["vae"], to_float(batch["video"]))[:, 0]
    drop = jax.random.bernoulli(keys[0], self.config.label_dropout, batch["label"].shape)
    label = jnp.where(drop, self.dit.classes, batch["label"])
    model = lambda x, time: self.dit.apply({"params": params["dit"]}, x, time, label)  # noqa: E731
    if self.dit.predicts == "velocity":
      return flow_loss(model, x, keys[1])
    return ddpm.loss(self.chain, model, x, keys[1])

  def batch(self) -> dict[str, jax.ShapeDtypeStruct]:
    rows, size = self.config.train.batch_size, self.config.data.size
    return {
      "video": jax.ShapeDtypeStruct((rows, 1, size, size, 3), np.uint8),
      "label": jax.ShapeDtypeStruct((rows,), np.int32),
    }

  def dataset(self, shard_index: int, shard_count: int) -> Iterator[Any]:
    return self._frames(self.config.data.sources, shard_index, shard_count)

  def validation(self, shard_index: int, shard_count: int) -> Iterator[Any]:
    return self._frames(self.config.data.validation, shard_index, shard_count)

  def _frames(self, sources: ConfigDict, shard_index: int, shard_count: int) -> Iterator[Any]:
    data, train = self.config.data, self.config.train
    return pipeline.make(
      registry.open_sources(sources),
      split("train.batch_size", train.batch_size, shard_count),
      self.config.seed,
      frames=1,
      size=(data.size, data.size),
      keep=("truth",),
      transform=labelled,
      shard_index=shard_index,
      shard_count=shard_count,
    )

  def preview(self, params: Params, key: PRNGKey) -> dict[str, np.ndarray]:
    """Images of the config's classes, side by side, as a video of one frame."""
    model = ClassModel(
      dit=self.dit, vae=self.vae, params=params, classes=CLASSES, chain=self.chain,
      sampling=config_lib.build(Sampling, self.config.sampling),
    )  # fmt: skip
    return {"samples": rearrange(model.sample(list(self.config.preview)), "b h w c -> 1 h (b w) c")}

  def export(self, params: Params, workdir: Path) -> None:
    """Writes a complete checkpoint folder: autoencoder and transformer, and the log."""
    source = native.find(self.config.vae)
    stored = native.read_config(source)
    config = {
      "vae": stored["vae"],
      "vae_training": stored.get("vae_training", []),
      "transformer": self.config.model.to_dict() | {"classes": len(CLASSES)},
      "classes": list(CLASSES),
      "process": self.config.process.to_dict(),
      "sampling": self.config.sampling.to_dict(),
      "training": provenance.training(self.config),
    }
    log = workdir / "metrics.jsonl"
    files = native.files(source, "vae") | ({"training.jsonl": log} if log.exists() else {})
    native.save(workdir / "export", {"transformer": {"dit": params["dit"]}}, config, files)


def flow_loss(
  model: ddpm.Model, x: Float[Array, "b lh lw z"], key: PRNGKey
) -> tuple[Scalar, dict[str, Scalar]]:
  """SiT's: the velocity's mean squared error at noise levels uniform in [0, 1].

  The model predicts data - noise, at times that run from noise to data.
  """
  keys = jax.random.split(key)
  level = jax.random.uniform(keys[0], x.shape[:1])
  noise = jax.random.normal(keys[1], x.shape)
  v = -model(flow.corrupt(x, noise, level), 1 - level)
  return jnp.mean((v - flow.velocity(x, noise)) ** 2), {}


def labelled(sample: Sample, rng: np.random.Generator) -> Sample | None:
  """A frame of a world with its class; None, which drops it, if the world has several objects."""
  labels = sample.pop("truth")["labels"]
  if labels["count"] > 1:
    return None
  return sample | {"label": np.int32(CLASSES.index(f"{labels['colour']} {labels['shape']}"))}


def build(config: ConfigDict) -> DiTRecipe:
  """The recipe of a config.

  Raises:
    UserError: the latents of the autoencoder are not those the model is told of.
  """
  vae, _ = native.load_vae(config.vae)
  dit = config_lib.build(ClassDiT, config.model, classes=len(CLASSES))
  side = config.data.size // vae.space_stride
  for name, wanted in (("channels", vae.z_channels), ("size", side)):
    if getattr(dit, name) != wanted:
      raise UserError(
        f"Latents of {config.vae} at {config.data.size} px have {name} {wanted} and the model "
        f"{getattr(dit, name)}: set model.{name}={wanted}."
      )
  chain = config_lib.build(ddpm.Chain.linear, config.process)
  return DiTRecipe(config=config, dit=dit, vae=vae, chain=chain)
