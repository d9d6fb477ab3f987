"""What step caching gains and costs: seconds, and the distance from videos made without it.

python benchmarks/step_cache.py --out benchmarks/step_cache.md
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable

import numpy as np
from timing import Row, interleave, medians, report, table

import sora_jax as sj
from sora_jax.generate.calibrate import calibrated
from sora_jax.generate.model import VideoModel

PROMPTS = (
  "a red ball rolls from left to right",
  "a blue cube falls to the floor",
  "a green cone slides behind the wall",
  "a yellow cylinder swings back and forth",
)


def measure(model: VideoModel, cache: float, steps: int, plain: np.ndarray) -> Row:
  """Speed, and the mean over prompts of the PSNR against `plain`; also how many calls are short."""
  start = time.perf_counter()
  videos = model.sample(list(PROMPTS), steps=steps, seed=0, cache=cache)
  seconds = time.perf_counter() - start
  error = np.mean((videos.astype(np.float64) - plain) ** 2, axis=(1, 2, 3, 4))
  request = model.request(steps=steps, cache=cache)
  latent = model.vae.latent_shape(request["frames"], *request["size"])
  calls = model.denoiser(request).table(latent, 1.0)
  return {
    "seconds": seconds,
    "short calls": float(calls[:, -1].mean()),
    "PSNR": float(np.mean(10 * np.log10(255**2 / np.maximum(error, 1e-10)))),
  }


def main() -> None:
  """Measures and prints."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--checkpoint", default="toy")
  parser.add_argument("--cache", nargs="+", type=float, default=[0.0, 0.03, 0.06, 0.12, 0.24])
  parser.add_argument("--steps", type=int, default=30)
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--out", help="also write the table there")
  args = parser.parse_args()

  model = calibrated(sj.load(args.checkpoint), "a ball rolls to the left", seed=1)
  plain = model.sample(list(PROMPTS), steps=args.steps, seed=0, cache=0.0).astype(np.float64)
  variants: dict[str, Callable[[], Row]] = {}
  for cache in args.cache:
    run = functools.partial(measure, model, cache, args.steps, plain)
    run()  # compiles
    variants[f"cache {cache:g}"] = run
  measured = interleave(variants, args.rounds)
  formats = {"seconds": ".2f", "short calls": ".0%", "PSNR": ".1f"}
  report("Step caching", table(measured, formats), args.out, medians(args.rounds))


if __name__ == "__main__":
  main()
