"""Times training steps of the shipped configs in float32 and bfloat16, with the data wait.

python benchmarks/train_speed.py --out benchmarks/train_speed.md
python benchmarks/train_speed.py --config configs/vae_toy.py:smoke --steps 3 --rounds 2
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable, Sequence

import jax
from timing import Row, interleave, report, table
from tqdm import tqdm

from sora_jax import config as config_lib
from sora_jax.parallel import sharding
from sora_jax.train import loop, optim
from sora_jax.train.state import TrainState
from sora_jax.train.step import train_step

CONFIGS = ("configs/vae_toy.py", "configs/toy.py")


class Run:
  """One config at one dtype: the loop's own step and data, without checkpoints and reports."""

  def __init__(self, name: str, dtype: str, overrides: Sequence[str]) -> None:
    config = config_lib.load(name, overrides)
    with config.unlocked():
      config.model.dtype = dtype
    train = config_lib.build(loop.TrainConfig, config.train)
    self.batch_size = train.batch_size
    self.mesh = loop.choose_mesh(train)
    recipe = loop.build_recipe(config)
    params = recipe.init(jax.random.key(config.seed))
    trainable = getattr(recipe, "trainable", ".*")
    optimizer = optim.build(config.optim, params, train.steps, trainable)
    state = TrainState.create(params, optimizer)
    self.state = jax.device_put(state, sharding.param_shardings(state, self.mesh))
    step = functools.partial(
      train_step, loss=recipe.loss, optimizer=optimizer, seed=0, accumulate=train.accumulate
    )
    self.step = jax.jit(step, donate_argnums=0)
    self.data = recipe.dataset(0, 1)

  def advance(self) -> tuple[jax.Array, float]:
    """Starts a step; returns its loss, still being computed, and the seconds the batch took."""
    start = time.perf_counter()
    batch = next(self.data)
    seconds = time.perf_counter() - start
    with jax.set_mesh(self.mesh):
      arrays = loop.to_devices(loop.numeric(batch), self.mesh)
      self.state, values = self.step(self.state, arrays)
    return values["loss"], seconds

  def measure(self, steps: int) -> Row:
    """Steps per second over `steps` steps, after one that is not counted (it may compile)."""
    pending, _ = self.advance()
    pending.block_until_ready()
    start, waited = time.perf_counter(), 0.0
    for _ in range(steps):
      before = pending
      pending, seconds = self.advance()
      # Fetching overlaps with the step before; it cost something only if that was over first.
      waited += seconds if before.is_ready() else 0.0
      before.block_until_ready()
    pending.block_until_ready()
    elapsed = time.perf_counter() - start
    rate = steps / elapsed
    return {"steps/s": rate, "clips/s": rate * self.batch_size, "data wait": waited / elapsed}


def main() -> None:
  """Measures and prints."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--config", action="append", help=f"default: {' and '.join(CONFIGS)}")
  parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of a config")
  parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
  parser.add_argument("--steps", type=int, default=10, help="per round")
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--out", help="also write the table there")
  args = parser.parse_args()

  variants: dict[str, Callable[[], Row]] = {}
  for name in tqdm(args.config or CONFIGS, desc="building"):
    for dtype in args.dtype:
      run = Run(name, dtype, args.set)
      variants[f"{name} {dtype}"] = functools.partial(run.measure, args.steps)
  measured = interleave(variants, args.rounds)
  formats = {"steps/s": ".2f", "clips/s": ".1f", "data wait": ".0%"}
  report("Training speed", table(measured, formats), args.out, args.rounds)


if __name__ == "__main__":
  main()
