"""A trained VideoGPT: prompts in, codes one after the other, videos out.

prompt, codes that are known -> prior, cell by cell -> decoder -> uint8 frames
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

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
from sora_jax.interop import hub, native, pipelines, published, wordpieces
from sora_jax.models.text import Prompts, TextEncoder
from sora_jax.models.videogpt import Grid, Prior, in_order, on_grid, surprisal
from sora_jax.models.vqvae import VQVAE, decode_codes, encode_codes
from sora_jax.parallel import sharding
from sora_jax.typing import Array, Float, Int, Key, Params, UInt8

Clips = UInt8[np.ndarray, "b t h w 3"]


@dataclass(frozen=True, kw_only=True)
class Sampling:
  """How to draw codes.

  Attributes:
    temperature: logits are divided by it; 0 takes the likeliest code.
    top_k: draws among so many likeliest codes; None: all.
    top_p: draws among the likeliest codes that together have this probability; None: all.
    guidance: scale of classifier-free guidance, on logits; 1 switches it off.
  """

  temperature: float = 1.0
  top_k: int | None = None
  top_p: float | None = None
  guidance: float = 1.0

  def __post_init__(self) -> None:
    if not self.temperature >= 0:
      raise UserError(f"temperature is {self.temperature} but must be at least 0.")
    if self.top_k is not None and self.top_k < 1:
      raise UserError(f"top_k is {self.top_k} but must be at least 1.")
    if self.top_p is not None and not 0 < self.top_p <= 1:
      raise UserError(f"top_p is {self.top_p} but must be above 0 and at most 1.")
    if not 1 <= self.guidance < math.inf:
      raise UserError(f"Guidance is {self.guidance} but must be at least 1 (1 switches it off).")


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


class State(NamedTuple):
  """Between two tokens: all codes, 0 for none yet; what cells stand for; the cache."""

  codes: Int[Array, "b n q"]
  z: Float[Array, "b n z"]
  cache: Params


@functools.partial(jax.jit, static_argnums=0)
def read(
  text: TextEncoder, params: Params, pieces: Int[Array, "b s"], ids: Int[Array, "b s"]
) -> Float[Array, "b s e"]:
  """States of prompts."""
  return text.apply({"params": params}, pieces, ids)


@functools.partial(jax.jit, static_argnums=(0, 1))
def start(
  prior: Prior,
  grid: Grid,
  params: Params,
  known: Int[Array, "b m q"],
  text: Float[Array, "r s e"],
  text_ids: Int[Array, "r s"],
) -> State:
  """The state before the first token that is not known; r is b, or 2 b under guidance."""
  variables = {"params": params}
  fill = [(0, 0), (0, int(np.prod(grid)) - known.shape[1]), (0, 0)]
  z = jnp.pad(jnp.sum(prior.apply(variables, known, method="vectors"), axis=2), fill)
  # The first call makes the cache. If nothing is known it is of the first token, which comes again.
  tokens = jnp.arange(max(1, known.shape[1] // prior.cells))
  told = prior.apply(variables, z, tokens, grid, method="told_tokens")
  told = jnp.tile(told, (len(text) // len(known), 1, 1))
  _, new = prior.apply(
    variables, told, tokens, text, text_ids, method="hidden", mutable=["cache"]
  )  # fmt: skip
  return State(jnp.pad(known, fill), z, new["cache"])


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def draw(
  prior: Prior,
  grid: Grid,
  sampling: Sampling,
  params: Params,
  state: State,
  text: Float[Array, "r s e"],
  text_ids: Int[Array, "r s"],
  keys: Key[Array, " b"],
  tokens: Int[Array, " m"],
) -> State:
  """Draws the codes of some tokens in a row: token by token, cell by cell, depth by depth."""
  run = functools.partial(prior.apply, {"params": params})
  fold = jax.vmap(jax.random.fold_in, (0, None))
  twice = lambda x: jnp.tile(x, (len(text) // len(keys), *[1] * (x.ndim - 1)))  # noqa: E731
  put = functools.partial(jax.lax.dynamic_update_slice_in_dim, axis=1)

  def token(state: State, at: Array) -> tuple[State, None]:
    hidden, new = prior.apply(
      {"params": params, "cache": state.cache},
      twice(run(state.z, at[None], grid, method="told_tokens")), at[None], text, text_ids,
      method="hidden", mutable=["cache"],
    )  # fmt: skip

    def cell(state: State, at: Array) -> tuple[State, None]:
      told = twice(run(state.z, at[None], grid, method="told_cells"))
      features = run(hidden, told, at, method="cell")
      z, codes = jnp.zeros_like(state.z[:, 0]), []
      for depth in range(prior.depth):
        logits = run(features, twice(z)[:, None, None], (depth,), method="logits")[:, 0, 0]
        if sampling.guidance != 1:
          given, free = jnp.split(logits, 2)
          logits = free + sampling.guidance * (given - free)
        codes.append(choose(sampling, logits, fold(fold(keys, at), depth)))
        z = z + jnp.take(params["codebook"][depth], codes[-1], axis=0)
      made = put(state.codes, jnp.stack(codes, axis=-1)[:, None], at)
      return State(made, put(state.z, z[:, None], at), state.cache), None

    state, _ = jax.lax.scan(cell, state, at * prior.cells + jnp.arange(prior.cells))
    return state._replace(cache=new["cache"]), None

  return jax.lax.scan(token, state, tokens)[0]


def choose(
  sampling: Sampling, logits: Float[Array, "b k"], keys: Key[Array, " b"]
) -> Int[Array, " b"]:
  """A code of each row."""
  if sampling.temperature == 0:
    return jnp.argmax(logits, axis=-1)
  logits = jax.nn.log_softmax(logits / sampling.temperature)
  falling = -jnp.sort(-logits, axis=-1)
  if sampling.top_k is not None and sampling.top_k < logits.shape[-1]:
    logits = jnp.where(logits < falling[:, sampling.top_k - 1, None], -jnp.inf, logits)
  if sampling.top_p is not None:
    mass = jnp.exp(falling)
    before = jnp.cumsum(mass, axis=-1) - mass  # the likeliest has nothing before it
    least = jnp.min(jnp.where(before < sampling.top_p, falling, jnp.inf), axis=-1, keepdims=True)
    logits = jnp.where(logits < least, -jnp.inf, logits)
  noise = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[-1:]))(keys)
  return jnp.argmax(logits + noise, axis=-1)


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
  prior = published.built(
    Prior, config["videogpt"], text_width=text.width, codes=vqvae.codes, depth=vqvae.depth,
    z_channels=vqvae.z_channels, grid=vqvae.grid(sampling["frames"], *sampling["size"]), **compute,
  )  # fmt: skip
  params = native.read_component(folder, "prior") | {"vqvae": vqvae_params}
  params["prior"]["codebook"] = vqvae_params["codebook"]
  params["text"]["pieces"] = jnp.asarray(wordpieces.table())
  prompts = Prompts.load(wordpieces.TOKENIZER, text.length, config.get("known_words", ()))
  return VideoGPT(vqvae, prior, text, prompts, placed(params), config)
