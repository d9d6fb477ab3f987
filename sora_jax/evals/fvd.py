"""Distances between two sets of clips: Fréchet (FVD) and kernel (KVD), with their error bars.

FVD: Unterthiner et al. 2018, "Towards Accurate Generative Models of Video", arXiv:1812.01717: the
Fréchet distance between Gaussians fitted to the I3D logits of both sets. It is biased upwards, the
more the fewer clips, so it is only ever reported with both counts and beside a real-versus-real
floor at the same counts. The kernel distance (Bińkowski et al. 2018, "Demystifying MMD GANs",
arXiv:1801.01401: squared MMD with the cubic polynomial kernel) is unbiased at any count.

Pixels are never kept: a clip becomes 400 numbers as it arrives.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from sora_jax.typing import Float

Rows = Float[np.ndarray, "n d"]
Others = Float[np.ndarray, "m d"]


@dataclass
class Gaussian:
  """Streaming mean and covariance in float64 (Chan et al. 1979's pairwise update)."""

  count: int = 0
  mean: np.ndarray = field(default_factory=lambda: np.zeros(0))
  scatter: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))

  def add(self, rows: Rows) -> Gaussian:
    """Includes more samples; any way of cutting them into batches gives the same result."""
    rows = np.asarray(rows, np.float64)
    if not len(rows):
      return self
    if not self.count:
      self.mean, self.scatter = np.zeros(rows.shape[1]), np.zeros((rows.shape[1],) * 2)
    mean = rows.mean(axis=0)
    centred, delta = rows - mean, mean - self.mean
    total = self.count + len(rows)
    self.scatter += centred.T @ centred + np.outer(delta, delta) * self.count * len(rows) / total
    self.mean += delta * (len(rows) / total)
    self.count = total
    return self

  @property
  def covariance(self) -> np.ndarray:
    if self.count < 2:
      raise ValueError("a covariance needs at least two samples")
    return self.scatter / (self.count - 1)


def frechet(a: Gaussian, b: Gaussian) -> float:
  """Squared Fréchet distance |m1 - m2|² + tr(C1 + C2 - 2 (C1 C2)^½) (Dowson & Landau 1982).

  The trace of the root is the sum of the singular values of C1^½ C2^½: symmetric roots only, so
  it stays real and exact for covariances of low rank (fewer clips than features).
  """
  cross = np.linalg.svd(_root(a.covariance) @ _root(b.covariance), compute_uv=False).sum()
  distance = np.square(a.mean - b.mean).sum() + np.trace(a.covariance) + np.trace(b.covariance)
  return float(max(distance - 2 * cross, 0.0))


def _root(matrix: np.ndarray) -> np.ndarray:
  values, vectors = np.linalg.eigh(matrix)
  return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


def frechet_of(a: Rows, b: Others) -> float:
  """`frechet` of two sets of features.

  Of few rows the singular values are those of the product of the centred rows themselves, whose
  Gram matrices are the covariances: a matrix of n x m instead of roots of d x d.
  """
  if len(a) * len(b) > a.shape[1] ** 2 or min(len(a), len(b)) < 2:
    return frechet(Gaussian().add(a), Gaussian().add(b))
  means = [np.mean(rows, axis=0, dtype=np.float64) for rows in (a, b)]
  x, y = ((rows - mean) / np.sqrt(len(rows) - 1) for rows, mean in zip((a, b), means, strict=True))
  distance = np.square(means[0] - means[1]).sum() + np.square(x).sum() + np.square(y).sum()
  return float(max(distance - 2 * np.linalg.svd(x @ y.T, compute_uv=False).sum(), 0.0))


@dataclass(frozen=True)
class Estimate:
  """A number with a 95 % bootstrap interval."""

  value: float
  low: float
  high: float


def kernel_distance(a: Rows, b: Others, resamples: int = 200, seed: int = 0) -> Estimate:
  """Unbiased squared MMD with the kernel (x·y / d + 1)³; it may be slightly negative.

  The interval comes from resampling the clips of both sets. A clip drawn twice is never compared
  with itself, which would make the resampled statistic biased.
  """
  a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
  if min(len(a), len(b)) < 2:
    raise ValueError("a kernel distance needs at least two samples on both sides")
  kernels = _kernel(a, a), _kernel(b, b), _kernel(a, b)
  rng = np.random.default_rng(seed)
  draws = [
    _mmd(*kernels, _multiplicity(len(a), rng), _multiplicity(len(b), rng)) for _ in range(resamples)
  ]
  low, high = np.quantile(draws, [0.025, 0.975])
  return Estimate(_mmd(*kernels, np.ones(len(a)), np.ones(len(b))), float(low), float(high))


def _kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  return (a @ b.T / a.shape[1] + 1) ** 3


def _multiplicity(count: int, rng: np.random.Generator) -> np.ndarray:
  """How often each clip is drawn, at least two of them (there is no pair in one)."""
  while True:
    times = np.bincount(rng.integers(count, size=count), minlength=count)
    if np.count_nonzero(times) > 1:
      return times.astype(np.float64)


def _mmd(kaa: np.ndarray, kbb: np.ndarray, kab: np.ndarray, u: np.ndarray, v: np.ndarray) -> float:
  def within(kernel: np.ndarray, weight: np.ndarray) -> float:
    pairs = weight @ kernel @ weight - np.square(weight) @ np.diagonal(kernel)
    return pairs / (weight.sum() ** 2 - np.square(weight).sum())

  return float(within(kaa, u) + within(kbb, v) - 2 * (u @ kab @ v) / (u.sum() * v.sum()))
