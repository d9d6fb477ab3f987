"""Memorisation: is a sample nearer to a clip of training than a clip that no one trained on is?

Every sample and every held-out real clip looks for its nearest training clip, by content and by
motion. A model that repeats its training clips finds them at a distance near 0; one that has
learned the distribution finds them as far away as held-out clips do. Nearest neighbours in this
use: Carlini et al. 2023, "Extracting Training Data from Diffusion Models", arXiv:2301.13188 (there
for images, in pixels); the comparison with held-out data: Meehan et al. 2020, "A Non-Parametric
Test to Detect Data-Copying in Generative Models", arXiv:2004.05675.

The protocol is frozen:
  content: five frames spread evenly over the clip, averaged over a grid of 8 x 8 cells; the
    root-mean-square difference, in grey levels.
  motion: luma of nine frames spread evenly, averaged over 16 x 16 cells, differences of neighbours;
    the root-mean-square difference over the root mean square of the clip's own. Clips in which
    hardly anything moves (`STILL`) have none: any two still clips move alike.

Mirrored, cut or delayed copies are not found. Training clips are streamed; what is kept is a row
of numbers per sample and per held-out clip.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from sora_jax.evals.report import proportion
from sora_jax.typing import Float, Int, UInt8

Clips = UInt8[np.ndarray, "b t h w 3"]
CONTENT, MOTION = (5, 8), (9, 16)  # frames, cells a side
STILL = 0.5  # grey levels: the least root mean square of a motion
QUANTILE = 0.01  # of held-out clips that are as near as what counts as a copy


def _cells(clips: Clips, frames: int, side: int) -> Float[np.ndarray, "b frames side side 3"]:
  """Frames spread evenly over the clips, averaged over cells whose sizes differ by a pixel."""
  chosen = np.round(np.linspace(0, clips.shape[1] - 1, frames)).astype(int)
  x = clips[:, chosen].astype(np.float32)
  for axis in (2, 3):
    edges = np.arange(side + 1) * x.shape[axis] // side
    x = np.add.reduceat(x, edges[:-1], axis)
    x /= np.diff(edges).reshape([-1 if i == axis else 1 for i in range(5)])
  return x


def content(clips: Clips) -> Float[np.ndarray, "b d"]:
  """What is seen where: a row per clip of at least 8 x 8 pixels, in grey levels."""
  return _cells(clips, *CONTENT).reshape(len(clips), -1)


def motion(clips: Clips) -> Float[np.ndarray, "b d"]:
  """What changes where and when: a row per clip of at least 16 x 16 pixels, in grey levels."""
  grey = _cells(clips, *MOTION) @ np.array([0.299, 0.587, 0.114], np.float32)
  return np.diff(grey, axis=1).reshape(len(clips), -1)


def size(motion: Float[np.ndarray, "b d"]) -> Float[np.ndarray, " b"]:
  """Root mean square of each motion, in grey levels."""
  return np.sqrt(np.mean(np.square(motion, dtype=np.float64), axis=1))


class Search:
  """Nearest training clips of some rows of `content` or `motion`.

  Attributes:
    distance: root-mean-square difference from the nearest row so far.
    index: its number, in the order in which they came.
  """

  def __init__(self, queries: Float[np.ndarray, "q d"]):
    self._queries = queries.astype(np.float64)
    self._squares = np.sum(np.square(self._queries), axis=1)
    self._count = 0
    self.distance: Float[np.ndarray, " q"] = np.full(len(queries), np.inf)
    self.index: Int[np.ndarray, " q"] = np.full(len(queries), -1)

  def update(self, rows: Float[np.ndarray, "n d"]) -> None:
    """Looks at more training clips; any way of cutting them into batches gives the same result."""
    x = rows.astype(np.float64)
    square = self._squares[:, None] + np.sum(np.square(x), axis=1) - 2 * self._queries @ x.T
    nearest = np.argmin(square, axis=1)
    # The product loses what is far smaller than its terms: the nearest one is measured again.
    found = np.sqrt(np.mean(np.square(self._queries - x[nearest]), axis=1))
    better = found < self.distance
    self.distance = np.where(better, found, self.distance)
    self.index = np.where(better, self._count + nearest, self.index)
    self._count += len(x)


class Memorisation:
  """Nearest training clips of several sets of clips, such as samples and held-out ones.

  Args:
    sets: rows of `content` and of `motion` of each set, by its name.
  """

  def __init__(self, **sets: tuple[Float[np.ndarray, "_n _c"], Float[np.ndarray, "_n _m"]]):
    self._counts = {name: len(rows[0]) for name, rows in sets.items()}
    self._content = Search(np.concatenate([rows[0] for rows in sets.values()]))
    motions = np.concatenate([rows[1] for rows in sets.values()])
    self._sizes = size(motions)
    self._motion = Search(motions)
    self.seen = 0

  def update(self, clips: Clips) -> None:
    """Looks at more training clips."""
    self._content.update(content(clips))
    self._motion.update(motion(clips))
    self.seen += len(clips)

  def look(self, training: Iterable[UInt8[np.ndarray, "_ t h w 3"]]) -> Memorisation:
    """Looks at all batches of training clips."""
    for clips in training:
      self.update(clips)
    return self

  def nearest(self, name: str) -> dict[str, np.ndarray]:
    """Distances and indices of the nearest training clips of a set; motion is NaN if it is still.

    Keys: content, content index, motion, motion index.
    """
    names = list(self._counts)
    start = sum(self._counts[other] for other in names[: names.index(name)])
    own = slice(start, start + self._counts[name])
    sizes = self._sizes[own]
    moving = np.where(sizes > STILL, sizes, np.nan)
    return {
      "content": self._content.distance[own],
      "content index": self._content.index[own],
      "motion": self._motion.distance[own] / moving,
      "motion index": self._motion.index[own],
    }

  def summary(self, name: str = "samples", heldout: str = "heldout") -> dict[str, Any]:
    """Medians, their ratio (1: as far as held-out clips), and the share nearer than 99 % of those.

    Of clips that copy nothing a share of `QUANTILE` is expected, up to the spread of the quantile.
    `still` is the share of clips that have no motion.
    """
    sets = {key: self.nearest(key) for key in (name, heldout)}
    still = np.isnan(sets[name]["motion"])
    out: dict[str, Any] = {"content": {}, "motion": {"still": proportion(still.tolist())}}
    for kind, numbers in out.items():
      near, far = (x[kind][~np.isnan(x[kind])] for x in sets.values())
      if not len(near) or not len(far):
        continue
      threshold = np.quantile(far, QUANTILE)
      medians = float(np.median(near)), float(np.median(far))
      numbers |= {
        f"median {name}": {"median": medians[0], "n": len(near)},
        f"median {heldout}": {"median": medians[1], "n": len(far)},
        "ratio": {"mean": medians[0] / medians[1] if medians[1] else float("nan")},
        "copies": proportion((near < threshold).tolist()),
      }
    return out
