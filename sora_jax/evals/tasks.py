"""The `tasks` suite: what each task keeps, what it makes, and what the naive way would have made.

All cases are worlds of the validation split, of seeds no one trains on. Objects are found without a
judge where the simulator says what to look for (`evals.motion`), attributes are read by the oracle.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
from einops import reduce, repeat

from sora_jax.evals import motion
from sora_jax.evals.adherence import FRAMES, SIZE, Judge, Reading
from sora_jax.evals.cases import SEED, Case, cases, cross_fade, interpolated
from sora_jax.evals.reconstruction import psnr
from sora_jax.evals.report import Results, median, proportion
from sora_jax.generate import tasks
from sora_jax.generate.canvas import Canvas
from sora_jax.generate.story import Story
from sora_jax.typing import UInt8
from sora_jax.worlds import VOCABULARY, WorldSource
from sora_jax.worlds.phrases import LIGHTS

Clips = UInt8[np.ndarray, "b t h w 3"]
PATCH = 16  # pixels of a token: what a mask can tell apart
STRENGTHS = (0.4, 0.55, 0.7, 0.85)
SHAPES = {
  "square": (17, 64, 64), "portrait": (17, 96, 64), "landscape": (17, 64, 96), "image": (1, 64, 64),
  "longest": (49, 64, 64),
}  # fmt: skip


@runtime_checkable
class Model(Protocol):
  """What the suite needs of `sora_jax.load(...)`."""

  def sample(
    self,
    prompts: str | Story | Sequence[str | Story] = "",
    *,
    canvas: Canvas | None = None,
    seed: int = 0,
    frames: int | None = None,
    size: tuple[int, int] | None = None,
    progress: bool = False,
  ) -> UInt8[np.ndarray, "*b t h w 3"]:
    """A video per prompt, around a canvas if one is given."""

  def reconstruct(self, video: Clips) -> Clips:
    """The round trip through the latents."""


def suite(model: Model, count: int, seed: int) -> Results:
  """All measurements, `count` cases each. Raises UserError as the model does."""
  results = Results()
  everyday = cases(count, seed)
  judge = Judge()
  parts: dict[str, Callable[[], dict[str, Any]]] = {
    "animate": lambda: _animate(model, judge, everyday, seed),
    "extend": lambda: _extend(model, everyday, seed),
    "fill": lambda: _fill(model, everyday, seed),
    "connect": lambda: _connect(model, everyday, seed),
    "loop": lambda: _loop(model, count, seed),
    "edit": lambda: _edit(model, judge, everyday, seed),
    "setting": lambda: _setting(model, cases(count, seed + 1, "day"), seed),
    "storyboard": lambda: _storyboard(model, judge, everyday, seed),
    "inpaint": lambda: _paint(model, judge, everyday, seed, outside=False),
    "outpaint": lambda: _paint(model, judge, everyday, seed, outside=True),
    "sizes": lambda: _sizes(model, judge, count, seed),
  }
  for name, measure in parts.items():
    results.metrics[name] = measure()
    results.rows.append({"task": name, **results.metrics[name]})
  return results


def complete(model: Model, canvases: list[Canvas], prompts: list[str], seed: int) -> Clips:
  """Canvases that know the same places, completed as a batch."""
  canvas = dataclasses.replace(canvases[0], video=np.concatenate([c.video for c in canvases]))
  return model.sample(prompts, canvas=canvas, seed=seed, progress=True)


def _animate(model: Model, judge: Judge, known: list[Case], seed: int) -> dict[str, Any]:
  canvases = [tasks.animate(case.video[0], FRAMES) for case in known]
  made = complete(model, canvases, [case.caption for case in known], seed)
  real = judge(np.stack([case.video for case in known]))
  return {
    "colour and shape kept": _right(judge(made), known, ("colour", "shape")),
    "the same, real clips": _right(real, known, ("colour", "shape")),
    "motion as asked": _right(judge(made), known, ("motion",)),
    **_seams(model, canvases, made, known, [1]),
    **_prefix(model, made, known, 1),
  }


def _extend(model: Model, known: list[Case], seed: int) -> dict[str, Any]:
  canvases = [tasks.extend(case.video[:9], FRAMES - 9) for case in known]
  prompts = [case.caption for case in known]
  made = complete(model, canvases, prompts, seed)
  free = model.sample(prompts, seed=seed, frames=FRAMES, size=(SIZE, SIZE), progress=True)
  cut = [np.concatenate([case.video[:9], clip[9:]]) for case, clip in zip(known, free, strict=True)]
  return {
    **_seams(model, canvases, made, known, [9]),
    "seam, cut to another sample": median(motion.seam(clip, [9]) for clip in cut),
    "position error, px": _distance(made, known, range(9, FRAMES)),
    "position error of the last frame held, px": _distance(
      np.stack([case.video[[8] * FRAMES] for case in known]), known, range(9, FRAMES)
    ),
    **_prefix(model, made, known, 9),
  }


def _fill(model: Model, known: list[Case], seed: int) -> dict[str, Any]:
  out: dict[str, Any] = {"position error of the measure, px": _distance(
    np.stack([case.video for case in known]), known, range(FRAMES)
  )}  # fmt: skip
  bounce = [i for i, case in enumerate(known) if case.labels["motion"] == "bounces"]
  for name, missing in (
    ("every second", [(i, i) for i in range(1, FRAMES - 1, 2)]),
    ("middle third", [(6, 10)]),
  ):
    frames = [i for first, last in missing for i in range(first, last + 1)]
    canvases = [tasks.fill(case.video, missing) for case in known]
    made = complete(model, canvases, [case.caption for case in known], seed)
    between = np.stack([interpolated(case.video, frames) for case in known])
    seams = sorted({edge for first, last in missing for edge in (first, last + 1)})
    out[name] = {
      "position error, px": _distance(made, known, frames),
      "of interpolated frames, px": _distance(between, known, frames),
      "of interpolated positions, px": _positions(known, frames),
      **_seams(model, canvases, made, known, seams),
    }
    if bounce:
      some = [known[i] for i in bounce]
      out[name] |= {
        "position error in a bounce, px": _distance(made[bounce], some, frames),
        "of interpolated positions in a bounce, px": _positions(some, frames),
      }
  return out


def _connect(model: Model, known: list[Case], seed: int) -> dict[str, Any]:
  first, second = known, [*known[1:], known[0]]
  pairs = [(a.video[:9], b.video[:9]) for a, b in zip(first, second, strict=True)]
  made = complete(model, [tasks.connect(a, b, 8) for a, b in pairs], [""] * len(pairs), seed)
  fades = [np.concatenate([a, cross_fade(a[-1], b[0], 8), b]) for a, b in pairs]
  passage = list(range(9, 18))  # a cut may be anywhere in it
  return {
    "seam": median(motion.seam(clip, passage) for clip in made),
    "seam of a hard cut": median(motion.seam(np.concatenate(pair), [9]) for pair in pairs),
    "seam of a cross-fade": median(motion.seam(clip, passage) for clip in fades),
  }


def _loop(model: Model, count: int, seed: int) -> dict[str, Any]:
  source = WorldSource(count, SEED + seed, "validation", 16, scenes=("pendulum", "orbit"))
  prompts = [source.caption(i) for i in range(count)]
  canvas = tasks.loop(16, (SIZE, SIZE))
  made = model.sample(prompts, canvas=canvas, seed=seed, progress=True)
  free = model.sample(prompts, seed=seed, frames=FRAMES, size=(SIZE, SIZE), progress=True)
  fades = [np.concatenate([clip[4:], cross_fade(clip[-1], clip[4], 4)]) for clip in free]
  real = [motion.seam(source[i]["video"], [0], cyclic=True) for i in range(count)]
  wrap = lambda clips: median(motion.seam(clip, [0], cyclic=True) for clip in clips)  # noqa: E731
  clips = [source[i]["video"][:9] for i in range(count)]
  back = complete(model, [tasks.loop_of(clip, 7) for clip in clips], prompts, seed)
  return {
    "wrap-around": wrap(made), "of a clip that is repeated": wrap(free),
    "of a cross-fade": wrap(fades), "of real loops": median(real),
    "passage, from a video": median(
      motion.seam(clip, [0, *range(9, 16)], cyclic=True) for clip in back
    ),
  }  # fmt: skip


def _edit(model: Model, judge: Judge, known: list[Case], seed: int) -> dict[str, Any]:
  """Another colour of the object, at rising strength: what changes, and what movement stays."""
  rng = np.random.default_rng(seed)
  wanted, prompts = [], []
  for case in known:
    colour = str(rng.choice([c for c in VOCABULARY.colours if c != case.labels["colour"]]))
    wanted.append(colour)
    prompts.append(re.sub(rf"\b{case.labels['colour']}\b", colour, case.caption))
  out = {}
  for strength in STRENGTHS:
    made = complete(model, [tasks.edit(case.video, strength) for case in known], prompts, seed)
    read = judge(made)
    kept = [
      motion.agreement(motion.track(case.video), motion.track(clip))
      for case, clip in zip(known, made, strict=True)
    ]
    changed = [r.matches(colour=colour) for r, colour in zip(read, wanted, strict=True)]
    out[f"strength {strength:g}"] = {
      "colour changed": proportion(changed), "motion kept, correlation": median(kept)
    }  # fmt: skip
  return out


def _setting(model: Model, known: list[Case], seed: int) -> dict[str, Any]:
  """Day becomes night around an object that stays as it is.

  Night has come if the surroundings are nearer to what they are at night, in brightness.
  """
  around = lambda case, clip: clip[~case.thing].astype(np.float32).mean()  # noqa: E731
  turned, kept = [], []
  for number, case in enumerate(known):
    blocks = reduce(case.thing, "t (h p) (w q) -> t h w", "max", p=PATCH, q=PATCH)
    mask = repeat(blocks, "t h w -> t (h p) (w q)", p=PATCH, q=PATCH)
    # A latent spans four frames: what is seen in one of them stays in all.
    spans = [slice(0, 1), *(slice(i, i + 4) for i in range(1, FRAMES, 4))]
    stays = np.concatenate([[mask[s].any(axis=0)] * (s.stop - s.start) for s in spans])
    day = "|".join(LIGHTS["day"]["train"])
    text = re.sub(f"({day})", " at night", case.caption)
    text = text if text != case.caption else f"{text} at night"
    canvas = tasks.edit(case.video, 0.95, ~stays)
    clip = model.sample(text, canvas=canvas, seed=seed + number)
    turned.append(
      bool(2 * around(case, clip) < around(case, case.video) + around(case, case.night))
    )
    x, y, where = (
      jnp.asarray(z[None], jnp.float32)
      for z in (clip / 255, case.video / 255, case.thing[..., None])
    )
    kept.append(float(psnr(x, y, where)[0]))
  return {
    "night": proportion(turned),
    "object's PSNR, dB": median(kept),
  }


def _storyboard(model: Model, judge: Judge, known: list[Case], seed: int) -> dict[str, Any]:
  second = [*known[1:], known[0]]
  stories = [
    Story((a.caption, b.caption), (0.0, FRAMES / 8)) for a, b in zip(known, second, strict=True)
  ]
  made = model.sample(stories, seed=seed, frames=33, size=(SIZE, SIZE), progress=True)
  names = ("colour", "shape", "motion")
  return {
    "first": _right(judge(made[:, :FRAMES]), known, names),
    "second": _right(judge(made[:, FRAMES:]), second, names),
    "first, colour": _right(judge(made[:, :FRAMES]), known, ("colour",)),
    "second, colour": _right(judge(made[:, FRAMES:]), second, ("colour",)),
  }


def _paint(
  model: Model, judge: Judge, known: list[Case], seed: int, outside: bool
) -> dict[str, Any]:
  """A square in the middle is made, or all but the upright half in the middle."""
  mask = np.zeros((SIZE, SIZE), bool)
  mask[PATCH : SIZE - PATCH, PATCH : SIZE - PATCH] = True
  canvases = [tasks.inpaint(case.video, mask) for case in known]
  if outside:
    middle = slice(PATCH, SIZE - PATCH)
    mask = np.ones((SIZE, SIZE), bool)
    mask[:, middle] = False
    canvases = [tasks.outpaint(case.video[:, :, middle], (SIZE, SIZE)) for case in known]
  made = complete(model, canvases, [case.caption for case in known], seed)
  return {
    "seam across the border": median(motion.border(clip, ~mask) for clip in made),
    "of real clips": median(motion.border(case.video, ~mask) for case in known),
    "of their reconstructions": median(
      motion.border(model.reconstruct(case.video[None])[0], ~mask) for case in known
    ),
    "object whole": _right(judge(made), known, ("colour", "shape")),
  }


def _sizes(model: Model, judge: Judge, count: int, seed: int) -> dict[str, Any]:
  """Adherence at other sizes and lengths; the oracle reads all of them at its own size.

  It was trained on clips: of an image, shown as long as one, its validity says nothing.
  """
  out = {}
  for name, (frames, height, width) in SHAPES.items():
    source = WorldSource(count, SEED + seed, "validation", frames, height, width)
    labels = [source.spec(i).labels for i in range(count)]
    prompts = [source.caption(i) for i in range(count)]
    made = model.sample(prompts, seed=seed, frames=frames, size=(height, width), progress=True)
    real = np.stack([source[i]["video"] for i in range(count)])
    asked = ("colour", "shape") if frames == 1 else ("colour", "shape", "motion")
    shown = [clips[:, [0] * FRAMES] if frames == 1 else clips for clips in (made, real)]
    for key, clips in zip(("samples", "real"), shown, strict=True):
      right = [
        dataclasses.replace(r, valid=r.valid or frames == 1).matches(**{a: x[a] for a in asked})
        for r, x in zip(judge(clips), labels, strict=True)
      ]
      out[f"{name} {height}x{width}, {frames} frames: {', '.join(asked)}, {key}"] = proportion(
        right
      )
  return out


def _prefix(model: Model, made: Clips, known: list[Case], frames: int) -> dict[str, Any]:
  """Whether what was given is shown exactly as decoded."""
  plain = model.reconstruct(np.stack([case.video[:frames] for case in known]))
  same = [bool((a == b).all()) for a, b in zip(made[:, :frames], plain, strict=True)]
  return {"given frames exactly as decoded": proportion(same)}


def _seams(
  model: Model, canvases: list[Canvas], made: Clips, known: list[Case], frames: list[int]
) -> dict[str, Any]:
  """Seams at these frames, before and after pasting, and what real clips have there."""
  real = [model.reconstruct(case.video[None])[0] for case in known]
  pasted = [c.paste(clip[None])[0] for c, clip in zip(canvases, made, strict=True)]
  sets: dict[str, Iterable[np.ndarray]] = {
    "seam": made, "seam pasted": pasted, "seam of real clips, reconstructed": real
  }  # fmt: skip
  return {name: median(motion.seam(clip, frames) for clip in clips) for name, clips in sets.items()}


def _right(read: list[Reading], known: list[Case], names: tuple[str, ...]) -> dict[str, Any]:
  return proportion(
    reading.matches(**{name: case.labels[name] for name in names})
    for reading, case in zip(read, known, strict=True)
  )


def _distance(clips: Clips, known: list[Case], frames: Any) -> dict[str, Any]:
  """Of the object from where the simulator has it; an object that is not there is 32 px away."""
  return median(
    np.nan_to_num(np.linalg.norm(error), nan=SIZE / 2)
    for clip, case in zip(clips, known, strict=True)
    for error in case.errors(clip, frames)
  )


def _positions(known: list[Case], frames: list[int]) -> dict[str, Any]:
  """Errors of the straight line between where the object is seen."""
  return median(
    distance
    for case in known
    for distance in np.linalg.norm(case.guess(frames) - case.places[frames], axis=1)
  )
