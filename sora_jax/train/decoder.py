"""Recipe: a decoder that finishes what the sampler leaves off.

Below some noise level a transformer of little training adds more grain than detail, and its sampler
had better go from there straight to 0 (`sampling.schedule.lowest`). What arrives is the mean of all
that may be there: soft, and grainy where the transformer did not know. Here the decoder learns to
make one sharp clip of it. A decoder that takes the last step of denoising is LTX-Video's idea
(HaCohen et al., arXiv:2501.00103).

It learns from pairs of a clip and its latents, made once: `config.data.pairs` names kinds of them,
each with the range of noise levels that latents are noised to and then made clean from, in one
guided step that knows the caption. Latents of level 0 stay as encoded: those of given frames do.

The loss is that of train/vae.py. What latents depend on stays as it was, so that the transformer
need not know. The export is the model of `config.init_from` with its new decoder.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from sora_jax.data import encode, pipeline
from sora_jax.data.records import RecordSource
from sora_jax.data.shards import split
from sora_jax.errors import UserError
from sora_jax.generate.denoise import Window
from sora_jax.generate.model import VideoModel, load
from sora_jax.generate.story import Story
from sora_jax.interop import native, published
from sora_jax.models.vae import ENCODER, MIN_LOGVAR, VideoVAE
from sora_jax.parallel import sharding
from sora_jax.train.vae import VAERecipe, modules
from sora_jax.typing import Float, Latents, Params

PAIRS = 16  # made at a time


@dataclass(frozen=True, eq=False)
class DecoderRecipe(VAERecipe):
  """See the module's docstring. Parameters: as of `VAERecipe`."""

  trainable: str = f"^(?!vae/({'|'.join(ENCODER)})/)"

  def begin(self, fresh: Params) -> Params:
    """The model's autoencoder, with fresh levels if its decoder has none."""
    folder = native.find(self.config.init_from)
    if "decoder" in native.read_config(folder)["vae"]["learned"]:
      return super().begin(fresh)
    return fresh | native.read_component(folder, "vae")

  def posterior(self, params: Params, batch: Any) -> tuple[Latents, Latents]:
    """The latents as they were handed over, and no variance."""
    mean, std = (jnp.asarray(x) for x in self.statistics(params))
    latents = batch["latents"] * std + mean
    return latents, jnp.full_like(latents, MIN_LOGVAR)

  def batch(self) -> dict[str, jax.ShapeDtypeStruct]:
    data = self.config.data
    grid = self.vae.latent_shape(data.frames, data.size, data.size)
    shape = (self.config.train.batch_size, *grid, self.vae.z_channels)
    return super().batch() | {"latents": jax.ShapeDtypeStruct(shape, np.float32)}

  def dataset(self, shard_index: int, shard_count: int) -> Iterator[Any]:
    train, kinds = self.config.train, self.config.data.pairs
    return pipeline.make(
      [(source, kinds[name].share) for name, source in self.pairs.items()],
      split("train.batch_size", train.batch_size, shard_count),
      self.config.seed,
      keep=("latents",),
      shard_index=shard_index,
      shard_count=shard_count,
    )

  @functools.cached_property
  def pairs(self) -> dict[str, RecordSource]:
    """The pairs of each kind that has a share; making them the first time.

    Raises:
      UserError: the clips cannot be had, or the disk is full.
    """
    data, model = self.config.data, load(self.config.init_from)
    return {
      name: cache(Path(data.cache), model, data, kind, self.config.seed)
      for name, kind in data.pairs.items()
      if kind.share > 0
    }

  def export(self, params: Params, workdir: Path) -> None:
    """Writes the model with its new decoder."""
    native.rewrite(
      native.find(self.config.init_from), workdir / "export", {"vae": params["vae"]},
      self.description(params), {"vae.jsonl": workdir / "metrics.jsonl"},
    )  # fmt: skip


