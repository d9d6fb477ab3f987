"""Storyboards: which prompt a video follows at which time."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sora_jax.errors import UNREADABLE, UserError


@dataclass(frozen=True)
class Story:
  """Prompts in the order of their times; a single one is followed from beginning to end.

  Attributes:
    prompts: what is to be seen. An empty prompt says nothing.
    starts: when each begins, in seconds; the first at 0.
  """

  prompts: tuple[str, ...]
  starts: tuple[float, ...] = (0.0,)

  def __post_init__(self) -> None:
    if not self.prompts or len(self.prompts) != len(self.starts):
      raise UserError("A storyboard has one start for each of its prompts, and at least one.")
    if self.starts[0] != 0 or not all(np.diff(self.starts) > 0) or self.starts[-1] == math.inf:
      raise UserError("The starts of a storyboard begin with 0 and rise, in seconds.")

  @classmethod
  def of(cls, told: str | Story) -> Story:
    """A story, or a prompt as one."""
    return told if isinstance(told, Story) else cls((told.strip(),))

  @classmethod
  def read(cls, path: str | os.PathLike[str]) -> Story:
    """Reads a JSON file: [{"start": 0, "prompt": "..."}, {"start": 2.5, "prompt": "..."}].

    Raises:
      UserError: it does not exist, is not of this form, or has an empty prompt.
    """
    try:
      scenes = json.loads(Path(path).read_text(encoding="utf-8"))
      scenes = [(float(scene["start"]), scene["prompt"].strip()) for scene in scenes]
    except OSError as error:
      raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, TypeError, KeyError, AttributeError, *UNREADABLE) as error:
      form = '[{"start": 0, "prompt": "..."}, {"start": 2.5, "prompt": "..."}]'
      raise UserError(f"{path} is no storyboard: write it as {form}.") from error
    if not all(prompt for _, prompt in scenes):
      raise UserError(f"A prompt of {path} is empty: describe what is to be seen.")
    return cls(tuple(prompt for _, prompt in scenes), tuple(start for start, _ in scenes))

  def scenes(self, seconds: Sequence[float] | np.ndarray) -> list[int]:
    """Which of the prompts is followed at each of these times."""
    index = np.searchsorted(np.asarray(self.starts), np.asarray(seconds), side="right") - 1
    return [max(0, int(i)) for i in index]

  def at(self, seconds: Sequence[float] | np.ndarray) -> list[str]:
    """The prompt followed at each of these times."""
    return [self.prompts[scene] for scene in self.scenes(seconds)]
