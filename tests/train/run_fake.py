"""Trains the fake recipe in a process of its own: `run_fake.py WORKDIR [--kill-while-saving N]`."""

from __future__ import annotations

import os
import signal
import sys

import fake_recipe
import jax

from sora_jax.train import checkpoint, loop

jax.config.update("jax_num_cpu_devices", 8)


def kill_while_saving(step: int) -> None:
  """SIGKILL once the arrays of `step` are being written, before the checkpoint is complete."""
  save = checkpoint.Checkpoints.save
  write = checkpoint._JsonPosition.save

  async def save_then_die(self, directory):
    inner = await write(self, directory)

    async def die():
      await inner
      os.kill(os.getpid(), signal.SIGKILL)

    return die()

  def armed(self, at, state, data):
    if at == step:
      checkpoint._JsonPosition.save = save_then_die
    save(self, at, state, data)

  checkpoint.Checkpoints.save = armed


if __name__ == "__main__":
  if "--kill-while-saving" in sys.argv:
    kill_while_saving(int(sys.argv[sys.argv.index("--kill-while-saving") + 1]))
  loop.fit(fake_recipe.get_config(), sys.argv[1])
