"""Clips made of still photographs: motion and real texture from pictures we may use."""

from __future__ import annotations

import functools
import importlib.util
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sora_jax.data import images
from sora_jax.errors import UserError
from sora_jax.typing import REFERENCE_FPS, UInt8

# Photographs that ship inside scikit-image's wheel and are CC0 or in the public domain, by its
# own documentation: NASA (astronaut, Hubble, moon), SpaceX (rocket), Poly Haven (brick, grass,
# gravel), S. van der Walt (cat), R. Michetti (coffee), L. Varshney (camera), D. Scharstein
# (motorcycle).
SCIKIT_IMAGE = (
  "astronaut.png", "brick.png", "camera.png", "chelsea.png", "coffee.png", "grass.png",
  "gravel.png", "hubble_deep_field.jpg", "moon.png", "motorcycle_left.png",
  "motorcycle_right.png", "rocket.jpg",
)  # fmt: skip
_SUPERSAMPLE = 2
_LARGEST = 1600  # pixels; larger photos are reduced on loading, since many are kept in memory


def scikit_image_photos() -> list[Path]:
  """The sample photographs inside the installed scikit-image; nothing is downloaded."""
  spec = importlib.util.find_spec("skimage")
  if spec is None or not spec.submodule_search_locations:
    raise UserError("The sample photos need scikit-image: pip install scikit-image, or give a "
                    "folder of your own.")  # fmt: skip
  folder = Path(next(iter(spec.submodule_search_locations))) / "data"
  return [folder / name for name in SCIKIT_IMAGE if (folder / name).is_file()]


@functools.lru_cache(maxsize=64)
def _pyramid(path: Path) -> tuple[Image.Image, ...]:
  """The photo and its halvings, down to 32 pixels."""
  try:
    photo = Image.fromarray(next(images.frames(path, 1.0))[1])
  except Exception as e:  # foreign bytes: a decoder may raise anything
    raise UserError(f"{path} cannot be read as a photo: remove it from the folder.") from e
  levels = [photo.reduce(max(1, -(-max(photo.size) // _LARGEST)))]
  while min(levels[-1].size) >= 64:
    levels.append(levels[-1].reduce(2))
  return tuple(levels)


def _path(rng: np.random.Generator, frames: int) -> np.ndarray:
  """A smooth course from 0 to 1 over the clip: steady, easing in and out, or there and back."""
  t = np.linspace(0, 1, frames) if frames > 1 else np.zeros(1)
  kind = rng.integers(3)
  if kind == 1:
    return t * t * (3 - 2 * t)
  return np.sin(np.pi * t) if kind == 2 else t


def fly(photo: tuple[Image.Image, ...], frames: int, height: int, width: int,
        rng: np.random.Generator) -> UInt8[np.ndarray, "{frames} {height} {width} 3"]:  # fmt: skip
  """Films a photo with a camera that pans, zooms and turns smoothly and stays inside it."""
  w, h = photo[0].size
  angle = rng.uniform(-0.3, 0.3) + rng.choice([0.0, rng.uniform(-0.35, 0.35)]) * _path(rng, frames)
  # Half the extent of the turned view, for a scale of one photo pixel per video pixel.
  reach = 0.5 * np.stack([
    width * np.abs(np.cos(angle)) + height * np.abs(np.sin(angle)),
    width * np.abs(np.sin(angle)) + height * np.abs(np.cos(angle)),
  ])  # fmt: skip
  room = np.array([w, h]) / 2
  largest = float((room[:, None] / reach).min())
  zoom = rng.choice([0.0, rng.uniform(-0.5, 0.5)]) * _path(rng, frames)
  scale = np.exp(rng.uniform(math.log(min(0.8, 0.7 * largest)), math.log(largest)) + zoom)
  scale *= min(1.0, largest / scale.max())
  slack = np.maximum(room - (reach * scale).max(axis=1), 0)
  start = rng.uniform(-slack, slack)
  step = rng.uniform(-0.05, 0.05, 2) * frames * scale.mean() * min(height, width)
  end = np.clip(start + step, -slack, slack)
  centre = room + start + (end - start) * _path(rng, frames)[:, None]
  level = round(math.log2(max(scale.max() / _SUPERSAMPLE, 1)))
  level = min(level, len(photo) - 1)
  out = np.empty((frames, height, width, 3), np.uint8)
  for n in range(frames):
    out[n] = _view(photo[level], centre[n] / 2**level, scale[n] / 2**level, angle[n], height, width)
  if rng.random() < 0.5:
    out = out[:, :, ::-1]
  # Few photos, many colours: tinted, and in some clips with red, green and blue exchanged.
  gain = rng.uniform(0.8, 1.15) * rng.uniform(0.85, 1.15, 3)
  order = rng.permutation(3) if rng.random() < 0.25 else np.arange(3)
  return np.minimum(out[..., order] * gain.astype(np.float32), 255).astype(np.uint8)


def _view(image: Image.Image, centre: np.ndarray, scale: float, angle: float, height: int,
          width: int) -> np.ndarray:  # fmt: skip
  """One frame: rendered at twice the size, then averaged down, so that nothing flickers."""
  step = scale / _SUPERSAMPLE
  c, s = step * math.cos(angle), step * math.sin(angle)
  big = (width * _SUPERSAMPLE, height * _SUPERSAMPLE)
  x = centre[0] - c * big[0] / 2 + s * big[1] / 2
  y = centre[1] - s * big[0] / 2 - c * big[1] / 2
  view = image.transform(big, Image.Transform.AFFINE, (c, -s, x, s, c, y),
                         Image.Resampling.BILINEAR)  # fmt: skip
  return np.asarray(view.reduce(_SUPERSAMPLE))


class PhotoSource:
  """Clips of a camera moving over photographs; the same (seed, index) is the same clip.

  Args:
    count: how many clips there are.
    folder: a folder of images, searched recursively; None takes scikit-image's sample photos.
    seed, frames, height, width, fps: of the clips.

  Raises:
    UserError: no photos there.
  """

  def __init__(
    self,
    count: int,
    folder: str | os.PathLike[str] | None = None,
    *,
    seed: int = 0,
    frames: int = 17,
    height: int = 64,
    width: int = 64,
    fps: float = REFERENCE_FPS,
  ):
    if folder is None:
      self.photos = scikit_image_photos()
    else:
      suffixes = images.SUFFIXES - {".gif"}
      found = (p for p in Path(folder).rglob("*") if p.suffix.lower() in suffixes)
      self.photos = sorted(p for p in found if p.is_file())
      if not self.photos:
        raise UserError(f"The folder {folder} holds no photos.")
    self.count, self.seed, self.fps = count, seed, fps
    self.frames, self.height, self.width = frames, height, width

  def __len__(self) -> int:
    return self.count

  def __getitem__(self, index: int) -> dict[str, Any]:
    if not 0 <= index < self.count:
      raise IndexError(index)
    rng = np.random.default_rng((self.seed, index))
    photo = self.photos[rng.integers(len(self.photos))]
    video = fly(_pyramid(photo), self.frames, self.height, self.width, rng)
    caption = "a camera moves over a photograph"
    return {"video": video, "caption": caption, "fps": self.fps, "id": f"{photo.stem}-{index}"}

  def identity(self) -> list[Path]:
    """The photographs."""
    return self.photos

  def __repr__(self) -> str:
    return f"PhotoSource({self.count} clips of {len(self.photos)} photos)"
