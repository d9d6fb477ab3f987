"""Known answers: ranks of known features; probes that are given the answer, or nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.evals import probe as probe_lib
from sora_jax.evals.controls import main_mask
from sora_jax.evals.features import effective_rank, pixels, spread
from sora_jax.evals.probe import CLASSES, Labelled, Probe, compare
from sora_jax.evals.report import Results
from sora_jax.interop import native
from sora_jax.models.vjepa import VJEPA
from sora_jax.worlds import WorldSource

GRID = (2, 3, 3)


def test_effective_rank_of_known_features(rng):
  basis = np.linalg.qr(rng.normal(size=(40, 12)))[0].astype(np.float32)
  rank = lambda x: float(effective_rank(jnp.asarray(x, jnp.float32).reshape(4, -1, 12)))  # noqa: E731
  assert rank(7 * basis) == pytest.approx(12, rel=1e-4)
  few = basis[:, :3] @ np.linalg.qr(rng.normal(size=(12, 12)))[0][:3]
  assert rank(few) == pytest.approx(3, rel=1e-2)
  assert rank(np.ones((40, 12))) == pytest.approx(1, rel=1e-3)
  assert rank(np.zeros((40, 12))) == pytest.approx(1)
  sizes = np.array([4.0, 2.0, 1.0, 1.0])
  share = sizes / sizes.sum()
  uneven = basis[:, :4] * sizes @ np.linalg.qr(rng.normal(size=(12, 12)))[0][:4]
  assert rank(uneven) == pytest.approx(np.exp(-np.sum(share * np.log(share))), rel=1e-2)


def test_spread_of_known_features(rng):
  places = rng.normal(size=(1, 9, 12)).repeat(50, 0)
  assert float(spread(jnp.asarray(places))) < 1e-9  # where, but not what
  assert float(spread(jnp.asarray(rng.normal(size=(400, 9, 12))))) == pytest.approx(1, abs=0.05)


def labelled(rng, count):
  classes = {name: rng.integers(0, len(x), count).astype(np.int32) for name, x in CLASSES.items()}
  place = rng.uniform(0.1, 0.9, (count, 2, 2)).astype(np.float32)
  video = np.zeros((count, 4, 6, 6, 3), np.uint8)
  seen = rng.random((count, 2)) < 0.8
  place[~seen] = 0.0  # nothing to be learnt from
  return Labelled(video, classes, place, seen)


def told(labels, rng):
  """Features of which one token says what and, per frame, another says where."""
  x = 0.1 * rng.normal(size=(len(labels.place), 18, 24))
  for offset, (name, known) in zip((0, 8), CLASSES.items(), strict=True):
    x[:, 5, offset : offset + len(known)] += 3 * np.eye(len(known))[labels.classes[name]]
  x[:, [2, 11], 14:16] += 4 * labels.place
  x[:, [2, 11], 20] += 3
  return x.astype(np.float32)


@pytest.mark.slow
def test_a_probe_reads_what_is_there_and_nothing_else(rng):
  known, held_out = labelled(rng, 400), labelled(rng, 100)
  given = {id(x.video): told(x, rng) for x in (known, held_out)}
  blind = {id(x.video): 0 * given[id(x.video)] for x in (known, held_out)}
  encoders = {"told": lambda v: given[id(v)], "blind": lambda v: blind[id(v)]}
  encoders["faint"] = lambda v: given[id(v)] * np.geomspace(1e-3, 1, 24)
  results = compare(encoders, GRID, known, held_out, steps=250, rate=3e-3).metrics
  assert results["told"]["colour"]["mean"] > 0.95 and results["told"]["shape"]["mean"] > 0.95
  assert results["faint"]["colour"]["mean"] > 0.95 and results["faint"]["shape"]["mean"] > 0.95
  assert results["told"]["place_pixels"]["mean"] < 0.5
  assert results["told"]["place_pixels"]["n"] == held_out.seen.sum()
  assert results["blind"]["colour"]["mean"] < 0.3 and results["blind"]["shape"]["mean"] < 0.4
  assert results["blind"]["place_pixels"]["mean"] > 1.0


def test_labels_are_those_of_the_worlds():
  model = VJEPA(width=8, layers=1, heads=1, mlp_width=8, patch=(2, 8, 8), frames=4, size=32)
  labels = Labelled.draw(3, 0, "validation", model)
  source = WorldSource(3, 0, "validation", 4, 32, 32, truth=True)
  for i in range(3):
    truth = source[i]["truth"]
    for name, known in CLASSES.items():
      assert known[labels.classes[name][i]] == truth["labels"][name]
    np.testing.assert_array_equal(labels.video[i], source[i]["video"])
    rows = main_mask(truth).reshape(2, 2, 32, 32)
    for frame in range(2):
      where = np.argwhere(rows[frame])[:, 1:]
      assert labels.seen[i, frame] == (len(where) >= probe_lib.FEW)
      if labels.seen[i, frame]:
        np.testing.assert_allclose(labels.place[i, frame] * 31, where.mean(0), rtol=1e-5)
  assert pixels(model.patch)(labels.video).shape == (3, 32, 384)
  assert Probe(model.grid).grid == (2, 4, 4)


def test_the_suite_probes_a_checkpoint_beside_the_baselines(monkeypatch, tmp_path):
  fields = dict(
    width=24, layers=1, heads=2, mlp_width=48, predictor_width=12, predictor_layers=1,
    predictor_heads=1, predictor_mlp_width=24, patch=(2, 16, 16), mask_tokens=1, frames=4, size=32,
  )  # fmt: skip
  vjepa = VJEPA(**fields)
  values, where = jnp.zeros((1, 1, 2 * 16 * 16 * 3)), jnp.zeros((1, 1, 3))
  params = jax.jit(vjepa.init)(jax.random.key(0), values, where, where)["params"]
  params["target"] = params["encoder"]
  native.save(tmp_path / "saved", {"vjepa": params}, {"vjepa": fields, "training": {}})
  seen = {}

  def compare(encoders, grid, known, held_out, **settings):
    seen.update(known=len(known.video), held_out=len(held_out.video), **settings)
    assert grid == vjepa.grid
    return Results({name: {} for name in encoders})

  monkeypatch.setattr(probe_lib, "compare", compare)
  metrics = probe_lib.suite(tmp_path / "saved", count=2, seed=3).metrics
  assert seen == {"known": 8, "held_out": 2, "seed": 3}
  assert set(metrics) == {"vjepa", "random", "pixels"}
  for name in ("vjepa", "random"):
    assert 1 <= metrics[name]["rank"] <= 24 and metrics[name]["spread"] > 0
