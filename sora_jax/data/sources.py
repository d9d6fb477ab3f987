"""Where clips come from: folders, lists and TFDS data sources. Random access by index.

Every source has `__len__` and `__getitem__(index)`, which gives {"video": uint8 t h w 3,
"caption": str, "fps": float, "id": str}, or raises UserError for a clip that cannot be read: the
pipeline reports that one and goes on. Sources of files also have `clip`, which decodes only a
random window, and `identity`, which with their settings says what their clips are
(`registry.identity`).
"""

from __future__ import annotations

import csv
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sora_jax.data import images, video
from sora_jax.data.photos import PhotoSource
from sora_jax.data.records import RecordSource, write_records
from sora_jax.errors import UNREADABLE, UserError
from sora_jax.typing import REFERENCE_FPS, Clip

__all__ = [
  "FolderSource", "ManifestSource", "PhotoSource", "RecordSource", "TFDSSource", "write_records",
]  # fmt: skip


@dataclass(frozen=True)
class Row:
  """One clip of a file: `start` and `end` in seconds, None for the file's own end."""

  path: Path
  caption: str
  id: str
  start: float = 0.0
  end: float | None = None


class _FileSource:
  """Clips that are stretches of video files or images."""

  def __init__(self, rows: Sequence[Row]):
    self.rows = rows
    self._infos: dict[Path, video.Info] = {}

  def __len__(self) -> int:
    return len(self.rows)

  def _info(self, path: Path) -> video.Info:
    if path not in self._infos:
      self._infos[path] = video.probe(path)
    return self._infos[path]

  def __getitem__(self, index: int) -> dict[str, Any]:
    row = self.rows[index]
    frames = None
    if row.end is not None:
      frames = max(1, round((row.end - row.start) * self._info(row.path).fps))
    pixels, fps = video.read(row.path, frames, row.start)
    return {"video": pixels, "caption": row.caption, "fps": fps, "id": row.id}

  def clip(
    self,
    index: int,
    rng: np.random.Generator,
    frames: int,
    fps: float | None = None,
    size: tuple[int, int] | None = None,
    short: str = "skip",
  ) -> dict[str, Any]:
    """Decodes a random window of `frames` frames at `fps`, resized and cropped to `size`.

    A clip that is too short raises UserError, or with `short="repeat"` repeats its last frame.
    """
    row = self.rows[index]
    info = self._info(row.path)
    rate = fps or info.fps
    end = info.duration if row.end is None else min(row.end, info.duration)
    # The window ends where its last frame begins; that frame stays for 1 / info.fps.
    slack = end - row.start - (frames - 1) / rate - 1 / info.fps
    start = row.start + max(slack, 0.0) * rng.random()
    wanted = frames
    if slack < -0.5 / info.fps and frames > 1:
      wanted = max(1, min(frames, round((end - row.start) * rate)))
    if wanted < frames and short != "repeat":
      raise UserError(
        f"{row.path} is too short: {max(end - row.start, 0):.2f} s, {frames} frames at {rate:g} "
        f"fps need {frames / rate:.2f} s."
      )
    pixels, _ = video.read(row.path, wanted, start, size, rate)
    if len(pixels) < frames:
      if short != "repeat":
        raise UserError(f"{row.path} ends after {len(pixels)} of {frames} frames: it is cut off.")
      pixels = np.concatenate([pixels, np.repeat(pixels[-1:], frames - len(pixels), axis=0)])
    return {"video": pixels, "caption": row.caption, "fps": rate, "id": row.id}

  def identity(self) -> list[Path | str]:
    """The file of each clip, and what the row says of it."""
    return [part for row in self.rows for part in (row.path, repr(row))]

  def __repr__(self) -> str:
    return f"{type(self).__name__}({len(self)} clips)"


