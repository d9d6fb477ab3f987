"""Files in and out: round trips, timestamps, and what broken files must do."""

import struct
from fractions import Fraction

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from sora_jax.data import video
from sora_jax.errors import UserError


def smooth(rng, frames=12, height=48, width=64):
  """A panning gradient of moderate colours, which codecs keep well."""
  small = rng.integers(70, 190, (4, 5, 3), dtype=np.uint8)
  image = np.asarray(Image.fromarray(small).resize((2 * width, height), Image.Resampling.BICUBIC))
  return np.stack([image[:, 2 * t : 2 * t + width] for t in range(frames)])


def psnr(a, b):
  return 10 * np.log10(255**2 / (np.mean((a.astype(float) - b.astype(float)) ** 2) + 1e-9))


@pytest.mark.parametrize("fps", [8.0, 12.5, 24000 / 1001, 30.0])
@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_written_is_read(rng, tmp_path, suffix, fps):
  clip = smooth(rng)
  path = tmp_path / f"clip{suffix}"
  video.write(path, clip, fps)
  back, rate = video.read(path)
  assert back.shape == clip.shape and back.dtype == np.uint8
  assert rate == pytest.approx(fps, rel=1e-3 if suffix == ".mp4" else 0.12)
  each = [psnr(a, b) for a, b in zip(clip, back, strict=True)]
  assert min(each) > 33
  info = video.probe(path)
  assert (info.frames, info.height, info.width) == clip.shape[:3]
  assert info.fps == pytest.approx(rate) and info.duration == pytest.approx(12 / fps, rel=0.12)
  assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("colour", [(210, 40, 60), (40, 200, 60), (50, 60, 220)])
def test_flat_colours_survive(tmp_path, colour):
  """The matrix and range a file is written with are those it is read and tagged with."""
  clip = np.broadcast_to(np.uint8(colour), (5, 32, 32, 3)).copy()
  video.write(tmp_path / "flat.mp4", clip)
  back, _ = video.read(tmp_path / "flat.mp4")
  assert np.abs(back.astype(int) - colour).max() <= 3
  with av.open(str(tmp_path / "flat.mp4")) as container:
    frame = next(container.decode(video=0))
    assert (int(frame.colorspace), int(frame.color_range)) == (1, 1)
    assert container.streams.video[0].codec_context.pix_fmt == "yuv420p"


def test_gif_loops_and_keeps_still_frames(rng, tmp_path):
  clip = np.repeat(smooth(rng, frames=2), 5, axis=0)
  video.write(tmp_path / "still.gif", clip, 10.0)
  with Image.open(tmp_path / "still.gif") as image:
    assert image.info["loop"] == 0
  back, rate = video.read(tmp_path / "still.gif")
  assert len(back) == 10 and rate == pytest.approx(10)


def test_merged_gif_frames_keep_their_time(rng, tmp_path):
  """Pillow merges equal frames into a longer one; reading undoes that."""
  a, b, c = (Image.fromarray(f) for f in smooth(rng, frames=9)[::4])
  a.save(tmp_path / "m.gif", save_all=True, append_images=[b, b, b, c], duration=100, loop=0)
  back, rate = video.read(tmp_path / "m.gif")
  assert len(back) == 5 and rate == pytest.approx(10)
  assert (back[1] == back[3]).all() and (back[0] != back[1]).any() and (back[3] != back[4]).any()


def test_png_holds_a_frame_or_a_strip(rng, tmp_path):
  clip = smooth(rng, frames=20)
  video.write(tmp_path / "one.png", clip[:1])
  assert (video.read(tmp_path / "one.png")[0] == clip[:1]).all()
  video.write(tmp_path / "strip.png", clip)
  strip = video.read(tmp_path / "strip.png")[0][0]
  assert strip.shape == (48, 8 * 64, 3)
  assert (strip[:, :64] == clip[0]).all() and (strip[:, -64:] == clip[-1]).all()


def test_odd_sizes_become_even(rng, tmp_path):
  clip = smooth(rng, height=33, width=47)
  video.write(tmp_path / "odd.mp4", clip)
  back, _ = video.read(tmp_path / "odd.mp4")
  assert back.shape == (12, 34, 48, 3) and psnr(back[:, :33, :47], clip) > 33


def write_levels(path, times, codec="libx264", fmt="mp4", tick=1000):
  """A grey clip with frames at irregular times in seconds, as bright as 20 + 10 x their number."""
  with av.open(str(path), "w", format=fmt) as container:
    stream = container.add_stream(codec, rate=30, options={"g": "4", "crf": "10"})
    stream.width = stream.height = 32
    stream.pix_fmt = "yuv420p"
    stream.codec_context.time_base = Fraction(1, tick)
    for n, time in enumerate(times):
      frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 20 + 10 * n, np.uint8), "rgb24")
      frame = frame.reformat(format="yuv420p")
      frame.pts, frame.time_base = round(time * tick), Fraction(1, tick)
      container.mux(stream.encode(frame))
    container.mux(stream.encode())


