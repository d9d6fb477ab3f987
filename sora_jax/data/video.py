"""Video files in; `video_out.py` writes them, and no other file imports PyAV.

`read` takes anything with pictures in it: a video in any container FFmpeg knows, an animated or
still image, or a folder of frames. Frames are placed by their timestamps, never by counting, so
variable frame rates play at the right speed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import Colorspace, Interpolation

from sora_jax.data import images
from sora_jax.data.images import contact_sheet, resize
from sora_jax.data.timing import LONGEST_HOLD, resample
from sora_jax.data.video_out import WRITE_SUFFIXES, check_output, write
from sora_jax.errors import UserError
from sora_jax.typing import Clip

__all__ = [
  "VIDEO_SUFFIXES", "WRITE_SUFFIXES", "Info", "check_output", "contact_sheet", "probe", "read",
  "resize", "write",
]  # fmt: skip

VIDEO_SUFFIXES = frozenset(
  ".mp4 .m4v .mov .webm .mkv .avi .mpg .mpeg .ogv .wmv .flv .ts .3gp .gif".split()
)
MAX_BYTES = 1 << 33  # a clip is held in memory, twice for a moment: refuse what would fill it
# Containers in which seeking lands on the key frame before the wanted time. Others are read from
# the beginning.
_INDEXED = frozenset(("mov", "mp4", "matroska", "webm", "avi"))


@dataclass(frozen=True)
class Info:
  """What a file says about itself: upright size in pixels, frames per second, seconds, sound."""

  frames: int
  height: int
  width: int
  fps: float
  duration: float
  audio: bool = False


@contextmanager
def _decoding(path: Path) -> Iterator[None]:
  """Turns whatever a decoder raises on foreign bytes into one sentence."""
  try:
    yield
  except UserError:
    raise
  except MemoryError as e:
    raise UserError(f"{path} does not fit into memory: give fewer frames or a size.") from e
  except Exception as e:
    reason = getattr(e, "strerror", None) or type(e).__name__
    raise UserError(
      f"{path} cannot be read as a video or an image ({reason}): it is damaged or something else."
    ) from e


def _check(path: str | os.PathLike[str]) -> Path:
  path = Path(path)
  if not path.exists():
    raise UserError(f"{path} does not exist.")
  if path.is_file() and path.stat().st_size == 0:
    raise UserError(f"{path} is empty.")
  return path


def _is_image(path: Path) -> bool:
  return path.suffix.lower() in images.SUFFIXES or path.is_dir()


def _video_stream(container: Any, path: Path) -> Any:
  streams = [s for s in container.streams.video if s.codec_context is not None and s.width]
  if not streams:
    raise UserError(f"{path} holds no video.")
  streams[0].thread_type = "NONE"  # one decoder per process beats AUTO on busy machines
  return streams[0]


def _rate(stream: Any) -> float:
  rate = float(stream.average_rate or stream.guessed_rate or 0)
  return rate if 0 < rate <= 1000 else 25.0  # 25: what FFmpeg assumes of streams without one


def _size(stream: Any, rotation: int) -> tuple[int, int]:
  """Height and width as displayed: square pixels, upright."""
  aspect = float(stream.sample_aspect_ratio or 1)
  height, width = stream.height, stream.width
  if 0.1 < aspect < 10:
    width = max(1, round(width * aspect))
  return (width, height) if rotation % 180 else (height, width)


def _duration(container: Any, stream: Any) -> float:
  """Seconds of the pictures, which sound may outlast; 0 if the file does not say."""
  if stream.duration:
    return float(stream.duration * stream.time_base)
  if match := re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", stream.metadata.get("DURATION", "")):
    hours, minutes, seconds = map(float, match.groups())
    return 3600 * hours + 60 * minutes + seconds
  if not container.streams.audio:
    return (container.duration or 0) / av.time_base
  packets = (p for p in container.demux(stream) if p.pts is not None)
  end = max((p.pts + (p.duration or 0) for p in packets), default=0)
  container.seek(0)
  return float((end - (stream.start_time or 0)) * stream.time_base)


def probe(path: str | os.PathLike[str]) -> Info:
  """Describes a file without decoding it all. Raises UserError if it is not a video or image."""
  path = _check(path)
  if _is_image(path):
    with _decoding(path):
      return Info(*images.describe(path))
  with _decoding(path), av.open(str(path)) as container:
    stream = _video_stream(container, path)
    rate = _rate(stream)
    duration = _duration(container, stream)
    frames = stream.frames or round(duration * rate)
    if not frames:
      frames = sum(packet.size > 0 for packet in container.demux(stream))
      container.seek(0)
    first = next(container.decode(stream), None)
    if first is None:
      raise UserError(f"{path} holds no frame that can be decoded.")
    height, width = _size(stream, first.rotation)
    audio = bool(container.streams.audio)
    return Info(frames, height, width, rate, duration or frames / rate, audio)


def _decode(container: Any, stream: Any, start: float, path: Path) -> Iterator[tuple[float, Any]]:
  """Yields (seconds since the beginning, frame) from at or before `start`."""
  if start == 0 or not _INDEXED & set(container.format.name.split(",")):
    yield from _decode_all(container, stream, path)
    return
  rate = _rate(stream)
  origin = float((stream.start_time or 0) * stream.time_base)
  target = origin + max(0.0, start - 1.5 / rate)
  container.seek(int(target / stream.time_base), stream=stream, backward=True)
  found = False
  for frame in container.decode(stream):
    if frame.time is None or (not found and frame.time - origin > start):
      break
    found = True
    yield frame.time - origin, frame
  if not found:  # the index is wrong, or there are no timestamps: decode from the beginning
    with av.open(str(path)) as again:
      yield from _decode_all(again, _video_stream(again, path), path)


def _decode_all(container: Any, stream: Any, path: Path) -> Iterator[tuple[float, Any]]:
  """Yields (seconds since the beginning, frame) of a whole stream."""
  rate = _rate(stream)
  origin = float((stream.start_time or 0) * stream.time_base)
  count, end = 0, 0.0
  for frame in container.decode(stream):
    time = frame.time - origin if frame.time is not None else count / rate
    yield time, frame
    count, end = count + 1, time + max(1 / rate, float((frame.duration or 0) * stream.time_base))
  # Both: some containers count empty slots as frames, and some round durations up.
  stated = float((stream.duration or 0) * stream.time_base)
  if count < 0.9 * stream.frames - 1 and end < 0.9 * stated:
    raise UserError(f"{path} is cut off: {count} of {stream.frames} frames can be decoded.")


def _held(frames: Iterable[tuple[float, Any]], stream: Any) -> Iterator[tuple[float, Any]]:
  """Shows the last frame once more at its end, if that says that it stays longer than others."""
  time, frame = 0.0, None
  for time, frame in frames:
    yield time, frame
  if frame is not None:
    longer = float((frame.duration or 0) * stream.time_base) - 1 / _rate(stream)
    if 0 < longer <= LONGEST_HOLD:
      yield time + longer, frame


def _mirrored(frame: Any) -> bool:
  """Whether a display matrix mirrors the frame, before what `rotation` says."""
  if (matrix := frame.side_data.get("DISPLAYMATRIX")) is None:
    return False
  a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].astype(float)
  return bool(a * d < b * c)


def _matrix(frame: Any) -> Colorspace:
  """The YUV matrix a frame uses; players guess it from the height where the file is silent."""
  stated = {c.value: c for c in Colorspace}.get(int(frame.colorspace))
  return stated or (Colorspace.ITU709 if frame.height >= 720 else Colorspace.ITU601)


def _pixels(frame: Any, stream: Any, size: tuple[int, int] | None, fit: str) -> np.ndarray:
  """Converts a decoded frame to upright RGB, scaled by FFmpeg where that only shrinks it."""
  turned = frame.rotation % 180 != 0
  height, width = _size(stream, frame.rotation)
  if size is not None:
    scale = {"crop": max, "pad": min}.get(fit, max)(size[0] / height, size[1] / width)
    if scale < 1 and fit != "stretch":
      height, width = max(1, round(height * scale)), max(1, round(width * scale))
  if turned:
    height, width = width, height
  # Planar output keeps the full chroma resolution, which packed RGB halves while scaling.
  rgb = frame.reformat(
    width=width, height=height, format="gbrp", src_colorspace=_matrix(frame),
    interpolation=Interpolation.AREA | Interpolation.ACCURATE_RND, threads=1,
  ).to_ndarray()  # fmt: skip
  turns = round(frame.rotation / 90)
  if _mirrored(frame):  # what mirrors left and right and turns, FFmpeg says to turn by 180 more
    rgb, turns = rgb[:, ::-1], turns + 2
  return np.rot90(rgb, turns % 4)


def _collect(
  path: Path,
  frames: Iterable[Any],
  pixels: Callable[[Any], np.ndarray],
  size: tuple[int, int] | None,
  fit: str,
) -> Clip:
  """Stacks frames, brought to `size`; refuses what does not fit in memory."""
  out: list[np.ndarray] = []
  last = None
  for frame in frames:
    if frame is last:  # held over several steps: converted once
      out.append(out[-1])
    else:
      last = frame
      image = pixels(frame)
      if size is not None and image.shape[:2] != tuple(size):
        image = resize(image[None], *size, fit=fit)[0]
      if out and image.shape != out[0].shape:
        raise UserError(f"The frames of {path} have different sizes: give a size to bring them to.")
      out.append(image)
    if len(out) * out[0].nbytes > MAX_BYTES:
      raise UserError(f"{path} is too long to hold in memory: give fewer frames or a size.")
  if not out:
    raise UserError(f"{path} has no frames at that time: start earlier.")
  return np.stack(out)


def read(
  path: str | os.PathLike[str],
  frames: int | None = None,
  start: float | None = None,
  size: tuple[int, int] | None = None,
  fps: float | None = None,
  fit: str = "crop",
) -> tuple[Clip, float]:
  """Reads a video, an image (one frame) or a folder of frames.

  Args:
    path: the file or folder.
    frames: at most this many frames; None reads to the end.
    start: where to begin, in seconds.
    size: (height, width) of the result, see `resize`; None keeps the file's, upright and with
      square pixels.
    fps: rate of the result, made by repeating and leaving out frames by their times; None keeps
      the file's (its average, where it varies; 8 for a folder of frames).
    fit: "crop", "pad" or "stretch".

  Returns:
    uint8 t h w 3, and its frames per second.

  Raises:
    UserError: the file is missing, empty, cut off, damaged or no video, or the request is not
      possible.
  """
  path = _check(path)
  start = start or 0.0
  if (fps is not None and not 0 < fps <= 1000) or (frames is not None and frames < 1) or start < 0:
    raise UserError("Frames and fps must be positive and the start not negative.")
  if fit not in images.FITS:
    raise UserError(f"Unknown fit {fit!r}: choose one of {', '.join(images.FITS)}.")
  if _is_image(path):
    with _decoding(path):
      info = Info(*images.describe(path))
      rate = fps or info.fps
      # A still has no rate of its own and stays one frame; a folder takes the rate it is given.
      timed = images.frames(path, info.fps if path.is_file() else rate)
      wanted = frames if info.frames > 1 else 1
      end = info.duration if path.is_file() else 0.0
      picked = resample(timed, start, rate, wanted, max(rate, info.fps), end)
      return _collect(path, picked, lambda frame: frame, size, fit), float(rate)
  with _decoding(path), av.open(str(path)) as container:
    stream = _video_stream(container, path)
    native = _rate(stream)
    rate = fps or native
    decoded = _decode(container, stream, start, path)
    picked = resample(_held(decoded, stream), start, rate, frames, native)
    return _collect(path, picked, lambda f: _pixels(f, stream, size, fit), size, fit), rate
