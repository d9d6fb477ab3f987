"""Denoising diffusion (Ho et al. 2020) with learned variances (Nichol & Dhariwal 2021), as in DiT.

With data x_0, noise e, variances beta_t and a_t = prod_{s <= t} (1 - beta_s) for t = 0 .. T-1, and
a_{-1} = 1:

  (1)  x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) e
  (2)  q(x_{t-1} | x_t, x_0) = N(m, v_t),      v_t = beta_t (1 - a_{t-1}) / (1 - a_t),
       m = sqrt(a_{t-1}) x_0 + sqrt(1 - a_{t-1} - v_t) e
  (3)  log s^2 = f log beta_t + (1 - f) log v_t,   f = (o + 1) / 2, of the model's second output o
  (4)  L = |e - e(x_t, t)|^2 + 0.001 L_vlb         in which the mean is not trained by L_vlb

(2) is eq. 6 and 7 of Ho et al. written in the noise instead of x_t, (3) eq. 15 and (4) eq. 16 of
Nichol & Dhariwal. A chain of fewer steps keeps some of the a_t (their section 4); its other numbers
follow from those. DDIM (Song et al. 2020, eq. 12) is (2) with eta^2 v_t for v_t; eta = 1 is (2).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np

from sora_jax.errors import UserError
from sora_jax.typing import Array, Float, Int, PRNGKey, Scalar

Model = Callable[[Array, Array], Array]  # (x_t, times) -> noise, or noise and o
VLB_WEIGHT = 0.001


@dataclass(frozen=True)
class Chain:
  """The steps of a process, in the order of t.

  Attributes:
    times: what the model is told, of each step. kept: a_t of each step.
  """

  times: tuple[int, ...]
  kept: tuple[float, ...]

  def __len__(self) -> int:
    return len(self.times)

  @classmethod
  def linear(cls, steps: int = 1000, low: float = 1e-4, high: float = 0.02) -> Chain:
    """Variances that grow linearly from `low` to `high`."""
    kept = np.cumprod(1 - np.linspace(low, high, steps))
    return cls(tuple(range(steps)), tuple(kept.tolist()))

  def respaced(self, count: int, spacing: str = "linspace") -> Chain:
    """A chain of `count` of these steps.

    Args:
      spacing: "linspace" from the first step to the last, as published with DiT; "leading" and
        "trailing" in whole strides from the first, or back from the last, as diffusers has them.

    Raises:
      UserError: there are not so many, or no such spacing.
    """
    total = len(self)
    if not 1 <= count <= total:
      raise UserError(f"{count} steps were asked for; this process has 1 to {total}.")
    if spacing == "linspace":
      steps = np.linspace(0, total - 1, count).round().astype(int)
    elif spacing == "leading":
      steps = np.arange(count) * (total // count)
    elif spacing == "trailing":
      steps = np.round(np.arange(total, 0, -total / count)).astype(int)[:count][::-1] - 1
    else:
      raise UserError(f"There is no spacing {spacing!r}: use linspace, leading or trailing.")
    return Chain(tuple(self.times[i] for i in steps), tuple(self.kept[i] for i in steps))

  @cached_property
  def a(self) -> Float[np.ndarray, " t"]:
    return np.array(self.kept)

  @cached_property
  def before(self) -> Float[np.ndarray, " t"]:
    """a_{t-1}."""
    return np.append(1.0, self.a[:-1])

  @cached_property
  def beta(self) -> Float[np.ndarray, " t"]:
    return 1 - self.a / self.before

  @cached_property
  def variance(self) -> Float[np.ndarray, " t"]:
    """v_t of (2); 0 at t = 0."""
    return self.beta * (1 - self.before) / (1 - self.a)

  @cached_property
  def log_range(self) -> Float[np.ndarray, "t 2"]:
    """log v_t and log beta_t; v_0 is taken to be v_1, since its logarithm is not finite."""
    small = np.append(self.variance[1:2] if len(self) > 1 else self.beta, self.variance[1:])
    return np.log(np.stack([small, self.beta], axis=-1))


def corrupt(
  chain: Chain, x: Float[Array, "b *s"], noise: Float[Array, "b *s"], t: Int[Array, " b"]
) -> Float[Array, "b *s"]:
  """Equation (1)."""
  return _of(np.sqrt(chain.a), t, x) * x + _of(np.sqrt(1 - chain.a), t, x) * noise


def data_from(
  chain: Chain, x_t: Float[Array, "b *s"], noise: Float[Array, "b *s"], t: Int[Array, " b"]
) -> Float[Array, "b *s"]:
  """Equation (1) solved for x_0."""
  return (x_t - _of(np.sqrt(1 - chain.a), t, x_t) * noise) / _of(np.sqrt(chain.a), t, x_t)


def posterior_mean(
  chain: Chain, x: Float[Array, "b *s"], noise: Float[Array, "b *s"], t: Int[Array, " b"]
) -> Float[Array, "b *s"]:
  """Equation (2), of the x_t that `x` and `noise` make."""
  to_data, to_noise = _coefficients(chain, eta=1.0)
  return _of(to_data, t, x) * x + _of(to_noise, t, x) * noise


def log_variance(chain: Chain, output: Float[Array, "b *s"], t: Int[Array, " b"]) -> Array:
  """Equation (3)."""
  small, large = (_of(column, t, output) for column in chain.log_range.T)
  fraction = (output + 1) / 2
  return fraction * large + (1 - fraction) * small


def loss(
  chain: Chain, model: Model, x: Float[Array, "b *s z"], key: PRNGKey
) -> tuple[Scalar, dict[str, Scalar]]:
  """Equation (4), at a random step for each sample; without a second output, its first term.

  The estimate of L_vlb from one of T steps is T times that step's term, so 0.001 L_vlb is, for the
  1000 steps that DiT was trained with, just the term, in bits per dimension.

  Returns:
    The loss, and the means of its parts: `simple`, and `vlb` in bits per dimension.
  """
  keys = jax.random.split(key)
  t = jax.random.randint(keys[0], x.shape[:1], 0, len(chain))
  noise = jax.random.normal(keys[1], x.shape)
  x_t = corrupt(chain, x, noise, t)
  out = model(x_t, jnp.asarray(chain.times, jnp.float32)[t])
  predicted, variance = jnp.split(out, [x.shape[-1]], axis=-1)
  simple = jnp.mean((noise - predicted) ** 2)
  if not variance.size:
    return simple, {"simple": simple}
  fixed = jax.lax.stop_gradient(predicted)
  vlb = len(chain) * jnp.mean(vlb_terms(chain, fixed, variance, x, noise, t))
  return simple + VLB_WEIGHT * vlb, {"simple": simple, "vlb": vlb}


def vlb_terms(
  chain: Chain,
  predicted: Float[Array, "b *s"],
  variance: Float[Array, "b *s"],
  x: Float[Array, "b *s"],
  noise: Float[Array, "b *s"],
  t: Int[Array, " b"],
) -> Float[Array, " b"]:
  """One step's term of the variational bound, in bits per dimension; not negative.

  KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)); at t = 0 the negative log-likelihood of x among 256
  levels of [-1, 1], also of latents, as in DiT's code.
  """
  x_t = corrupt(chain, x, noise, t)
  mean = posterior_mean(chain, data_from(chain, x_t, predicted, t), predicted, t)
  log = log_variance(chain, variance, t)
  true_log = _of(chain.log_range[:, 0], t, x)
  off = (posterior_mean(chain, x, noise, t) - mean) ** 2
  kl = 0.5 * (log - true_log - 1 + jnp.exp(true_log - log) + off * jnp.exp(-log))
  bits = jnp.where(_of(np.arange(len(chain)), t, x) == 0, _level_nll(x, mean, log / 2), kl)
  return jnp.mean(bits, axis=tuple(range(1, x.ndim))) / np.log(2)


def _level_nll(x: Array, mean: Array, log_std: Array) -> Array:
  """Of the level x is in: those at the ends reach to infinity."""
  below, above = (
    jax.scipy.stats.norm.cdf((x - mean + side / 255) * jnp.exp(-log_std)) for side in (-1, 1)
  )
  inside = jnp.where(x < -0.999, above, jnp.where(x > 0.999, 1 - below, above - below))
  return -jnp.log(jnp.clip(inside, 1e-12, 1.0))


def table(chain: Chain, eta: float = 1.0) -> Float[Array, "steps 8"]:
  """A row for each step, the last t first: what `solve` needs of it.

  Args:
    eta: 1 is ancestral sampling, 0 deterministic DDIM.
  """
  to_data, to_noise = _coefficients(chain, eta)
  noisy = eta * (chain.variance > 0)  # nothing is added at the end
  columns = (
    np.array(chain.times), np.sqrt(chain.a), np.sqrt(1 - chain.a), to_data, to_noise,
    *chain.log_range.T, noisy,
  )  # fmt: skip
  return jnp.asarray(np.stack(columns, axis=-1)[::-1], jnp.float32)


def solve(
  model: Model,
  x: Float[Array, "b *s z"],
  rows: Float[Array, "steps 8"],
  noise: Callable[[Array], Array] | None = None,
  clip: float | None = None,
) -> Float[Array, "b *s z"]:
  """Samples along the rows of a table, or some of them, in one `lax.scan`.

  Args:
    model: as in training, of (x_t, one time).
    x: standard normal noise, or what the rows before have left.
    noise: time -> standard normal noise of that step; None only if eta is 0. If the model has a
      second output, it says the noise's variance, and else that is v_t.
    clip: largest absolute value of predicted data (1 for pixels), or None.
  """

  def step(x: Array, row: Float[Array, " 8"]) -> tuple[Array, None]:
    time, root, rest, to_data, to_noise, small, large, noisy = row
    predicted, output = jnp.split(model(x, time), [x.shape[-1]], axis=-1)
    data = (x - rest * predicted) / root
    if clip is not None:
      data = jnp.clip(data, -clip, clip)
      predicted = (x - root * data) / rest
    x = to_data * data + to_noise * predicted
    if noise is not None:
      fraction = (output + 1) / 2 if output.size else 0.0
      x += noisy * jnp.exp(0.5 * (fraction * large + (1 - fraction) * small)) * noise(time)
    return x, None

  return jax.lax.scan(step, x, rows)[0]


def _coefficients(
  chain: Chain, eta: float
) -> tuple[Float[np.ndarray, " t"], Float[np.ndarray, " t"]]:
  """Of x_0 and of the noise in the mean of (2)."""
  rest = 1 - chain.before - eta**2 * chain.variance
  return np.sqrt(chain.before), np.sqrt(np.maximum(rest, 0.0))


def _of(values: np.ndarray, t: Int[Array, " b"], like: Array) -> Array:
  """Each sample's value, to be broadcast over it."""
  return jnp.asarray(values, jnp.float32)[t].reshape(-1, *(1,) * (like.ndim - 1))
