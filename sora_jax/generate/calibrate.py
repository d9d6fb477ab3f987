"""What step caching must know of a model, measured on a video that the model makes."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
from pathlib import Path

import jax

from sora_jax.data.packing import Packer
from sora_jax.diffusion import conditioning
from sora_jax.diffusion.caching import Curve, residual_curve
from sora_jax.errors import UNREADABLE, UserError
from sora_jax.generate.denoise import read_prompts
from sora_jax.generate.model import VideoModel
from sora_jax.parallel import sharding

# The curve hardly depends on what is shown, so that any words will do.
PROMPT = "a red ball rolls to the left"


def calibrated(model: VideoModel, prompt: str = PROMPT, seed: int = 0) -> VideoModel:
  """`model` with its curve of residuals (`diffusion.caching`) under `config["sampling"]`.

  It costs a video of the checkpoint's usual size and length, and some 20 calls of the transformer.

  Raises:
    UserError: an empty prompt.
  """
  video = model.sample(prompt, seed=seed, cache=0.0)
  rate = model.denoiser(model.request()).rate
  sample = conditioning.layout(
    model.encode(video[None])[0], patch=model.dit.patch, fps=rate, prompt=prompt,
    cond_features=model.dit.cond_features, empty=model.prompts.padded,
  )  # fmt: skip
  packer = Packer(
    rows=1, length=len(sample.values), cond_rows=len(sample.cond), text_length=model.prompts.length
  )
  batch = packer.fill([[sample]], model.prompts)
  with jax.set_mesh(sharding.mesh_of(model.params)):
    tokens = read_prompts(model.text, model.params["text"], batch)
    key = jax.random.key(seed)
    curve = residual_curve(model.dit.apply, model.params["dit"], tokens, key)
  return _with(model, [list(map(float, pair)) for pair in curve])


def with_curve(model: VideoModel, path: str | Path) -> VideoModel:
  """`model` with the curve in the JSON file `path`, which says what transformer it is of.

  Where there is no such file, it is written as `calibrated` measures the curve.

  Raises:
    UserError: the file holds no curve, or another transformer's, or cannot be written.
  """
  path, kind = Path(path), repr(model.dit.clone(dtype=None))  # in any precision
  if path.exists():
    return _with(model, _read(path, kind))
  if not path.parent.is_dir():  # before the work rather than after it
    raise UserError(f"There is no folder {path.parent} to write {path.name} to.")
  print(f"Measuring the model for step caching, once; {path} keeps it.", file=sys.stderr)
  ready = calibrated(model)
  temporary = path.with_name(f".{path.name}.{os.getpid()}")
  try:
    found = dict(transformer=kind, residuals=ready.config["sampling"]["residuals"])
    temporary.write_text(json.dumps(found) + "\n")
    os.replace(temporary, path)
  except OSError as error:
    temporary.unlink(missing_ok=True)
    raise UserError(f"{path} cannot be written: {error.strerror}.") from error
  return ready


def _with(model: VideoModel, curve: Curve) -> VideoModel:
  sampling = dict(model.config["sampling"], residuals=curve)
  return dataclasses.replace(model, config={**model.config, "sampling": sampling})


def _read(path: Path, kind: str) -> Curve:
  other = "give another file, or one to be written"
  try:
    found = json.loads(path.read_text())
    curve = [[float(level), float(size)] for level, size in found["residuals"]]
    if len(curve) < 2 or not all(0 <= t <= 1 and 0 < size < math.inf for t, size in curve):
      raise ValueError
  except (OSError, ValueError, TypeError, KeyError, *UNREADABLE) as error:
    raise UserError(f"{path} holds no curve of residuals: {other}.") from error
  if found.get("transformer") != kind:
    raise UserError(f"The curve in {path} is another transformer's: {other}.")
  return curve