CODECS = [("mp4", "libx264"), ("webm", "libvpx-vp9"), ("avi", "mpeg4"), ("matroska", "libx264")]


@pytest.mark.parametrize("fmt, codec", CODECS)
def test_variable_frame_rates_are_read_by_timestamp(rng, tmp_path, fmt, codec):
  times = np.cumsum(rng.uniform(0.03, 0.25, 20))
  times -= times[0]
  write_levels(tmp_path / f"vfr.{fmt}", times, codec, fmt)
  for start, fps in ((0.0, 8.0), (0.77, 8.0), (1.3, 15.0), (0.0, 3.0)):
    frames, rate = video.read(tmp_path / f"vfr.{fmt}", start=start, fps=fps)
    assert rate == fps
    wanted = start + np.arange(len(frames)) / fps
    found = np.rint((frames.mean((1, 2, 3)) - 20) / 10).astype(int)
    # The frame shown then, or the next if it comes within half a frame of the average rate.
    ahead = times[found] - wanted
    assert (ahead <= 0.5 / video.probe(tmp_path / f"vfr.{fmt}").fps + 2e-3).all()
    following = np.append(times[1:], np.inf)[found]
    assert (following >= wanted - 2e-3).all()
    assert abs(wanted[-1] - times[-1]) < 0.25 + 1 / fps  # and reads to the end


def test_times_that_jump_for_hours_are_damage(tmp_path):
  write_levels(tmp_path / "jump.mp4", [0.0, 0.1, 0.2, 90_000.0])
  with pytest.raises(UserError, match="damaged"):
    video.read(tmp_path / "jump.mp4", fps=8.0)
  assert len(video.read(tmp_path / "jump.mp4", frames=2, fps=8.0)[0]) == 2


def test_reading_from_anywhere_is_the_same(rng, tmp_path):
  """Seeking to a keyframe and decoding forward gives the frames of the whole."""
  video.write(tmp_path / "long.mp4", np.concatenate([smooth(rng, 30) for _ in range(12)]), 25.0)
  whole, _ = video.read(tmp_path / "long.mp4")
  for first in rng.integers(0, 350, 6):
    part, _ = video.read(tmp_path / "long.mp4", frames=5, start=first / 25)
    assert (part == whole[first : first + 5]).all()


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_size_while_reading_is_close_to_resizing_after(rng, tmp_path, fit):
  video.write(tmp_path / "c.mp4", smooth(rng, height=96, width=128))
  whole, _ = video.read(tmp_path / "c.mp4")
  small, _ = video.read(tmp_path / "c.mp4", size=(40, 32), fit=fit)
  assert small.shape == (12, 40, 32, 3)
  assert psnr(small, video.resize(whole, 40, 32, fit)) > 30


def test_folder_of_frames(rng, tmp_path):
  clip = smooth(rng)
  for n, frame in enumerate(clip):
    Image.fromarray(frame).save(tmp_path / f"frame{n}.png")
  back, rate = video.read(tmp_path, fps=12)
  assert (back == clip).all() and rate == 12
  assert (video.read(tmp_path, frames=3, start=2 / 8)[0] == clip[2:5]).all()
  Image.fromarray(clip[0, :20]).save(tmp_path / "frame99.png")
  with pytest.raises(UserError, match="different sizes"):
    video.read(tmp_path)
  assert video.read(tmp_path, size=(16, 16))[0].shape == (13, 16, 16, 3)


def test_images_of_all_kinds(rng, tmp_path):
  grey16 = rng.integers(0, 65536, (20, 24), dtype=np.uint16)
  Image.fromarray(grey16).save(tmp_path / "deep.png")
  back = video.read(tmp_path / "deep.png")[0][0]
  assert np.abs(back[..., 0] - grey16 / 257.0).max() <= 1
  clear = np.zeros((20, 24, 4), np.uint8)
  Image.fromarray(clear).save(tmp_path / "clear.png")
  assert (video.read(tmp_path / "clear.png")[0] == 255).all()
  turned = Image.fromarray(smooth(rng, 1)[0])
  exif = turned.getexif()
  exif[0x0112] = 6  # rotated by a quarter turn
  turned.save(tmp_path / "turned.jpg", exif=exif)
  assert video.read(tmp_path / "turned.jpg")[0].shape == (1, 64, 48, 3)


