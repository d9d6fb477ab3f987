"""A trained model of images by class: names of classes in, images out.

classes -> noise -> DiT, guided, over the steps of a chain -> decoder -> uint8 images
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from tqdm import tqdm

from sora_jax import config as config_lib
from sora_jax.data.transforms import to_uint8
from sora_jax.diffusion import ddpm
from sora_jax.diffusion import sampler as solvers
from sora_jax.diffusion.guidance import guide_channels
from sora_jax.diffusion.time import schedule
from sora_jax.errors import UserError
from sora_jax.generate.codec import Codec
from sora_jax.interop import dit_pipeline, hub, native, pipelines, published
from sora_jax.interop.folders import read_json
from sora_jax.models.conv import normal
from sora_jax.models.dit_class import ClassDiT
from sora_jax.models.image_vae import ImageVAE, decode_images
from sora_jax.models.vae import VideoVAE
from sora_jax.parallel import sharding
from sora_jax.typing import Array, Float, Int, Key, Params, UInt8

PIECE = 10  # steps between two movements of the progress bar


@dataclass(frozen=True, kw_only=True)
class Sampling:
  """How to sample.

  Attributes:
    sampler: "ddpm" (ancestral) or "ddim" for a model of noise; for one of velocity, a solver of
      `diffusion.sampler`.
    steps: of the respaced chain, or of the solver.
    guidance: scale of classifier-free guidance; 1 switches it off.
    channels: how many latent channels are guided; None is all of them, DiT's own code has 3.
    spacing: of the chain, see `Chain.respaced`.
    variance: "learned", or "small" to leave the model's out.
    clip: largest absolute value of the predicted latents, or None.
    shift: of the noise levels of a velocity model.
  """

  sampler: str = "ddpm"
  steps: int = 250
  guidance: float = 4.0
  channels: int | None = None
  spacing: str = "linspace"
  variance: str = "learned"
  clip: float | None = None
  shift: float = 1.0

  def __post_init__(self):
    if not 1 <= self.guidance < math.inf:
      raise UserError(f"Guidance is {self.guidance} but must be at least 1 (1 switches it off).")
    if self.steps < 1:
      raise UserError(f"steps is {self.steps} but must be at least 1.")
    if not 1e-3 <= self.shift < math.inf:
      raise UserError(f"shift is {self.shift} but must be at least 0.001.")
    if self.variance not in ("learned", "small"):
      raise UserError(f"variance is {self.variance!r} but must be learned or small.")


@dataclass(frozen=True)
class ClassModel:
  """A checkpoint in memory.

  Attributes:
    dit, vae: the networks. params: their weights, of the same names.
    classes: a name for each class; synonyms are separated by commas.
    chain: the process of training. sampling: the checkpoint's settings.
  """

  dit: ClassDiT
  vae: VideoVAE | ImageVAE
  params: Params
  classes: tuple[str, ...]
  chain: ddpm.Chain
  sampling: Sampling

  def sample(
    self,
    classes: str | int | Sequence[str | int],
    *,
    seed: int = 0,
    batch_size: int = 16,
    progress: bool = False,
    **settings: Any,
  ) -> UInt8[np.ndarray, "*b h w 3"]:
    """Makes an image of each class.

    Args:
      classes: names or numbers; the result has a batch axis if they are a sequence.
      seed: image i of a seed has the same noise at any batch size.
      batch_size: images made at a time. progress: whether to show a bar on stderr.
      settings: fields of `Sampling` in the place of the checkpoint's; None changes nothing.

    Raises:
      UserError: an unknown class, or a setting the model cannot do.
    """
    alone = isinstance(classes, str | int)
    labels = self.numbers([classes] if isinstance(classes, str | int) else classes)
    latents = self.latents(labels, seed, batch_size, progress, **settings)
    images = [self.decode(latents[i : i + batch_size]) for i in range(0, len(latents), batch_size)]
    return np.concatenate(images)[0] if alone else np.concatenate(images)

  def numbers(self, classes: Sequence[str | int]) -> Int[np.ndarray, " b"]:
    """The classes' numbers. Raises UserError: there are none, or one is unknown."""
    if not len(classes):
      raise UserError("There are no classes.")
    names = {word.strip(): i for i, name in enumerate(self.classes) for word in name.split(",")}
    names |= {name: i for i, name in enumerate(self.classes)}
    found = []
    for one in classes:
      if isinstance(one, str) and one not in names:
        known = names if len(names) <= 100 else difflib.get_close_matches(one, names, n=1)
        raise UserError(f"There is no class {one!r}{config_lib.nearest(one, known)}.")
      number = names[one] if isinstance(one, str) else one
      if not 0 <= number < len(self.classes):
        raise UserError(f"There is no class {number}: there are 0 to {len(self.classes) - 1}.")
      found.append(number)
    return np.array(found, np.int32)

  def latents(
    self,
    labels: Int[np.ndarray, " b"],
    seed: int = 0,
    batch_size: int = 16,
    progress: bool = False,
    **settings: Any,
  ) -> Float[np.ndarray, "b lh lw z"]:
    """Latents of images of these classes; see `sample`."""
    solvers.check_draw(seed, batch_size)
    sampling = self.request(**settings)
    rows, size = self._rows(sampling), self.dit.size
    count = min(batch_size, len(labels))
    starts = range(0, len(labels), count)
    made = []
    bar = tqdm(total=len(rows) * len(starts), desc="sampling", unit="step", disable=not progress)
    with bar, jax.set_mesh(sharding.mesh_of(self.params)):
      for first in starts:
        samples = np.arange(first, first + count)
        chosen = labels[np.minimum(samples, len(labels) - 1)]  # a smaller batch is filled up
        x = solvers.initial_noise(seed, samples, 1, size, size, self.dit.channels)[:, 0]
        keys = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(seed)))(samples)
        state = _start(self.dit, x)
        for at in range(0, len(rows), PIECE):
          piece = rows[at : at + PIECE]
          state = _solve(self.dit, sampling, self.params["dit"], state, chosen, keys, piece)
          jax.block_until_ready(state)
          bar.update(len(piece))
        made.append(np.asarray(_end(self.dit, state))[: len(labels) - first])
    return np.concatenate(made)

  def request(self, **settings: Any) -> Sampling:
    """The checkpoint's settings with those that are given in their place, checked.

    Raises:
      UserError: a setting the model cannot do.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    fields = dataclasses.asdict(self.sampling) | given
    sampling = config_lib.build(Sampling, fields)
    self._rows(sampling)
    return sampling

  def _rows(self, sampling: Sampling) -> Float[Array, "calls _"]:
    """The table of the solver's steps. Raises UserError: no such solver for this model."""
    if self.dit.predicts == "velocity":
      levels = schedule(sampling.steps, sampling.shift)
      return jnp.asarray(solvers.table(sampling.sampler, levels))
    if sampling.sampler not in ("ddpm", "ddim"):
      raise UserError(f"A model of noise is sampled by ddpm or ddim, not {sampling.sampler!r}.")
    if sampling.shift != 1:
      raise UserError(f"shift is {sampling.shift}, but only a model of velocity has one.")
    total, uneven = len(self.chain), len(self.chain) % max(1, sampling.steps)
    if (sampling.sampler, sampling.spacing) == ("ddim", "trailing") and uneven:
      # diffusers goes back by whole strides, which then do not meet the steps that are listed.
      raise UserError(f"ddim with trailing steps needs a number of them that divides {total}.")
    chain = self.chain.respaced(sampling.steps, sampling.spacing)
    return ddpm.table(chain, eta=float(sampling.sampler == "ddpm"))

  def decode(self, latents: Float[np.ndarray, "b lh lw z"]) -> UInt8[np.ndarray, "b h w 3"]:
    """Images of latents."""
    if isinstance(self.vae, VideoVAE):
      return Codec(self.vae, self.params["vae"]).decode(latents[:, None])[:, 0]
    with jax.set_mesh(sharding.mesh_of(self.params)):
      return to_uint8(_decode(self.vae, self.params["vae"], latents))


