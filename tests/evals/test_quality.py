"""The quality suite on models whose worth is known, on folders, and on folders that are no good."""

import collections
import json
import re

import cheap
import numpy as np
import pytest
from cheap import Blind

from sora_jax import config as config_lib
from sora_jax.cli import main
from sora_jax.data import encode, video
from sora_jax.errors import UserError
from sora_jax.evals import exhibit, quality, reference, suites
from sora_jax.generate import load as loader
from sora_jax.worlds import WorldSource

COUNT = exhibit.LEAST


class Perfect:
  """Renders what the prompt describes; reconstructs without loss."""

  config = {
    "training": {
      "seed": 0,
      "data": {
        "sources": {"worlds": {"weight": 1.0, "count": exhibit.LEAST, "seed": 1}},
        "clips": 2 * exhibit.LEAST, "frames": 17, "size": [64, 64], "fps": 8.0,
      },
    }
  }  # fmt: skip

  def sample(self, prompts, *, seed, frames, size, progress):
    source = WorldSource(len(prompts), suites.SEED + seed, "validation")
    found = {source.caption(i): i for i in range(len(source))}
    return np.stack([source[found[prompt]]["video"] for prompt in prompts])

  def reconstruct(self, clips):
    return clips.copy()


class Parrot(Perfect):
  """Clips of training, whatever is asked for; it has no autoencoder."""

  reconstruct = None

  def sample(self, prompts, *, seed, frames, size, progress):
    source = WorldSource(len(prompts), 1, "train")
    return np.stack([source[i]["video"] for i in range(len(prompts))])


class Painter:
  """Images of classes: a frame of a world that shows nothing else."""

  classes = ("red ball", "blue cube", "green cone")

  def sample(self, classes, *, seed, progress):
    clips = [exhibit._SingleObjects(WorldSource(200, 5, frames=1), len(classes))][0]
    return np.stack([clips[i]["video"][0] for i in range(len(classes))])


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
  cheap.install(monkeypatch, tmp_path / "cache")
  monkeypatch.setattr(reference, "TIMES", 2)
  monkeypatch.setattr(exhibit, "SEARCHED", 2)


def _eval(monkeypatch, model, *args) -> int:
  monkeypatch.setattr(loader, "load", lambda name: model)
  return main.main(["eval", "--suite=quality", *map(str, args)])


def _metrics(folder):
  return json.loads((folder / "metrics.json").read_text())["metrics"]


def test_a_perfect_a_blind_and_a_copying_model(monkeypatch, tmp_path, capsys):
  found = {}
  monkeypatch.setattr(Blind, "config", Perfect.config)
  for model in (Perfect(), Blind(), Parrot()):
    out = tmp_path / type(model).__name__
    assert _eval(monkeypatch, model, "--count", COUNT, "--out", out) == 0
    found[type(model)] = _metrics(out)
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert [row["index"] for row in rows] == 2 * list(range(COUNT))
    assert {"warp error", "taken for real", "nearest training clip, motion"} <= rows[0].keys()
  assert "fewer than the 400 features" in capsys.readouterr().err
  perfect, blind, parrot = found[Perfect], found[Blind], found[Parrot]
  for kind, name in (("video", "FVD"), ("image", "Frechet")):
    distance = f"{kind} distance"
    for measure in (name, "kernel"):
      samples, floor = (f"{measure} {x}" for x in ("samples", "floor (real)"))
      assert blind[distance][samples]["mean"] > 1.5 * abs(perfect[distance][samples]["mean"])
      assert perfect[distance][floor] == blind[distance][floor]
    remade, floor = (f"{name} {x}" for x in ("reconstructions", "floor (real)"))
    assert perfect[distance][remade]["mean"] == pytest.approx(perfect[distance][floor]["mean"])
    assert blind[distance][remade]["mean"] > 1.5 * perfect[distance][remade]["mean"]
  assert blind["classifier"]["accuracy"]["mean"] == 1 > perfect["classifier"]["accuracy"]["mean"]
  assert perfect["reconstruction"]["psnr"]["mean"] == 100 > blind["reconstruction"]["psnr"]["mean"]
  for sign in quality.SIGNS:
    assert 2 > perfect[sign]["ratio"]["mean"] > 0.4
    if sign != "flicker":
      assert blind[sign]["ratio"]["mean"] > 2
  assert blind["flicker"]["samples"]["n"] == 0  # in noise nothing is static
  copies = {model: x["memorisation"]["content"]["copies"]["mean"] for model, x in found.items()}
  assert copies[Parrot] == 1 > copies[Perfect] and copies[Blind] == 0
  assert parrot["memorisation"]["content"]["ratio"]["mean"] == 0
  assert perfect["adherence"]["all"]["mean"] > 0.5 > parrot["adherence"]["all"]["mean"]


