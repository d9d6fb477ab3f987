"""Surprise sees the past only, and the score of pairs has known answers."""

import dataclasses

import jax
import numpy as np
import pytest

from sora_jax.evals.features import frozen
from sora_jax.evals.surprise import Surprise, expectation
from sora_jax.models.vjepa import VJEPA, tubelets
from sora_jax.worlds import sample_spec
from sora_jax.worlds.impossible import Pair

MODEL = VJEPA(
  width=24, layers=1, heads=2, mlp_width=32, predictor_width=16, predictor_layers=1,
  predictor_heads=2, predictor_mlp_width=24, patch=(2, 8, 8), frames=8, size=16, mask_tokens=3,
)  # fmt: skip


@pytest.fixture(scope="module", params=[False, True], ids=["published", "centred"])
def scorer(request):
  rng = np.random.default_rng(1)
  model = MODEL.clone(absolute=request.param, centred=request.param)
  values, positions = tubelets(jax.numpy.zeros((1, 8, 16, 16, 3)), MODEL.patch)
  params = jax.jit(model.init)(jax.random.key(0), values, positions, positions)["params"]
  params["target"] = params["encoder"]
  perturbed = jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape).astype(np.float32), params)
  return Surprise(model, perturbed, mask=2)


@pytest.fixture
def clips(rng):
  return rng.integers(0, 256, size=(18, 8, 16, 16, 3), dtype=np.uint8)


def test_it_knows_nothing_of_what_comes_later(scorer, clips, rng):
  before = scorer.surprise(clips[:3])
  assert before.shape == (3, 3) and (before > 0).all()
  np.testing.assert_array_equal(scorer.surprise(clips[:3, [*range(8), 0]]), before)
  clips[:3, 4:] = rng.integers(0, 256, size=(3, 4, 16, 16, 3), dtype=np.uint8)
  after = scorer.surprise(clips[:3])
  np.testing.assert_allclose(after[:, 0], before[:, 0], rtol=1e-5)
  assert np.abs(after[:, 1:] - before[:, 1:]).min() > 1e-5


def test_it_is_the_same_in_any_batch(scorer, clips):
  whole = scorer.surprise(clips)
  parts = [scorer.surprise(clips[:1]), scorer.surprise(clips[1:])]
  np.testing.assert_allclose(np.concatenate(parts), whole, 1e-5)
  features = frozen(scorer.vjepa, scorer.params["target"])
  assert features(clips).shape == (18, 16, 24)
  np.testing.assert_allclose(features(clips[5:6])[0], features(clips)[5], rtol=1e-4, atol=1e-5)


def test_it_sees_no_more_than_in_training(scorer, clips):
  """Each frame of the grid has four tokens, and the last moment has twelve before it."""
  few, many = (dataclasses.replace(scorer, context=n).surprise(clips[:2]) for n in (4, 12))
  np.testing.assert_allclose(many, scorer.surprise(clips[:2]), rtol=1e-6)
  np.testing.assert_allclose(few[:, 0], many[:, 0], rtol=1e-6)
  assert np.abs(few[:, 1:] - many[:, 1:]).min() > 1e-6


def pairs(rng, count):
  spec = sample_spec(0)
  for i in range(count):
    possible = rng.integers(0, 256, size=(4, 2, 2, 3), dtype=np.uint8)
    impossible = possible.copy()
    impossible[2:] ^= 1
    kind = ("hidden_colour", "open_colour", "hover")[i % 3]
    yield Pair(possible, impossible, kind, 2, 2, f"pair {i}", (spec, spec))


def test_chance_is_one_half_of_indifference_too(rng):
  results = expectation(lambda clips: rng.random((len(clips), 3)), pairs(rng, 600))
  for measure in ("max", "mean"):
    number = results.metrics[measure]["all"]
    assert number["n"] == 600 and number["low"] < 0.5 < number["high"]
    assert list(results.metrics[measure]) == [
      "all", "hidden", "hidden_colour", "hover", "open", "open_colour"
    ]  # fmt: skip
    assert results.metrics[measure]["hidden"]["n"] == 200
  same = expectation(lambda clips: np.ones((len(clips), 3)), pairs(rng, 7))
  assert same.metrics["max"]["all"]["mean"] == 0.5 and len(same.rows) == 7


def test_moments_in_common_say_nothing(rng):
  """The most surprising one is before the clips part, and alike but for rounding."""
  scores = np.array([[9.0, 1.0, 3.0], [9.0 + 1e-6, 2.0, 1.0]])
  results = expectation(lambda clips: np.tile(scores, (len(clips) // 2, 1)), pairs(rng, 4))
  assert results.rows[0]["max"] == {"possible": 3.0, "impossible": 2.0}
  assert results.rows[0]["mean"] == {"possible": 2.0, "impossible": 1.5}
  assert results.metrics["max"]["all"]["mean"] == 0.0


def test_largest_and_mean_are_told_apart(rng):
  """One clip of a pair has a peak, the other is surprising throughout."""
  scores = np.array([[1.0, 1.5, 1.0], [0.0, 2.0, 0.0]])
  results = expectation(lambda clips: np.tile(scores, (len(clips) // 2, 1)), pairs(rng, 3))
  assert results.metrics["max"]["all"]["mean"] == 1.0
  assert results.metrics["mean"]["all"]["mean"] == 0.0
  assert results.rows[0]["max"] == {"possible": 1.5, "impossible": 2.0}
