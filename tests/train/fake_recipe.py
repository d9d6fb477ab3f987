"""A recipe small enough for tests: a Linen MLP regresses noisy targets read by a Grain pipeline."""

from __future__ import annotations

import sys
import types
from typing import Any

import flax.linen as nn
import grain
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from sora_jax.data.shards import shard, split


class Network(nn.Module):
  width: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x = nn.Dense(self.width, name="patch_in")(x)
    x = x + nn.Dense(self.width, name="mid")(nn.gelu(x))
    return nn.Dense(4, name="patch_out")(x)


class Recipe:
  """`poison`: indices of samples whose target is infinite."""

  trainable = r"^(?!frozen)"

  def __init__(self, config: ConfigDict) -> None:
    self.config = config
    self.network = Network(config.model.width)

  def init(self, key: jax.Array) -> dict[str, Any]:
    params = self.network.init(key, jnp.zeros((1, 8)))["params"]
    return {**params, "frozen": jnp.arange(5, dtype=jnp.int8)}

  def loss(self, params: Any, batch: Any, key: jax.Array, step: jax.Array) -> Any:
    x = batch["x"]
    noise = self.config.model.noise * jax.random.normal(key, x.shape)
    params = {k: v for k, v in params.items() if k != "frozen"}
    error = self.network.apply({"params": params}, x + noise) - batch["y"]
    return jnp.mean(error**2), {"mae": jnp.mean(jnp.abs(error))}

  def batch(self) -> Any:
    rows = self.config.train.batch_size
    shape = lambda n: jax.ShapeDtypeStruct((rows, n), np.float32)  # noqa: E731
    return {"x": shape(8), "y": shape(4)}

  def dataset(self, shard_index: int, shard_count: int) -> Any:
    return self._stream(7, shard_index, shard_count)

  def validation(self, shard_index: int, shard_count: int) -> Any:
    return self._stream(8, shard_index, shard_count)

  def _stream(self, seed: int, shard_index: int, shard_count: int) -> Any:
    data = self.config.data
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(data.count, 8)).astype(np.float32)
    y = np.sin(x[:, :4] + x[:, 4:])
    y[list(data.poison)] = np.inf
    batch = split("train.batch_size", self.config.train.batch_size, shard_count)
    stream = (
      grain.MapDataset.range(data.count)
      .seed(self.config.seed)
      .shuffle()
      .repeat()
      .map(lambda i: {"x": x[i], "y": y[i], "id": f"sample{i}"})
    )
    return iter(shard(stream, batch, shard_index, shard_count).batch(batch).to_iter_dataset())


def use(build: Any) -> None:
  """Makes `build(config)` the recipe named "fake"."""
  module = types.ModuleType("sora_jax.train.fake")
  module.build = build  # type: ignore[attr-defined]
  sys.modules["sora_jax.train.fake"] = module


def get_config(**train: Any) -> ConfigDict:
  """A config of the fake recipe, which it makes known to the loop."""
  use(Recipe)
  config = ConfigDict({
    "recipe": "fake",
    "seed": 3,
    "init_from": None,
    "model": {"width": 32, "noise": 0.1},
    "data": {"count": 64, "poison": ()},
    "optim": {"name": "adamw", "lr": 1e-2, "warmup": 2, "ema_decay": 0.9},
    "train": {
      "steps": 12, "batch_size": 8, "accumulate": 1, "log_every": 1, "checkpoint_every": 4,
      "preview_every": 0, "validate_every": 0, "validate_batches": 2,
      "keep": 2, "mesh": None, "max_bad_steps": 3,
    },
  })  # fmt: skip
  config.train.update(train)
  return config
