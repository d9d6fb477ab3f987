"""A trained model: prompts in, videos out.

request -> conditioning (tokens) -> sampler -> decoder -> uint8 frames
"""

from __future__ import annotations

import dataclasses
import functools
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from sora_jax import config as config_lib
from sora_jax.data.packing import Packer
from sora_jax.data.transforms import to_float, to_uint8
from sora_jax.diffusion import conditioning
from sora_jax.diffusion import sampler as solvers
from sora_jax.diffusion.guidance import Guidance
from sora_jax.diffusion.time import LevelSampler, schedule
from sora_jax.errors import UserError
from sora_jax.interop import native, wordpieces
from sora_jax.models.dit import DiT
from sora_jax.models.patch import unpatchify
from sora_jax.models.text import Prompts, TextEncoder
from sora_jax.models.tokens import Tokens
from sora_jax.models.vae import VideoVAE, decode_latents, encode_video
from sora_jax.typing import Array, Float, Params, UInt8

Grid = Float[Array, "b lt lh lw z"] | Float[np.ndarray, "b lt lh lw z"]

MAX_PARTS = 6  # pieces the sampler's loop is cut into, for the progress bar

# What a request that says nothing gets; a checkpoint's config.json may say otherwise.
SAMPLING: dict[str, Any] = dict(
  sampler="dpm++", steps=30, guidance=3.0, guidance_rescale=0.0, guidance_interval=[0.0, 1.0],
  shift=1.0,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class VideoModel:
  """A checkpoint in memory.

  Attributes:
    vae, dit, text, prompts: the components. params: weights of `vae`, `dit` and `text`.
    config: the checkpoint's config.json.
  """

  vae: VideoVAE
  dit: DiT
  text: TextEncoder
  prompts: Prompts
  params: Params
  config: Mapping[str, Any]

  def sample(
    self,
    prompts: str | Sequence[str],
    *,
    negative: str = "",
    seed: int = 0,
    frames: int | None = None,
    size: tuple[int, int] | None = None,
    fps: float | None = None,
    sampler: str | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    shift: float | None = None,
    batch_size: int = 16,
    progress: bool = False,
  ) -> UInt8[np.ndarray, "*b t h w 3"]:
    """Makes a video of each prompt.

    Args:
      prompts: one, or several; the result has a batch axis if they are a sequence.
      negative: what guidance leads away from, in the place of "no prompt".
      seed: sample i of a seed has the same noise at any batch size.
      frames: 4k+1; 1 makes an image. size: (height, width). fps: frame rate to move at.
      sampler, steps, guidance, shift: of the ODE solver; None takes the checkpoint's.
      batch_size: videos made at a time.
      progress: whether to show a bar on stderr.

    Raises:
      UserError: an empty prompt, or a length, size or setting the model cannot do.
    """
    request = self.request(frames, size, fps, sampler, steps, guidance, shift)
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    self.prompts(texts)  # refuses empty and overlong prompts before any work
    self._warn_of_unknown_words(texts)
    calls = len(self._table(request, tokens=1)) * -(-len(texts) // batch_size)
    videos = []
    with tqdm(total=calls, desc="sampling", unit="call", disable=not progress) as bar:
      for first in range(0, len(texts), batch_size):
        chunk = texts[first : first + batch_size]
        padded = chunk + chunk[-1:] * (min(batch_size, len(texts)) - len(chunk))
        indices = np.arange(first, first + len(padded))
        latents = self._denoise(padded, negative, indices, seed, request, bar)
        videos.append(self.decode(latents)[: len(chunk)])
    stacked = np.concatenate(videos)
    return stacked[0] if isinstance(prompts, str) else stacked

  def request(
    self,
    frames: int | None = None,
    size: tuple[int, int] | None = None,
    fps: float | None = None,
    sampler: str | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    shift: float | None = None,
  ) -> dict[str, Any]:
    """The checkpoint's settings with those that are given in their place, checked.

    Raises:
      UserError: names what cannot be done and the nearest that can.
    """
    given = dict(
      frames=frames, size=size, fps=fps, sampler=sampler, steps=steps, guidance=guidance,
      shift=shift,
    )  # fmt: skip
    request = SAMPLING | dict(self.config["sampling"])
    request |= {k: v for k, v in given.items() if v is not None}
    self.vae.latent_shape(request["frames"], *request["size"])
    step = [self.vae.space_stride * p for p in self.dit.patch[1:]]
    if any(side % s for side, s in zip(request["size"], step, strict=True)):
      nearest = "x".join(
        str(max(1, round(side / s)) * s) for side, s in zip(request["size"], step, strict=True)
      )
      raise UserError(
        f"Height and width must be multiples of {step[0]} for this model: use {nearest}."
      )
    for name, low in (("steps", 1), ("fps", 1e-3), ("shift", 1e-3)):
      if not request[name] >= low:
        raise UserError(f"{name} is {request[name]} but must be at least {low:g}.")
    solvers.table(request["sampler"], np.array([1.0, 0.5, 0.0]))
    self._guidance(request)
    return request

  def encode(self, video: UInt8[np.ndarray, "b t h w 3"]) -> Grid:
    """Standardised latents of videos."""
    return np.asarray(encode_video(self.vae, self.params["vae"], jnp.asarray(to_float(video))))

  def decode(self, latents: Grid) -> UInt8[np.ndarray, "b t h w 3"]:
    """Videos of standardised latents."""
    return to_uint8(decode_latents(self.vae, self.params["vae"], jnp.asarray(latents)))

  def reconstruct(self, video: UInt8[np.ndarray, "b t h w 3"]) -> UInt8[np.ndarray, "b t h w 3"]:
    """What the autoencoder keeps of videos."""
    return self.decode(self.encode(video))

  def _guidance(self, request: Mapping[str, Any]) -> Guidance:
    return Guidance(
      scale=request["guidance"],
      rescale=request["guidance_rescale"],
      interval=tuple(request["guidance_interval"]),
    )

  def _table(self, request: Mapping[str, Any], tokens: int) -> Float[np.ndarray, "calls 8"]:
    shift = LevelSampler(shift=request["shift"]).shift_for(tokens)
    return solvers.table(request["sampler"], schedule(request["steps"], shift))

  def _warn_of_unknown_words(self, texts: Sequence[str]) -> None:
    unknown = dict.fromkeys(w for text in texts for w in self.prompts.unknown_words(text))
    if unknown:
      print(
        f"warning: the model was trained without the words {', '.join(unknown)}; it can only "
        "guess at them",
        file=sys.stderr,
      )

  def _denoise(
    self,
    prompts: Sequence[str],
    negative: str,
    samples: np.ndarray,
    seed: int,
    request: Mapping[str, Any],
    bar: tqdm,
  ) -> Float[Array, "b lt lh lw z"]:
    shape = self.vae.latent_shape(request["frames"], *request["size"])
    noise = solvers.initial_noise(seed, samples, *shape, self.vae.z_channels)
    lay = functools.partial(
      conditioning.layout, patch=self.dit.patch, fps=request["fps"],
      cond_features=self.dit.cond_features,
    )  # fmt: skip
    given = [lay(np.asarray(x), prompt=p) for x, p in zip(noise, prompts, strict=True)]
    against = [lay(np.asarray(x), prompt=negative) for x in noise]
    n = len(given[0].values)
    packer = Packer(rows=len(given), length=n, cond_rows=1, text_length=self.prompts.length)
    batches = [packer.fill([[s] for s in rows], self.prompts) for rows in (given, against)]
    table = self._table(request, n)
    guidance = self._guidance(request)
    carry = solvers.start(jnp.asarray(batches[0]["values"]))
    parts = max(n for n in range(1, MAX_PARTS + 1) if len(table) % n == 0)
    for rows in np.split(table, parts):  # equal parts are one program; the bar moves in between
      carry = _solve(self.dit, self.text, guidance, self.params, batches, carry, jnp.asarray(rows))
      jax.block_until_ready(carry)
      bar.update(len(rows))
    values = carry[1]
    return unpatchify(values, shape, self.dit.patch)


def read_prompts(encoder: TextEncoder, params: Params, batch: Mapping[str, Array]) -> Tokens:
  """A packed batch (`data.packing`) as `Tokens`: word pieces become encoder states."""
  fields = dict(batch)
  states = encoder.apply({"params": params}, fields.pop("pieces"), batch["text_ids"])
  return Tokens(**fields, text=states)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _solve(
  dit: DiT,
  text: TextEncoder,
  guidance: Guidance,
  params: Params,
  batches: Sequence[Mapping[str, Array]],
  carry: solvers.Carry,
  table: Float[Array, "calls 8"],
) -> solvers.Carry:
  """Runs rows of the sampler's table on a packed batch and, under guidance, its unprompted twin."""
  used = batches if guidance.active else batches[:1]
  tokens = [read_prompts(text, params["text"], batch) for batch in used]
  made = tokens[0].noise_level() > 0
  both = jax.tree.map(lambda *x: jnp.concatenate(x), *tokens)

  def velocity(values: Array, level: Array) -> Array:
    cond = both.cond.at[..., 0].multiply(level)  # known rows have level 0 and keep it
    inputs = dataclasses.replace(both, values=jnp.tile(values, (len(used), 1, 1)), cond=cond)
    v = jnp.split(dit.apply({"params": params["dit"]}, inputs), len(used))
    return guidance(v[0], v[1], level, made) if guidance.active else v[0]

  return solvers.solve(velocity, carry, table, made)


def enable_compilation_cache() -> None:
  """Keeps compiled programs on disk, so that a second process starts at once.

  In `JAX_COMPILATION_CACHE_DIR` if that is set, else in the user's cache folder.
  """
  base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
  if not jax.config.values["jax_compilation_cache_dir"]:
    jax.config.update("jax_compilation_cache_dir", str(base / "sora_jax" / "xla"))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def load(name: str | os.PathLike[str] = "toy") -> VideoModel:
  """Loads a checkpoint: a shipped name, or a folder.

  Raises:
    UserError: there is none, or it is damaged.
  """
  folder = native.find(name)
  config = native.read_config(folder)
  lacking = {"vae", "transformer", "text", "sampling"} - config.keys()
  if lacking:
    raise UserError(f"The checkpoint {folder} has no {min(lacking)}: it cannot make videos.")
  dit = config_lib.build(DiT, config["transformer"])
  text = config_lib.build(TextEncoder, config["text"])
  transformer = native.read_component(folder, "transformer")
  transformer["text"]["pieces"] = wordpieces.table()
  vae, vae_params = native.load_vae(folder)
  return VideoModel(
    vae=vae,
    dit=dit,
    text=text,
    prompts=Prompts.load(wordpieces.TOKENIZER, text.length, config["known_words"]),
    params={"vae": vae_params, **jax.tree.map(jnp.asarray, transformer)},
    config=config,
  )
