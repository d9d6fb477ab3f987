"""Video files in and out; the only place that imports PyAV.

`read` takes anything with pictures in it: a video in any container FFmpeg knows, an animated or
still image, or a folder of frames. Frames are placed by their timestamps, never by counting, so
variable frame rates play at the right speed.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, Interpolation
from PIL import Image

from sora_jax.data import images
from sora_jax.data.images import contact_sheet, resize
from sora_jax.data.timing import resample
from sora_jax.errors import UserError
from sora_jax.typing import REFERENCE_FPS, Clip, UInt8

__all__ = [
  "VIDEO_SUFFIXES", "WRITE_SUFFIXES", "Info", "contact_sheet", "probe", "read", "resize", "write",
]  # fmt: skip

VIDEO_SUFFIXES = frozenset(
  ".mp4 .m4v .mov .webm .mkv .avi .mpg .mpeg .ogv .wmv .flv .ts .3gp .gif".split()
)
WRITE_SUFFIXES = (".mp4", ".gif", ".png")
MAX_BYTES = 1 << 33  # a clip is held in memory, twice for a moment: refuse what would fill it
# Containers in which seeking lands on the key frame before the wanted time. Others are read from
# the beginning.
_INDEXED = frozenset(("mov", "mp4", "matroska", "webm", "avi"))
_BT709 = 1  # the code point of ITU-T H.273 for primaries, transfer and matrix


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


def probe(path: str | os.PathLike[str]) -> Info:
  """Describes a file without decoding it all. Raises UserError if it is not a video or image."""
  path = _check(path)
  if _is_image(path):
    with _decoding(path):
      return Info(*images.describe(path))
  with _decoding(path), av.open(str(path)) as container:
    stream = _video_stream(container, path)
    rate = _rate(stream)
    duration = float(stream.duration * stream.time_base) if stream.duration else 0.0
    if not duration and container.duration:
      duration = container.duration / av.time_base
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
  return np.rot90(rgb, round(frame.rotation / 90) % 4)


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
    picked = resample(decoded, start, rate, frames, native)
    return _collect(path, picked, lambda f: _pixels(f, stream, size, fit), size, fit), rate


def _even(video: Clip) -> UInt8[np.ndarray, "t _ _ 3"]:
  """Repeats the last row or column of odd sizes, which 4:2:0 chroma cannot store."""
  h, w = video.shape[1:3]
  return np.pad(video, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)), mode="edge")


def _write_mp4(path: Path, pieces: Iterable[Clip], rate: Fraction, crf: int) -> None:
  with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
    stream = container.add_stream("libx264", rate=rate, options={"crf": str(crf)})
    stream.pix_fmt = "yuv420p"
    context = stream.codec_context
    context.colorspace = context.color_primaries = context.color_trc = _BT709
    context.color_range = ColorRange.MPEG
    for pixels in itertools.chain.from_iterable(map(_even, pieces)):
      if not context.is_open:
        stream.height, stream.width = pixels.shape[:2]
      frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), "rgb24").reformat(
        format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG,
        interpolation=Interpolation.AREA | Interpolation.ACCURATE_RND, threads=1,
      )  # fmt: skip
      container.mux(stream.encode(frame))
    container.mux(stream.encode())


def _with_palette(video: Clip, rate: Fraction) -> Iterator[Any]:
  """Quantizes a clip to one palette made for it, dithered without flicker."""
  graph = av.filter.Graph()
  height, width = video.shape[1:3]
  source = graph.add_buffer(width=width, height=height, format=av.VideoFormat("rgb24"),
                            time_base=1 / rate)  # fmt: skip
  split = graph.add("split")
  palette = graph.add("palettegen", "stats_mode=full:reserve_transparent=0")
  use = graph.add("paletteuse", "dither=bayer:bayer_scale=4")
  sink = graph.add("buffersink")
  source.link_to(split)
  split.link_to(use, 0, 0)
  split.link_to(palette, 1, 0)
  palette.link_to(use, 0, 1)
  use.link_to(sink)
  graph.configure()
  for n, pixels in enumerate(video):
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), "rgb24")
    frame.pts, frame.time_base = n, 1 / rate
    source.push(frame)
  source.push(None)
  for _ in video:
    yield sink.pull()


def _write_gif(path: Path, video: Clip, rate: Fraction) -> None:
  with av.open(str(path), "w", format="gif", options={"loop": "0"}) as container:
    stream = container.add_stream("gif", rate=rate)
    stream.height, stream.width = video.shape[1:3]
    stream.pix_fmt = "pal8"
    for frame in _with_palette(video, rate):
      container.mux(stream.encode(frame))
    container.mux(stream.encode())


def _checked(path: Path, pieces: Iterable[Clip]) -> Iterator[Clip]:
  """Pieces of one video as they come, refused if they are not that or there is nothing in them."""
  first = None
  for piece in pieces:
    if piece.ndim != 4 or piece.shape[-1] != 3 or piece.dtype != np.uint8 or not piece.size:
      raise UserError(f"Cannot write {path}: need uint8 frames, height, width, 3.")
    first = first or piece.shape[1:]
    if piece.shape[1:] != first:
      raise UserError(f"Cannot write {path}: its frames have different sizes.")
    yield piece
  if first is None:
    raise UserError(f"Cannot write {path}: need uint8 frames, height, width, 3.")


def write(
  path: str | os.PathLike[str],
  video: Clip | Iterable[Clip],
  fps: float = REFERENCE_FPS,
  *,
  crf: int = 18,
) -> None:
  """Writes a video as .mp4 (H.264), .gif (loops for ever) or .png; whole or not at all.

  A PNG of one frame is that frame; of more, up to eight evenly spaced frames side by side.
  Odd sizes gain one row or column in an .mp4, which stores even sizes only.

  Args:
    path: its suffix chooses the format; its folder must exist.
    video: uint8 t h w 3; or pieces of it, of which an .mp4 needs only one in memory at a time.
    fps: frames per second.
    crf: H.264 quality, 0 (lossless in YUV) to 51; 18 looks transparent.

  Raises:
    UserError: an unknown suffix, a missing folder, no frames, or the file cannot be written.
  """
  path = Path(path)
  suffix = path.suffix.lower()
  check_output(path)
  pieces = _checked(path, [video] if isinstance(video, np.ndarray) else video)
  if not 0 < fps <= 1000:
    raise UserError(f"Cannot write {path} at {fps} fps: give a rate between 0 and 1000.")
  rate = Fraction(fps).limit_denominator(1001)
  temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
  try:
    if suffix == ".mp4":
      _write_mp4(temporary, pieces, rate, crf)
    elif suffix == ".gif":
      _write_gif(temporary, np.concatenate(list(pieces)), rate)
    else:
      whole = np.concatenate(list(pieces))
      Image.fromarray(images.strip(whole) if len(whole) > 1 else whole[0]).save(temporary, "png")
    os.replace(temporary, path)
  except (OSError, av.FFmpegError) as e:
    raise UserError(f"{path} cannot be written: {e.strerror or e}.") from e
  finally:
    temporary.unlink(missing_ok=True)


def check_output(path: str | os.PathLike[str]) -> None:
  """Raises UserError if `write` could not write there: a suffix or folder it does not know."""
  path = Path(path)
  if path.suffix.lower() not in WRITE_SUFFIXES:
    raise UserError(
      f"Unknown file extension {path.suffix!r} of {path}: use one of {', '.join(WRITE_SUFFIXES)}."
    )
  if not path.absolute().parent.is_dir():
    raise UserError(f"The folder {path.absolute().parent} does not exist: create it first.")
  if not os.access(path.absolute().parent, os.W_OK):
    raise UserError(f"The folder {path.absolute().parent} cannot be written to: choose another.")
  if path.is_dir():
    raise UserError(f"{path} is a folder: give the name of a file.")