def test_bad_requests_are_one_sentence(rng, tmp_path):
  clip = smooth(rng, 4)
  (tmp_path / "empty.mp4").touch()
  (tmp_path / "text.mp4").write_text("this is no video\n" * 50)
  (tmp_path / "void").mkdir()
  with av.open(str(tmp_path / "sound.mp4"), "w") as container:
    container.add_stream("aac", rate=16000)
  video.write(tmp_path / "ok.mp4", clip)
  for name in ("missing.mp4", "empty.mp4", "text.mp4", "void", "sound.mp4"):
    for action in (video.read, video.probe):
      with pytest.raises(UserError) as error:
        action(tmp_path / name)
      assert str(tmp_path / name) in str(error.value) and "\n" not in str(error.value)
  for bad in (dict(fps=0), dict(frames=0), dict(start=-1.0), dict(start=99.0), dict(fit="zoom")):
    with pytest.raises(UserError):
      video.read(tmp_path / "ok.mp4", **bad)
  for name, match in (("x.avi", ".avi"), ("no/x.mp4", "does not exist"), ("x", "extension")):
    with pytest.raises(UserError, match=match):
      video.write(tmp_path / name, clip)
  with pytest.raises(UserError):
    video.write(tmp_path / "x.mp4", clip[:0])
  with pytest.raises(UserError):
    video.write(tmp_path / "x.mp4", clip, fps=0.0)
  assert not list(tmp_path.glob("*x.mp4*")) + list(tmp_path.glob(".*"))


@pytest.mark.parametrize("suffix", [".mp4", ".gif", ".png"])
def test_failed_writes_leave_what_was_there(rng, tmp_path, monkeypatch, suffix):
  path = tmp_path / f"keep{suffix}"
  video.write(path, smooth(rng, 3))
  before = path.read_bytes()

  def fail(source, target):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr("os.replace", fail)
  with pytest.raises(UserError, match="No space left"):
    video.write(path, smooth(rng, 3))
  assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
  folder = tmp_path_factory.mktemp("originals")
  clip = smooth(np.random.default_rng(3), 10, 32, 32)
  video.write(folder / "a.mp4", clip)
  video.write(folder / "b.gif", clip)
  video.write(folder / "c.png", clip[:1])
  write_levels(folder / "d.webm", np.arange(10) / 8, "libvpx-vp9", "webm")
  write_levels(folder / "e.avi", np.arange(10) / 8, "mpeg4", "avi", tick=8)
  return {p.suffix: p.read_bytes() for p in sorted(folder.iterdir())}


@pytest.mark.parametrize("fraction", [0.1, 0.3, 0.6])
@pytest.mark.parametrize("suffix", [".mp4", ".png", ".gif", ".avi"])
def test_truncated_files_are_errors(originals, tmp_path, suffix, fraction):
  data = originals[suffix]
  (tmp_path / f"cut{suffix}").write_bytes(data[: int(fraction * len(data))])
  with pytest.raises(UserError):
    video.read(tmp_path / f"cut{suffix}")


@settings(max_examples=80,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(data=st.data())
def test_damaged_files_are_read_or_refused(originals, tmp_path, data):
  """Whatever the bytes: frames, or the one exception a user can cause."""
  suffix = data.draw(st.sampled_from(sorted(originals)))
  content = bytearray(originals[suffix])
  for _ in range(data.draw(st.integers(0, 8))):
    content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
  content = content[: data.draw(st.integers(0, len(content)))]
  path = tmp_path / f"hostile{suffix}"
  path.write_bytes(content)
  start = data.draw(st.sampled_from([None, 0.5]))
  try:
    frames, fps = video.read(path, 12, start, size=(16, 16))
  except UserError:
    return
  assert frames.shape[1:] == (16, 16, 3) and 1 <= len(frames) <= 12 and 0 < fps <= 1000


@pytest.mark.parametrize("suffix", [".mp4", ".gif", ".png"])
def test_pieces_make_the_same_file(rng, tmp_path, suffix):
  clip = smooth(rng, 7, height=31, width=33)
  whole, pieces, bad = (tmp_path / f"{name}{suffix}" for name in ("whole", "pieces", "bad"))
  video.write(whole, clip)
  video.write(pieces, iter([clip[:1], clip[1:5], clip[5:]]))
  assert whole.read_bytes() == pieces.read_bytes()
  for wrong in ([], [clip, clip[:, 1:]], [clip, clip / 255]):
    with pytest.raises(UserError):
      video.write(bad, iter(wrong))
  assert {path.name for path in tmp_path.iterdir()} == {whole.name, pieces.name}


def test_a_folder_that_is_read_only_is_noticed_first(tmp_path, monkeypatch):
  monkeypatch.setattr("os.access", lambda path, mode: False)
  with pytest.raises(UserError, match="cannot be written to"):
    video.check_output(tmp_path / "a.mp4")


def test_a_clip_that_memory_cannot_hold_is_no_damage(tmp_path, monkeypatch):
  path = tmp_path / "a.png"
  video.write(path, np.zeros((1, 16, 16, 3), np.uint8))

  def full(*args):
    raise MemoryError

  monkeypatch.setattr(video, "_collect", full)
  with pytest.raises(UserError, match="does not fit into memory: give fewer frames"):
    video.read(path)


def write_steady(path, fmt, last=0.125, sound=0.0, options=()):
  """Eight frames at 8 fps, the last of which stays for `last` seconds, and silence."""
  with av.open(str(path), "w", format=fmt, options=dict(options)) as container:
    stream = container.add_stream("libx264", rate=8, options={"bf": "0"})
    stream.width = stream.height = 32
    stream.pix_fmt = "yuv420p"
    stream.codec_context.time_base = Fraction(1, 1000)
    beeps = container.add_stream("aac", rate=48000) if sound else None
    for n in range(9):
      frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 30 * n, np.uint8), "rgb24")
      frame.pts, frame.time_base = 125 * n, Fraction(1, 1000)
      for packet in stream.encode(frame if n < 8 else None):
        packet.duration = round(1000 * last) if packet.pts == 875 else 125
        container.mux(packet)
    if beeps:
      silence = np.zeros((2, round(48000 * sound)), np.float32)
      frame = av.AudioFrame.from_ndarray(silence, format="fltp", layout="stereo")
      frame.rate = 48000
      for packet in (*beeps.encode(frame), *beeps.encode()):
        container.mux(packet)


