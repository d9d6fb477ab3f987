"""Completes a canvas: the windows it is cut into, and what each of them is told."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from sora_jax.diffusion.conditioning import Stretch, latent_times
from sora_jax.generate.canvas import Canvas, Plan, in_grid, known_latents, runs, stretches
from sora_jax.generate.codec import Codec, Grid
from sora_jax.generate.denoise import Window
from sora_jax.typing import UInt8


def complete(
  canvas: Canvas, plan: Plan, fps: float, codec: Codec, denoise: Callable[[Window, int], Grid]
) -> UInt8[np.ndarray, "b t h w 3"]:
  """What is shown of the canvas, its unknown pixels made, all of it as decoded from latents.

  Args:
    plan: its windows. fps: frame rate of the clips.
    denoise: a window, and the place of its first frame in the clip -> latents.
  """
  video, known = canvas.video.copy(), canvas.known.copy()
  shown = np.zeros_like(video)
  for start in plan.starts:
    part = slice(start, min(start + plan.length, len(known)))
    window = dataclasses.replace(canvas, video=video, known=known).part(start, start + plan.length)
    latents = denoise(give(window, fps, codec), start)
    made = codec.decode(latents, canvas.loop)[:, : part.stop - start]
    new = ~known[part].all(axis=(1, 2))
    shown[:, part][:, new] = made[:, new]
    video[:, part] = np.where(known[part][..., None], video[:, part], made)
    known[part] = True
  for run in runs(np.asarray(canvas.known[: canvas.shown].all(axis=(1, 2)))):
    shown[:, run] = codec.reconstruct(video[:, run])
  return shown[:, : canvas.shown]


def give(canvas: Canvas, fps: float, codec: Codec) -> Window:
  """What is known of a window, in latents: nothing in them has seen an unknown pixel."""
  vae, video, known = codec.vae, canvas.video, canvas.known
  cells = known_latents(canvas, vae.time_stride, vae.space_stride)
  latents = np.zeros((len(video), *cells.shape, vae.z_channels), np.float32)
  if canvas.strength < 1:
    latents = codec.encode(video).copy()
  if cells.any():
    frames = in_grid(known, vae.time_stride)
    seen = codec.encode(video[:, :frames], known[:frames])
    here = slice(0, seen.shape[1])
    latents[:, here] = np.where(cells[here, ..., None], seen, latents[:, here])
  given: list[tuple[Stretch, ...]] = [()] * len(video)
  for part in stretches(known, vae.time_stride):
    pieces = codec.encode(video[:, part])
    times = latent_times(pieces.shape[1], fps, part.start)
    given = [(*others, Stretch(x, times)) for others, x in zip(given, pieces, strict=True)]
  return Window(latents, cells, given, canvas.strength, canvas.loop)
