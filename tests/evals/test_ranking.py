"""Every number of the quality suite tells real clips from the controls it is there for."""

import math

import cheap

from sora_jax.evals import ranking


def test_every_number_ranks_real_clips_above_its_controls(monkeypatch, tmp_path):
  cheap.install(monkeypatch, tmp_path)
  report = ranking.rank(16, searched=2)
  assert report["numbers"].keys() == ranking.MUST.keys()
  for number, row in report["numbers"].items():
    assert row["ranked"], (number, row)
    assert math.isfinite(row["real"])
  copies = report["numbers"]["copies, content"]
  assert copies[ranking.COPIES] == 1
  assert report["numbers"]["copies, motion"]["frozen"] is None  # nothing moves


def test_a_number_that_prefers_a_control_is_found_out():
  table = {name: {"FVD": 2.0} for name in ranking.DAMAGE} | {"real": {"FVD": 1.0}}
  assert ranking.ranked(table, "FVD")
  table["frozen"] = {"FVD": 0.5}
  assert not ranking.ranked(table, "FVD")
