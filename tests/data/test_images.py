import numpy as np
import pytest
from PIL import ExifTags, Image

from sora_jax.data import images
from sora_jax.errors import UserError


def test_resize_keeps_what_fits(rng):
  """Stretching averages; cropping keeps the centre; padding keeps everything, with bars."""
  blocks = rng.integers(0, 256, (2, 8, 12, 3), dtype=np.uint8)
  big = blocks.repeat(8, axis=1).repeat(8, axis=2)
  assert images.resize(big, 64, 96) is big
  small = images.resize(big, 8, 12, "stretch")
  assert small.shape == blocks.shape
  cropped = images.resize(big, 16, 8)
  middle = images.resize(big[:, :, 32:64], 16, 8)
  assert np.abs(cropped.astype(int) - middle).max() <= 60  # only the filter sees past the cut
  assert np.abs(cropped.astype(int) - middle)[:, :, 2:-2].max() <= 1
  padded = images.resize(big, 24, 24, "pad")
  assert (padded[:, :4] == 0).all() and (padded[:, -4:] == 0).all()
  assert (padded[:, 4:-4] == images.resize(big, 16, 24, "stretch")).all()


def test_resize_is_antialiased():
  stripes = np.zeros((1, 64, 64, 3), np.uint8)
  stripes[:, :, ::2] = 255
  small = images.resize(stripes, 9, 9, "stretch").astype(int)
  assert np.abs(small - 127).max() < 30


def test_resize_refuses_nonsense(rng):
  clip = rng.integers(0, 256, (1, 8, 8, 3), dtype=np.uint8)
  for bad in ((0, 8, "crop"), (8, 8, "squeeze")):
    with pytest.raises(UserError):
      images.resize(clip, *bad)


def test_contact_sheet_shows_every_clip(rng):
  """Each clip's first and last frames are found on the sheet, and the caption below them."""
  shapes = ((9, 16, 20, 3), (1, 24, 20, 3), (5, 16, 20, 3))
  clips = [rng.integers(0, 256, shape, dtype=np.uint8) for shape in shapes]
  captions = ["a red ball rolls", "a very long caption " * 8, ""]
  sheet = images.contact_sheet(clips, captions, frames_per_video=3, columns=2)
  assert sheet.dtype == np.uint8 and sheet.ndim == 3
  windows = np.lib.stride_tricks.sliding_window_view(sheet, (16, 20, 3))[:, :, 0]
  for clip in clips:
    for frame in (clip[0, :16], clip[-1, :16]):
      assert (windows == frame).all(axis=(2, 3, 4)).any()
  plain = images.contact_sheet(clips, frames_per_video=3, columns=2)
  assert sheet.shape[0] > plain.shape[0]
  with pytest.raises(UserError):
    images.contact_sheet(clips, captions[:2])
  with pytest.raises(UserError):
    images.contact_sheet([])


def test_listing_counts_like_people(rng, tmp_path):
  frame = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
  for name in ("f10.png", "f9.png", "f1.PNG", "a2.jpg"):
    frame.save(tmp_path / name)
  (tmp_path / "notes.txt").write_text("no image")
  assert [p.name for p in images.listing(tmp_path)] == ["a2.jpg", "f1.PNG", "f9.png", "f10.png"]


def test_a_photo_is_as_upright_as_its_description(tmp_path):
  path = tmp_path / "phone.jpg"
  exif = Image.Exif()
  exif[ExifTags.Base.Orientation] = 6  # held upright, stored on its side
  Image.new("RGB", (40, 30)).save(path, exif=exif)
  assert images.describe(path)[1:3] == (40, 30)
  assert next(images.frames(path, 1.0))[1].shape == (40, 30, 3)
  assert images.describe(tmp_path)[1:3] == (40, 30)
