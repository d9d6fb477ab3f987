"""Sora, rebuilt in the open in JAX: text to video, from mp4 files to samples.

import sora_jax as sj
model = sj.load("toy")
video = model.sample("a red ball rolls behind the wall", seed=0)    # uint8 t h w 3
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from sora_jax.errors import UserError
  from sora_jax.generate.classes import ClassModel
  from sora_jax.generate.load import load
  from sora_jax.generate.model import VideoModel
  from sora_jax.generate.videogpt import VideoGPT

_PUBLIC = {
  "load": "sora_jax.generate.load",
  "ClassModel": "sora_jax.generate.classes",
  "VideoGPT": "sora_jax.generate.videogpt",
  "VideoModel": "sora_jax.generate.model",
  "UserError": "sora_jax.errors",
}

__all__ = ["ClassModel", "UserError", "VideoGPT", "VideoModel", "load"]


def __getattr__(name: str) -> Any:
  """Imports the public names when they are first used: `import sora_jax` costs nothing."""
  if name not in _PUBLIC:
    raise AttributeError(f"module 'sora_jax' has no attribute '{name}'")
  import importlib

  return getattr(importlib.import_module(_PUBLIC[name]), name)
