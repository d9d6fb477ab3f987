"""Video files out, whole or not at all: H.264 in .mp4, .gif, .png.

`video.py` reads them, and no other file imports PyAV.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, Interpolation
from PIL import Image

from sora_jax.data import images
from sora_jax.errors import UserError
from sora_jax.typing import REFERENCE_FPS, Clip, UInt8

WRITE_SUFFIXES = (".mp4", ".gif", ".png")
_BT709 = 1  # the code point of ITU-T H.273 for primaries, transfer and matrix


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