def holds(name: str | os.PathLike[str]) -> bool:
  """Whether a model makes images of classes, not videos of prompts. Names as for `load`.

  Raises:
    UserError: there is none.
  """
  folder = hub.find(name)
  if (index := folder / pipelines.INDEX).is_file():
    return read_json(index).get("_class_name") == dit_pipeline.NAME
  return "classes" in native.read_config(folder)


def load(name: str | os.PathLike[str], dtype: Any = None) -> ClassModel:
  """Loads a model of classes: a folder of ours or in the hub's layout, or `hf:ORG/NAME`.

  Args:
    dtype: what the transformer computes in, such as "bfloat16". None is what the checkpoint says,
      and float32 where it does not say.

  Raises:
    UserError: there is none, or it makes no images of classes, or it is damaged.
  """
  folder = hub.find(name)
  if not holds(folder):
    raise UserError(f"The model {folder} is not one of classes.")
  dtype = None if dtype is None else jnp.dtype(dtype)
  mesh = sharding.make_mesh(devices=jax.local_devices())
  if (folder / pipelines.INDEX).is_file():
    transformer = published.read_component(folder / "transformer", dtype)
    autoencoder = published.read_component(folder / "vae")
    return from_pipeline(
      read_json(folder / pipelines.INDEX),
      read_json(folder / "scheduler" / "scheduler_config.json"),
      transformer.module,
      autoencoder.module,
      {"dit": transformer.place(mesh), "vae": autoencoder.place(mesh)},
    )
  config = native.read_config(folder)
  if lacking := {"vae", "transformer", "process", "sampling"} - config.keys():
    raise UserError(f"The checkpoint {folder} has no {min(lacking)}: it is not one of classes.")
  if published.class_of(config["vae"]):
    vae = published.built(ImageVAE, config["vae"])
    image = jnp.zeros((1, 64, 64, 3))
    vae_params = native.load_fitting(folder, "vae", vae, image)
  else:
    vae, vae_params = native.load_vae(folder)
  compute = {} if dtype is None else {"dtype": dtype}
  dit = published.built(ClassDiT, config["transformer"], **compute)
  image = jnp.zeros((1, dit.size, dit.size, dit.channels))
  shapes = native.shapes(dit, image, jnp.zeros(1), jnp.zeros(1, jnp.int32))
  dit_params = native.load_params(folder, "transformer", {"dit": shapes})
  return ClassModel(
    dit=dit,
    vae=vae,
    params=placed({"vae": vae_params, **dit_params}),
    classes=tuple(config["classes"]),
    chain=ddpm.Chain.linear(**config["process"]),
    sampling=config_lib.build(Sampling, config["sampling"]),
  )


