"""What open sources hold tells them apart, at no cost."""

import json
import os
import shutil

import numpy as np
import pytest

from sora_jax.data import registry, video
from sora_jax.data.records import write_records
from sora_jax.data.sources import TFDSSource
from sora_jax.worlds import source as world_source


def identity(**sections):
  return b"".join(registry.identity(registry.open_sources(sections)))


@pytest.fixture
def folder(rng, tmp_path):
  for name in "ab":
    video.write(tmp_path / f"{name}.png", rng.integers(0, 256, (1, 8, 8, 3), dtype=np.uint8))
    (tmp_path / f"{name}.txt").write_text("a square")
  return tmp_path


def listed(folder, **changes):
  path = folder / "list.jsonl"
  path.write_text(json.dumps(dict(path="a.png", caption="a square", start=0, end=2) | changes))
  return dict(path=str(path))


def test_files_are_known_by_name_size_age_and_caption(folder, monkeypatch):
  monkeypatch.setattr(video, "read", None)  # nothing is decoded
  monkeypatch.setattr(video, "probe", None)
  kinds = dict(folder=dict(path=str(folder)), photos=dict(count=2, folder=str(folder)))
  seen = [{kind: identity(**{kind: section}) for kind, section in kinds.items()}]
  look = lambda: seen.append({k: identity(**{k: section}) for k, section in kinds.items()})  # noqa: E731
  look()
  assert seen[0] == seen[1] and all(seen[0].values())
  (folder / "a.txt").write_text("a circle")
  look()
  assert seen[2]["folder"] != seen[1]["folder"] and seen[2]["photos"] == seen[1]["photos"]
  os.utime(folder / "a.png", ns=(0, 0))
  look()
  (folder / "a.png").rename(folder / "c.png")
  (folder / "a.txt").rename(folder / "c.txt")
  look()
  (folder / "c.png").unlink()
  (folder / "c.txt").unlink()
  look()
  for kind in kinds:
    assert len({found[kind] for found in seen[2:]}) == 4, kind


def test_rows_of_a_list_are_known_by_what_they_say(folder):
  first = identity(manifest=listed(folder))
  assert identity(manifest=listed(folder)) == first
  for change in (dict(caption="a circle"), dict(start=1), dict(end=3), dict(path="b.png")):
    assert identity(manifest=listed(folder, **change)) != first


def test_records_written_anew_are_others(rng, tmp_path):
  sample = dict(video=np.zeros((1, 8, 8, 3), np.uint8), caption="c", fps=8.0, id="a")
  path = tmp_path / "records"
  seen = set()
  for seed in (1, 2, 2):
    shutil.rmtree(path, ignore_errors=True)
    write_records(path, [sample], dict(seed=seed))
    os.utime(path / "info.json", ns=(0, len(seen)))
    seen.add(identity(records=dict(path=str(path))))
    assert identity(records=dict(path=str(path), distractor=0.25)) in seen
  assert len(seen) == 3


def test_what_is_made_of_its_settings_alone_has_no_more_to_say():
  examples = [dict(clip=np.zeros((1, 8, 8, 3), np.uint8), text="a")]
  assert TFDSSource(examples).identity() == []


def test_worlds_are_known_by_the_code_that_makes_them(monkeypatch):
  section = dict(worlds=dict(count=2, seed=0))
  before = identity(**section)
  monkeypatch.setattr(world_source, "_code", lambda: "another version")
  assert before and identity(**section) != before
