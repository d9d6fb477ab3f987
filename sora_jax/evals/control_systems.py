"""Systems that know nothing, or everything: what a trained one stands between.

All answer the questions of `evals.systems`. `Truth` and `Shuffled` are told the answer, `Nearest`
has seen other clips, `Frozen` and `Linear` have only the frames they are given.
"""

from __future__ import annotations

import abc
import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import ndimage

from sora_jax.evals.features import Clips
from sora_jax.evals.motion import STANDS_OUT, centre
from sora_jax.evals.systems import Made
from sora_jax.typing import Bool, Clip, Float, Frame, UInt8

STILL = 12.0  # grey levels: the most by which a pixel differs that does not change
RECENT = 5  # frames that tell which way a thing moves


class Foresight(abc.ABC):
  """Surprise of what continues clips: how far the next frame is from the one it expects."""

  @abc.abstractmethod
  def continued(
    self, known: Clips, prompts: Sequence[str], *, seed: int, frames: int, progress: bool = False
  ) -> Made:
    """See `systems.Continuer`."""

  def surprise(self, clips: Clips) -> Float[np.ndarray, "b s"]:
    """Mean absolute difference in grey levels, of each frame but the first."""
    moments = []
    for t in range(1, clips.shape[1]):
      expected = self.continued(clips[:, :t], [""] * len(clips), seed=0, frames=t + 1)[:, t]
      moments.append(np.abs(expected.astype(np.float32) - clips[:, t]).mean(axis=(1, 2, 3)))
    return np.stack(moments, axis=1)


class Frozen(Foresight):
  """The last frame, held."""

  def continued(
    self, known: Clips, prompts: Sequence[str], *, seed: int, frames: int, progress: bool = False
  ) -> Made:
    """See `systems.Continuer`."""
    del prompts, seed, progress
    return known[:, np.minimum(np.arange(frames), known.shape[1] - 1)]


class Linear(Foresight):
  """What moved before a camera that stands still moves on, in a straight line at its mean speed.

  Where more than half of the picture changes, as under a moving camera, the last frame is held.
  """

  def continued(
    self, known: Clips, prompts: Sequence[str], *, seed: int, frames: int, progress: bool = False
  ) -> Made:
    """See `systems.Continuer`."""
    del prompts, seed, progress
    return np.stack([np.concatenate([clip, _onward(clip, frames - len(clip))]) for clip in known])


def _onward(known: Clip, count: int) -> UInt8[np.ndarray, "{count} h w 3"]:
  """`count` more frames."""
  known = known[-RECENT:]
  held = known[[-1] * count]
  x = known.astype(np.float32)
  changing = np.ptp(x, axis=0).max(axis=-1) > STILL
  changing = ndimage.binary_fill_holes(changing)  # the middle of a slow thing does not change
  if not 0 < changing.mean() <= 0.5:
    return held
  behind = revealed(known, changing)
  things = np.linalg.norm(x - behind, axis=-1) > STANDS_OUT
  times = np.flatnonzero(things.any(axis=(1, 2)))
  if len(times) < 2 or times[-1] != len(known) - 1:
    return held
  places = np.stack([centre(things[t]) for t in times])
  velocity = np.polyfit(times, places, 1)[0]
  frames = []
  for step in range(1, count + 1):
    rows, columns = np.nonzero(things[-1])
    at = np.stack([rows, columns], -1) + np.rint(step * velocity).astype(int)
    inside = ((at >= 0) & (at < x.shape[1:3])).all(axis=-1)
    frame = behind.copy()
    frame[tuple(at[inside].T)] = x[-1, rows[inside], columns[inside]]
    frames.append(frame)
  return np.rint(np.stack(frames)).astype(np.uint8)


def revealed(known: Clip, changing: Bool[np.ndarray, "h w"]) -> Float[np.ndarray, "h w 3"]:
  """What is behind the things that move in a few frames.

  Of a pixel that changes it is the value most like the nearest pixel that does not; like that one
  itself, if none is near it: the pixel was covered all the time.
  """
  x = known.astype(np.float32)
  still = np.median(x, axis=0)
  nearest = ndimage.distance_transform_edt(changing, return_distances=False, return_indices=True)
  guess = still[tuple(nearest)]
  gaps = np.linalg.norm(x - guess, axis=-1)
  best = np.take_along_axis(x, gaps.argmin(axis=0)[None, ..., None], axis=0)[0]
  uncovered = np.where((gaps.min(axis=0) <= STANDS_OUT)[..., None], best, guess)
  return np.where(changing[..., None], uncovered, still)


@dataclass(eq=False)
class Truth(Foresight):
  """Goes on as the simulator did, in clips that it is told of; they are known by their first frame.

  Attributes:
    clips: told of.
  """

  clips: Iterable[Clip]
  _of: dict[str, Clip] = field(init=False, repr=False)

  def __post_init__(self) -> None:
    self._of = {_name(clip[0]): clip for clip in self.clips}

  def continued(
    self, known: Clips, prompts: Sequence[str], *, seed: int, frames: int, progress: bool = False
  ) -> Made:
    """See `systems.Continuer`. Raises KeyError: a clip that it was not told of."""
    del prompts, seed, progress
    return np.stack([self._of[_name(clip[0])][:frames] for clip in known])


def _name(frame: Frame) -> str:
  return hashlib.sha256(frame.tobytes()).hexdigest()


class Shuffled(Truth):
  """The true frames, the ones that come after the known ones in random order."""

  def continued(
    self, known: Clips, prompts: Sequence[str], *, seed: int, frames: int, progress: bool = False
  ) -> Made:
    """See `systems.Continuer`. Raises KeyError: a clip that it was not told of."""
    made = super().continued(known, prompts, seed=seed, frames=frames).copy()
    t = known.shape[1]
    for number, clip in enumerate(made):
      clip[t:] = clip[t + np.random.default_rng([seed, number]).permutation(frames - t)]
    return made


@dataclass(eq=False)
class Nearest:
  """Goes on as the training clip whose first frames are nearest, by squared differences.

  Attributes:
    clips: gives the training clips; they are read once for each continuation, and not kept.
  """

  clips: Callable[[], Iterable[Clip]]

  def continued(
    self, known: Clips, prompts: Sequence[str], *, seed: int, frames: int, progress: bool = False
  ) -> Made:
    """See `systems.Continuer`."""
    del prompts, seed, progress
    t = known.shape[1]
    made = np.zeros((len(known), frames, *known.shape[2:]), np.uint8)
    least = np.full(len(known), np.inf)
    x = known.astype(np.float32)
    for clip in self.clips():
      gap = ((x - clip[:t]) ** 2).mean(axis=(1, 2, 3, 4))
      made[gap < least] = clip[:frames]
      least = np.minimum(gap, least)
    made[:, :t] = known
    return made
