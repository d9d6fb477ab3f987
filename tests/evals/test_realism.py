"""The classifier on sets that are alike and sets that are not."""

import numpy as np
import pytest

from sora_jax.evals import realism


def test_fit_is_at_the_minimum_of_the_penalised_loss(rng):
  x, real = rng.normal(size=(40, 6)), rng.random(40) < 0.5
  weights = realism.fit(x, real, 0.1)

  def loss(w):
    margin = np.where(real, 1, -1) * (x @ w[:-1] + w[-1])
    return np.logaddexp(0, -margin).mean() + 0.05 * w[:-1] @ w[:-1]

  for step in 1e-2 * np.eye(7):
    assert loss(weights + step) > loss(weights) < loss(weights - step)


def test_sets_of_one_kind_are_told_apart_in_half_of_the_cases(rng):
  shares = [
    realism.accuracy(*realism.guesses(*rng.normal(size=(2, 30, 50))))["mean"] for _ in range(10)
  ]
  assert np.mean(shares) == pytest.approx(0.5, abs=0.07)


def test_accuracy_of_two_gaussians_is_what_their_distance_allows(rng):
  real, made = rng.normal(size=(2, 400, 5))
  made[:, 0] += 2  # the best rule is right in Phi(1) = 84 % of the cases
  assert realism.accuracy(*realism.guesses(real, made))["mean"] == pytest.approx(0.84, abs=0.03)
  made[:, 1] += 12
  found = realism.accuracy(*realism.guesses(real, made))
  assert found["mean"] == 1 and found["n"] == 800


def test_a_clip_is_never_judged_by_a_classifier_that_saw_it(rng):
  """Labels of random points: what was learned by heart would be right."""
  real, made = rng.normal(size=(2, 20, 500))
  assert realism.accuracy(*realism.guesses(real, made))["mean"] < 0.75


def test_scale_and_constant_features_do_not_matter(rng):
  real, made = rng.normal(size=(2, 25, 8))
  made += 0.5
  scale, shift = rng.uniform(0.1, 100, 8), rng.normal(0, 50, 8)
  constant = np.full((25, 1), 7.0)
  other = [np.hstack([x * scale + shift, constant]) for x in (real, made)]
  for a, b in zip(realism.guesses(real, made), realism.guesses(*other), strict=True):
    np.testing.assert_array_equal(a, b)


def test_too_few_clips_are_refused(rng):
  with pytest.raises(ValueError, match="at least 10"):
    realism.guesses(rng.normal(size=(9, 3)), rng.normal(size=(20, 3)))