class FolderSource(_FileSource):
  """All videos and images under a folder; `walk.mp4` has its caption in `walk.txt` beside it.

  Args:
    path: the folder, searched recursively; hidden files and folders are left out.
    captions: whether captions are needed. Without, every caption is empty: an autoencoder does
      not read them.

  Raises:
    UserError: no path, no such folder, nothing in it, or videos and captions that do not belong
      together.
  """

  def __init__(self, path: str | os.PathLike[str], captions: bool = True):
    if not os.fspath(path):  # to `Path` it would be the current folder
      raise UserError("A folder of videos needs a path: set data.sources.folder.path.")
    root = Path(path)
    if not root.is_dir():
      raise UserError(f"{root} is not a folder of videos.")
    shown = (p for p in root.rglob("*") if not _is_hidden(p.relative_to(root)))
    files = sorted(p for p in shown if p.is_file())
    media = [p for p in files if p.suffix.lower() in video.VIDEO_SUFFIXES | images.SUFFIXES]
    if not media:
      raise UserError(f"The folder {root} holds no videos or images.")
    texts = {p.with_suffix(""): "" for p in media}
    if captions:
      texts = {p.with_suffix(""): _caption(p) for p in files if p.suffix.lower() == ".txt"}
      bare = [p for p in media if p.with_suffix("") not in texts]
      orphans = sorted(texts.keys() - {p.with_suffix("") for p in media})
      if bare:
        raise UserError(
          f"{len(bare)} of {len(media)} videos in {root} have no caption, the first is {bare[0]}: "
          f"write {bare[0].with_suffix('.txt').name} beside it."
        )
      if orphans:
        raise UserError(
          f"{len(orphans)} captions in {root} have no video, the first is {orphans[0]}.txt: add "
          "the video or remove the caption."
        )
    super().__init__([
      Row(p, texts[p.with_suffix("")], p.relative_to(root).as_posix()) for p in media
    ])  # fmt: skip


def _is_hidden(path: Path) -> bool:
  return any(part.startswith(".") for part in path.parts)


def _caption(path: Path) -> str:
  try:
    text = " ".join(path.read_text(encoding="utf-8").split())
  except (OSError, UnicodeDecodeError):
    raise UserError(f"The caption {path} is not UTF-8 text: save it as such.") from None
  if not text:
    raise UserError(f"The caption {path} is empty: describe the video or remove both.")
  return text


def _is_file(path: Path) -> bool:
  try:
    return path.is_file()
  except (OSError, ValueError):  # a name that no file can have
    return False


def _table(path: Path) -> list[Any]:
  """The rows of a CSV with a header line, or of a JSONL file."""
  try:
    with open(path, encoding="utf-8-sig", newline="") as file:
      if path.suffix.lower() == ".csv":
        return list(csv.DictReader(file))
      return [json.loads(line) for line in file if line.strip()]
  except FileNotFoundError:
    raise UserError(f"The manifest {path} does not exist.") from None
  except (OSError, ValueError, csv.Error, *UNREADABLE) as e:
    raise UserError(f"The manifest {path} is not a UTF-8 CSV or JSONL file: {e}.") from None


class ManifestSource(_FileSource):
  """The clips listed in a CSV or JSONL file with columns path, caption, optional start and end.

  Paths are relative to the manifest; start and end are seconds. Listed files that do not exist
  are reported once here, and left out.

  Raises:
    UserError: no such manifest, a missing column or caption, times that make no sense, or none
      of the listed files exists.
  """

  def __init__(self, path: str | os.PathLike[str], captions: bool = True):
    if not os.fspath(path):
      raise UserError("A manifest needs a path: set config.data.sources.manifest.path.")
    path = Path(path)
    if path.suffix.lower() not in (".csv", ".jsonl"):
      raise UserError(f"The manifest {path} must be a .csv or .jsonl file.")
    rows: list[Row] = []
    missing: list[Row] = []
    for number, entry in enumerate(_table(path), start=1):
      row = self._row(path, number, entry, captions)
      (rows if _is_file(row.path) else missing).append(row)
    if missing and rows:
      print(
        f"warning: {len(missing)} of {len(rows) + len(missing)} files listed in {path} do not "
        f"exist and are left out, the first is {missing[0].path}",
        file=sys.stderr,
      )
    if not rows:
      reason = f"none of its {len(missing)} files exists" if missing else "it lists no videos"
      raise UserError(f"The manifest {path} cannot be used: {reason}.")
    super().__init__(rows)

  @staticmethod
  def _row(path: Path, number: int, entry: Any, captions: bool) -> Row:
    where = f"Entry {number} of {path}"
    needed = ("path", "caption") if captions else ("path",)
    for column in needed:
      if not isinstance(entry, dict) or not str(entry.get(column) or "").strip():
        raise UserError(f"{where} has no {column}: every entry needs {' and '.join(needed)}.")
    try:
      start = float(entry.get("start") or 0)
      end = None if entry.get("end") in (None, "") else float(entry["end"])
      sensible = 0 <= start < math.inf and (end is None or start < end < math.inf)
    except (TypeError, ValueError, OverflowError):
      sensible = False
    if not sensible:
      raise UserError(f"{where} has start or end that are not seconds with start before end.")
    name = str(entry["path"]).strip()
    stretch = f"@{start:g}" if start or end is not None else ""
    caption = " ".join(str(entry.get("caption") or "").split())
    return Row(path.parent / name, caption, name + stretch, start, end)


