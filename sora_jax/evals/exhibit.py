"""What the quality suite judges, and the real clips it is held against.

Samples of a model of prompts or of classes, or the files of a folder: always a source of clips of
one shape. Real clips are worlds of the same shape that no one trains on, or another folder.
"""

from __future__ import annotations

import itertools
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from sora_jax.data import encode, images, video
from sora_jax.data.pipeline import Source
from sora_jax.errors import UserError
from sora_jax.evals import i3d, realism, reference
from sora_jax.evals.memorisation import MOTION
from sora_jax.evals.reference import BATCH, FRAMES, SEED, SIZE, Clips
from sora_jax.typing import UInt8
from sora_jax.worlds import VOCABULARY, WorldSource
from sora_jax.worlds.reading import read

LEAST = realism.LEAST
LEAST_SIDE = MOTION[1]  # pixels: the cells of the finest grid that clips are averaged over
ENCODED = {"sources", "clips", "frames", "size", "fps"}  # what `data.codes.cache` is told of clips
FPS_ALIKE = 0.01  # relative: 23.976 is 24
LOOKED_AT = 400  # worlds for each that is to show one thing of a certain colour and shape
SEARCHED = 40  # so many times as many training clips as samples are searched, at most


@runtime_checkable
class VideoSampler(Protocol):
  """A model of prompts. It may also `reconstruct` clips, and have a `config` of its training."""

  def sample(
    self, prompts: Sequence[str], *, seed: int, frames: int, size: tuple[int, int], progress: bool
  ) -> Clips:
    """A video per prompt."""


@runtime_checkable
class ClassSampler(Protocol):
  """A model of classes."""

  classes: tuple[str, ...]

  def sample(
    self, classes: Sequence[str | int], *, seed: int, progress: bool
  ) -> UInt8[np.ndarray, "b h w 3"]:
    """An image per class."""


class Stack:
  """Clips in memory as a source."""

  def __init__(self, clips: Clips, name: str = "sample"):
    self.clips, self.name = clips, name

  def __len__(self) -> int:
    return len(self.clips)

  def __getitem__(self, index: int) -> dict[str, Any]:
    return {"video": self.clips[index], "id": f"{self.name} {index}"}


class Files:
  """The first frames of the videos of a folder, or its images, as a source; read when asked for.

  Attributes: `frames` (1 for images), `height`, `width`, `fps`, `paths`.
  """

  def __init__(self, folder: str | os.PathLike[str]):
    """Looks at every file.

    Raises:
      UserError: no such folder, fewer than `LEAST` files, or one that is damaged, too short, too
        small, or of another size or frame rate than the first.
    """
    self.folder = Path(folder)
    if not self.folder.is_dir():
      raise UserError(f"{self.folder} is not a folder of videos.")
    found = sorted(p for p in self.folder.rglob("*") if p.is_file() and p.name[0] != ".")
    self.paths = [p for p in found if p.suffix.lower() in video.VIDEO_SUFFIXES]
    self.paths = self.paths or [p for p in found if p.suffix.lower() in images.SUFFIXES]
    if len(self.paths) < LEAST:
      raise UserError(
        f"The folder {self.folder} holds {len(self.paths)} videos, but at least {LEAST} are needed."
      )
    infos = [video.probe(path) for path in self.paths]
    first = infos[0]
    self.height, self.width, self.fps = first.height, first.width, first.fps
    self.frames = min(FRAMES, min(info.frames for info in infos))
    still = all(info.frames == 1 for info in infos)
    if min(self.height, self.width) < LEAST_SIDE:
      raise UserError(
        f"{self.paths[0]} is {self.height}x{self.width}, but at least {LEAST_SIDE} pixels a side "
        "are needed."
      )
    for path, info in zip(self.paths, infos, strict=True):
      if (info.height, info.width) != (self.height, self.width):
        raise UserError(
          f"{path} is {info.height}x{info.width} and {self.paths[0].name} is "
          f"{self.height}x{self.width}: bring all clips to one size."
        )
      if not still and not np.isclose(info.fps, self.fps, rtol=FPS_ALIKE):
        raise UserError(
          f"{path} has {info.fps:.4g} frames a second and {self.paths[0].name} {self.fps:.4g}: "
          "bring all clips to one rate."
        )
      if info.frames < i3d.FRAMES and not still:
        raise UserError(
          f"{path} has {info.frames} frames, but at least {i3d.FRAMES} are needed: leave it out."
        )

  def __len__(self) -> int:
    return len(self.paths)

  def __repr__(self) -> str:
    files = [(str(path), path.stat().st_mtime_ns) for path in self.paths]
    return f"Files({self.folder.absolute()}, {self.frames}, {files})"

  def __getitem__(self, index: int) -> dict[str, Any]:
    path = self.paths[index]
    clip, _ = video.read(path, frames=self.frames)
    if len(clip) < self.frames:
      raise UserError(f"{path} ends after {len(clip)} frames: it is cut off; leave it out.")
    return {"video": clip, "id": path.relative_to(self.folder).as_posix()}

  def captions(self) -> list[str] | None:
    """The .txt files beside the videos; None if one of them has none."""
    texts = [path.with_suffix(".txt") for path in self.paths]
    if not all(text.is_file() for text in texts):
      return None
    return [" ".join(text.read_text(encoding="utf-8", errors="replace").split()) for text in texts]

  def part(self, paths: Sequence[Path]) -> Files:
    """The same folder with some of its files only."""
    other = object.__new__(Files)
    vars(other).update(vars(self), paths=list(paths))
    return other


