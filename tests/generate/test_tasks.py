"""What is known stays and has seen nothing unknown; the command line does what the API does."""

import dataclasses
import json

import av
import numpy as np
import pytest
from PIL import Image
from tqdm import tqdm

from sora_jax.cli import main
from sora_jax.data import video as files
from sora_jax.diffusion.conditioning import latent_times
from sora_jax.generate import tasks
from sora_jax.generate.canvas import Canvas
from sora_jax.generate.complete import give
from sora_jax.generate.denoise import Denoiser, whole_patches
from sora_jax.generate.inputs import Inputs
from sora_jax.generate.story import Story


@pytest.fixture
def clip(rng):
  return rng.integers(0, 256, (9, 32, 32, 3), dtype=np.uint8)


def test_a_known_prefix_is_shown_exactly_as_decoded_whatever_the_solver(model, clip):
  canvas = tasks.extend(clip[:5], 4)
  plain = model.reconstruct(clip[None, :5])[0]
  window = give(canvas, 8.0, model.codec)
  made = []
  for sampler in ("euler", "heun", "dpm++", "unipc"):
    video = model.sample("a red ball", canvas=canvas, frames=9, sampler=sampler, steps=3)
    assert video.shape == (9, 32, 32, 3)
    np.testing.assert_array_equal(video[:5], plain)
    denoiser = Denoiser(
      model.dit, model.text, model.prompts, model.params, model.request(sampler=sampler, steps=3)
    )
    latents = denoiser(
      window, 0, stories=[Story.of("a red ball")], negative="", seed=0, samples=np.arange(1),
      bar=tqdm(disable=True),
    )  # fmt: skip
    np.testing.assert_array_equal(latents[:, window.known], window.latents[:, window.known])
    assert (np.asarray(latents)[:, ~window.known] != window.latents[:, ~window.known]).all()
    made.append(video[5:])
  assert all((made[0] != other).any() for other in made[1:])


def test_a_canvas_that_knows_everything_returns_the_reconstruction(model, clip):
  canvas = Canvas(clip[None, :6], np.ones((6, 32, 32), bool))
  np.testing.assert_array_equal(model.sample(canvas=canvas), model.reconstruct(clip[None, :6])[0])


@pytest.mark.parametrize("hidden", ["frames", "region"])
def test_nothing_known_has_seen_an_unknown_pixel(model, clip, rng, hidden):
  known = np.ones((9, 32, 32), bool)
  known[(slice(3, 6),) if hidden == "frames" else (slice(None), slice(8, 24), slice(5, 9))] = False
  other = np.where(known[..., None], clip, rng.integers(0, 256, clip.shape, dtype=np.uint8))
  one, two = (give(Canvas(x[None], known), 8.0, model.codec) for x in (clip, other))
  np.testing.assert_array_equal(one.known, two.known)
  assert one.known.any()
  np.testing.assert_array_equal(one.latents[:, one.known], two.latents[:, two.known])
  assert len(one.stretches[0]) == (5 if hidden == "frames" else 0)
  for a, b in zip(one.stretches[0], two.stretches[0], strict=True):
    np.testing.assert_array_equal(a.latents, b.latents)


def test_a_patch_is_known_or_it_is_not():
  known = np.ones((2, 3, 5), bool)
  known[0, 2, 4] = known[1, 0, 1] = False
  whole = whole_patches(known, (1, 2, 2))
  assert not whole[0, 2, 4] and not whole[1, :2, :2].any()
  assert whole.sum() == known.size - 1 - 4


def test_a_region_is_known_to_the_last_frame_of_any_length(model, clip):
  mask = np.zeros((32, 32), bool)
  mask[:16] = True
  for frames in (6, 8, 9):
    window = give(tasks.inpaint(clip[:frames], mask).part(0, 9), 8.0, model.codec)
    assert window.known[:, 2:].all() and not window.known[:, :2].any()
    assert not window.stretches[0]


def test_stretches_are_the_frames_encoded_alone_at_their_times(model, clip):
  window = give(tasks.fill(clip, [(1, 3)]), 4.0, model.codec)
  (stretch,) = window.stretches[0]
  np.testing.assert_array_equal(stretch.latents, model.encode(clip[None, 4:])[0])
  np.testing.assert_array_equal(stretch.times, latent_times(2, 4.0, 4))


def test_a_stretch_changes_what_is_made(model, clip):
  videos = [
    model.sample(canvas=tasks.extend(x, 4, "backward"), frames=9, steps=2)[:4]
    for x in (clip[:5], clip[4:])
  ]
  assert (videos[0] != videos[1]).any()