def from_pipeline(
  index: Mapping[str, Any],
  scheduler: Mapping[str, Any],
  dit: ClassDiT,
  vae: ImageVAE,
  params: Params,
) -> ClassModel:
  """The model of a published `DiTPipeline` folder: samples as diffusers does.

  Args:
    index, scheduler: content of model_index.json and of scheduler_config.json.
    dit, vae, params: networks, and weights of `dit` and `vae` (`interop.dit_xl`, `interop.sd_vae`).

  Raises:
    UserError: a scheduler that cannot be computed.
  """
  return ClassModel(
    dit=dit,
    vae=vae,
    params=placed(params),
    classes=dit_pipeline.class_names(index, dit.classes),
    chain=ddpm.Chain.linear(**dit_pipeline.process(scheduler)),
    sampling=Sampling(**dit_pipeline.sampling(scheduler)),
  )


def placed(params: Params) -> Params:
  """Images and short clips are many and small: weights are copied to devices, these divided."""
  mesh = sharding.make_mesh(devices=jax.local_devices())
  return jax.device_put(params, sharding.param_shardings(params, mesh))


State = Any  # latents, or the carry of a solver


def _start(dit: ClassDiT, x: Float[Array, "b lh lw z"]) -> State:
  if dit.predicts == "noise":
    return x
  return solvers.start(rearrange(x, "b h w z -> b (h w) z"))


def _end(dit: ClassDiT, state: State) -> Float[Array, "b lh lw z"]:
  if dit.predicts == "noise":
    return state
  return rearrange(state.y, "b (h w) z -> b h w z", h=dit.size)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _solve(
  dit: ClassDiT,
  sampling: Sampling,
  params: Params,
  state: State,
  labels: Int[Array, " b"],
  keys: Key[Array, " b"],
  rows: Float[Array, "calls _"],
) -> State:
  """Some rows of the table."""
  channels = dit.channels if sampling.channels is None else sampling.channels
  learned = dit.predicts == "noise" and sampling.variance == "learned"

  def model(x: Array, time: Array) -> Array:
    both = labels
    if sampling.guidance != 1:
      x = jnp.concatenate([x, x])
      both = jnp.concatenate([labels, jnp.full_like(labels, dit.classes)])
    out = dit.apply({"params": params}, x, jnp.broadcast_to(time, both.shape), both)
    if sampling.guidance != 1:
      given, free = jnp.split(out, 2)
      out = guide_channels(given, free, sampling.guidance, channels)
    return out if learned else out[..., : dit.channels]

  if dit.predicts == "velocity":  # data - noise at times from noise to data, all turned round here

    def velocity(values: Array, level: Array, reuse: Array, memory: Any) -> tuple[Array, Any]:
      x = rearrange(values, "b (h w) z -> b h w z", h=dit.size)
      return -rearrange(model(x, 1 - level), "b h w z -> b (h w) z"), memory

    return solvers.solve(velocity, state, rows, jnp.ones(state.y.shape[:2], bool))

  noise = functools.partial(step_noise, keys, state.shape[1:])
  return ddpm.solve(
    model, state, rows, noise if sampling.sampler == "ddpm" else None, sampling.clip
  )


def step_noise(
  keys: Key[Array, " b"], shape: tuple[int, ...], time: Float[Array, ""]
) -> Float[Array, "b lh lw z"]:
  """Ancestral sampling's noise at a time: depends on each sample's key and the time only."""
  # 0 is the key of the noise that sampling starts from.
  fold = lambda key: jax.random.fold_in(key, 1 + time.astype(jnp.int32))  # noqa: E731
  return jax.vmap(lambda key: normal(fold(key), shape))(keys)


@functools.partial(jax.jit, static_argnums=0)
def _decode(vae: ImageVAE, params: Params, latents: Array) -> Array:
  return decode_images(vae, params, latents)
