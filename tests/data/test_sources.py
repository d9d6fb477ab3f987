"""Folders, lists and TFDS data sources, whole and broken."""

import json
import sys

import numpy as np
import pytest
from PIL import Image

from sora_jax.data import sources, video
from sora_jax.errors import UserError


def clip(rng, frames=12, height=32, width=48):
  small = rng.integers(60, 200, (3, 4, 3), dtype=np.uint8)
  image = np.asarray(Image.fromarray(small).resize((width + frames, height)))
  return np.stack([image[:, t : t + width] for t in range(frames)])


@pytest.fixture
def folder(rng, tmp_path):
  (tmp_path / "deep" / "er").mkdir(parents=True)
  for name, fps in (("a.mp4", 8.0), ("deep/b.MP4", 25.0), ("deep/er/c.gif", 10.0)):
    video.write((tmp_path / name), clip(rng), fps)
    (tmp_path / name).with_suffix(".txt").write_text(f" the caption\nof {name} ü ", "utf-8")
  video.write(tmp_path / "d.png", clip(rng)[:1])
  (tmp_path / "d.txt").write_text("a still")
  (tmp_path / ".hidden.mp4").write_text("not looked at")
  (tmp_path / "deep" / ".trash" / "er").mkdir(parents=True)
  (tmp_path / "deep" / ".trash" / "er" / "e.mp4").write_text("not looked at either")
  (tmp_path / "README.md").write_text("nor is this")
  return tmp_path


def test_folder_finds_videos_and_captions(folder):
  source = sources.FolderSource(folder)
  ids = [source[i]["id"] for i in range(len(source))]
  assert ids == ["a.mp4", "d.png", "deep/b.MP4", "deep/er/c.gif"]
  assert source[0]["caption"] == "the caption of a.mp4 ü" and source[1]["caption"] == "a still"
  assert [len(source[i]["video"]) for i in range(4)] == [12, 1, 12, 12]
  assert source[2]["fps"] == 25.0
  (folder / "deep" / "b.txt").unlink()
  bare = sources.FolderSource(folder, captions=False)
  assert len(bare) == 4 and bare[0]["caption"] == ""


def test_windows_of_files_have_the_asked_length_rate_and_size(folder):
  source = sources.FolderSource(folder)
  for index, most in ((0, 12), (2, 4), (3, 10)):
    for seed in range(4):
      rng = np.random.default_rng(seed)
      part = source.clip(index, rng, frames=3, fps=8.0, size=(16, 16))
      assert part["video"].shape == (3, 16, 16, 3) and part["fps"] == 8.0
    with pytest.raises(UserError, match="too short"):
      source.clip(index, rng, frames=most + 2, fps=8.0)
    held = source.clip(index, rng, frames=most + 2, fps=8.0, short="repeat")["video"]
    assert len(held) == most + 2 and (held[-1] == held[-2]).all()
  one = source.clip(1, rng, frames=1)["video"]
  assert one.shape == (1, 32, 48, 3)
  with pytest.raises(UserError, match="too short"):
    source.clip(1, rng, frames=5)


def test_windows_are_random_and_repeatable(folder):
  source = sources.FolderSource(folder)
  whole, _ = video.read(folder / "a.mp4")
  firsts = set()
  for seed in range(25):
    a, b = (source.clip(0, np.random.default_rng(seed), frames=9)["video"] for _ in range(2))
    assert (a == b).all()
    match = [n for n in range(4) if (whole[n : n + 9] == a).all()]
    assert len(match) == 1
    firsts.add(match[0])
  assert firsts == {0, 1, 2, 3}


@pytest.mark.parametrize("case, words", [
  ("nowhere", "not a folder"), ("unnamed", "folder.path"), ("empty", "holds no videos"),
  ("no caption", "have no caption"),
  ("orphan", "have no video"), ("blank", "is empty"), ("binary", "UTF-8"),
])  # fmt: skip
def test_folders_that_do_not_fit_are_refused(folder, case, words):
  path = folder
  if case == "nowhere":
    path = folder / "nowhere"
  elif case == "unnamed":
    path = ""
  elif case == "empty":
    path = folder / "void"
    path.mkdir()
  elif case == "no caption":
    (folder / "a.txt").unlink()
  elif case == "orphan":
    (folder / "lost.txt").write_text("a caption without a video")
  elif case == "blank":
    (folder / "a.txt").write_text(" \n")
  else:
    (folder / "a.txt").write_bytes(b"\xff\xfe\x00")
  with pytest.raises(UserError, match=words) as error:
    sources.FolderSource(path)
  assert "\n" not in str(error.value)