def test_known_frames_after_a_gap_are_shown_as_decoded_from_their_own_latents(model, clip):
  made = model.sample(canvas=tasks.fill(clip, [(1, 3)]), frames=9, steps=2)
  np.testing.assert_array_equal(made[:1], model.reconstruct(clip[None, :1])[0])
  np.testing.assert_array_equal(made[4:], model.reconstruct(clip[None, 4:])[0])


def test_a_loop_is_decoded_as_if_it_had_always_been_going_on(model, rng):
  latents = rng.normal(size=(1, 8, 4, 4, 4)).astype(np.float32)
  video = model.codec.decode(latents, loop=True).astype(int)
  assert video.shape == (1, 32, 32, 32, 3)
  rolled = model.codec.decode(np.roll(latents, 3, axis=1), loop=True)
  assert np.abs(np.roll(video, 12, axis=1) - rolled).max() <= 1


def test_a_loop_of_a_video_shows_it_once(model, clip):
  canvas = tasks.loop_of(clip[:5], 4)
  made = model.sample(canvas=canvas, steps=2)
  assert made.shape == (9, 32, 32, 3)
  np.testing.assert_array_equal(made[:5], model.reconstruct(clip[None, :5])[0])
  pasted = canvas.paste(made[None])[0]
  np.testing.assert_array_equal(pasted[:5], clip[:5])
  np.testing.assert_array_equal(pasted[5:], made[5:])


def test_a_story_is_followed_where_it_is_told(model):
  plain, same, other = (
    model.sample(story, frames=9, steps=2)
    for story in ("red", Story(("red", "red"), (0, 0.5)), Story(("red", "a ball"), (0, 0.5)))
  )
  np.testing.assert_array_equal(plain, same)
  assert (plain[5:] != other[5:]).any()


def test_long_canvases_are_made_window_by_window(model, clip):
  made = model.sample("a ball", canvas=tasks.extend(clip, 9), frames=9, steps=2)
  assert made.shape == (18, 32, 32, 3)
  np.testing.assert_array_equal(made[:9], model.reconstruct(clip[None])[0])
  first = model.sample("a ball", canvas=tasks.extend(clip, 8), frames=9, steps=2)
  np.testing.assert_array_equal(made[:17], first)  # the last window adds and changes nothing
  assert made[9:].std(axis=0).mean() > 1


def test_at_little_strength_a_video_stays_nearly_as_it_was(model, clip):
  plain = model.reconstruct(clip[None])[0].astype(int)
  far, near = (
    np.abs(model.sample(canvas=tasks.edit(clip, x), frames=9, steps=4).astype(int) - plain).mean()
    for x in (1 - 1e-6, 1e-3)
  )
  assert near < 0.1 * far


def test_guidance_acts_where_an_edit_starts(model, clip):
  """An interval of the highest levels is one of those that the edit passes through."""
  settings = dict(canvas=tasks.edit(clip, 0.55), frames=9, steps=4)
  made = {}
  for interval in ([0.9, 1.0], [0.0, 0.1]):  # its first level, and none of its levels
    sampling = {**model.config["sampling"], "guidance_interval": interval}
    narrow = dataclasses.replace(model, config={**model.config, "sampling": sampling})
    made[interval[0]] = narrow.sample("red", **settings)
  assert (made[0.9] != made[0.0]).any()
  np.testing.assert_array_equal(made[0.0], model.sample("red", guidance=1.0, **settings))


def test_each_prompt_of_a_batch_has_its_own_clip_or_all_the_same(model, clip):
  first, second = tasks.extend(clip[:5], 4), tasks.extend(clip[4:], 4)
  both = Canvas(np.concatenate([first.video, second.video]), first.known)
  made = model.sample(["a ball", "red"], canvas=both, frames=9, steps=2)
  alone = model.sample(["a ball"], canvas=first, frames=9, steps=2)
  apart = lambda a, b: np.abs(a.astype(int) - b).max()  # noqa: E731
  assert apart(made[0], alone[0]) <= 1  # the float error of another matrix shape
  assert apart(made[1, :5], model.reconstruct(clip[None, 4:])[0]) <= 1


@pytest.fixture
def call(folder, tmp_path):
  def call(*args):
    flags = f"--checkpoint {folder} --steps 2 --out {tmp_path / 'out.png'}".split()
    return main.main(["sample", *map(str, args), *flags])

  return call


