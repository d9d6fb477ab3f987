"""Step caching: sampling with fewer calls of the transformer's blocks.

From one noise level to the next, what the blocks add to the tokens (the residual) hardly turns; its
size changes, along a curve that depends on the model and hardly on prompt or seed (MagCache, Ma et
al. 2025, arXiv:2506.09045). So a call may take the residual of an earlier one, computed at another
level, as long as the curve says that their sizes are alike. The curve is measured once for a model
(`residual_curve`), and which calls are short follows from it and the solver's levels before there
is any noise: a sample does not depend on what it is made beside.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sora_jax.diffusion.process import corrupt
from sora_jax.errors import UserError
from sora_jax.models.tokens import Tokens
from sora_jax.typing import Array, Bool, Float, Params, PRNGKey

Curve = Sequence[Sequence[float]]  # pairs (noise level, size of the residual)
LEVELS = tuple(round(0.05 * i, 2) for i in range(1, 21))
FIRST = 0.2  # of the calls, which decide what is made: never short
LONGEST = 3  # short calls in a row


def reused(
  levels: Float[np.ndarray, " calls"], curve: Curve | None, threshold: float
) -> Bool[np.ndarray, " calls"]:
  """Which calls take the residual of the last whole one: as many as stay within the threshold.

  Args:
    levels: of the calls, in their order.
    curve: of the model; levels between its own are interpolated.
    threshold: what the differences |1 - size / size of the last whole call| of successive short
      calls may add up to.

  Raises:
    UserError: the threshold is negative, or there is no curve.
  """
  if not threshold >= 0:
    raise UserError(f"cache is {threshold} but must be at least 0 (0 switches step caching off).")
  if curve is None:
    raise UserError(
      "This checkpoint has no curve of residuals, by which step caching chooses its steps: name a "
      "file for it (--curve FILE; `generate.calibrate` in Python), or leave cache at 0."
    )
  sizes = np.interp(levels, *np.asarray(sorted(map(tuple, curve)), np.float64).T)
  short = np.zeros(len(levels), bool)
  whole, error = 0, 0.0
  for i in range(1, len(levels)):
    error += abs(1 - sizes[i] / sizes[whole])
    short[i] = i >= FIRST * len(levels) and error < threshold and i - whole <= LONGEST
    if not short[i]:
      whole, error = i, 0.0
  return short


def call(model: Callable[..., Any], reuse: Array, residual: Array) -> tuple[Array, Array]:
  """Velocities, and the residual to remember.

  Args:
    model: `DiT.apply` of parameters and tokens.
    reuse: whether to take `residual` instead of running the blocks.
  """

  def whole(_: Array) -> tuple[Array, Array]:
    velocity, seen = model(mutable=["intermediates"])
    return velocity, seen["intermediates"]["residual"][0]

  return jax.lax.cond(reuse, lambda r: (model(residual=r), r), whole, residual)


def residual_curve(
  model: Callable[..., Any],
  params: Params,
  tokens: Tokens,
  key: PRNGKey,
  levels: Sequence[float] = LEVELS,
) -> list[tuple[float, float]]:
  """The mean size of a token's residual at each noise level.

  Args:
    model: `DiT.apply`. params: of it.
    tokens: clean values, and noise levels 1 in the cond table where a token is made.
    key: of the noise.
  """
  noise = jax.random.normal(key, tokens.values.shape, jnp.float32)
  made = (tokens.noise_level() > 0) & (tokens.segments > 0)

  def size(params: Params, level: Array) -> Array:
    cond = tokens.cond.at[..., 0].multiply(level)
    noisy = replace(tokens, cond=cond)
    noisy = replace(noisy, values=corrupt(tokens.values, noise, noisy.noise_level()))
    _, seen = model({"params": params}, noisy, mutable=["intermediates"])
    residual = seen["intermediates"]["residual"][0].astype(jnp.float32)
    pieces = residual.shape[1] // made.shape[1]  # of each token, if the transformer is `split`
    return jnp.mean(jnp.linalg.norm(residual, axis=-1), where=jnp.repeat(made, pieces, axis=1))

  # Weights are an argument: what a program closes over is written into it.
  measure = jax.jit(lambda params, levels: jax.lax.map(partial(size, params), levels))
  sizes = measure(params, jnp.asarray(levels, jnp.float32))
  return [(float(level), float(s)) for level, s in zip(levels, sizes, strict=True)]
