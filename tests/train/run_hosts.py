"""One of several processes that train the fake recipe: `run_hosts.py JSON`.

The JSON has `workdirs`, `start` (arguments of `hosts.start`), the number of `devices` of this
process and `runs`, one after the other: {"name", "train" (changes of that section), "signal" (the
batch before which this process gets a SIGTERM), "kill" (or a SIGKILL)}. It prints what came of it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import fake_recipe
import grain
import jax
import numpy as np

from sora_jax.errors import UserError
from sora_jax.parallel import hosts
from sora_jax.train import loop


class Stream(grain.DatasetIterator):
  """Notes the ids of all batches; gets a signal before one of them."""

  def __init__(self, inner: Any, run: dict[str, Any]) -> None:
    super().__init__(inner)
    self.inner, self.run, self.ids = inner, run, []

  def get_state(self) -> Any:
    return self.inner.get_state()

  def set_state(self, state: Any) -> None:
    self.inner.set_state(state)

  def _get_next_index(self) -> int:  # what `grain.experimental.get_next_index` calls
    return grain.experimental.get_next_index(self.inner)

  def _set_next_index(self, index: int) -> None:
    grain.experimental.set_next_index(self.inner, index)

  def __next__(self) -> dict[str, Any]:
    for name in ("signal", "kill"):
      if self.run.get(name) == len(self.ids):
        os.kill(os.getpid(), signal.SIGTERM if name == "signal" else signal.SIGKILL)
    batch = next(self.inner)
    self.ids.append(list(batch["id"]))
    return batch


class Recipe(fake_recipe.Recipe):
  """Previews and exports what it is given."""

  run: dict[str, Any] = {}
  streams: list[Stream] = []

  def dataset(self, shard_index: int, shard_count: int) -> Any:
    self.streams.append(Stream(super().dataset(shard_index, shard_count), self.run))
    self.run["shard"] = [shard_index, shard_count]
    return self.streams[-1]

  def preview(self, params: Any, key: jax.Array) -> dict[str, np.ndarray]:
    self.run["preview"] = float(jax.jit(lambda p: p["mid"]["kernel"].sum())(params))
    return {"sample": np.zeros((5, 16, 16, 3), np.uint8)}

  def export(self, params: Any, workdir: Path) -> None:
    np.savez(workdir / "export.npz", kernel=params["mid"]["kernel"])


def train(workdirs: Path, run: dict[str, Any]) -> dict[str, Any]:
  Recipe.run, Recipe.streams = run, []
  config = fake_recipe.get_config(**run.get("train", {}))
  fake_recipe.use(Recipe)
  try:
    run |= loop.fit(config, workdirs / run["name"])
  except UserError as e:
    run["error"] = str(e)
  return run | {"ids": Recipe.streams[0].ids if Recipe.streams else []}


if __name__ == "__main__":
  task = json.loads(sys.argv[1])
  jax.config.update("jax_num_cpu_devices", task["devices"])
  hosts.start(*task["start"])
  for run in task["runs"]:
    print(json.dumps(train(Path(task["workdirs"]), run)), flush=True)
