"""`sora-jax data`: clips of several processes come in order, not too early, or an error does."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from sora_jax.cli import data
from sora_jax.errors import UserError


@dataclass(frozen=True)
class Numbers:
  """Stands for a source of worlds: leaves a file for each sample that is asked for.

  Attributes:
    deadly: index of the sample that gets its process killed.
  """

  folder: Path
  count: int
  deadly: int | None = None

  def __len__(self) -> int:
    return self.count

  def __getitem__(self, index: int) -> dict[str, int | str]:
    if index == self.deadly:
      os.kill(os.getpid(), signal.SIGKILL)
    (self.folder / str(index)).touch()
    return {"id": index, "truth": "known"}


@pytest.mark.parametrize("workers", [1, 2])
def test_samples_come_in_order(tmp_path, workers):
  samples = data._samples(Numbers(tmp_path, 21), workers)
  assert [sample["id"] for sample in samples] == list(range(21))


def test_processes_do_not_run_far_ahead(tmp_path):
  samples = data._samples(Numbers(tmp_path, 400), 2)
  assert next(samples)["id"] == 0
  time.sleep(1)
  assert len(list(tmp_path.iterdir())) <= 5 * data._CHUNK
  samples.close()


def test_a_process_that_is_killed_is_an_error(tmp_path):
  samples = data._samples(Numbers(tmp_path, 40, deadly=19), 2)
  with pytest.raises(UserError, match="was killed, .* use fewer --workers"):
    list(samples)
