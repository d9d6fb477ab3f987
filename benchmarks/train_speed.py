"""Times training steps of the shipped configs in float32 and bfloat16, with the data wait.

python benchmarks/train_speed.py --out benchmarks/train_speed.md
python benchmarks/train_speed.py --config configs/vae_toy.py:smoke --steps 3 --rounds 2

Token packing against buckets and padding, on the same mixture of sizes and lengths:

python benchmarks/train_speed.py --config configs/toy.py --dtype float32 \\
  --batching pack bucket pad --steps 40 --out benchmarks/batching.md
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from timing import Row, interleave, medians, report, table
from tqdm import tqdm

from sora_jax import config as config_lib
from sora_jax.train import loop
from sora_jax.train import program as program_lib

CONFIGS = ("configs/vae_toy.py", "configs/toy.py")


class Run:
  """One config at one dtype: the loop's own step and data, without checkpoints and reports."""

  def __init__(self, name: str, dtype: str, batching: str | None, overrides: Sequence[str]) -> None:
    config = config_lib.load(name, overrides)
    with config.unlocked():
      config.model.dtype = dtype
      if batching:
        config.data.batching = batching
    program = program_lib.build(config)
    self.batch_size, self.mesh, self.step = program.train.batch_size, program.mesh, program.step
    recipe = program.recipe
    params = recipe.init(jax.random.key(config.seed))
    self.state = jax.device_put(program.create(params), program.shardings)
    self.data = recipe.dataset(0, 1)
    self.shapes: set[str] = set()

  def fetch(self) -> tuple[Any, int, float]:
    """A batch on the host, the samples in it, and the seconds it took."""
    start = time.perf_counter()
    batch = next(self.data)
    seconds = time.perf_counter() - start
    return loop.numeric(batch), len(batch.get("id", ())) or self.batch_size, seconds

  def warm(self, numbers: Any) -> float:
    """Compiles the step for a batch whose shape is new, running it once; the seconds it took."""
    shapes = str({name: np.shape(x) for name, x in numbers.items()})
    if shapes in self.shapes:
      return 0.0
    self.shapes.add(shapes)
    start = time.perf_counter()
    self.start(numbers).block_until_ready()
    return time.perf_counter() - start

  def start(self, numbers: Any) -> jax.Array:
    """Starts a step; returns its loss, still being computed."""
    with jax.set_mesh(self.mesh):
      self.state, values = self.step(self.state, loop.to_devices(numbers, self.mesh))
    return values["loss"]

  def measure(self, steps: int) -> Row:
    """Steps and samples per second over `steps` steps; compilation is not counted."""
    losses, samples, waited, compiling = [], 0, 0.0, 0.0
    numbers, count, _ = self.fetch()
    self.warm(numbers)
    start = time.perf_counter()
    for _ in range(steps):
      pending = self.start(numbers)
      samples += count
      # Fetching overlaps with the step; it cost something only if that was over first.
      numbers, count, seconds = self.fetch()
      waited += seconds if pending.is_ready() else 0.0
      losses.append(float(pending))
      compiling += self.warm(numbers)
    elapsed = time.perf_counter() - start - compiling
    return {
      "steps/s": steps / elapsed, "samples/s": samples / elapsed, "data wait": waited / elapsed,
      "loss": float(np.mean(losses)), "programs": len(self.shapes),
    }  # fmt: skip


def main() -> None:
  """Measures and prints."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--config", action="append", help=f"default: {' and '.join(CONFIGS)}")
  parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of a config")
  parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
  parser.add_argument("--batching", nargs="+", default=[None], help="pack, bucket, pad")
  parser.add_argument("--steps", type=int, default=10, help="per round")
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--out", help="also write the table there")
  args = parser.parse_args()

  variants: dict[str, Callable[[], Row]] = {}
  for name in tqdm(args.config or CONFIGS, desc="building"):
    for dtype in args.dtype:
      for way in args.batching:
        run = Run(name, dtype, way, args.set)
        label = " ".join(filter(None, (name, dtype, way)))
        variants[label] = functools.partial(run.measure, args.steps)
  measured = interleave(variants, args.rounds)
  formats = {"steps/s": ".2f", "samples/s": ".1f", "data wait": ".0%", "loss": ".3f"}
  formats["programs"] = ".0f"
  report("Training speed", table(measured, formats), args.out, medians(args.rounds))


if __name__ == "__main__":
  main()