def manifest(folder, entries, suffix):
  path = folder / f"list{suffix}"
  if suffix == ".jsonl":
    path.write_text("\n".join(map(json.dumps, entries)) + "\n\n")
  else:
    columns = list(entries[0])
    lines = [",".join(columns)]
    lines += [",".join(f'"{e[c]}"' if e.get(c) is not None else "" for c in columns)
              for e in entries]  # fmt: skip
    path.write_text("\ufeff" + "\n".join(lines), "utf-8")
  return path


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_manifest_cuts_stretches(folder, capsys, suffix):
  entries = [
    {"path": "a.mp4", "caption": "whole, with comma", "start": None, "end": None},
    {"path": "deep/b.MP4", "caption": "middle", "start": 0.08, "end": 0.32},
    {"path": "gone.mp4", "caption": "missing", "start": None, "end": None},
  ]
  source = sources.ManifestSource(manifest(folder, entries, suffix))
  assert len(source) == 2 and capsys.readouterr().err.count("gone.mp4") == 1
  assert source[0]["caption"] == "whole, with comma" and len(source[0]["video"]) == 12
  whole, _ = video.read(folder / "deep" / "b.MP4")
  assert (source[1]["video"] == whole[2:8]).all()
  for seed in range(9):
    part = source.clip(1, np.random.default_rng(seed), frames=4)["video"]
    assert any((part == whole[n : n + 4]).all() for n in (2, 3, 4))


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
@pytest.mark.parametrize("change, words", [
  ({"caption": ""}, "no caption"), ({"path": ""}, "no path"), ({"path": "x.mp4"}, "none of its"),
  ({"start": 2, "end": 1}, "start before end"), ({"start": "soon"}, "not seconds"),
  ({"start": "nan"}, "not seconds"), ({"end": float("inf")}, "not seconds"),
  ({"end": 10**400}, "not seconds"), ({"start": float("inf"), "end": None}, "not seconds"),
])  # fmt: skip
def test_manifests_that_do_not_fit_are_refused(folder, suffix, change, words):
  entry = {"path": "a.mp4", "caption": "c", "start": 0, "end": 1} | change
  with pytest.raises(UserError, match=words) as error:
    sources.ManifestSource(manifest(folder, [entry], suffix))
  assert "\n" not in str(error.value)


def test_files_that_are_no_manifest(folder):
  (folder / "broken.jsonl").write_text('{"path": "a.mp4"')
  (folder / "list.jsonl").write_text('["a.mp4"]')
  (folder / "bytes.csv").write_bytes(b"path,caption\n\xff\xfe,\x00")
  (folder / "head.csv").write_text("path,caption\n")
  for name in ("broken.jsonl", "list.jsonl", "bytes.csv", "head.csv", "none.csv", "a.mp4"):
    with pytest.raises(UserError):
      sources.ManifestSource(folder / name)


def tfds_examples(rng, count=5):
  return [
    {"clip": rng.integers(0, 256, (4 + n % 2, 16, 16, 3), dtype=np.uint8),
     "text": f"caption {n} ü".encode(), "label": np.int64(n)}
    for n in range(count)
  ]  # fmt: skip


def test_tfds_features_are_found_or_named(rng):
  examples = tfds_examples(rng)
  source = sources.TFDSSource(examples, fps=12.0)
  assert len(source) == 5 and source[3]["caption"] == "caption 3 ü" and source[3]["fps"] == 12.0
  assert (source[3]["video"] == examples[3]["clip"]).all()
  named = sources.TFDSSource(examples, video="clip", caption=lambda e: f"digit {e['label']}")
  assert named[2]["caption"] == "digit 2"
  grey = [{"image": e["clip"][0, :, :, :1], "caption": "grey"} for e in examples]
  found = sources.TFDSSource(grey)[0]["video"]
  assert found.shape == (1, 16, 16, 3) and (found == grey[0]["image"]).all()
  two = [e | {"other": e["text"]} for e in examples]
  with pytest.raises(UserError, match="caption="):
    sources.TFDSSource(two)
  with pytest.raises(UserError, match="no feature 'txt'"):
    sources.TFDSSource(examples, caption="txt")
  with pytest.raises(UserError, match="empty"):
    sources.TFDSSource([])


def test_tfds_data_sets_without_tensorflow(rng, tmp_path):
  """A data set prepared by TFDS itself, as ArrayRecord, is read by its builder's data source."""
  import tensorflow_datasets as tfds

  examples = tfds_examples(rng)

  class Clips(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
      features = {
        "clip": tfds.features.Tensor(shape=(None, 16, 16, 3), dtype=np.uint8),
        "text": tfds.features.Text(),
        "label": tfds.features.Scalar(np.int64),
      }
      features = tfds.features.FeaturesDict(features)
      return tfds.core.DatasetInfo(builder=self, features=features, description="clips")

    def _split_generators(self, dl_manager):
      return {"train": enumerate(examples)}

    def _generate_examples(self):
      yield from ()

  builder = Clips(data_dir=tmp_path, file_format="array_record")
  builder.download_and_prepare()
  source = sources.TFDSSource(builder.as_data_source("train"))
  by_caption = {s["caption"]: s for s in map(source.__getitem__, range(5))}
  for e in examples:
    assert (by_caption[e["text"].decode()]["video"] == e["clip"]).all()
  (known,) = source.identity()
  assert "1.0.0" in known and "shardLengths" in known
  with pytest.raises(UserError, match="moving_nothing"):
    sources.TFDSSource("moving_nothing", data_dir=str(tmp_path))
  assert "tensorflow" not in sys.modules


def test_manifests_may_say_anything(tmp_path):
  deep = tmp_path / "deep.jsonl"
  deep.write_text("[" * 100_000)
  with pytest.raises(UserError, match="is not a UTF-8 CSV or JSONL file"):
    sources.ManifestSource(deep)
  long = tmp_path / "long.jsonl"
  long.write_text(json.dumps({"path": "a" * 300, "caption": "a square"}))
  with pytest.raises(UserError, match="none of its 1 files exists"):
    sources.ManifestSource(long)
  with pytest.raises(UserError, match="needs a path"):
    sources.ManifestSource("")
