"""Times sampling with a checkpoint: sizes, batch sizes, solvers, float32 and bfloat16.

python benchmarks/sample_speed.py --out benchmarks/sample_speed.md
python benchmarks/sample_speed.py --size 64x64 --batch 4 --sampler dpm++ --rounds 3
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import time
from collections.abc import Callable

import jax.numpy as jnp
from timing import Row, interleave, medians, report, table

import sora_jax as sj
from sora_jax.generate.model import VideoModel

PROMPT = "a red ball rolls to the left"


def in_dtype(model: VideoModel, dtype: str) -> VideoModel:
  """The model with its matmuls and convolutions in `dtype`; weights stay as they are."""
  kind = jnp.dtype(dtype)
  return dataclasses.replace(
    model,
    vae=model.vae.clone(dtype=kind),
    dit=model.dit.clone(dtype=kind),
    text=model.text.clone(dtype=kind),
  )


def measure(model: VideoModel, batch: int, size: tuple[int, int], sampler: str, steps: int) -> Row:
  """Clips per second from prompts to uint8 frames; the first call of a variant also compiles."""
  start = time.perf_counter()
  videos = model.sample([PROMPT] * batch, size=size, sampler=sampler, steps=steps, seed=0)
  seconds = time.perf_counter() - start
  return {
    "seconds": seconds,
    "clips/s": batch / seconds,
    "frames/s": batch * len(videos[0]) / seconds,
  }


def main() -> None:
  """Measures and prints."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--checkpoint", default="toy")
  parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
  parser.add_argument("--size", nargs="+", default=["64x64", "96x96"], metavar="HxW")
  parser.add_argument("--batch", nargs="+", type=int, default=[1, 8])
  parser.add_argument("--sampler", nargs="+", default=["dpm++"])
  parser.add_argument("--steps", type=int, default=30)
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--out", help="also write the table there")
  args = parser.parse_args()

  model = sj.load(args.checkpoint)
  variants: dict[str, Callable[[], Row]] = {}
  for size, batch, sampler, dtype in itertools.product(
    args.size, args.batch, args.sampler, args.dtype
  ):
    height, width = (int(side) for side in size.split("x"))
    run = functools.partial(
      measure, in_dtype(model, dtype), batch, (height, width), sampler, args.steps
    )
    run()  # compiles
    variants[f"{size}, batch {batch}, {sampler} {args.steps} steps, {dtype}"] = run
  measured = interleave(variants, args.rounds)
  formats = {"seconds": ".2f", "clips/s": ".2f", "frames/s": ".1f"}
  report("Sampling speed", table(measured, formats), args.out, medians(args.rounds))


if __name__ == "__main__":
  main()