def test_a_folder_is_judged_as_the_model_that_made_it(monkeypatch, tmp_path):
  model, source = Perfect(), WorldSource(COUNT, suites.SEED, "validation")
  prompts = [source.caption(i) for i in range(COUNT)]
  clips = model.sample(prompts, seed=0, frames=17, size=(64, 64), progress=False)
  folder = tmp_path / "clips"
  folder.mkdir()
  for index, (clip, prompt) in enumerate(zip(clips, prompts, strict=True)):
    video.write(folder / f"{index}.mp4", clip, 8.0, crf=0)
    (folder / f"{index}.txt").write_text(prompt)
  assert _eval(monkeypatch, None, "--videos", folder, "--out", tmp_path / "a") == 0
  assert _eval(monkeypatch, model, "--count", COUNT, "--out", tmp_path / "b") == 0
  files, samples = _metrics(tmp_path / "a"), _metrics(tmp_path / "b")
  assert "reconstruction" in samples and "reconstruction" not in files
  right = [x["adherence"]["all"]["mean"] for x in (files, samples)]
  assert min(right) >= 0.6 and abs(right[0] - right[1]) <= 0.2  # a file is not lossless
  for name in ("image distance/Frechet samples", "sharpness/ratio"):
    kind, number = name.split("/")
    found, expected = (x[kind][number]["mean"] for x in (files, samples))
    assert found == pytest.approx(expected, rel=0.1)

  (folder / "0.txt").unlink()
  found = quality.run(lambda: None, None, 0, folder)
  assert "adherence" not in found.metrics

  real = tmp_path / "real"
  real.mkdir()
  for index in range(2 * COUNT):
    video.write(real / f"{index}.mp4", clips[index % COUNT], 8.0)
  found = quality.run(lambda: None, None, 0, folder, real)
  assert "memorisation" not in found.metrics and "classifier" in found.metrics
  with pytest.raises(UserError, match=f"{2 * COUNT} clips, but {4 * COUNT} are needed"):
    quality.run(lambda: None, None, 0, real, real)


def test_images_of_classes(monkeypatch, tmp_path):
  assert _eval(monkeypatch, Painter(), "--count", COUNT, "--out", tmp_path / "a") == 0
  found = _metrics(tmp_path / "a")
  assert "image distance" in found and "video distance" not in found
  assert found["adherence"].keys() == {"colour", "shape", "all"}
  assert "memorisation" not in found and "warp error" not in found


def test_real_images_are_of_the_classes_of_the_samples():
  shown = exhibit.of_classes(Painter(), 10, 3)
  assert sorted(shown.prompts[:3]) == sorted(Painter.classes)
  assert shown.prompts != exhibit.of_classes(Painter(), 10, 4).prompts
  real = exhibit.real_worlds(shown, 0)
  asked = collections.Counter((x["colour"], x["shape"]) for x in shown.asked)
  for source, times in ((real.heldout, 1), (real.reference, reference.TIMES)):
    labels = [source.source.spec(i).labels for i in source.indices]
    assert all(x["count"] == 1 for x in labels)
    found = collections.Counter((x["colour"], x["shape"]) for x in labels)
    assert found == {kind: times * n for kind, n in asked.items()}

  Unknown = type("Unknown", (Painter,), {"classes": ("cat", "dog")})
  with pytest.raises(UserError, match="--real DIR"):
    quality.run(Unknown, COUNT, 0)


def test_numbers_do_not_depend_on_the_batches(tmp_path):
  source = WorldSource(COUNT, suites.SEED, "validation")
  clips = np.stack([source[i]["video"] for i in range(COUNT)])
  measure = quality.Measure()
  whole = measure.all([clips])
  for cuts in ([1, 4], [7]):
    parts = measure.all(np.split(clips, cuts))
    for kind, rows in whole.items():
      np.testing.assert_allclose(parts[kind], rows, rtol=1e-4, atol=1e-5, err_msg=kind)


def test_training_clips_are_those_that_were_encoded(monkeypatch):
  worlds = dict(weight=1.0, count=30, seed=4)
  shape = dict(share=1.0, clips=11, frames=17, size=[64, 64], fps=8.0, loop=False)
  data = dict(sources=dict(worlds=worlds), shapes=dict(square=shape))
  config = {"training": {"seed": 3, "data": data}}
  settings = {key: x for key, x in shape.items() if key != "share"}
  settings |= dict(sources=data["sources"], size=(64, 64), seed=3)
  batches = encode.windows(settings, 4)
  seen = np.concatenate([next(batches)["video"] for _ in range(3)])
  for limit, total in ((100, 11), (6, 6)):
    clips, count = exhibit.training(config, 17, 64, 64, limit)
    assert count == total
    np.testing.assert_array_equal(np.concatenate(list(clips)), seen[:total])
  assert exhibit.training(config, 17, 32, 32, 3) is None  # no such shape
  assert exhibit.training({}, 17, 64, 64, 3) is None
  stills = config_lib.load("configs/dit_toy.py").to_dict()  # one number is its size
  assert exhibit.training({"training": stills}, 1, 64, 64, 3) is None
  flat = {"training": {"seed": 3, "data": {**settings, "seed": 8, "cache": "elsewhere"}}}
  clips, count = exhibit.training(flat, 17, 64, 64, 6)  # as `data.codes` encodes them
  del settings["loop"]
  windows = encode.windows(settings, 4)
  assert count == 6
  np.testing.assert_array_equal(next(clips)[:4], next(windows)["video"])