@pytest.mark.slow
def test_every_task_runs_from_files(call, clip, tmp_path, capsys):
  a, b, mask = (tmp_path / name for name in ("a.gif", "b.gif", "mask.png"))
  files.write(a, clip)
  files.write(b, clip[::-1])
  files.write(mask, np.where(np.arange(32)[:, None, None] < 16, 255, 0).astype(np.uint8)
              * np.ones((1, 32, 32, 3), np.uint8))  # fmt: skip
  torn, story = tmp_path / "torn.gif", tmp_path / "story.json"
  still = np.repeat(clip[:1], 9, axis=0)
  still[4:6], still[7, 20:26] = 0, 255
  files.write(torn, still)
  story.write_text('[{"start": 0, "prompt": "red"}, {"start": 0.5, "prompt": "a ball"}]')
  for line, frames, size in (
    (f"--task animate --image {a} --frames 9", 9, 32),
    (f"--task extend --video {a} --frames 3 --direction both --paste", 15, 32),
    (f"--task connect --video {a} --video {b} --frames 2", 20, 32),
    (f"--task fill --video {a} --missing 2-3,7", 9, 32),
    (f"--task inpaint --video {a} --mask {mask}", 9, 32),
    (f"--task outpaint --video {a} --size 48x48", 9, 48),
    (f"red --task edit --video {a} --strength 0.5 --mask {mask}", 9, 32),
    (f"--task variations --video {a} --size 16x16", 9, 16),
    (f"--task blend --video {a} --video {b}", 9, 32),
    ("red --task loop --size 16x32 --frames 8", 8, (16, 32)),
    (f"--task loop --video {a} --frames 3", 12, 32),
    (f"--task storyboard --storyboard {story} --frames 9", 9, 32),
    (f"--task fill --video {torn}", 9, 32),
  ):
    assert call(*line.split(), "--json") == 0
    said = capsys.readouterr()
    height, width = (size, size) if isinstance(size, int) else size
    assert f'"frames": {frames}, "size": [{height}, {width}]' in said.out
    assert ("resized from 32x32 to 16x16" in said.err) == ("--size 16x16" in line)
    assert ("damaged: frames 4-5; bands in 1 others" in said.err) == (str(torn) in line)


def test_paste_puts_the_given_pixels_back_and_no_others(call, clip, tmp_path, monkeypatch):
  files.write(tmp_path / "a.gif", clip)
  given, _ = files.read(tmp_path / "a.gif")
  written = []
  monkeypatch.setattr(files, "write", lambda path, video, fps: written.append(video))
  for flags in ((), ("--paste",)):
    assert call("--task", "extend", "--video", tmp_path / "a.gif", "--frames", 4, *flags) == 0
  plain, pasted = written
  np.testing.assert_array_equal(pasted[:9], given)
  assert (plain[:9] != given).any()
  np.testing.assert_array_equal(pasted[9:], plain[9:])