@dataclass(frozen=True)
class Exhibit:
  """Clips under judgement.

  Attributes:
    clips: a source of uint8 clips of one shape.
    frames, height, width, fps: that shape.
    asked, prompts: what the oracle should read off each clip (`colour`, `shape` and, of videos,
      `motion`), and the caption that says so; None if captions say nothing the oracle could read.
  """

  clips: Source
  frames: int
  height: int
  width: int
  fps: float = 8.0
  asked: list[Mapping[str, Any]] | None = None
  prompts: list[str] = field(default_factory=list)


def of_videos(model: VideoSampler, count: int, seed: int) -> Exhibit:
  """Samples of a model of prompts: those of the text suite's seen combinations."""
  source = WorldSource(count, SEED + seed, "validation")
  prompts = [source.caption(i) for i in range(count)]
  print(f"sampling {count} prompts", file=sys.stderr)
  clips = model.sample(prompts, seed=seed, frames=FRAMES, size=(SIZE, SIZE), progress=True)
  frames, height, width = clips.shape[1:4]
  asked: list[Mapping[str, Any]] = [source.spec(i).labels for i in range(count)]
  return Exhibit(Stack(clips), frames, height, width, 8.0, asked, prompts)


def of_classes(model: ClassSampler, count: int, seed: int) -> Exhibit:
  """Images of a model of classes, as many of each class as of the others, up to one.

  Of fewer than there are classes, any of them, by the seed.
  """
  order = np.random.default_rng(seed).permutation(len(model.classes))
  chosen = [int(order[i % len(order)]) for i in range(count)]
  print(f"sampling {count} images", file=sys.stderr)
  clips = model.sample(chosen, seed=seed, progress=True)[:, None]
  prompts = [model.classes[i] for i in chosen]
  pattern = re.compile(rf"({'|'.join(VOCABULARY.colours)}) ({'|'.join(VOCABULARY.shapes)})")
  matches = [pattern.fullmatch(name) for name in prompts]
  asked: list[Mapping[str, Any]] = [{"colour": m[1], "shape": m[2]} for m in matches if m]
  complete = asked if len(asked) == count else None
  frames, height, width = clips.shape[1:4]
  return Exhibit(Stack(clips, "image"), frames, height, width, 8.0, complete, prompts)


def of_folder(folder: str | os.PathLike[str], count: int | None = None) -> Exhibit:
  """The videos of a folder, with captions if each has a .txt file beside it.

  Args:
    count: how many, in the order of their names; None is all.

  Raises:
    UserError: as `Files` does, or there are fewer than `count`.
  """
  files = Files(folder)
  if count is not None and count > len(files):
    raise UserError(f"The folder {folder} holds {len(files)} videos, fewer than --count {count}.")
  files = files.part(files.paths[:count])
  captions = files.captions()
  asked = [read(text) for text in captions or ()]
  hidden = {"motion"} if files.frames == 1 else set()  # a still does not show it
  stated: list[Mapping[str, Any]] = [
    {key: x for key, x in labels.items() if key not in hidden} for labels in asked if labels
  ]
  complete = stated if stated and len(stated) == len(files) else None
  return Exhibit(
    files, files.frames, files.height, files.width, files.fps, complete, captions or []
  )


@dataclass(frozen=True)
class Real:
  """Real clips of an exhibit's shape.

  Attributes:
    reference: what distances are measured to.
    heldout: as many as samples, none of them in `reference`: what a perfect model would make.
    training: batches of the clips that the model may have memorised, and how many; None if no
      one knows them.
  """

  reference: Source
  heldout: Source
  training: tuple[Iterator[Clips], int] | None = None


