"""A trained model: prompts in, videos out.

request -> canvas (what is known) -> windows -> denoiser (tokens, solver) -> decoder -> uint8 frames
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from sora_jax.diffusion.sampler import check_draw
from sora_jax.errors import UserError
from sora_jax.generate.canvas import Canvas, Plan, blank
from sora_jax.generate.codec import Codec, Grid
from sora_jax.generate.complete import complete
from sora_jax.generate.denoise import SAMPLING, Denoiser
from sora_jax.generate.story import Story
from sora_jax.interop import lora as adapters
from sora_jax.interop import pipelines, wan_dit
from sora_jax.models import lora
from sora_jax.models.dit import DiT
from sora_jax.models.patch import grid_shape
from sora_jax.models.text import Encoder, Prompts
from sora_jax.models.vae import VideoVAE
from sora_jax.parallel import sharding
from sora_jax.typing import Float, Params, UInt8


@dataclasses.dataclass(frozen=True)
class VideoModel:
  """A checkpoint in memory.

  Attributes:
    vae, dit, text, prompts: the components.
    params: weights of each by name. Videos are made on the mesh that these are on.
    config: the checkpoint's config.json.
    low: a second transformer for low noise, of which some models have one (as in Wan 2.2's A14B).
  """

  vae: VideoVAE
  dit: DiT
  text: Encoder
  prompts: Prompts
  params: Params
  config: Mapping[str, Any]
  low: DiT | None = None

  def sample(
    self,
    prompts: str | Story | Sequence[str | Story] = "",
    *,
    canvas: Canvas | None = None,
    negative: str = "",
    seed: int = 0,
    frames: int | None = None,
    size: tuple[int, int] | None = None,
    fps: float | None = None,
    sampler: str | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    shift: float | None = None,
    cache: float | None = None,
    batch_size: int = 16,
    progress: bool = False,
  ) -> UInt8[np.ndarray, "*b t h w 3"]:
    """Makes a video of each prompt, around what is given.

    Args:
      prompts: one, or several; the result has a batch axis if they are a sequence. A story has
        prompts for stretches of time. With a canvas they may be empty.
      canvas: what is known (`generate.tasks`): one clip for all prompts or one for each. It sets
        the size and length. Known frames are shown as decoded from their latents.
      negative: what guidance leads away from, in the place of "no prompt".
      seed: sample i of a seed has the same noise at any batch size and on any mesh.
      frames: 4k+1; 1 makes an image. With a canvas: how many to make at a time, if it is longer
        (None: as many as the longest clips of training had).
      size: (height, width). fps: frame rate to move at.
      sampler, steps, guidance, shift: of the ODE solver; None takes the checkpoint's.
      cache: threshold of step caching (`diffusion.caching`): larger is faster and less exact; 0 is
        none, None takes the checkpoint's.
      batch_size: videos made at a time; as many more as a mesh needs to divide them.
      progress: whether to show a bar on stderr.

    Raises:
      UserError: an empty prompt, or a length, size or setting the model cannot do.
    """
    check_draw(seed, batch_size)
    size = size if canvas is None else canvas.video.shape[2:4]
    request = self.request(frames, size, fps, sampler, steps, guidance, shift, cache)
    alone = isinstance(prompts, str | Story)
    asked = [prompts] if isinstance(prompts, str | Story) else list(prompts)
    stories = self._stories(asked, negative, canvas)
    given, canvas = canvas, canvas or blank(1, request["frames"], tuple(request["size"]))
    if len(canvas.video) not in (1, len(stories)):
      raise UserError(f"There are {len(canvas.video)} videos for {len(stories)} prompts.")
    self._check_stories(stories, len(canvas.known), request["fps"])
    longest = self._longest(request) if frames is None or given is None else frames
    plan = Plan.of(canvas, longest, self.vae.time_stride)
    denoiser = self.denoiser(request)
    lt, lh, lw = self.vae.latent_shape(plan.length + canvas.loop, *request["size"])
    latent = (lt - canvas.loop, lh, lw)  # a loop has no special first latent
    calls = len(denoiser.table(latent, canvas.strength)) * len(plan.starts)
    count = denoiser.filled(min(batch_size, len(stories)))
    batches = -(-len(stories) // count)
    videos = []
    with tqdm(total=calls * batches, desc="sampling", unit="call", disable=not progress) as bar:
      for first in range(0, len(stories), count):
        samples = np.arange(first, first + count)
        chosen = np.minimum(samples, len(stories) - 1)  # a last, smaller batch is filled up
        denoise = functools.partial(
          denoiser, stories=[stories[i] for i in chosen], negative=negative, seed=seed,
          samples=samples, bar=bar,
        )  # fmt: skip
        made = complete(canvas.of(chosen), plan, denoiser.rate, self.codec, denoise)
        videos.append(made[: len(stories) - first])
    return np.concatenate(videos)[0] if alone else np.concatenate(videos)

  def request(
    self,
    frames: int | None = None,
    size: tuple[int, int] | None = None,
    fps: float | None = None,
    sampler: str | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    shift: float | None = None,
    cache: float | None = None,
  ) -> dict[str, Any]:
    """The checkpoint's settings with those that are given in their place, checked.

    Raises:
      UserError: names what cannot be done and the nearest that can.
    """
    given = dict(
      frames=frames, size=size, fps=fps, sampler=sampler, steps=steps, guidance=guidance,
      shift=shift, cache=cache,
    )  # fmt: skip
    request = SAMPLING | dict(self.config["sampling"])
    request |= {k: v for k, v in given.items() if v is not None}
    self.vae.latent_shape(request["frames"], *request["size"])
    if any(side % self.step for side in request["size"]):
      nearest = "x".join(str(max(1, round(x / self.step)) * self.step) for x in request["size"])
      raise UserError(
        f"Height and width must be multiples of {self.step} for this model: use {nearest}."
      )
    for name, low in (("steps", 1), ("fps", 1e-3), ("shift", 1e-3)):
      if not low <= request[name] < math.inf:
        raise UserError(f"{name} is {request[name]} but must be at least {low:g}, and finite.")
    if request["fps"] > 1000:  # no file could hold it
      raise UserError(f"fps is {request['fps']} but must be at most 1000.")
    denoiser = self.denoiser(request)
    denoiser.table((1, 1, 1), 1.0), denoiser.guidance  # refuse what they do not know
    return request

  def _longest(self, request: Mapping[str, Any]) -> int:
    """Frames to make at a time: as many as the clips of training had, in frames and in tokens."""
    latent = self.vae.latent_shape(request["frames"], *request["size"])
    lt, h, w = grid_shape(latent, self.dit.patch)
    most = request.get("tokens", lt * h * w) // (h * w)
    frames = 1 + self.vae.time_stride * max(1, most - 1)
    usual = self.config["sampling"].get("frames", request["frames"])
    return max(min(frames, request.get("longest", request["frames"])), usual)

  def _check_stories(self, stories: Sequence[Story], frames: int, fps: float) -> None:
    """Refuses prompts that no latent frame would read."""
    seconds = np.arange(0, frames, self.vae.time_stride) / fps
    for story in stories:
      read = set(story.scenes(seconds))
      for scene, start in enumerate(story.starts):
        if scene not in read:
          raise UserError(
            f"The prompt that begins at {start:g} s would not be followed: the video has {frames} "
            f"frames, {frames / fps:g} s. Make it longer, or let the prompt before it end earlier; "
            f"each needs {self.vae.time_stride / fps:g} s."
          )

  @property
  def step(self) -> int:
    """What height and width must be multiples of, in pixels."""
    return self.vae.space_stride * max(self.dit.patch[1:])

  @property
  def codec(self) -> Codec:
    """The autoencoder."""
    return Codec(self.vae, self.params["vae"])

  def encode(self, video: UInt8[np.ndarray, "b t h w 3"]) -> Float[np.ndarray, "b lt lh lw z"]:
    """Standardised latents of videos of 4k+1 frames."""
    return self.codec.encode(video)

  def decode(self, latents: Grid) -> UInt8[np.ndarray, "b t h w 3"]:
    """Videos of standardised latents."""
    return self.codec.decode(latents)

  def reconstruct(self, video: UInt8[np.ndarray, "b t h w 3"]) -> UInt8[np.ndarray, "b t h w 3"]:
    """What the autoencoder keeps of videos."""
    return self.codec.reconstruct(video)

  def adapted(self, file: str | os.PathLike[str], weight: float = 1.0) -> VideoModel:
    """The model with the LoRA adapter of a file or folder, at so much of its strength.

    Of two transformers the first, that of high noise, gets it, which is said on stderr.

    Raises:
      UserError: there is none, or it is not of this model.
    """
    dit = self.params["dit"]
    adapter = adapters.read(file, wan_dit.rules(self.dit), wan_dit.shapes(self.dit))
    params = {**self.params, "dit": lora.apply(dit, adapter, weight)}
    if self.low is not None:
      print(f"warning: {file} changes the transformer of high noise alone", file=sys.stderr)
    places = sharding.param_shardings(params, sharding.mesh_of(dit))
    return dataclasses.replace(self, params=jax.device_put(params, places))

  def denoiser(self, request: Mapping[str, Any]) -> Denoiser:
    """The solver of a request (of `request`)."""
    params = {name: x for name, x in self.params.items() if name != "vae"}
    return Denoiser(self.dit, self.text, self.prompts, params, request, self.low)

  def _stories(
    self, prompts: Sequence[str | Story], negative: str, canvas: Canvas | None
  ) -> list[Story]:
    """What the samples follow, checked before any work."""
    stories = [Story.of(prompt) for prompt in prompts]
    if not stories:
      raise UserError("There are no prompts.")
    texts = [text for story in stories for text in story.prompts]
    told = texts if canvas is None or canvas.loop else [text for text in texts if text]
    self.prompts.check([*told, negative] if negative else told)
    self.prompts.warn_of_unknown_words(texts)
    return stories


def enable_compilation_cache() -> None:
  """Keeps compiled programs on disk, so that a second process starts at once.

  In `JAX_COMPILATION_CACHE_DIR` if that is set, else in the user's cache folder.
  """
  base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
  if not jax.config.values["jax_compilation_cache_dir"]:
    jax.config.update("jax_compilation_cache_dir", str(base / "sora_jax" / "xla"))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def load(
  name: str | os.PathLike[str] = "toy",
  mesh: Mapping[str, int] | None = None,
  dtype: Any = None,
) -> VideoModel:
  """Loads a model: a shipped name, a folder of ours or in the hub's layout, or `hf:ORG/NAME`.

  Args:
    mesh: axis sizes, see `sharding.make_mesh`, of the devices of this process. None is as `sora-jax
      plan --mode=sample` has it: a clip with and without its prompt are two rows of a batch, over
      two devices if their number is even, and the tokens are split over the others.
    dtype: what transformer and text encoder compute in, and keep kernels in, such as "bfloat16".
      None is what the checkpoint says, and float32 where it does not say.

  Raises:
    UserError: there is none, or it is damaged; or there is no such mesh.
  """
  devices = jax.local_devices()
  grid = None if mesh is None else sharding.make_mesh(mesh, devices)
  parts = pipelines.open_model(name, None if dtype is None else jnp.dtype(dtype))
  components = parts.components
  if grid is None:
    state = sum(component.nbytes for component in components.values())
    grid = sharding.make_mesh(sharding.suggest(2, devices, state), devices)
  return VideoModel(
    vae=components["vae"].module,
    dit=components["dit"].module,
    text=components["text"].module,
    prompts=parts.prompts,
    params={name: component.place(grid) for name, component in components.items()},
    config=parts.config,
    low=components["low"].module if "low" in components else None,
  )
