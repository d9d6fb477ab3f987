"""Any trained model by its name, whatever it makes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from sora_jax.errors import UserError
from sora_jax.generate import classes, model
from sora_jax.generate.classes import ClassModel
from sora_jax.generate.model import VideoModel
from sora_jax.interop import hub


def load(
  name: str | os.PathLike[str] = "toy",
  mesh: Mapping[str, int] | None = None,
  dtype: Any = None,
) -> VideoModel | ClassModel:
  """Loads a model: a shipped name, a folder of ours or in the hub's layout, or `hf:ORG/NAME`.

  Args:
    mesh: see `generate.model.load`; a model of classes takes none.
    dtype: what the transformer, and a text encoder, compute in, such as "bfloat16". None is what
      the checkpoint says, and float32 where it does not say.

  Returns:
    what makes videos of prompts, or what makes images of classes.

  Raises:
    UserError: there is none, or it is damaged; or there is no such mesh.
  """
  folder = hub.find(name)
  if not classes.holds(folder):
    return model.load(folder, mesh, dtype)
  if mesh is not None:
    raise UserError("A model of classes divides its images over all devices: give no mesh.")
  return classes.load(folder, dtype)
