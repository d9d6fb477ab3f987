"""What the configs of large text-to-video runs share: `configs/wan_*.py` and `configs/sora_*.py`.

They are trained from scratch on the user's own videos, of one shape of clip, with a text encoder of
their own. All of it is changed from the command line like any other value.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from sora_jax.data.clip import Clip

SAMPLE_TOKENS = 80  # for which `levels.shift` is said; see `diffusion.time`


def config(
  clip: str, model: Mapping[str, Any], text: Mapping[str, Any], space_stride: int, batch_size: int
) -> ConfigDict:
  """The config of a transformer.

  Args:
    clip: as `data.clip.Clip.parse` reads it; "smoke" is a run of seconds on a CPU, on worlds, with
      the shipped autoencoder.
    model, text: the sections of these names. space_stride: pixels of a latent's side.
    batch_size: clips of a step.
  """
  smoke = clip == "smoke"
  shape = Clip.parse("5x32x32@8" if smoke else clip)
  if smoke:
    tiny = dict(width=64, layers=2, heads=2, mlp_width=128, text_width=64, channels=64)
    model, text = dict(model, **tiny), dict(text, width=64, layers=1, heads=2, length=32)
    space_stride, batch_size = 8, 2
  size = tuple(-(-side // space_stride) * space_stride for side in (shape.height, shape.width))
  return ConfigDict(dict(
    recipe="t2v",
    seed=0,
    init_from="",
    vae="toy" if smoke else "",  # a checkpoint folder, of latents with the model's channels
    model=dict(
      # bfloat16 matmuls; what attention made is kept for the backward pass, all else made anew
      dict(patch=(1, 2, 2), dtype="bfloat16", remat="attention", attention="auto", ulysses=0),
      **model,
    ),
    text=dict(text, dtype="bfloat16"),
    mixture=dict(
      weights=dict(none=0.80, first=0.15, prefix=0.05),
      images=0.0,
      text_dropout=0.1,
    ),
    levels=dict(
      mean=0.0, std=1.0, shift=1.0, reference_tokens=SAMPLE_TOKENS, uniform=0.1, highest=1.0
    ),
    packing=dict(
      length=divisible(shape.tokens((4, space_stride), (1, 2, 2))),
      cond_rows=2,  # what is made, and what is given
      text_length=text["length"],
    ),
    data=dict(
      cache="data/latents",
      batching="pad",  # one clip in each sequence
      samples=batch_size,
      shapes=dict(
        clip=dict(
          share=1.0, clips=16 if smoke else 100_000, frames=shape.frames, size=size,
          fps=shape.fps, loop=False,
        ),
      ),
      sources=_sources(smoke, "train"),
      validation=dict(clips=16 if smoke else 256, sources=_sources(smoke, "validation")),
    ),
    optim=dict(
      name="adamw", lr=1e-4, warmup=1000, schedule="constant", b2=0.95, decay=0.01, clip=1.0,
      ema_decay=0.9999,
    ),
    train=dict(
      steps=4 if smoke else 100_000, batch_size=batch_size, accumulate=1, log_every=20,
      checkpoint_every=1000, preview_every=0, validate_every=0, validate_batches=8, keep=2,
      mesh=None, max_bad_steps=5,
    ),
    preview=("a red ball rolls from left to right",),
  ))  # fmt: skip


def _sources(smoke: bool, split: str) -> dict[str, dict[str, object]]:
  """A folder `data/train` or `data/validation`; for smoke tests worlds."""
  return dict(
    folder=dict(weight=float(not smoke), path=f"data/{split}"),
    worlds=dict(weight=float(smoke), count=16, seed=1, split=split),
    manifest=dict(weight=0.0, path=""),
    records=dict(weight=0.0, path=""),
    tfds=dict(weight=0.0, source=""),
  )


def divisible(tokens: int) -> int:
  """A length for so many tokens that many devices can divide: up to 2 % more, much halved."""
  unit = 2 ** max(0, int(math.log2(tokens / 50)))
  return -(-tokens // unit) * unit
