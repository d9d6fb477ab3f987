"""Recipe: the video autoencoder.

  loss = |x - D(z)| + lpips LPIPS + kl KL + equivariance |down(x) - D(down(z))| + adversarial hinge

with z drawn from the posterior. The equivariance term (EQ-VAE, Kouzelis et al. 2025) makes latents
scale with their image, which a transformer learns faster. LPIPS runs on a few random frames of the
batch only: VGG costs more than the autoencoder. To polish a decoder, freeze the rest with
`trainable`, switch the adversarial term on and decode slightly noisy latents.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, reduce
from ml_collections import ConfigDict

from sora_jax import config as config_lib
from sora_jax import provenance
from sora_jax.data import pipeline, registry
from sora_jax.data.shards import split
from sora_jax.data.transforms import RandomCrop, to_float, to_uint8
from sora_jax.diffusion import adversarial
from sora_jax.evals.lpips import LPIPS
from sora_jax.interop import native
from sora_jax.models.discriminator import PatchDiscriminator
from sora_jax.models.vae import ENCODER, VideoVAE
from sora_jax.models.vae_linear import PatchComponents, fit
from sora_jax.parallel.sharding import constrain
from sora_jax.train.optim import path_mask
from sora_jax.typing import Array, Params, PRNGKey, Scalar, Video

PRINCIPAL_CLIPS = 320  # tens of thousands of patches, for at most a few thousand numbers each


@dataclass(frozen=True, kw_only=True)
class Weights:
  """The terms of the loss.

  Attributes:
    lpips, kl, equivariance, adversarial: weights; 0 leaves a term out.
    lpips_images: random frames of a batch that LPIPS looks at.
    latent_noise: largest standard deviation of noise added to the latents, in units of theirs.
  """

  lpips: float = 0.5
  lpips_images: int = 4
  kl: float = 1e-5
  equivariance: float = 0.25
  adversarial: float = 0.0
  latent_noise: float = 0.0


@dataclass(frozen=True, eq=False)
class VAERecipe:
  """See the module's docstring. Parameters: `vae`, and `discriminator` if it has a weight."""

  config: ConfigDict
  vae: VideoVAE
  discriminator: PatchDiscriminator
  weights: Weights
  lpips: LPIPS | None
  trainable: str = ".*"

  def init(self, key: PRNGKey) -> Params:
    video = jnp.zeros((1, 1, 32, 32, 3))
    keys = jax.random.split(key, 3)
    params = {"vae": self.vae.init(keys[0], video, keys[1])["params"]}
    if self.vae.linear and not self.config.init_from:
      params["vae"]["principal"] = self.principal
    if self.weights.adversarial:
      params["discriminator"] = self.discriminator.init(keys[2], video)["params"]
    if self.config.init_from:
      params["vae"] = native.load_params(self.config.init_from, "vae", params["vae"])
    return params

  @functools.cached_property
  def principal(self) -> Params:
    """The principal components of the first few hundred training clips."""
    v = self.vae
    components = PatchComponents(v.z_channels, v.time_stride, v.space_stride, v.channels)
    return principal(components, self.dataset(0, 1))

  def loss(
    self, params: Params, batch: Any, key: PRNGKey, step: Array
  ) -> tuple[Scalar, dict[str, Scalar]]:
    w = self.weights
    video = to_float(batch["video"])
    keys = jax.random.split(key, 4)
    mean, logvar = self._apply(params, video, method="encode")
    z = mean + jnp.exp(0.5 * logvar) * jax.random.normal(keys[0], mean.shape)
    if w.latent_noise:
      size = w.latent_noise * jax.random.uniform(keys[1], (len(z), 1, 1, 1, 1)) * jnp.std(mean)
      z = z + size * jax.random.normal(keys[2], z.shape)
    made = self._apply(params, z, method="decode")

    terms = {"l1": jnp.mean(jnp.abs(video - made))}
    terms["kl"] = 0.5 * jnp.mean(mean**2 + jnp.exp(logvar) - 1 - logvar)
    total = terms["l1"] + w.kl * terms["kl"]
    if w.lpips:
      terms["lpips"] = self._lpips(video, made, keys[3])
      total += w.lpips * terms["lpips"]
    if w.equivariance:
      half = self._apply(params, halve(z), method="decode")
      terms["equivariance"] = jnp.mean(jnp.abs(halve(video) - half))
      total += w.equivariance * terms["equivariance"]
    if w.adversarial:
      terms |= self._adversarial(params, video, made)
      total += w.adversarial * terms["generator"] + terms["discriminator"]
    terms["psnr"] = -10 * jnp.log10(jnp.mean((video - jnp.clip(made, -1, 1)) ** 2) / 4)
    return total, terms

  def _apply(self, params: Params, x: Array, method: str) -> Any:
    return self.vae.apply({"params": params["vae"]}, x, method=method)

  def _lpips(self, video: Video, made: Video, key: PRNGKey) -> Scalar:
    assert self.lpips is not None
    count = min(self.weights.lpips_images, video.shape[0] * video.shape[1])
    chosen = jax.random.choice(key, video.shape[0] * video.shape[1], (count,), replace=False)

    def pick(x: Video) -> Array:
      frames = rearrange(x, "b t h w c -> (b t) 1 h w c")[chosen]
      return constrain(frames, "video")[:, 0]  # split among the devices once more

    return jnp.mean(self.lpips(pick(made), pick(video)))

  def _adversarial(self, params: Params, video: Video, made: Video) -> dict[str, Scalar]:
    """Both players in one scalar: each sees the other through a stopped gradient."""
    judge = lambda p, x: self.discriminator.apply({"params": p}, x)  # noqa: E731
    fixed = jax.lax.stop_gradient(params["discriminator"])
    real = judge(params["discriminator"], video)
    fake = judge(params["discriminator"], jax.lax.stop_gradient(made))
    return {
      "discriminator": adversarial.discriminator_loss(real, fake),
      "generator": adversarial.generator_loss(judge(fixed, made)),
    }

  @property
  def after(self) -> Callable[..., Params] | None:
    """Nothing follows, but so components that were fitted are saved with the rest.

    Fitted anew, on another machine, they would differ in their last bits.
    """
    return (lambda params, *_: params) if self.vae.linear and not self.config.init_from else None

  def batch(self) -> dict[str, jax.ShapeDtypeStruct]:
    data, rows = self.config.data, self.config.train.batch_size
    return {"video": jax.ShapeDtypeStruct((rows, data.frames, data.size, data.size, 3), np.uint8)}

  def dataset(self, shard_index: int, shard_count: int) -> Iterator[Any]:
    data, train = self.config.data, self.config.train
    return pipeline.make(
      registry.open_sources(data.sources),
      split("train.batch_size", train.batch_size, shard_count),
      self.config.seed,
      data.frames,
      transform=RandomCrop(data.size, data.size),
      short="repeat",
      shard_index=shard_index,
      shard_count=shard_count,
    )

  def preview(self, params: Params, key: PRNGKey) -> dict[str, np.ndarray]:
    """Clips of the training data on the left, their reconstructions on the right."""
    clips = next(self.dataset(0, 1))["video"][:4]
    made = to_uint8(self._reconstruct(params, to_float(clips)))
    return {"reconstruction": rearrange(np.stack([clips, made]), "s b t h w c -> t (b h) (s w) c")}

  @functools.partial(jax.jit, static_argnums=0)
  def _reconstruct(self, params: Params, video: Video) -> Video:
    mean, _ = self._apply(params, video, method="encode")
    return self._apply(params, mean, method="decode")

  def export(self, params: Params, workdir: Path) -> None:
    """Writes the autoencoder as a checkpoint folder, with the statistics of its latents.

    `vae_training` there lists the configs of the runs that made it, this one last.
    """
    mean, std = self.statistics(params)
    before = self.config.init_from
    runs = native.read_config(native.find(before)).get("vae_training", []) if before else []
    config = {
      "vae": self.config.model.to_dict() | dict(latent_mean=mean, latent_std=std),
      "vae_training": [*runs, provenance.training(self.config)],
    }
    native.save(workdir / "export", {"vae": params["vae"]}, config)

  def statistics(self, params: Params, batches: int = 8) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per latent channel over training batches.

    A frozen encoder keeps those it came with.
    """
    encoder = {"vae": {name: x for name, x in params["vae"].items() if name in ENCODER}}
    if self.config.init_from and not any(jax.tree.leaves(path_mask(encoder, self.trainable))):
      frozen = native.read_config(native.find(self.config.init_from))["vae"]
      return frozen["latent_mean"], frozen["latent_std"]
    encode = jax.jit(lambda params, video: self._apply(params, video, method="encode")[0])
    data = self.dataset(0, 1)
    latents = np.concatenate([
      np.asarray(encode(params, to_float(next(data)["video"]))).reshape(-1, self.vae.z_channels)
      for _ in range(batches)
    ])  # fmt: skip
    return latents.mean(0).tolist(), latents.std(0).tolist()


def principal(components: PatchComponents, data: Iterator[Any], whiten: float = 0.5) -> Params:
  """The principal components of the first `PRINCIPAL_CLIPS` of batches; see `vae_linear.fit`."""
  clips: list[np.ndarray] = []
  while len(clips) < PRINCIPAL_CLIPS:
    clips.extend(next(data)["video"])
  return fit(components, np.asarray(to_float(np.stack(clips))), whiten)


def halve(x: Array) -> Array:
  """Averages 2 x 2 squares of rows and columns."""
  return reduce(x, "b t (h q) (w r) c -> b t h w c", "mean", q=2, r=2)


def build(config: ConfigDict) -> VAERecipe:
  """The recipe of a config."""
  weights = config_lib.build(Weights, config.loss)
  return VAERecipe(
    config=config,
    vae=config_lib.build(VideoVAE, config.model),
    discriminator=PatchDiscriminator(),
    weights=weights,
    lpips=LPIPS.load("vgg") if weights.lpips else None,
    trainable=config.trainable,
  )