class _SingleObjects:
  """The worlds of a source that show one object: what models of classes are trained on.

  Args:
    asked: colour and shape of each in turn, over and over; None takes them as they come.

  Raises:
    UserError: there are not so many in the source.
  """

  def __init__(
    self, source: WorldSource, count: int, asked: Sequence[Mapping[str, Any]] | None = None
  ):
    missing = Counter(_class(asked[i % len(asked)]) if asked else None for i in range(count))
    self.source, self.indices = source, list[int]()
    for index in range(len(source)):
      if len(self.indices) == count:
        break
      labels = source.spec(index).labels
      kind = _class(labels) if asked else None
      if labels["count"] == 1 and missing[kind]:
        missing[kind] -= 1
        self.indices.append(index)
    if len(self.indices) < count:
      raise UserError(f"Of {len(source)} worlds too few show one thing as asked: ask for fewer.")

  def __len__(self) -> int:
    return len(self.indices)

  def __repr__(self) -> str:
    return f"_SingleObjects({self.source!r}, {self.indices})"

  def __getitem__(self, index: int) -> dict[str, Any]:
    return self.source[self.indices[index]]


def _class(labels: Mapping[str, Any]) -> tuple[str, str]:
  return labels["colour"], labels["shape"]


def real_worlds(exhibit: Exhibit, seed: int, config: Mapping[str, Any] | None = None) -> Real:
  """Worlds of the validation split in the exhibit's shape, and of the train split.

  Args:
    config: of the checkpoint, if it has one: names its training clips (see `training`). If they
      cannot be had, a line on stderr says so, and they are left out.

  Raises:
    UserError: a shape that cannot be rendered.
  """
  count = len(exhibit.clips)
  shape = exhibit.frames, exhibit.height, exhibit.width, exhibit.fps
  searched = None
  try:
    searched = training(config or {}, *shape[:3], SEARCHED * count)
    if searched is None:
      print("note: no search for copies: no one says what was trained on", file=sys.stderr)
  except UserError as error:  # the data of training need not be here
    print(f"warning: no search for copies of training clips: {error}", file=sys.stderr)
  if exhibit.frames > 1:
    return Real(*reference.worlds(count, seed, *shape), searched)
  many = reference.worlds(LOOKED_AT * count, seed, *shape)
  totals = reference.TIMES * count, count
  singles = [_SingleObjects(s, n, exhibit.asked) for s, n in zip(many, totals, strict=True)]
  return Real(singles[0], singles[1], searched)


def real_files(exhibit: Exhibit, folder: str | os.PathLike[str]) -> Real:
  """The videos of a folder, alternately reference and held out; training clips are unknown.

  Raises:
    UserError: as `Files` does; or they have another shape than the exhibit, or are fewer than twice
      as many; or some of them are those to judge.
  """
  files, count = Files(folder), len(exhibit.clips)
  there, here = ((x.frames, x.height, x.width) for x in (files, exhibit))
  if there != here:
    raise UserError(
      f"The clips of {folder} have {there[0]} frames of {there[1]}x{there[2]}, those to judge "
      f"{here[0]} of {here[1]}x{here[2]}: bring all to one shape."
    )
  if exhibit.frames > 1 and not np.isclose(files.fps, exhibit.fps, rtol=FPS_ALIKE):
    raise UserError(
      f"The clips of {folder} have {files.fps:.4g} frames a second, those to judge "
      f"{exhibit.fps:.4g}: bring all to one rate."
    )
  if len(files) < 2 * count:
    raise UserError(
      f"The folder {folder} holds {len(files)} clips, but {2 * count} are needed, twice as many as "
      f"are judged: give --count {len(files) // 2} or fewer."
    )
  judged = {path.resolve() for path in getattr(exhibit.clips, "paths", ())}
  if both := judged & {path.resolve() for path in files.paths}:
    raise UserError(f"{min(both)} is to be judged and to be compared with: give another --real.")
  heldout = files.paths[1::2][:count]
  rest = sorted(set(files.paths) - set(heldout))
  return Real(files.part(rest), files.part(heldout))


def training(
  config: Mapping[str, Any], frames: int, height: int, width: int, limit: int
) -> tuple[Iterator[Clips], int] | None:
  """Clips that a checkpoint was trained on, and how many: at most `limit`.

  Those that its config says were encoded, in that order: of the shape in `training.data.shapes`
  that has these frames and this size, or, where `training.data` itself is a shape, of that. None if
  there is no such shape (the config of a recipe that encodes nothing, or none at all).

  Raises:
    UserError: the sources that the config names are not there.
  """
  data = config.get("training", {}).get("data", {})
  own = [{key: data[key] for key in ENCODED}] if ENCODED <= data.keys() else []
  for shape in (*data.get("shapes", {}).values(), *own):
    if (shape["frames"], *shape["size"]) != (frames, height, width) or shape.get("loop"):
      continue
    settings = {key: x for key, x in shape.items() if key != "share"}
    settings |= dict(size=(height, width), seed=config["training"]["seed"])
    settings["sources"] = shape.get("sources", data["sources"])
    total = min(limit, shape["clips"])
    windows = encode.windows(settings, BATCH)
    pieces = (batch["video"] for batch in itertools.islice(windows, -(-total // BATCH)))
    return (clips[: total - i * BATCH] for i, clips in enumerate(pieces)), total
  return None
