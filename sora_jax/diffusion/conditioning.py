"""From "what is given" to tokens. A task is nothing more than this.

Everything here is about one sample and runs on the host in numpy. A target latent grid is laid out
as tokens; what the user has is either *in* the grid (a known prefix, known patches of a spatial
mask: causality makes those latents the same as the complete clip's) or, encoded alone, *appended*
at the times it covers. Known tokens have noise level 0. Training draws the same patterns from
clips (`draw`), with the noise levels of the objective in the place of the sampler's.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from einops import rearrange, reduce

from sora_jax.diffusion.time import LevelSampler
from sora_jax.errors import UserError
from sora_jax.models.patch import Patch
from sora_jax.typing import REFERENCE_FPS, Bool, Float, Int

TIME_STRIDE = 4  # pixel frames per latent frame, of every autoencoder of the 4 x n x n family
PATTERNS = ("none", "first", "prefix", "next", "stretch", "spatial", "noise")
MASK_EVERY = 8  # one clip in so many is also encoded with a region greyed (`data.encode`)


@dataclass(frozen=True)
class Sample:
  """One sample, not yet batched: the per-sample fields of `Tokens`, values clean.

  `prompts` holds the texts that `prompt` counts from 1, `states` what a text encoder that is not
  trained makes of each.
  """

  values: Float[np.ndarray, "n p"]
  positions: Float[np.ndarray, "n 3"]
  period: Float[np.ndarray, " n"]
  block: Int[np.ndarray, " n"]
  cond: Float[np.ndarray, "k c"]
  cond_index: Int[np.ndarray, " n"]
  prompt: Int[np.ndarray, " n"]
  prompts: tuple[str, ...]
  states: tuple[Float[np.ndarray, "s e"], ...] = ()


@dataclass(frozen=True)
class Stretch:
  """Latents of frames that were encoded alone, and the times of those latents."""

  latents: Float[np.ndarray, "m lh lw z"]
  times: Float[np.ndarray, " m"]


def frame_time(frame, fps: float):
  """Time coordinate of a pixel frame (or array of them), in latent frames at the reference rate.

  The first latent of a clip covers frame 0 and latent i ends with frame 4 i, so a latent's time is
  that of the last frame it covers, in a grid and in a stretch encoded alone alike.
  """
  return np.asarray(frame, np.float32) / TIME_STRIDE * np.float32(REFERENCE_FPS / fps)


def circle(count: int, fps: float) -> float:
  """Length of the circle of time of a loop of `count` latents: the `period` of its tokens."""
  return float(frame_time(TIME_STRIDE * count, fps))


def latent_times(count: int, fps: float, first_frame: int = 0) -> Float[np.ndarray, " m"]:
  """Times of `count` latents encoded from a stretch that starts at `first_frame`."""
  return frame_time(first_frame + TIME_STRIDE * np.arange(count), fps)


def features(level, fps: float, rows: int, columns: int, count: int) -> Float[np.ndarray, "k c"]:
  """Cond rows: the noise level, then what relative positions cannot tell.

  Those are log2 of the frame rate over the reference rate, of the side of a square with the
  grid's area over 8 latents, and of the aspect ratio width / height; `count` cuts the list, 1
  leaves the noise level (published Wan models).
  """
  level = np.atleast_1d(np.asarray(level, np.float32))
  rest = [np.log2(fps / REFERENCE_FPS), np.log2((rows * columns) ** 0.5 / 8)]
  rest.append(np.log2(columns / rows))
  shared = np.tile(np.asarray(rest, np.float32), (len(level), 1))
  table = np.concatenate([level[:, None], shared], axis=1)
  return table[:, :count]


def layout(
  latents: Float[np.ndarray, "lt lh lw z"],
  *,
  patch: Patch,
  fps: float,
  levels: float | Float[np.ndarray, " lt"] = 1.0,
  known: Bool[np.ndarray, "lt lh lw"] | None = None,
  stretches: Sequence[Stretch] = (),
  prompt: str | Sequence[str] = "",
  loop: bool = False,
  cond_features: int = 4,
  empty: bool = False,
  states: Mapping[str, np.ndarray] | None = None,
) -> Sample:
  """Lays one sample out as tokens.

  Args:
    latents: contents of the target grid; only known cells are ever read by sampling.
    fps: frame rate of the clip.
    levels: noise level of the unknown tokens, one or per latent frame.
    known: latents that are given. A patch is known if all of it is.
    stretches: what else is given, encoded alone.
    prompt: the text every token reads, or one per latent frame; empty means none. What is encoded
      alone reads that of the latent frame nearest in time.
    loop: whether time is a circle: the last latent is followed by the first, which covers as many
      frames as any other.
    cond_features: features of a cond row of the model.
    empty: whether the empty text is a prompt like others (published Wan models), and not none.
    states: of the text encoder by prompt, if it is not trained.
  """
  lt, lh, lw, _ = latents.shape
  known = np.zeros((lt, lh, lw), bool) if known is None else known
  cells = np.where(known, 0.0, np.reshape(levels, (-1, 1, 1))).astype(np.float32)
  times = latent_times(lt, fps, TIME_STRIDE - 1 if loop else 0)
  pieces = [(latents, cells, times)]
  pieces += [(s.latents, np.zeros(s.latents.shape[:3], np.float32), s.times) for s in stretches]
  parts = [_cut(*piece, patch) for piece in pieces]
  values, level, positions = (np.concatenate(part) for part in zip(*parts, strict=True))
  rows, index = np.unique(level, return_inverse=True)
  n = len(values)
  texts = [prompt] * lt if isinstance(prompt, str) else list(prompt)
  prompts = tuple(dict.fromkeys(text for text in texts if text or empty))
  numbers = [prompts.index(text) + 1 if text in prompts else 0 for text in texts]
  return Sample(
    values=values,
    positions=positions,
    period=np.full(n, circle(lt, fps) if loop else 0.0, np.float32),
    block=np.zeros(n, np.int32),
    cond=features(rows, fps, lh, lw, cond_features),
    cond_index=index.astype(np.int32).reshape(-1),
    prompt=np.array(numbers, np.int32)[np.abs(positions[:, :1] - times).argmin(axis=1)],
    prompts=prompts,
    states=tuple(states[text] for text in prompts) if states else (),
  )


def _cut(latents, cells, times, patch: Patch):
  """Values, levels and positions of the patches of one piece; odd grids are padded at the end."""
  pt, ph, pw = patch
  pads = [(0, -size % step) for size, step in zip(latents.shape[:3], patch, strict=True)]
  latents = np.pad(latents.astype(np.float32), [*pads, (0, 0)])
  cells = np.pad(cells, pads, mode="edge")
  sizes = dict(pt=pt, ph=ph, pw=pw)
  values = rearrange(latents, "(t pt) (h ph) (w pw) z -> (t h w) (pt ph pw z)", **sizes)
  level = reduce(cells, "(t pt) (h ph) (w pw) -> t h w", "max", **sizes)
  t, h, w = level.shape
  grid = np.meshgrid(times[::pt], np.arange(h), np.arange(w), indexing="ij")
  positions = np.stack(grid, axis=-1).reshape(-1, 3).astype(np.float32)
  return values, level.reshape(-1), positions


@dataclass(frozen=True, kw_only=True)
class Mixture:
  """What training gives and what it leaves to be made, from the first step on.

  Attributes:
    weights: relative frequency of each pattern: `none`, `first` (the first frame), `prefix`,
      `next` (the first 2, 3, ... latent frames, all but the last of them given, and no prompt: what
      surprise is measured by), `stretch` (a suffix or key frames, encoded alone), `spatial` (a
      mask), `noise` (noise levels that differ from frame to frame, independently or rising).
      `spatial` needs clips that were encoded with a mask, one in `MASK_EVERY`: of those it has so
      many times its share, at most all, and the others take its place in the rest, in their own
      proportions.
    images: fraction of samples cut down to a single frame.
    text_dropout: fraction of samples that read no prompt.

  Raises:
    UserError: a weight of no pattern, one that is negative or not finite, or none above 0.
  """

  weights: Mapping[str, float] = field(
    default_factory=lambda: dict(
      none=0.50, first=0.15, prefix=0.10, stretch=0.10, spatial=0.05, noise=0.10
    )
  )
  images: float = 0.2
  text_dropout: float = 0.1

  def __post_init__(self):
    for name, weight in self.weights.items():
      if name not in PATTERNS:
        near = difflib.get_close_matches(name, PATTERNS, n=1, cutoff=0.0)[0]
        raise UserError(f"mixture.weights has no pattern {name!r}; did you mean {near!r}?")
      if not 0 <= weight < math.inf:
        raise UserError(f"mixture.weights.{name}={weight} must be a number of at least 0.")
    if not any(self.weights.values()):
      raise UserError("No pattern of mixture.weights is above 0: set mixture.weights.none=1.0.")

  def pattern(self, rng: np.random.Generator, masked: bool) -> str:
    """Draws a pattern for a clip that was encoded with a mask, or without one."""
    others = {name: weight for name, weight in self.weights.items() if name != "spatial"}
    spatial, rest = self.weights.get("spatial", 0.0), sum(others.values())
    if masked and rng.random() < MASK_EVERY * spatial / (spatial + rest):
      return "spatial"
    if rest == 0:
      return "none"
    return str(rng.choice(list(others), p=np.array(list(others.values())) / rest))

  def rows(self, frames: int) -> int:
    """The most cond rows that a sample of so many latent frames can have."""
    most = dict.fromkeys(PATTERNS, 2 if frames > 1 else 1)  # what is made, and what is given
    most |= dict(none=1, spatial=2, noise=frames)
    return max(most[name] for name, weight in self.weights.items() if weight > 0)


def draw(
  rng: np.random.Generator,
  clip: Mapping,
  *,
  patch: Patch,
  mixture: Mixture,
  levels: LevelSampler,
  cond_features: int = 4,
  empty: bool = False,
) -> Sample:
  """Draws a training sample from an encoded clip (a record of `data.encode`).

  Args:
    clip: `latents` (lt, lh, lw, z) of the whole clip, `fps`, `captions`; `stretch` and
      `stretch_frame`: latents of a stretch encoded alone and the frame it starts at; `loop`:
      whether time is a circle; optionally `masked` and `mask`: latents of the clip with unknown
      pixels greyed, and the known cells, and `states` of the captions.
    cond_features, empty: see `layout`.
  """
  latents, fps, loop = clip["latents"], float(clip["fps"]), bool(clip["loop"])
  stretch, start = clip["stretch"], int(clip["stretch_frame"])
  if rng.random() < mixture.images:  # a stretch's first latent is an image of its first frame
    latents = latents[:1] if rng.random() < 0.5 and not loop else stretch[:1]
    loop = False
  lt = len(latents)
  pattern = mixture.pattern(rng, masked="masked" in clip and lt == len(clip["masked"]))
  follows = pattern == "next" and lt > 1 and not loop
  if follows:
    latents = latents[: rng.integers(2, lt + 1)]
  grid = np.prod([-(-size // step) for size, step in zip(latents.shape[:3], patch, strict=True)])
  level: float | np.ndarray = float(levels(rng, int(grid))[0])
  known = np.zeros(latents.shape[:3], bool)
  given: tuple[Stretch, ...] = ()

  if pattern == "spatial":
    latents = np.where(clip["mask"][..., None], clip["masked"], latents)
    known = clip["mask"]
  elif lt > 1 and pattern == "first" and not loop:
    known[0] = True
  elif lt > 2 and pattern == "prefix" and not loop:
    known[: rng.integers(2, lt)] = True
  elif follows:
    known[:-1] = True
  elif lt > 1 and pattern == "stretch":
    given = (Stretch(stretch, latent_times(len(stretch), fps, start)),)
    if rng.random() < 0.5 and not loop:
      known[0] = True
  elif lt > 1 and pattern == "noise":
    if rng.random() < 0.5:
      level = levels(rng, int(grid), lt)
    else:
      low, high = np.sort(levels(rng, int(grid), 2))
      level = np.linspace(low, high, lt, dtype=np.float32)

  silent = rng.random() < mixture.text_dropout or follows
  prompt = "" if silent else str(rng.choice(clip["captions"]))
  return layout(
    latents, patch=patch, fps=fps, levels=level, known=known, stretches=given, prompt=prompt,
    loop=loop, cond_features=cond_features, empty=empty, states=clip.get("states"),
  )  # fmt: skip
