"""From noise to latents: one window of a canvas, all samples of a batch at once."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import reduce, repeat
from tqdm import tqdm

from sora_jax.data.packing import Packer
from sora_jax.diffusion import caching, conditioning
from sora_jax.diffusion import sampler as solvers
from sora_jax.diffusion.conditioning import TIME_STRIDE, Stretch
from sora_jax.diffusion.guidance import Guidance
from sora_jax.diffusion.process import corrupt
from sora_jax.diffusion.time import LevelSampler, schedule
from sora_jax.errors import UserError
from sora_jax.generate.story import Story
from sora_jax.models.dit import DiT
from sora_jax.models.patch import Patch, grid_shape, unpatchify
from sora_jax.models.text import NOTHING, Encoder, Prompts
from sora_jax.models.tokens import Tokens
from sora_jax.parallel import sharding
from sora_jax.parallel.sharding import constrain
from sora_jax.typing import REFERENCE_FPS, Array, Bool, Float, Params, PRNGKey

MAX_PARTS = 6  # pieces the sampler's loop is cut into, for the progress bar

# What a request that says nothing gets; a checkpoint's config.json may say otherwise.
#   schedule, timesteps         keywords of `diffusion.time.schedule`, and of `diffusion.time.told`
#   shift, reference_tokens     of `diffusion.time.LevelSampler`
#   guidance_interval           of `Guidance`, as shares of the level that sampling starts from
#   reference_fps               the rate at which latent frames are one unit of time apart
#   cache, residuals            threshold and curve of `diffusion.caching.reused`
#   boundary                    levels below it are those of the second transformer, if there is one
SAMPLING: dict[str, Any] = dict(
  sampler="dpm++", steps=30, guidance=3.0, guidance_rescale=0.0, guidance_interval=[0.0, 1.0],
  shift=1.0, reference_tokens=LevelSampler.reference_tokens, schedule={}, timesteps=0,
  reference_fps=REFERENCE_FPS, cache=0.0, residuals=None, boundary=0.0,
)  # fmt: skip


@dataclass(frozen=True)
class Window:
  """What is known of a batch of clips, in latents.

  Attributes:
    latents: contents of the target grid where they are known, and, if `strength` is below 1, where
      they are to be changed.
    known: the latents that stay.
    stretches: per sample, what else is known, encoded alone.
    strength: the noise level that unknown latents start from.
    loop: whether the last latent is followed by the first.
  """

  latents: Float[np.ndarray, "b lt lh lw z"]
  known: Bool[np.ndarray, "lt lh lw"]
  stretches: Sequence[Sequence[Stretch]]
  strength: float = 1.0
  loop: bool = False


@dataclass(frozen=True)
class Denoiser:
  """Solves the flow ODE for windows, by a request's settings (a dict like `SAMPLING`, with fps).

  On the mesh that `params` are on. The noise is the same on any. `low` is the transformer of noise
  levels below the request's boundary, if there is one.
  """

  dit: DiT
  text: Encoder
  prompts: Prompts
  params: Params
  request: Mapping[str, Any]
  low: DiT | None = None

  @property
  def rate(self) -> float:
    """The requested frames per second, in the model's unit of time."""
    return self.request["fps"] * REFERENCE_FPS / self.request["reference_fps"]

  @property
  def guidance(self) -> Guidance:
    """As requested. Raises UserError: a scale or interval that makes no sense."""
    return Guidance(
      scale=self.request["guidance"],
      rescale=self.request["guidance_rescale"],
      interval=tuple(self.request["guidance_interval"]),
    )

  def guidance_from(self, level: float) -> Guidance:
    """Of a sampler that starts at a level: its interval is a share of the levels passed through."""
    low, high = self.guidance.interval
    return dataclasses.replace(self.guidance, interval=(low * level, high * level))

  def filled(self, samples: int) -> int:
    """So many samples, or more: until the mesh divides their rows with and without prompt."""
    ways = sharding.batch_ways(sharding.mesh_of(self.params))
    return samples + -samples % (ways // math.gcd(ways, 1 + self.guidance.active))

  def table(self, latent: tuple[int, int, int], strength: float) -> Float[np.ndarray, "calls 10"]:
    """The solver's coefficients for a target grid of latents, and which calls are short.

    Raises:
      UserError: no such solver, or the checkpoint has no curve for step caching.
    """
    tokens, request = int(np.prod(grid_shape(latent, self.dit.patch))), self.request
    shifts = LevelSampler(shift=request["shift"], reference_tokens=request["reference_tokens"])
    shift = shifts.shift_for(tokens)
    levels = schedule(request["steps"], shift, strength, **request["schedule"])
    table = solvers.table(request["sampler"], levels, request["timesteps"])
    if not np.isfinite(table).all():
      raise UserError(
        f"The shift {request['shift']:g} leaves {request['sampler']} no way between two of its "
        f"{request['steps']} noise levels: give a smaller one."
      )
    if request["cache"] and self.low:
      raise UserError(
        "Step caching knows the residuals of one transformer, and this model has a second one for "
        "low noise: leave cache at 0."
      )
    if request["cache"]:
      table[:, -1] = caching.reused(table[:, 0], request["residuals"], request["cache"])
    return table

  def __call__(
    self,
    window: Window,
    first: int,
    *,
    stories: Sequence[Story],
    negative: str,
    seed: int,
    samples: np.ndarray,
    bar: tqdm,
  ) -> Float[np.ndarray, "b lt lh lw z"]:
    """The latents of a window: known ones as they were, the others made.

    Args:
      window, first: what is known, and the first frame's place in the whole clip.
      stories, negative: what each sample follows, and what guidance leads away from ("": none).
      seed, samples: noise depends on these and on a latent's place.
      bar: is moved by one for each call of the model.
    """
    lt, lh, lw, z = window.latents.shape[1:]
    noise = solvers.initial_noise(seed, samples, lt, lh, lw, z, first // TIME_STRIDE)
    known = whole_patches(window.known, self.dit.patch)
    noisy = corrupt(jnp.asarray(window.latents), noise, jnp.asarray(window.strength))
    start = np.where(known[..., None], window.latents, np.asarray(noisy))
    lay = functools.partial(
      conditioning.layout, patch=self.dit.patch, fps=self.rate, known=known,
      loop=window.loop, cond_features=self.dit.cond_features, empty=self.prompts.padded,
    )  # fmt: skip
    seconds = (first + TIME_STRIDE * np.arange(lt)) / self.request["fps"]
    given, against = (
      [
        lay(x, stretches=s, prompt=p)
        for x, s, p in zip(start, window.stretches, prompts, strict=True)
      ]
      for prompts in ([story.at(seconds) for story in stories], [negative] * len(stories))
    )
    mesh = sharding.mesh_of(self.params)
    tokens = len(given[0].values)
    packer = Packer(
      rows=len(stories), length=tokens + -tokens % mesh.shape["context"],
      cond_rows=len(given[0].cond),
      text_length=self.prompts.length * max(1, *(len(sample.prompts) for sample in given)),
    )  # fmt: skip
    batches = [packer.fill([[s] for s in samples], self.prompts) for samples in (given, against)]
    guidance = self.guidance_from(window.strength)
    if all(one.prompts == other.prompts for one, other in zip(given, against, strict=True)):
      guidance = dataclasses.replace(guidance, scale=1.0)  # nothing to lead away from
    latent = known.shape
    table = self.table(latent, window.strength)
    with jax.set_mesh(mesh):  # a prompt is read once, not by each piece of the loop
      used = batches[: 1 + guidance.active]
      read = [read_prompts(self.text, self.params["text"], batch) for batch in used]
    values = sharding.place(batches[0]["values"], "tokens", mesh)
    memory = None
    if self.request["cache"]:
      rows, width = (1 + guidance.active) * len(stories), self.dit.width
      shape = (rows, packer.length * self.dit.pieces, width)
      memory = jnp.zeros(shape, self.dit.dtype or values.dtype)
    carry = jax.device_put(solvers.start(values, memory), values.sharding)
    # Else nothing is asked without the prompt where guidance does not act.
    always = memory is not None or len(stories) % sharding.batch_ways(mesh) > 0
    for name, guided, piece in self._pieces(table, guidance.acts(table[:, 1]) | always):
      dit = self.low if name == "low" else self.dit
      rule = guidance if guided else dataclasses.replace(guidance, scale=1.0)
      with jax.set_mesh(mesh):
        carry = solve(dit, rule, self.params[name], read, carry, piece)
      jax.block_until_ready(carry)
      bar.update(len(piece))
    grid = int(np.prod(grid_shape(latent, self.dit.patch)))
    return np.asarray(unpatchify(carry.y[:, :grid], latent, self.dit.patch))

  def _pieces(
    self, table: Float[np.ndarray, "calls 10"], guided: Bool[np.ndarray, " calls"]
  ) -> Iterator[tuple[str, bool, np.ndarray]]:
    """Rows for each transformer, guided or not, in equal parts (one program): the bar moves."""
    low = table[:, 1] < (self.request["boundary"] if self.low else 0.0)
    kinds = zip(np.where(low, "low", "dit"), guided.tolist(), table, strict=True)
    for (name, with_guidance), group in itertools.groupby(kinds, key=lambda kind: kind[:2]):
      rows = np.stack([row for _, _, row in group])
      parts = max(n for n in range(1, MAX_PARTS + 1) if len(rows) % n == 0)
      yield from ((str(name), with_guidance, piece) for piece in np.split(rows, parts))


def whole_patches(
  known: Bool[np.ndarray, "lt lh lw"], patch: Patch
) -> Bool[np.ndarray, "lt lh lw"]:
  """The latents of patches that are known as a whole: a token is known or it is not."""
  pads = [(0, -size % step) for size, step in zip(known.shape, patch, strict=True)]
  cells = np.pad(known, pads, mode="edge")
  sizes = dict(zip("pqr", patch, strict=True))
  tokens = reduce(cells, "(t p) (h q) (w r) -> t h w", "min", **sizes)
  cells = repeat(tokens, "t h w -> (t p) (h q) (w r)", **sizes)
  return cells[tuple(slice(size) for size in known.shape)]


@functools.partial(jax.jit, static_argnums=0)
def read_prompts(
  encoder: Encoder | None,
  params: Params | None,
  batch: Mapping[str, Array],
  key: PRNGKey | None = None,
) -> Tokens:
  """A packed batch (`data.packing`) as `Tokens`: word pieces become encoder states.

  What has states already is not read again; there needs to be no encoder then. With a key the
  encoder reads as in training (`TextEncoder.noise`).
  """
  fields = dict(batch)
  if "text" in fields:
    return Tokens(**fields)
  assert encoder is not None
  pieces = fields.pop("pieces")
  ids = jnp.where(pieces == NOTHING, 0, fields["text_ids"])
  rngs = None if key is None else {"noise": key}
  states = encoder.apply({"params": params}, jnp.maximum(pieces, 0), ids, rngs=rngs)
  return Tokens(**fields, text=states)


@functools.partial(jax.jit, static_argnums=(0, 1))
def solve(
  dit: DiT,
  guidance: Guidance,
  params: Params,
  batches: Sequence[Tokens],
  carry: solvers.Carry,
  table: Float[Array, "calls 10"],
) -> solvers.Carry:
  """Runs rows of the sampler's table on packed tokens and, under guidance, their unprompted twins.

  Their values are those of `carry`, whose memory is what the transformer's blocks added last, in
  both; None without step caching.
  """
  split = functools.partial(constrain, name="tokens")
  carry = jax.tree.map(split, carry)
  used = batches if guidance.active else batches[:1]
  made = (used[0].noise_level() > 0) & (used[0].segments > 0)
  both = jax.tree.map(lambda *x: jnp.concatenate(x), *used)

  def velocity(values: Array, level: Array, reuse: Array, memory: Any) -> tuple[Array, Any]:
    cond = both.cond.at[..., 0].multiply(level)  # known rows have level 0 and keep it
    inputs = dataclasses.replace(both, values=jnp.tile(values, (len(used), 1, 1)), cond=cond)
    model = functools.partial(dit.apply, {"params": params}, inputs)
    if memory is None:
      velocities = model()
    else:
      velocities, memory = caching.call(model, reuse, memory)
    v = jnp.split(velocities, len(used))
    return guidance(v[0], v[1], level, made) if guidance.active else v[0], memory

  return jax.tree.map(split, solvers.solve(velocity, carry, table, made))
