"""A trained VideoGPT: prompts in, codes one after the other, videos out.

prompt, codes that are known -> prior, cell by cell -> decoder -> uint8 frames
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from sora_jax import config as config_lib
from sora_jax.data.transforms import to_float, to_uint8
from sora_jax.diffusion.sampler import check_draw
from sora_jax.errors import UserError
from sora_jax.evals.features import in_pieces
from sora_jax.generate.classes import placed
from sora_jax.generate.codes import Sampling, draw, start
from sora_jax.interop import hub, native, pipelines, published, wordpieces
from sora_jax.models.text import Prompts, TextEncoder
from sora_jax.models.videogpt import Grid, Prior, in_order, on_grid, surprisal
from sora_jax.models.vqvae import VQVAE, decode_codes, encode_codes
from sora_jax.parallel import sharding
from sora_jax.typing import Array, Float, Int, Params, PRNGKey, UInt8

Clips = UInt8[np.ndarray, "b t h w 3"]


@dataclass(frozen=True)
class VideoGPT:
  """A checkpoint in memory.

  Attributes:
    vqvae, prior, text, prompts: the components.
    params: weights of the first three, of the same names. config: the checkpoint's config.json.
  """

  vqvae: VQVAE
  prior: Prior
  text: TextEncoder
  prompts: Prompts
  params: Params
  config: Mapping[str, Any]

  def sample(
    self,
    prompts: str | Sequence[str],
    *,
    seed: int = 0,
    frames: int | None = None,
    size: tuple[int, int] | None = None,
    progress: bool = False,
    batch_size: int = 16,
    **settings: Any,
  ) -> UInt8[np.ndarray, "*b t h w 3"]:
    """Makes a video of each prompt.

    Args:
      prompts: one, or several; the result has a batch axis if they are a sequence.
      seed: sample i of a seed has the same random numbers at any batch size.
      frames: 4k+1, at most as many as the clips of training; None is as many. 1 makes an image.
      size: (height, width), which must be that of training.
      progress: whether to show a bar on stderr. batch_size: videos made at a time.
      settings: fields of `Sampling` in the place of the checkpoint's; None changes nothing.

    Raises:
      UserError: an empty prompt, or a length, size or setting the model cannot do.
    """
    alone = isinstance(prompts, str)
    asked = [prompts] if isinstance(prompts, str) else list(prompts)
    if not asked:
      raise UserError("There are no prompts.")
    self.prompts.check(asked)
    self.prompts.warn_of_unknown_words(asked)
    grid, sampling = self._grid(frames, size), self.request(**settings)
    known = np.zeros((len(asked), 0, *grid[1:], self.prior.depth), np.int32)
    made = self._decode(self._codes(known, asked, grid, sampling, seed, batch_size, progress))
    return made[0] if alone else made

  def continued(
    self,
    known: UInt8[np.ndarray, "b known h w 3"],
    prompts: Sequence[str],
    *,
    seed: int = 0,
    frames: int | None = None,
    progress: bool = False,
    batch_size: int = 16,
    **settings: Any,
  ) -> Clips:
    """Makes clips that begin as `known` does; the frames given are shown as their codes decode.

    Args:
      known: 4j+1 frames, fewer than are made: with a causal encoder their codes are those that any
        clip has which begins so. prompts: one for each; they may be empty.
      others: as of `sample`; `frames` counts the given ones too.

    Raises:
      UserError: a length, size or setting the model cannot do.
    """
    if len(known) != len(prompts):
      raise UserError(f"There are {len(known)} clips for {len(prompts)} prompts.")
    grid, sampling = self._grid(frames, known.shape[2:4]), self.request(**settings)
    codes = self.encode(known)
    if codes.shape[1] >= grid[0]:
      stride = self.vqvae.time_stride
      raise UserError(
        f"{known.shape[1]} frames are given and {1 + stride * (grid[0] - 1)} are wanted in all: "
        f"give at most {1 + stride * (grid[0] - 2)}."
      )
    return self._decode(self._codes(codes, prompts, grid, sampling, seed, batch_size, progress))

  def surprise(self, clips: Clips) -> Float[np.ndarray, "b s"]:
    """Mean surprisal, in nats per code, of each code frame but the first, without a prompt.

    Each given all codes before it. Since the encoder is causal, what a clip shows later changes
    nothing about a moment.

    Raises:
      UserError: a length or size the model cannot do.
    """
    self._grid(clips.shape[1], clips.shape[2:4])
    pieces, ids = np.zeros((2, 1, self.text.length), np.int32)
    mesh = sharding.mesh_of(self.params)

    def measure(some: Clips) -> Array:
      with jax.set_mesh(mesh):
        codes = encode_codes(self.vqvae, self.params["vqvae"], to_float(some))
        text = read(self.text, self.params["text"], pieces, ids)
        return moments(self.prior, self.params["prior"], codes, text, ids)

    return in_pieces(measure, clips)

  def reconstruct(self, video: Clips) -> Clips:
    """What the autoencoder keeps of videos, of 4k+1 frames of any size that cells divide."""
    return self._decode(self.encode(video))

  def encode(self, video: Clips) -> Int[np.ndarray, "b lt lh lw q"]:
    """The codes of videos. Raises UserError: not 4k+1 frames, or a size that has no grid."""
    self.vqvae.grid(*video.shape[1:4])
    with jax.set_mesh(sharding.mesh_of(self.params)):
      encode = functools.partial(encode_codes, self.vqvae, self.params["vqvae"])
      return in_pieces(lambda piece: encode(to_float(piece)), video)

  def _decode(self, codes: Int[np.ndarray, "b lt lh lw q"]) -> Clips:
    with jax.set_mesh(sharding.mesh_of(self.params)):
      decode = functools.partial(decode_codes, self.vqvae, self.params["vqvae"])
      return in_pieces(lambda piece: to_uint8(decode(piece)), codes)

  def request(self, **settings: Any) -> Sampling:
    """The checkpoint's settings with those that are given in their place, checked.

    Raises:
      UserError: an unknown setting, or one that cannot be.
    """
    names = [field.name for field in dataclasses.fields(Sampling)]
    stored = {name: x for name, x in self.config["sampling"].items() if name in names}
    given = {name: value for name, value in settings.items() if value is not None}
    return config_lib.build(Sampling, stored | given)

  def _grid(self, frames: int | None, size: tuple[int, ...] | None) -> Grid:
    """Of clips of this length and size. Raises UserError: the model makes no such clips."""
    longest, trained = (self.config["sampling"][name] for name in ("frames", "size"))
    if size is not None and tuple(size) != tuple(trained):
      asked, made = ("x".join(map(str, x)) for x in (size, trained))
      raise UserError(f"This model makes clips of {made} pixels, not {asked}.")
    frames = longest if frames is None else frames
    if frames > longest:
      raise UserError(f"This model makes clips of up to {longest} frames, not {frames}.")
    return self.vqvae.grid(frames, *trained)

  def _codes(
    self,
    known: Int[np.ndarray, "b j lh lw q"],
    prompts: Sequence[str],
    grid: Grid,
    sampling: Sampling,
    seed: int,
    batch_size: int,
    progress: bool,
  ) -> Int[np.ndarray, "b lt lh lw q"]:
    """Codes of clips: `known` ones, and those that the prior draws after them."""
    check_draw(seed, batch_size)
    if not any(prompts):  # guidance would compare a clip with itself
      sampling = dataclasses.replace(sampling, guidance=1.0)
    count, (_, rows, columns) = min(batch_size, len(prompts)), self.prior.tokens(grid)
    starts, times = range(0, len(prompts), count), range(known.shape[1], grid[0])
    pieces, ids = self.prompts.in_rows(prompts)
    params, made = self.params, []
    bar = tqdm(total=len(times) * len(starts), desc="sampling", unit="frame", disable=not progress)
    with bar, jax.set_mesh(sharding.mesh_of(params)):
      for first in starts:
        samples = np.arange(first, first + count)
        chosen = np.minimum(samples, len(prompts) - 1)  # a smaller batch is filled up
        keys = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(seed)))(samples)
        words, text_ids = pieces[chosen], ids[chosen]
        if sampling.guidance != 1:  # the same clips once more, without their prompts
          words, text_ids = (np.concatenate([x, np.zeros_like(x)]) for x in (words, text_ids))
        text = read(self.text, params["text"], words, text_ids)
        given = in_order(known[chosen], self.prior.patch)
        state = start(self.prior, grid, params["prior"], given, text, text_ids)
        for time in times:
          tokens = np.arange(time * rows * columns, (time + 1) * rows * columns)
          state = draw(
            self.prior, grid, sampling, params["prior"], state, text, text_ids, keys, tokens
          )
          jax.block_until_ready(state)
          bar.update()
        made.append(np.asarray(on_grid(state.codes, grid, self.prior.patch)))
    return np.concatenate(made)[: len(prompts)]


@functools.partial(jax.jit, static_argnums=0)
def read(
  text: TextEncoder, params: Params, pieces: Int[Array, "b s"], ids: Int[Array, "b s"]
) -> Float[Array, "b s e"]:
  """States of prompts."""
  return text.apply({"params": params}, pieces, ids)


@functools.partial(jax.jit, static_argnums=0)
def moments(
  prior: Prior,
  params: Params,
  codes: Int[Array, "b lt lh lw q"],
  text: Float[Array, "1 s e"],
  text_ids: Int[Array, "1 s"],
) -> Float[Array, "b moments"]:
  """Mean surprisal of each code frame but the first, all clips with one prompt."""
  text, text_ids = (jnp.repeat(x, len(codes), axis=0) for x in (text, text_ids))
  nats = surprisal(prior.apply({"params": params}, codes, text, text_ids), codes)
  return jnp.mean(nats, axis=(2, 3, 4))[:, 1:]


def fresh(prior: Prior, text: TextEncoder, key: PRNGKey) -> Params:
  """Random weights of both; codebook and word pieces are to be replaced."""
  keys = jax.random.split(key)
  pieces = jnp.zeros((1, text.length), jnp.int32)
  states = jnp.zeros((1, text.length, text.width))
  codes = jnp.zeros((1, *prior.grid, prior.depth), jnp.int32)
  return {
    "prior": prior.init(keys[0], codes, states, pieces)["params"],
    "text": text.init(keys[1], pieces, pieces)["params"],
  }


def learned(params: Params) -> Params:
  """The weights that are stored: without the codebook and the table of word pieces."""
  frozen = {"prior": "codebook", "text": "pieces"}
  return {
    part: {name: x for name, x in params[part].items() if name != frozen[part]} for part in frozen
  }


def holds(name: str | os.PathLike[str]) -> bool:
  """Whether a model is a VideoGPT. Names as for `load`. Raises UserError: there is none."""
  folder = hub.find(name)
  if (folder / pipelines.INDEX).is_file():
    return False
  return "videogpt" in native.read_config(folder)


def load(name: str | os.PathLike[str], dtype: Any = None) -> VideoGPT:
  """Loads what recipe `videogpt` exported.

  Args:
    dtype: what prior and text encoder compute in, such as "bfloat16". None is what the checkpoint
      says, and float32 where it does not say.

  Raises:
    UserError: there is none, or it is another model, or it is damaged.
  """
  folder = hub.find(name)
  if not holds(folder):
    raise UserError(f"The model {folder} is no VideoGPT.")
  config = native.read_config(folder)
  if lacking := {"vqvae", "text", "sampling"} - config.keys():
    raise UserError(f"The checkpoint {folder} has no {min(lacking)}: export it again.")
  vqvae, vqvae_params = native.load_vqvae(folder)
  sampling = config["sampling"]
  compute = {} if dtype is None else {"dtype": jnp.dtype(dtype)}
  _, table = wordpieces.table().shape
  text = published.built(TextEncoder, config["text"], table_width=table, **compute)
  wordpieces.check(text.vocabulary, folder)
  prior = published.built(
    Prior, config["videogpt"], text_width=text.width, codes=vqvae.codes, depth=vqvae.depth,
    z_channels=vqvae.z_channels, grid=vqvae.grid(sampling["frames"], *sampling["size"]), **compute,
  )  # fmt: skip
  like = learned(jax.eval_shape(functools.partial(fresh, prior, text), jax.random.key(0)))
  params = native.load_params(folder, "prior", like) | {"vqvae": vqvae_params}
  params["prior"]["codebook"] = vqvae_params["codebook"]
  params["text"]["pieces"] = jnp.asarray(wordpieces.table())
  prompts = Prompts.load(wordpieces.TOKENIZER, text.length, config.get("known_words", ()))
  return VideoGPT(vqvae, prior, text, prompts, placed(params), config)
