"""The two-sample classifier: can samples be told from real clips?

Lopez-Paz & Oquab 2017, "Revisiting Classifier Two-Sample Tests", arXiv:1610.06545: a classifier
is trained to tell two sets apart and judged on clips it has not seen. At 50 % it cannot. It is
logistic regression on frozen features, so what it finds is linear in them; a stronger one may find
more.

The protocol is frozen: features standardised by the mean and the spread of the training part (a
feature that is constant there is left out) and divided by the root of their number; the mean
logistic loss plus `PENALTY` / 2 times the squared weights, minimised by L-BFGS in float64; five
folds, clip i of either set in fold i mod 5, each judged by a classifier trained on the others.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import optimize, special

from sora_jax.evals.report import proportion
from sora_jax.typing import Bool, Float

PENALTY, FOLDS = 1e-2, 5
LEAST = 2 * FOLDS  # clips of either set: two in each fold


def fit(
  x: Float[np.ndarray, "n d"], real: Bool[np.ndarray, " n"], penalty: float = PENALTY
) -> Float[np.ndarray, " e"]:
  """Weights of d features and, last and not penalised, of a constant: positive says real."""
  sign = np.where(real, 1.0, -1.0)

  def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
    w = weights[:-1]
    margin = sign * (x @ w + weights[-1])
    slope = -sign * special.expit(-margin) / len(x)
    value = np.mean(np.logaddexp(0, -margin)) + penalty / 2 * w @ w
    return float(value), np.append(x.T @ slope + penalty * w, slope.sum())

  start = np.zeros(x.shape[1] + 1)
  return optimize.minimize(loss, start, jac=True, method="L-BFGS-B").x


def guesses(
  real: Float[np.ndarray, "n d"], made: Float[np.ndarray, "m d"]
) -> tuple[Bool[np.ndarray, " n"], Bool[np.ndarray, " m"]]:
  """Which clips are held to be real, each by a classifier that has not seen it.

  Raises:
    ValueError: fewer than `LEAST` clips in a set.
  """
  if min(len(real), len(made)) < LEAST:
    raise ValueError(f"a classifier needs at least {LEAST} clips of either set")
  x = np.concatenate([real, made]).astype(np.float64)
  truth = np.arange(len(x)) < len(real)
  fold = np.concatenate([np.arange(len(real)), np.arange(len(made))]) % FOLDS
  said = np.zeros(len(x), bool)
  for k in range(FOLDS):
    known = fold != k
    mean, std = x[known].mean(axis=0), x[known].std(axis=0)
    varies = std > 1e-6 * np.maximum(np.abs(mean), 1.0)
    z = (x[:, varies] - mean[varies]) / std[varies] / np.sqrt(max(varies.sum(), 1))
    weights = fit(z[known], truth[known])
    said[~known] = z[~known] @ weights[:-1] + weights[-1] > 0
  return said[: len(real)], said[len(real) :]


def accuracy(real: Bool[np.ndarray, " n"], made: Bool[np.ndarray, " m"]) -> dict[str, Any]:
  """Share of the `guesses` that are right, with Wilson's interval.

  The sets should be equally large, so that a classifier that knows nothing is right in half. The
  interval takes the guesses for independent, which those of one classifier are not quite.
  """
  return proportion([*real.tolist(), *(~made).tolist()])