def cache(
  folder: Path, model: VideoModel, data: ConfigDict, kind: ConfigDict, seed: int
) -> RecordSource:
  """Opens the pairs of a kind under `folder`, making them first if they are not there.

  Args:
    data: `sources`, and of each clip `frames`, `size` (rows and columns) and `fps`.
    kind: `clips` to make, and the `levels` (lowest, highest) to make them from; `sources`, if they
      are others.
  """
  settings: dict[str, Any] = dict(
    sources=kind.get("sources", data.sources), clips=kind.clips, levels=tuple(kind.levels),
    frames=data.frames, size=(data.size, data.size), fps=data.fps, seed=seed,
  )  # fmt: skip
  prompts = copy.copy(model.prompts)
  prompts.cut = True  # of captions, as in training
  model = dataclasses.replace(model, prompts=prompts)
  request = model.request(data.frames, settings["size"], data.fps, steps=1)

  def parts() -> Iterator[bytes]:
    modules = (model.dit, model.low, model.text, model.vae.latent_mean, model.vae.latent_std)
    yield repr((modules, sorted(request.items()))).encode()
    known = {name: x for name, x in model.params["vae"].items() if name in ENCODER}
    yield from encode.weights({**model.params, "vae": known})

  def records() -> Iterator[dict[str, Any]]:
    batches = encode.windows(settings, PAIRS)
    for first in tqdm(range(0, kind.clips, PAIRS), desc="pairs", unit="batch", file=sys.stderr):
      batch = next(batches)
      with jax.set_mesh(sharding.mesh_of(model.params["dit"])):
        latents = handed_over(model, request, batch, settings["levels"], seed, first)
      for i, clip in enumerate(batch["video"]):
        yield dict(
          video=clip, latents=latents[i], fps=float(batch["fps"][i]), id=batch["id"][i],
          caption=batch["caption"][i], captions=batch["captions"][i],
        )  # fmt: skip

  return encode.stored(folder, settings, parts(), records)


def handed_over(
  model: VideoModel,
  request: Mapping[str, Any],
  batch: Mapping[str, Any],
  levels: tuple[float, float],
  seed: int,
  first: int,
) -> Float[np.ndarray, "b lt lh lw z"]:
  """Latents of clips, noised to one of `levels` and made clean in one step; at 0 as they are.

  Args:
    request: for one step (`VideoModel.request`). batch: of clips with `captions`.
    seed, first: noise, level and captions depend on these.
  """
  latents = model.encode(batch["video"])
  if not any(levels):
    return latents
  rng = np.random.default_rng((seed, first))
  window = Window(
    latents, np.zeros(latents.shape[1:4], bool), [()] * len(latents), rng.uniform(*levels)
  )
  return model.denoiser(request)(
    window, 0, negative="", seed=seed, samples=first + np.arange(len(latents)),
    stories=[Story.of(str(rng.choice(captions))) for captions in batch["captions"]],
    bar=tqdm(disable=True),
  )  # fmt: skip


def build(config: ConfigDict) -> DecoderRecipe:
  """The recipe of a config.

  Raises:
    UserError: the decoder has nothing to learn or to learn from, or is another model's.
  """
  if "decoder" not in config.model.learned:
    raise UserError('The decoder has no levels to train: add "decoder" to model.learned.')
  kinds = config.data.pairs
  if not any(kind.share > 0 for kind in kinds.values()):
    raise UserError("No kind of pairs has a share: set config.data.pairs.NAME.share above 0.")
  for name, kind in kinds.items():
    if not 0 <= kind.levels[0] <= kind.levels[1] <= 1:
      raise UserError(
        f"data.pairs.{name}.levels={tuple(kind.levels)} must be a range of noise levels: two "
        "numbers between 0 and 1, the lower one first."
      )
  recipe = DecoderRecipe(config=config, **modules(config))
  _check(recipe.vae, config.init_from)
  return recipe


def _check(vae: VideoVAE, name: str) -> None:
  """Refuses another autoencoder than that of the model `name`, but for a decoder's first levels."""
  config = native.read_config(native.find(name))
  if not {"vae", "transformer"} <= config.keys():
    raise UserError(f"The checkpoint {name} makes no videos; give one that configs/toy.py made.")
  theirs = published.built(VideoVAE, config["vae"])
  fields = ["channels", "z_channels", "patch", "patch_time", "time_down", "linear"]
  if theirs.learned:
    fields += ["widths", "decoder_widths", "res_blocks", "kernel_t", "mid_attention", "shortcuts"]
  for field in fields:
    if (wanted := getattr(theirs, field)) != getattr(vae, field):
      raise UserError(f"The autoencoder of {name} is another one: set model.{field}={wanted}.")
  if ("encoder" in theirs.learned) != ("encoder" in vae.learned):
    raise UserError(
      f"The encoder of {name} has {'' if 'encoder' in theirs.learned else 'no '}levels: set "
      f"model.learned={(*theirs.learned, 'decoder')}."
    )
