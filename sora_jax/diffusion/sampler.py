"""Solvers of the probability flow ODE, all of them one loop with a table of coefficients.

Every solver here is a linear multistep method in the predicted data d_i = y_i - t_i v(y_i, t_i).
With the solver's state x, the point y at which the model is asked, and the last predictions,

  x <- a0 x + a1 d_i + a2 d_{i-1} + a3 d_{i-2}          y <- b0 x + b1 d_i + b2 d_{i-1}

where the coefficients depend on the noise levels only, so they are computed ahead in float64 and
the loop is one `lax.scan` whatever the solver. Which calls of the model may be short, reusing what
it remembers of the one before (`diffusion.caching`), is a column of the same table. Below,
alpha = 1 - t, sigma = t and lambda = log(alpha / sigma).

  euler   Euler's method; on straight paths the same as DDIM (Song et al. 2020).
  heun    Heun's second-order method, two model calls per step but the last (Karras et al. 2022).
  dpm++   DPM-Solver++(2M) (Lu et al. 2022, algorithm 2).
  unipc   UniPC of order 2 with B(h) = exp(h) - 1: the predictor is DPM-Solver++(2M), the corrector
          reuses the model call of the next step (Zhao et al. 2023).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sora_jax.diffusion.time import told
from sora_jax.errors import UserError
from sora_jax.typing import Array, Bool, Float

# (values, noise level as it is told, whether memory may be reused, memory) -> velocity, memory
Velocity = Callable[[Array, Array, Array, Any], tuple[Array, Any]]


class Carry(NamedTuple):
  """The solver's state between two calls of the model, and what the model remembers of them."""

  x: Array
  y: Array
  d1: Array
  d2: Array
  memory: Any = None


def check_draw(seed: int, batch_size: int) -> None:
  """Raises UserError: a seed that JAX would cut to 32 bits, or no samples at a time."""
  if not 0 <= seed < 2**32:
    raise UserError(f"The seed is {seed} but must lie between 0 and {2**32 - 1}.")
  if batch_size < 1:
    raise UserError(f"batch_size is {batch_size} but must be at least 1.")


def initial_noise(
  seed: int, samples: np.ndarray, lt: int, lh: int, lw: int, z: int, first: int = 0
) -> Float[Array, "b lt lh lw z"]:
  """Standard normal latents whose bits depend on (seed, sample, absolute latent frame) alone.

  The same sample gets the same noise at any batch size, packing, length and mesh.
  """

  def frame(sample, index):
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), sample), index)
    return jax.random.normal(key, (lh, lw, z), jnp.float32)

  frames = jnp.arange(first, first + lt)
  return jax.vmap(lambda s: jax.vmap(partial(frame, s))(frames))(jnp.asarray(samples))


def table(solver: str, levels: np.ndarray, timesteps: int = 0) -> Float[np.ndarray, "calls 10"]:
  """The coefficients of a solver: one row (t, told, a0..a3, b0..b2, reuse) per model call.

  `reuse` is 0: every call is whole (see `diffusion.caching`).

  Args:
    solver: a key of `SOLVERS`.
    levels: the noise levels to step through, falling, the last one 0.
    timesteps: in how many steps the model counts levels, if it does: it is then not told t itself,
      but the level below it (`time.told`).

  Raises:
    UserError: the solver is unknown.
  """
  if solver not in SOLVERS:
    raise UserError(f"Unknown sampler '{solver}': choose one of {', '.join(SOLVERS)}.")
  rows = np.asarray(SOLVERS[solver](np.asarray(levels, np.float64)))
  rows = np.insert(rows, 1, told(rows[:, 0], timesteps), axis=1).astype(np.float32)
  return np.pad(rows, ((0, 0), (0, 1)))


def start(x: Float[Array, "b n p"], memory: Any = None) -> Carry:
  """The state before the first call: noise to make, clean values where known."""
  return Carry(x, x, jnp.zeros_like(x), jnp.zeros_like(x), memory)


def solve(
  velocity: Velocity,
  carry: Carry,
  coefficients: Float[Array, "calls 10"],
  made: Bool[Array, "b n"],
) -> Carry:
  """Integrates along the rows of a table, or some of them; `carry.y` is the sample.

  Args:
    velocity: the model, see `Velocity`.
    carry: of `start`, or of the rows before.
    coefficients: of `table`.
    made: False for known tokens, which never change.
  """
  keep = lambda new, old: jnp.where(made[..., None], new, old)  # noqa: E731

  def step(carry: Carry, row: Float[Array, " 10"]) -> tuple[Carry, None]:
    x, y, d1, d2, memory = carry
    v, memory = velocity(y, row[1], row[9] > 0, memory)
    d0 = y - row[0] * v
    x_next = row[2] * x + row[3] * d0 + row[4] * d1 + row[5] * d2
    y_next = row[6] * x_next + row[7] * d0 + row[8] * d1
    return Carry(keep(x_next, x), keep(y_next, y), d0, d1, memory), None

  return jax.lax.scan(step, carry, coefficients)[0]