@pytest.mark.parametrize("fmt", ["mp4", "matroska"])
def test_the_last_frame_stays_as_long_as_the_file_says(tmp_path, fmt):
  write_steady(tmp_path / "held", fmt, last=4.0)
  assert video.probe(tmp_path / "held").duration == pytest.approx(4.875)
  clip, _ = video.read(tmp_path / "held", fps=8.0)
  assert len(clip) == 39
  assert len(video.read(tmp_path / "held", start=3.0, frames=8, fps=8.0)[0]) == 8
  np.testing.assert_array_equal(clip[8:], np.broadcast_to(clip[7], clip[8:].shape))


def test_an_end_that_is_hours_away_is_none(tmp_path):
  write_steady(tmp_path / "held.mp4", "mp4", last=9000.0)
  assert len(video.read(tmp_path / "held.mp4", fps=8.0)[0]) >= 8
  assert len(video.read(tmp_path / "held.mp4", start=0.5, frames=4, fps=8.0)[0]) == 4


@pytest.mark.parametrize("options", [{}, {"live": "1"}])  # a live file says no length
def test_sound_that_goes_on_makes_no_pictures_longer(tmp_path, options):
  write_steady(tmp_path / "sound.mkv", "matroska", sound=6.0, options=options)
  info = video.probe(tmp_path / "sound.mkv")
  assert info.audio and info.duration == pytest.approx(1.0, abs=0.01) and info.frames == 8


@pytest.mark.parametrize(
  ("matrix", "shown"),
  [
    ((-1, 0, 0, 1), lambda x: x[:, :, ::-1]),
    ((1, 0, 0, -1), lambda x: x[:, ::-1]),
    ((-1, 0, 0, -1), lambda x: x[:, ::-1, ::-1]),
    ((0, 1, -1, 0), lambda x: np.rot90(x, -1, (1, 2))),
    ((0, 1, 1, 0), lambda x: x.transpose(0, 2, 1, 3)),
    ((0, -1, -1, 0), lambda x: x.transpose(0, 2, 1, 3)[:, ::-1, ::-1]),
  ],
)
def test_files_are_turned_and_mirrored_as_they_say(rng, tmp_path, matrix, shown):
  clip = rng.integers(0, 256, (2, 8, 8, 3), dtype=np.uint8).repeat(4, 1).repeat(4, 2)
  video.write(tmp_path / "plain.mp4", clip)
  content = (tmp_path / "plain.mp4").read_bytes()
  plain, _ = video.read(tmp_path / "plain.mp4")

  def packed(a, b, c, d):
    return struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)

  assert packed(1, 0, 0, 1) in content[content.index(b"tkhd") :]
  start, rest = content[: content.index(b"tkhd")], content[content.index(b"tkhd") :]
  rest = rest.replace(packed(1, 0, 0, 1), packed(*matrix), 1)
  (tmp_path / "turned.mp4").write_bytes(start + rest)
  np.testing.assert_array_equal(video.read(tmp_path / "turned.mp4")[0], shown(plain))
