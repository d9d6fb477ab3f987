"""The objective of every generative task: flow matching on the tokens that are not known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp

from sora_jax.diffusion import process
from sora_jax.models.tokens import Tokens
from sora_jax.typing import Array, Float, PRNGKey, Scalar

Model = Callable[[Tokens], Float[Array, "b n p"]]


def token_errors(model: Model, tokens: Tokens, noise: Float[Array, "b n p"]) -> Float[Array, "b n"]:
  """Mean squared error of the velocity that is predicted of each token.

  Args:
    model: predicts velocities.
    tokens: *clean* values, and noise levels in the cond table.
    noise: standard normal, what the values are corrupted with.
  """
  noisy = replace(tokens, values=process.corrupt(tokens.values, noise, tokens.noise_level()))
  return jnp.mean((model(noisy) - process.velocity(tokens.values, noise)) ** 2, axis=-1)


def flow_matching(model: Model, tokens: Tokens, key: PRNGKey) -> tuple[Scalar, dict[str, Scalar]]:
  """Mean squared error of the predicted velocity.

  Args:
    model: predicts velocities.
    tokens: *clean* values, and the drawn noise levels in the cond table. Level 0 is a known token:
      it stays clean and carries no loss. Padding (segment 0) carries none either.
    key: of the noise.

  Returns:
    The loss, and metrics: the loss at low, middle and high noise.
  """
  noise = jax.random.normal(key, tokens.values.shape, jnp.float32)
  t = tokens.noise_level()
  error = token_errors(model, tokens, noise)

  made = (t > 0) & (tokens.segments > 0)
  mean = lambda where: jnp.sum(error * where) / jnp.maximum(jnp.sum(where), 1)  # noqa: E731
  metrics = {
    "loss_low_noise": mean(made & (t < 1 / 3)),
    "loss_mid_noise": mean(made & (t >= 1 / 3) & (t < 2 / 3)),
    "loss_high_noise": mean(made & (t >= 2 / 3)),
    "tokens_used": jnp.mean(tokens.segments > 0),
  }
  return mean(made), metrics
