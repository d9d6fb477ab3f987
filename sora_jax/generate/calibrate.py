"""What step caching must know of a model, measured on a video that the model makes."""

from __future__ import annotations

import dataclasses

import jax

from sora_jax.data.packing import Packer
from sora_jax.diffusion import conditioning
from sora_jax.diffusion.caching import residual_curve
from sora_jax.generate.denoise import read_prompts
from sora_jax.generate.model import VideoModel


def calibrated(model: VideoModel, prompt: str, seed: int = 0) -> VideoModel:
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
  tokens = read_prompts(model.text, model.params["text"], batch)
  apply = lambda tokens, **kw: model.dit.apply({"params": model.params["dit"]}, tokens, **kw)  # noqa: E731
  curve = residual_curve(apply, tokens, jax.random.key(seed))
  sampling = dict(model.config["sampling"], residuals=[list(map(float, pair)) for pair in curve])
  return dataclasses.replace(model, config={**model.config, "sampling": sampling})
