"""Still and animated images, resizing, and contact sheets: everything done with Pillow."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from einops import rearrange
from PIL import ExifTags, Image, ImageDraw, ImageFont, ImageOps, ImageSequence

from sora_jax.errors import UserError
from sora_jax.typing import REFERENCE_FPS, Clip, Frame, UInt8

FITS = ("crop", "pad", "stretch")
SUFFIXES = frozenset(".png .jpg .jpeg .webp .bmp .tif .tiff .gif .ppm".split())
_MARGIN = 4


def resize(
  video: Clip, height: int, width: int, fit: str = "crop"
) -> UInt8[np.ndarray, "t {height} {width} 3"]:
  """Resizes every frame with an antialiased Lanczos filter.

  Args:
    video: uint8 t h w 3.
    height, width: the size to return, in pixels.
    fit: "crop" covers the size and cuts what sticks out, centred; "pad" fits inside it with
      black bars; "stretch" ignores the aspect ratio.
  """
  if fit not in FITS:
    raise UserError(f"Unknown fit {fit!r}: choose one of {', '.join(FITS)}.")
  if height < 1 or width < 1:
    raise UserError(f"The size {height}x{width} is empty: give a positive height and width.")
  h, w = video.shape[1:3]
  if (h, w) == (height, width):
    return video
  box = (0.0, 0.0, float(w), float(h))
  inner = (width, height)
  if fit == "crop":
    scale = max(height / h, width / w)
    dy, dx = (h - height / scale) / 2, (w - width / scale) / 2
    box = (max(dx, 0.0), max(dy, 0.0), min(w - dx, w), min(h - dy, h))
  elif fit == "pad":
    scale = min(height / h, width / w)
    inner = (max(1, round(w * scale)), max(1, round(h * scale)))
  out = np.zeros((len(video), height, width, 3), np.uint8)
  top, left = (height - inner[1]) // 2, (width - inner[0]) // 2
  for source, target in zip(video, out, strict=True):
    image = Image.fromarray(np.ascontiguousarray(source))
    image = image.resize(inner, Image.Resampling.LANCZOS, box=box)
    target[top : top + inner[1], left : left + inner[0]] = np.asarray(image)
  return out


def _rgb(image: Image.Image) -> Frame:
  """Upright RGB; transparent parts show white."""
  image = ImageOps.exif_transpose(image)
  if image.has_transparency_data:
    image = image.convert("RGBA")
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
  if image.mode in ("I", "I;16", "I;16B", "F"):  # 16-bit greys, which Pillow would clip
    values = np.asarray(image, np.float32)
    low, high = (0.0, 65535.0) if image.mode.startswith("I") else (values.min(), values.max())
    image = Image.fromarray(np.uint8((values - low) / max(high - low, 1e-9) * 255))
  return np.asarray(image.convert("RGB"))


def listing(folder: Path) -> list[Path]:
  """The images of a folder, sorted as people count: frame2 before frame10."""

  def key(path: Path) -> list[tuple[int, str]]:
    return [(int(p), "") if p.isdigit() else (-1, p) for p in re.split(r"(\d+)", path.name)]

  return sorted((p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES), key=key)


def _delays(image: Image.Image) -> list[float]:
  """Seconds each frame of an animation stays; browsers show undeclared ones for 0.1 s."""
  out = []
  for n in range(getattr(image, "n_frames", 1)):
    image.seek(n)
    out.append((image.info.get("duration") or 100) / 1000)
  image.seek(0)
  return out


def _upright(image: Image.Image) -> tuple[int, int]:
  """Height and width as `_rgb` shows an image: cameras say in EXIF which way they were held."""
  width, height = image.size
  turned = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
  return (width, height) if turned else (height, width)


def describe(path: Path) -> tuple[int, int, int, float, float]:
  """Frames, height, width, frames per second and duration of an image or a folder of them."""
  if path.is_dir():
    files = listing(path)
    if not files:
      raise UserError(f"The folder {path} holds no images.")
    with Image.open(files[0]) as image:
      height, width = _upright(image)
    return len(files), height, width, REFERENCE_FPS, len(files) / REFERENCE_FPS
  with Image.open(path) as image:
    height, width = _upright(image)
    delays = _delays(image)
  if len(delays) == 1:
    return 1, height, width, REFERENCE_FPS, 0.0
  # Writers merge equal frames into a longer one, so the shortest delays tell the rate.
  fps = 1 / float(np.mean([d for d in delays if d < 1.5 * min(delays)]))
  if abs(fps - round(fps)) < 0.01 * fps:
    fps = float(round(fps))  # GIF delays are whole hundredths of a second
  return round(sum(delays) * fps), height, width, fps, sum(delays)


def frames(path: Path, fps: float) -> Iterator[tuple[float, Frame]]:
  """Yields (seconds, frame) of an image, an animation, or a folder shown at `fps`."""
  if path.is_dir():
    for n, file in enumerate(listing(path)):
      with Image.open(file) as image:
        yield n / fps, _rgb(image)
    return
  with Image.open(path) as image:
    time = 0.0
    delays = _delays(image)
    for delay, frame in zip(delays, ImageSequence.Iterator(image), strict=True):
      yield time, _rgb(frame)
      time += delay


def spread(video: Clip, count: int) -> UInt8[np.ndarray, "_ h w 3"]:
  """Picks `count` evenly spaced frames, the first and the last included."""
  return video[np.rint(np.linspace(0, len(video) - 1, min(count, len(video)))).astype(int)]


def strip(video: Clip, count: int = 8) -> UInt8[np.ndarray, "h _ 3"]:
  """Puts up to `count` evenly spaced frames side by side."""
  return rearrange(spread(video, count), "t h w c -> h (t w) c")


def _wrap(text: str, width: int, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> list[str]:
  """Breaks a caption into at most three lines that fit `width` pixels."""
  lines = [""]
  for word in text.split():
    longer = f"{lines[-1]} {word}".strip()
    if font.getlength(longer) <= width or not lines[-1]:
      lines[-1] = longer
    else:
      lines.append(word)
  return lines if len(lines) <= 3 else [*lines[:2], lines[2] + "…"]


def contact_sheet(
  videos: Sequence[UInt8[np.ndarray, "_ _ _ 3"]],
  captions: Sequence[str] | None = None,
  frames_per_video: int = 6,
  columns: int = 1,
) -> Frame:
  """Draws videos as strips of evenly spaced frames, with their captions underneath.

  Args:
    videos: uint8 t h w 3 each; sizes may differ.
    captions: one per video, or None.
    frames_per_video: frames of each strip; fewer if the video is shorter.
    columns: strips per row.

  Returns:
    one uint8 image, h w 3.
  """
  if not len(videos):
    raise UserError("A contact sheet needs at least one video.")
  if captions is not None and len(captions) != len(videos):
    raise UserError(f"{len(videos)} videos but {len(captions)} captions: give one for each.")
  font = ImageFont.load_default(size=12)
  cells = []
  for i, video in enumerate(videos):
    image = Image.fromarray(strip(video, frames_per_video))
    lines = _wrap(captions[i], image.width, font) if captions is not None else []
    cell = Image.new("RGB", (image.width, image.height + 15 * len(lines)), "white")
    cell.paste(image)
    draw = ImageDraw.Draw(cell)
    for n, line in enumerate(lines):
      draw.text((1, image.height + 15 * n), line, fill="black", font=font)
    cells.append(cell)
  columns = max(1, min(columns, len(cells)))
  rows = [cells[i : i + columns] for i in range(0, len(cells), columns)]
  cell_width = max(c.width for c in cells) + _MARGIN
  heights = [max(c.height for c in row) + _MARGIN for row in rows]
  sheet = Image.new("RGB", (columns * cell_width + _MARGIN, sum(heights) + _MARGIN), "white")
  y = _MARGIN
  for row, height in zip(rows, heights, strict=True):
    for n, cell in enumerate(row):
      sheet.paste(cell, (_MARGIN + n * cell_width, y))
    y += height
  return np.asarray(sheet)