def test_training_clips_that_are_not_here_are_left_out(capsys):
  shape = dict(share=1.0, clips=11, frames=17, size=[64, 64], fps=8.0, loop=False)
  data = dict(sources=dict(folder=dict(weight=1.0, path="nowhere")), shapes=dict(square=shape))
  clips = exhibit.Stack(np.zeros((10, 17, 64, 64, 3), np.uint8))
  shown = exhibit.Exhibit(clips, 17, 64, 64)
  real = exhibit.real_worlds(shown, 0, {"training": {"seed": 3, "data": data}})
  assert real.training is None
  assert "nowhere is not a folder" in capsys.readouterr().err


def _folder(path, shapes, fps=8.0):
  path.mkdir()
  rng = np.random.default_rng(0)
  for index, shape in enumerate(shapes):
    clip = rng.integers(0, 256, size=(*shape, 3), dtype=np.uint8)
    video.write(path / f"{index:02}.mp4", clip, fps)
  return path


USUAL = (17, 32, 32)


@pytest.mark.parametrize(
  ("shapes", "spoil", "message"),
  [
    ([USUAL] * 3, None, r"holds 3 videos, but at least 10 are needed"),
    ([USUAL] * 9 + [(17, 32, 48)], None, r"09.mp4 is 32x48 and 00.mp4 is 32x32"),
    ([USUAL] * 9 + [(9, 32, 32)], None, r"09.mp4 has 9 frames, but at least 16 are needed"),
    ([USUAL] * 10, b"not a video", r"04.mp4 cannot be read"),
    ([USUAL] * 10, b"", r"04.mp4 is empty"),
    ([(17, 12, 32)] * 10, None, r"12x32, but at least 16 pixels"),
  ],
)
def test_bad_folders_are_one_sentence(monkeypatch, tmp_path, capsys, shapes, spoil, message):
  folder = _folder(tmp_path / "clips", shapes)
  if spoil is not None:
    (folder / "04.mp4").write_bytes(spoil)
  assert _eval(monkeypatch, None, "--videos", folder, "--out", tmp_path / "out") == 2
  error = capsys.readouterr().err
  assert re.search(message, error) and "Traceback" not in error
  assert not list((tmp_path / "out").iterdir())


def test_clips_of_two_rates_or_judged_by_themselves_are_refused(tmp_path):
  folder = _folder(tmp_path / "clips", [USUAL] * 20)
  judged = exhibit.of_folder(folder, 10)
  with pytest.raises(UserError, match="00.mp4 is to be judged and to be compared with"):
    exhibit.real_files(judged, folder)
  other = _folder(tmp_path / "other", [USUAL] * 20, 24.0)
  with pytest.raises(UserError, match="have 24 frames a second, those to judge 8"):
    exhibit.real_files(judged, other)
  video.write(folder / "03.mp4", video.read(folder / "03.mp4")[0], 24.0)
  with pytest.raises(UserError, match="03.mp4 has 24 frames a second and 00.mp4 8"):
    exhibit.of_folder(folder)


def test_a_still_is_not_asked_how_it_moves(tmp_path, rng):
  for index in range(10):
    frame = rng.integers(0, 256, size=(1, 32, 32, 3), dtype=np.uint8)
    video.write(tmp_path / f"{index}.png", frame)
    (tmp_path / f"{index}.txt").write_text("a red ball rolls to the left")
  assert exhibit.of_folder(tmp_path).asked[0] == {"colour": "red", "shape": "ball"}


@pytest.mark.parametrize(
  ("args", "message"),
  [
    (["--count", "9"], "at least 10 clips"),
    (["--videos", "nowhere"], "nowhere is not a folder"),
    (["--fvd", "4"], "--fvd belongs"),
  ],
)
def test_bad_arguments_are_one_sentence(monkeypatch, tmp_path, capsys, args, message):
  assert _eval(monkeypatch, Perfect(), *args, "--out", tmp_path / "out") == 2
  assert message in capsys.readouterr().err