class TFDSSource:
  """Any TFDS data source (or other random access source of dicts) with videos or images.

  Args:
    source: a TFDS name such as "moving_mnist", prepared in `data_dir`, or an object with
      `__len__` and `__getitem__`, such as `builder.as_data_source("train")`.
    split, data_dir: for a name.
    video, caption: the features to use; found by shape and type if there is one candidate.
      `caption` may be a function of the example, and "" means no captions.
    fps: rate of the clips, if there is no feature "fps".

  Raises:
    UserError: the data set is not prepared, or the features cannot be found.
  """

  def __init__(
    self,
    source: Any,
    split: str = "train",
    data_dir: str | None = None,
    *,
    video: str | None = None,
    caption: str | Callable[[dict[str, Any]], str] | None = None,
    fps: float = REFERENCE_FPS,
  ):
    self.name = source if isinstance(source, str) else type(source).__name__
    self._source = _tfds(source, split, data_dir) if isinstance(source, str) else source
    if not len(self._source):
      raise UserError(f"The data source {self.name} is empty.")
    first = self._source[0]
    self._video = video or self._find(first, "video", _is_pixels)
    self._caption = self._find(first, "caption", _is_text) if caption is None else caption
    for feature in (self._video, self._caption):
      if isinstance(feature, str) and feature and feature not in first:
        raise UserError(f"{self.name} has no feature {feature!r}: it has {', '.join(first)}.")
    self._fps = fps

  def _find(self, example: dict[str, Any], role: str, fits: Callable[[Any], bool]) -> str:
    found = [k for k, v in example.items() if fits(v)]
    if role in found:
      return role
    if len(found) != 1:
      raise UserError(
        f"Cannot tell which feature of {self.name} is the {role} ({', '.join(example)}): name it "
        f"with {role}=."
      )
    return found[0]

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> dict[str, Any]:
    try:
      example = self._source[index]
    except Exception as e:  # decoders of other projects raise many types
      raise UserError(f"Example {index} of {self.name} cannot be read ({e}).") from e
    caption = self._caption(example) if callable(self._caption) else ""
    if isinstance(self._caption, str) and self._caption:
      caption = _text(example[self._caption])
    return {
      "video": _clip(np.asarray(example[self._video])),
      "caption": caption,
      "fps": float(example.get("fps", self._fps)),
      "id": _text(example["id"]) if _is_text(example.get("id")) else f"{self.name}-{index}",
    }

  def identity(self) -> list[str]:
    """What is known of a data set that was prepared: its version and the sizes of its shards."""
    info = getattr(self._source, "dataset_info", None)
    return [] if info is None else [info.as_json]

  def __repr__(self) -> str:
    return f"TFDSSource({self.name!r})"


def _tfds(name: str, split: str, data_dir: str | None) -> Any:
  import tensorflow_datasets as tfds

  try:
    return tfds.data_source(name, split=split, data_dir=data_dir, download=False)
  except Exception as e:  # TFDS raises many types, most with several lines of advice
    reason = str(e).strip().split("\n")[0]
    raise UserError(f"The TFDS data set {name!r} cannot be opened: {reason}") from e


def _is_pixels(value: Any) -> bool:
  shape = np.shape(value)
  return len(shape) in (3, 4) and shape[-1] in (1, 3) and np.asarray(value).dtype == np.uint8


def _is_text(value: Any) -> bool:
  return isinstance(value, str | bytes)


def _text(value: Any) -> str:
  return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _clip(pixels: np.ndarray) -> Clip:
  """Images become clips of one frame, grey becomes RGB."""
  if not _is_pixels(pixels):
    raise UserError(f"A video of shape {pixels.shape} and type {pixels.dtype} is not uint8 RGB.")
  pixels = pixels if pixels.ndim == 4 else pixels[None]
  return np.repeat(pixels, 3, axis=-1) if pixels.shape[-1] == 1 else pixels
