import pickle

import numpy as np
import pytest
from PIL import Image

from sora_jax.data import photos
from sora_jax.errors import UserError


def test_the_same_index_is_the_same_clip():
  a, b = (photos.PhotoSource(9, seed=2, frames=5, height=32, width=48) for _ in range(2))
  for n in (0, 8):
    assert (a[n]["video"] == b[n]["video"]).all() and a[n]["id"] == b[n]["id"]
  assert (pickle.loads(pickle.dumps(a))[3]["video"] == a[3]["video"]).all()
  other = photos.PhotoSource(9, seed=3, frames=5, height=32, width=48)
  assert any((a[n]["video"] != other[n]["video"]).any() for n in range(3))
  with pytest.raises(IndexError):
    a[9]


def test_the_camera_moves_smoothly_and_stays_inside(tmp_path):
  """Filmed over a picture of its own coordinates: no black corners, small and steady steps."""
  y, x = np.mgrid[:300, :420]
  picture = np.stack([x * 255 / 419, y * 255 / 299, np.full_like(x, 255)], -1).astype(np.uint8)
  Image.fromarray(picture).save(tmp_path / "map.png")
  source = photos.PhotoSource(40, tmp_path, frames=17, height=32, width=32)
  moved = 0
  for n in range(40):
    video = source[n]["video"].astype(float)
    assert video.max(axis=-1).min() > 100  # the third channel is bright, black is outside
    centres = video[:, 12:20, 12:20].mean((1, 2))
    steps = np.diff(centres, axis=0)
    assert np.abs(steps).max() < 25 and np.abs(np.diff(steps, axis=0)).max() < 8
    moved += np.abs(centres[8] - centres[0]).max() > 1
  assert moved > 25


def test_scikit_images_photos_are_there_without_download():
  found = photos.scikit_image_photos()
  assert len(found) == len(photos.SCIKIT_IMAGE)


def test_folders_without_photos(tmp_path):
  with pytest.raises(UserError, match="no photos"):
    photos.PhotoSource(3, tmp_path)
  (tmp_path / "broken.png").write_bytes(b"\x89PNG")
  with pytest.raises(UserError, match="broken.png"):
    photos.PhotoSource(3, tmp_path)[0]
