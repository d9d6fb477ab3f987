"""Any trained model by its name, whatever it makes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from sora_jax.errors import UserError
from sora_jax.generate import classes, model, videogpt
from sora_jax.generate.classes import ClassModel
from sora_jax.generate.model import VideoModel
from sora_jax.generate.videogpt import VideoGPT
from sora_jax.interop import hub


def load(
  name: str | os.PathLike[str] = "toy",
  mesh: Mapping[str, int] | None = None,
  dtype: Any = None,
) -> VideoModel | ClassModel | VideoGPT:
  """Loads a model: a shipped name, a folder of ours or in the hub's layout, or `hf:ORG/NAME`.

  Args:
    mesh: see `generate.model.load`; a model of classes takes none, nor does a VideoGPT.
    dtype: what the transformer, and a text encoder, compute in, such as "bfloat16". None is what
      the checkpoint says, and float32 where it does not say.

  Returns:
    what makes videos of prompts, by diffusion or code by code, or what makes images of classes.

  Raises:
    UserError: there is none, or it is damaged; or there is no such mesh.
  """
  folder = hub.find(name)
  for kind, what in ((classes, "model of classes"), (videogpt, "VideoGPT")):
    if kind.holds(folder):
      if mesh is not None:
        raise UserError(f"A {what} divides what it makes over all devices: give no mesh.")
      return kind.load(folder, dtype)
  return model.load(folder, mesh, dtype)
