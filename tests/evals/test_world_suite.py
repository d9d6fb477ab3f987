"""The world suite and its command, on systems that can do all, half or nothing of it."""

import json
from collections import Counter

import numpy as np
import pytest

from sora_jax.cli import main
from sora_jax.data import video
from sora_jax.errors import UserError
from sora_jax.evals import systems, world, world_controls
from sora_jax.evals.control_systems import Foresight, Frozen, Truth
from sora_jax.evals.surprise import expectation
from sora_jax.evals.world_cases import KNOWN
from sora_jax.worlds.impossible import KINDS

FEW = ("gravity", "still scenes")


@pytest.fixture(autouse=True)
def small(monkeypatch):
  tests = {name: world.TESTS[name] for name in FEW}
  monkeypatch.setattr(world, "TESTS", tests)
  monkeypatch.setattr(world_controls, "TESTS", tests)
  monkeypatch.setattr(world, "SEARCHED", 3)
  monkeypatch.setattr(world, "PAIRS", 5)  # a round number of pairs all the same


class Fading(Foresight):
  """Shows what it is given darker than it is, and goes on with noise; is told what it is told."""

  def __init__(self):
    self.prompts = []

  def continued(self, known, prompts, *, seed, frames, progress=False):
    self.prompts += prompts
    made = np.random.default_rng(seed).integers(0, 256, (len(known), frames, 64, 64, 3), np.uint8)
    made[:, : known.shape[1]] = known // 2
    return made

  def reconstruct(self, clips):
    return clips.copy()


class Seer:
  """Surprised by what is not possible, which it knows of; continues nothing."""

  def __init__(self, pairs):
    noisy = [world.disturbed(pair, share, 0) for pair in pairs for share in world.SHARES]
    self.surprise = Truth([pair.possible for pair in (*pairs, *noisy)]).surprise


def _eval(monkeypatch, system, *args):
  monkeypatch.setattr(systems, "load", lambda name: system)
  return main.main(["eval", "--suite=world", *map(str, args)])


def test_all_of_it(monkeypatch, tmp_path, capsys):
  fading = Fading()
  assert _eval(monkeypatch, fading, "--count=2", "--out", tmp_path) == 0
  metrics = json.loads((tmp_path / "metrics.json").read_text())["metrics"]
  assert set(metrics) == {
    *FEW, world.EXPECTATION, "distractors on 0%", "distractors on 25%", "distractors on 50%"
  }  # fmt: skip
  error = metrics["gravity"]["position error, px"]
  assert set(error) == {
    world.SYSTEM, world.CEILING, "truth", "frozen", "linear", "shuffled", "nearest"
  }  # fmt: skip
  assert error["truth"]["median"] == error[world.CEILING]["median"] < 0.5
  assert error[world.SYSTEM]["median"] > 3 and error["truth"]["n"] == 2
  found = metrics[world.EXPECTATION]["mean, all"]
  assert found["truth"]["mean"] == 1 and found["truth"]["n"] == 18
  assert found["chance"]["mean"] == 0.5
  rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
  assert sum(row["test"] == "gravity" for row in rows) == 2 * 7
  assert {row["kind"] for row in rows if row["test"].startswith("distractors")} == {
    row["kind"] for row in rows if row["test"] == world.EXPECTATION
  } - {"hover"}
  assert "gravity/position error, px/truth" in capsys.readouterr().out
  assert not any(fading.prompts)
  sheet, _ = video.read(tmp_path / "still_scenes.png")
  assert sheet.shape == (1, 2 * 66, 15 * 64 + 8, 3)


def test_given_frames_stay_and_captions_are_told_if_asked(small):
  test, fading = world.TESTS["gravity"], Fading()
  worlds = test.worlds(2, 1)
  made = world.continuation(fading, worlds, test, 0, told=True)
  assert fading.prompts == [known.prompt for known in worlds] and all(fading.prompts)
  for clip, known in zip(made, worlds, strict=True):
    np.testing.assert_array_equal(clip[:KNOWN], known.video[:KNOWN])


def test_half_of_it(monkeypatch, tmp_path, capsys):
  """What a system cannot do is said and left out, a length that it cannot make too."""
  seer = Seer(world.pairs(2, 0))
  assert _eval(monkeypatch, seer, "--count=2", "--out", tmp_path, "--json") == 0
  shown = capsys.readouterr()
  assert "no clips are continued" in shown.err
  metrics = json.loads(shown.out)["metrics"]
  assert not set(metrics) & set(FEW)
  assert metrics[world.EXPECTATION]["max, all"][world.SYSTEM]["mean"] == 1.0

  class Short:
    def continued(self, known, prompts, *, seed, frames, progress=False):
      raise UserError("17 frames cannot be made: ask for 16.")

  results = world.suite(Short(), 2, 0)
  assert not results.metrics and not results.rows
  said = capsys.readouterr().err
  assert "gravity is left out: 17 frames cannot be made" in said and "not surprised" in said


def test_distractors_are_the_same_until_the_clips_part():
  pair = world.pairs(1, 0)[0]
  noisy = world.disturbed(pair, 0.25, 0)
  before, after = np.s_[: pair.event], np.s_[pair.event :, :8]
  np.testing.assert_array_equal(noisy.possible[before], noisy.impossible[before])
  assert (noisy.possible[after] != noisy.impossible[after]).mean() > 0.9
  band = np.s_[:, :8]
  np.testing.assert_array_equal(noisy.possible[:, 8:56], pair.possible[:, 8:56])
  np.testing.assert_array_equal(noisy.impossible[:, 8:56], pair.impossible[:, 8:56])
  assert (noisy.possible[band] != pair.possible[band]).mean() > 0.9
  found = expectation(Truth([noisy.possible]).surprise, [noisy])
  assert found.metrics["max"]["all"]["mean"] == 1.0


def test_pairs_leave_time_for_tubelets_and_are_as_many_of_each_kind():
  """Nothing begins to be wrong in a frame that 16-frame systems do not see."""
  pairs = world.pairs(4, 4)
  assert max(pair.event for pair in pairs) < 15
  assert Counter(pair.kind for pair in pairs) == dict.fromkeys(KINDS, 4)


def test_the_table_of_controls_fails_where_the_truth_is_not_first(monkeypatch, capsys):
  monkeypatch.setattr("sys.argv", ["world_controls", "--count=2"])
  share = lambda **x: {k: {"mean": v} for k, v in x.items()}  # noqa: E731
  error = lambda **x: {k: {"median": v} for k, v in x.items()}  # noqa: E731
  assert world_controls.unranked(share(truth=0.9, frozen=0.9, linear=0.5)) == ["frozen"]
  assert world_controls.unranked(error(truth=0.1, frozen=0.0, linear=None)) == ["frozen"]
  assert not world_controls.unranked(error(truth=0.1, frozen=5.0))
  status = world_controls.main()
  table = capsys.readouterr().out
  assert table.count("|\n") > 10 and "| gravity: position error, px |" in table
  assert status == int("not ranked" in table)
  blind = Frozen()
  monkeypatch.setattr(world, "controls", lambda test, worlds: {"truth": blind, "frozen": blind})
  assert world_controls.main() == 1 and "px (not ranked)" in capsys.readouterr().out


def test_captions_belong_to_this_suite(tmp_path, capsys):
  assert main.main(["eval", "--suite=tasks", "--told", "--out", str(tmp_path)]) == 2
  assert "--told belongs to --suite=world" in capsys.readouterr().err