def test_a_large_film_is_decoded_small_and_its_sound_left_out(tmp_path, capsys, monkeypatch):
  film = tmp_path / "film.mp4"
  with av.open(str(film), "w") as container:
    picture = container.add_stream("libx264", rate=8)
    picture.width, picture.height, picture.pix_fmt = 512, 256, "yuv420p"
    sound = container.add_stream("aac", rate=16_000)
    silence = av.AudioFrame.from_ndarray(np.zeros((1, 16_000), np.float32), "fltp", "mono")
    silence.sample_rate = 16_000
    container.mux(sound.encode(silence))
    for _ in range(9):
      grey = np.full((256, 512, 3), 90, np.uint8)
      container.mux(picture.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
    container.mux(picture.encode(None))
    container.mux(sound.encode(None))
  held = []
  collect = files._collect

  def watched(path, frames, pixels, size, fit):
    return collect(path, frames, lambda f: held.append(pixels(f).nbytes) or pixels(f), size, fit)

  monkeypatch.setattr(files, "_collect", watched)
  inputs = Inputs(videos=[str(film)], frames=4)
  canvas, fps = inputs.canvas("extend", step=16, frames=17, size=(64, 64), fps=8.0)
  said = capsys.readouterr().err
  assert canvas.video.shape == (1, 13, 48, 96, 3) and fps == 8
  assert "resized from 256x512 to 48x96 (crop)" in said and "sound of" in said
  assert max(held) < 2 * 48 * 96 * 3


@pytest.mark.parametrize(
  ("line", "message"),
  [
    ("--task fly", "choose one of generate, animate"),
    ("--task animate", "needs --image"),
    ("--task fill --video {a}", "shows no damage"),
    ("--task loop", "prompt is empty"),
    ("red --task loop --frames -4", "at least one frame"),
    ("--task blend --video {a} --video {a} --paste", "no pixel stays"),
    ("red --task loop --frames 10", "4k frames, not 10; use 8"),
    ("--task storyboard", "needs --storyboard"),
    ("--task storyboard --storyboard {a}", "is no storyboard: write it as"),
    ("--task storyboard --storyboard {story} --frames 9", "begins at 9 s would not be followed"),
    ("--task storyboard --storyboard {again} --frames 9", "begins at 9 s would not be followed"),
    ("red --task storyboard --storyboard {story}", "leave PROMPT out"),
    ("--task blend --video {a}", "needs two --video"),
    ("--task connect --video a.gif", "needs two --video"),
    ("--task extend --video a.gif --video b.gif", "needs one --video"),
    ("--task extend --video a.gif --image b.png", "cannot use --image"),
    ("--task extend --video a.gif --direction up", "choose one of forward"),
    ("--task fill --video {a} --missing 2 --frames 9", "cannot use --frames"),
    ("red --task edit --video a.gif --strength 1", "between 0 and 1"),
    ("red --task generate --paste", "cannot use --paste"),
    ("--task inpaint --video {a} --mask {a}", "moves: give a still image"),
    ("--task outpaint --video {a} --size 40x48", "use 48x48"),
    ("--task outpaint --video {a} --size 16x48", "must hold the video's 32x32"),
    ("red --fps 2000", "must be at most 1000"),
    ("--task animate --image {small} --frames 1", "2 frames or more, not 1"),
    ("--task fill --video {a} --missing 3-x", "'3-x' in --missing is no frame"),
    ("--task fill --video {a} --missing 7-12", "7-12 are not in 0-8"),
    ("--task inpaint --video {a} --mask {small}", "mask is 16x16 but the video is 32x32"),
    ("--task inpaint --video {a} --mask {white}", "white everywhere"),
    ("--task outpaint --video {a} --size 48x48 --fit pad", "cannot use --fit"),
    ("red --task generate --fit pad", "cannot use --fit"),
    ("red --frames 1000000001", "too many to hold in memory: 2796202 can be, all together"),
    ("--task extend --video {a} --frames 1000000000", "too many to hold in memory"),
    ("--task extend --video {a} --guidance 0.5", "at least 1"),
    ("--task edit --video {a}", "prompt is empty"),
    ("--task extend --video nowhere.mp4", "nowhere.mp4"),
  ],
)
def test_what_cannot_be_done_is_one_sentence(call, clip, tmp_path, capsys, line, message):
  names = ("a.gif", "small.png", "white.png", "story.json", "again.json")
  a, small, white, story, again = (tmp_path / name for name in names)
  files.write(a, clip)
  files.write(small, clip[:1, :16, :16])
  Image.new("RGBA", (32, 32), (0, 0, 0, 0)).save(white)
  story.write_text('[{"start": 0, "prompt": "red"}, {"start": 9, "prompt": "a ball"}]')
  scenes = [{"start": start, "prompt": text} for start, text in ((0, "a"), (0.5, "b"), (9, "a"))]
  again.write_text(json.dumps(scenes))
  line = line.format(a=a, small=small, white=white, story=story, again=again)
  assert call(*line.split()) == 2
  said = capsys.readouterr().err
  assert message in said and said.count("\n") <= 2


def test_what_is_done_to_the_second_video_is_said(tmp_path, rng, capsys):
  first, second = tmp_path / "a.gif", tmp_path / "b.gif"
  files.write(first, rng.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8), fps=10)
  files.write(second, rng.integers(0, 256, (8, 48, 64, 3), dtype=np.uint8), fps=20)
  inputs = Inputs(videos=[str(first), str(second)], frames=4)
  inputs.canvas("connect", step=16, frames=17, size=(32, 32), fps=8.0)
  said = capsys.readouterr().err
  assert f"{second} is resized from 48x64 to 32x32 (crop)" in said
  assert f"{second} is resampled from 20 to 10 frames a second" in said
  assert str(first) not in said


@pytest.mark.parametrize(
  "line", ["--task extend --video {a}", "--task outpaint --video {a} --size 48x48"]
)
def test_what_memory_cannot_hold_is_not_decoded(call, clip, tmp_path, capsys, monkeypatch, line):
  a = tmp_path / "a.gif"
  files.write(a, clip)
  monkeypatch.setattr(files, "MAX_BYTES", clip.nbytes - 1)
  monkeypatch.setattr(files, "read", lambda *args, **kwargs: pytest.fail("it was decoded"))
  assert call(*line.format(a=a).split()) == 2
  assert "too much to hold in memory at 32x32" in capsys.readouterr().err
