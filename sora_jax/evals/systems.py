"""The few questions that the bench asks of every system, whatever it is made of.

A generative one continues clips; a predictive one says how surprising each moment of a clip is. A
generative one answers that too, through its own loss. What a system cannot do it need not have.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from sora_jax.data.packing import Packer
from sora_jax.diffusion import conditioning
from sora_jax.diffusion.conditioning import TIME_STRIDE
from sora_jax.diffusion.loss import token_errors
from sora_jax.diffusion.sampler import initial_noise
from sora_jax.errors import UserError
from sora_jax.evals.features import Clips, in_pieces
from sora_jax.evals.surprise import Surprise
from sora_jax.generate import load as generate
from sora_jax.generate.canvas import Canvas, legal
from sora_jax.generate.denoise import read_prompts
from sora_jax.generate.model import VideoModel
from sora_jax.interop import hub, native
from sora_jax.models.dit import DiT
from sora_jax.models.tokens import Tokens
from sora_jax.parallel import sharding
from sora_jax.typing import Array, Float, Params, UInt8

Made = UInt8[np.ndarray, "b {frames} h w 3"]

# Noise levels at which a diffusion model is asked. Of 90 pairs (of other seeds than the suite's)
# `toy` told 64, 70, 73 and 73 % apart at 0.2, 0.4, 0.6 and 0.8 alone, by its mean surprise.
LEVELS = (0.6, 0.8)


@runtime_checkable
class Continuer(Protocol):
  """What can go on from the first frames of clips."""

  def continued(
    self, known: Clips, prompts: Sequence[str], *, seed: int, frames: int, progress: bool = False
  ) -> Made:
    """Clips of `frames` frames that begin as `known` does, which has a prompt for each, or "".

    Raises:
      UserError: a number of frames that it cannot make.
    """


@runtime_checkable
class Surprised(Protocol):
  """What expects something of each moment of a clip."""

  def surprise(self, clips: Clips) -> Float[np.ndarray, "b s"]:
    """How little each moment was expected, from what came before it; larger is less."""


@dataclass(frozen=True, eq=False)
class Diffusion:
  """A diffusion model before both questions: its task of extending a clip, and its loss."""

  model: VideoModel

  def continued(
    self, known: Clips, prompts: Sequence[str], *, seed: int, frames: int, progress: bool = False
  ) -> Made:
    """See `Continuer`. Known frames are as decoded; 4k+1 of them sit in the target grid."""
    b, t, h, w, _ = known.shape
    given = np.zeros((frames, h, w), bool)
    given[:t] = True
    video = np.zeros((b, frames, h, w, 3), np.uint8)
    video[:, :t] = known
    return self.model.sample(prompts, canvas=Canvas(video, given), seed=seed, progress=progress)

  def reconstruct(self, clips: Clips) -> Clips:
    """What the autoencoder keeps of clips."""
    return self.model.reconstruct(clips)

  def surprise(self, clips: Clips) -> Float[np.ndarray, "b s"]:
    """The flow-matching error of each latent frame but the first, given clean earlier ones.

    Each moment is a sequence of its own, which ends with it, without a prompt. The error is that of
    `diffusion.loss`, averaged over `LEVELS`, with the same noise in all clips. Of frames after
    4k+1 nothing is said.
    """
    return in_pieces(self._surprise, clips[:, : legal(clips.shape[1], TIME_STRIDE)])

  def _surprise(self, clips: Clips) -> Float[np.ndarray, "b s"]:
    latents = self.model.encode(clips)
    grid = latents.shape[1:]
    errors = []
    for number, level in enumerate(LEVELS):
      noise = np.asarray(initial_noise(number, np.zeros(1, int), *grid))[0]
      dit, name = self._transformer(level)
      with jax.set_mesh(sharding.mesh_of(self.model.params)):
        tokens, corruption = self._tokens(latents, noise, level)
        found = np.asarray(_errors(dit, self.model.params[name], tokens, corruption))
      made = np.asarray((tokens.noise_level() > 0) & (tokens.segments > 0))
      moments = [made & (np.asarray(tokens.segments) == m) for m in range(1, grid[0])]
      errors.append(np.stack([found.mean(axis=1, where=moment) for moment in moments], axis=1))
    return np.mean(errors, axis=0)

  def _transformer(self, level: float) -> tuple[DiT, str]:
    """What works at a noise level, and the name of its weights."""
    model = self.model
    low = model.low is not None and level < model.request()["boundary"]
    return (model.low, "low") if low and model.low else (model.dit, "dit")

  def _tokens(
    self, latents: Float[np.ndarray, "b lt lh lw z"], noise: np.ndarray, level: float
  ) -> tuple[Tokens, np.ndarray]:
    """A sequence per clip with its beginnings of 2, 3, ... latent frames; and the noise of each."""
    model = self.model
    lay = functools.partial(
      conditioning.layout, patch=model.dit.patch, fps=model.denoiser(model.request()).rate,
      levels=level, cond_features=model.dit.cond_features, empty=model.prompts.padded,
    )  # fmt: skip

    def beginnings(grid: np.ndarray) -> list[conditioning.Sample]:
      out = []
      for m in range(1, len(grid)):
        known = np.zeros((m + 1, *grid.shape[1:3]), bool)
        known[:m] = True
        out.append(lay(grid[: m + 1], known=known))
      return out

    rows = [beginnings(grid) for grid in latents]
    length = sum(len(sample.values) for sample in rows[0])
    mesh = sharding.mesh_of(model.params)
    packer = Packer(
      rows=len(rows), length=length + -length % mesh.shape["context"],
      cond_rows=sum(len(sample.cond) for sample in rows[0]),
      text_length=model.prompts.length * max(1, sum(len(sample.prompts) for sample in rows[0])),
    )  # fmt: skip
    tokens = read_prompts(model.text, model.params["text"], packer.fill(rows, model.prompts))
    corruption = packer.fill([beginnings(noise)] * len(rows), model.prompts)["values"]
    return tokens, corruption


@functools.partial(jax.jit, static_argnums=0)
def _errors(dit: DiT, params: Params, tokens: Tokens, noise: Array) -> Float[Array, "b n"]:
  return token_errors(functools.partial(dit.apply, {"params": params}), tokens, noise)


def load(name: str | os.PathLike[str]) -> Any:
  """What a checkpoint can do: a `Continuer`, a `Surprised`, or both.

  Raises:
    UserError: there is none, it is damaged, or it can do neither.
  """
  folder = hub.find(name)
  if (folder / "config.json").is_file() and "vjepa" in native.read_config(folder):
    return Surprise.load(folder)
  model = generate.load(folder)
  system = Diffusion(model) if isinstance(model, VideoModel) else model
  if not isinstance(system, Continuer | Surprised):
    raise UserError(
      f"{name} neither continues clips nor is surprised by them: give a checkpoint of videos or of "
      "V-JEPA."
    )
  return system