def _euler_step(t: float, s: float) -> tuple[float, float]:
  """x_s = p x_t + q d: from level t to level s along the straight line through d."""
  return s / t, 1 - s / t


def _euler(levels: np.ndarray) -> list[tuple[float, ...]]:
  return [
    (t, *_euler_step(t, s), 0, 0, 1, 0, 0)
    for t, s in zip(levels[:-1], levels[1:], strict=True)
  ]  # fmt: skip


def _heun(levels: np.ndarray) -> list[tuple[float, ...]]:
  rows: list[tuple[float, ...]] = []
  for t, s in zip(levels[:-2], levels[1:-1], strict=True):
    p, q = _euler_step(t, s)
    rows.append((t, 1, 0, 0, 0, p, q, 0))  # x stays, y is Euler's guess
    half = (s - t) / 2  # x + half (v + v'), v = (x - d_{i-1}) / t, v' = (p x + q d_{i-1} - d_i) / s
    rows.append((s, 1 + half / t + half * p / s, -half / s, half * (q / s - 1 / t), 0, 1, 0, 0))
  return rows + _euler(levels[-2:])  # at level 0 there is no velocity to average with


def _log_snr(t: float) -> float:
  t = min(max(t, 1e-12), 1 - 1e-6)  # the pure-noise end has no finite log-SNR
  return float(np.log((1 - t) / t))


def _dpmpp_step(levels: np.ndarray, i: int) -> tuple[float, float, float]:
  """(x, d_i, d_{i-1}) coefficients of step i; first order at both ends."""
  t, s = levels[i], levels[i + 1]
  p, q = _euler_step(t, s)
  if i == 0 or i == len(levels) - 2:
    return p, q, 0.0
  h, h_last = _log_snr(s) - _log_snr(t), _log_snr(t) - _log_snr(levels[i - 1])
  correction = q * h / (2 * h_last) if h_last else np.nan  # levels nearer to 1 than numbers tell
  return p, q + correction, -correction


def _dpmpp(levels: np.ndarray) -> list[tuple[float, ...]]:
  steps = range(len(levels) - 1)
  return [(levels[i], *_dpmpp_step(levels, i), 0, 1, 0, 0) for i in steps]


def _unipc_corrector(levels: np.ndarray, i: int) -> tuple[float, float, float, float]:
  """(x, d_i, d_{i-1}, d_{i-2}): redoes the step that led to level i, now that d_i is known.

  With m = d_{i-1}: x_i = p x + q m + q (rho_1 (d_{i-2} - m) / r + rho_2 (d_i - m)), where rho
  solves the order conditions [[1, 1], [r, 1]] rho = (phi_2, 2 phi_3) of Zhao et al., eq. 11.
  """
  t, s = levels[i - 1], levels[i]
  p, q = _euler_step(t, s)
  h, before = _log_snr(s) - _log_snr(t), _log_snr(levels[max(0, i - 2)]) - _log_snr(t)
  if not h or (i > 1 and not before):  # levels nearer to 1 than numbers tell
    return p, q, np.nan, np.nan
  b = np.expm1(-h)
  phi2 = b / -h - 1
  phi3 = phi2 / -h - 0.5
  if i == 1:
    return p, q * 0.5, q * 0.5, 0.0
  r = before / h
  rho1, rho2 = np.linalg.solve(np.array([[1.0, 1.0], [r, 1.0]]), np.array([phi2, 2 * phi3]) / b)
  return p, q * rho2, q * (1 - rho1 / r - rho2), q * rho1 / r


def _unipc(levels: np.ndarray) -> list[tuple[float, ...]]:
  rows: list[tuple[float, ...]] = []
  for i in range(len(levels) - 1):
    corrector = _unipc_corrector(levels, i) if i > 0 else (1.0, 0.0, 0.0, 0.0)
    rows.append((levels[i], *corrector, *_dpmpp_step(levels, i)))
  return rows


SOLVERS: dict[str, Callable[[np.ndarray], list[tuple[float, ...]]]] = {
  "euler": _euler,
  "heun": _heun,
  "dpm++": _dpmpp,
  "unipc": _unipc,
}
