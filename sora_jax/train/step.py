"""One training step: a pure function of state and batch, the same on one device or a thousand."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sora_jax.train import optim
from sora_jax.train.state import TrainState
from sora_jax.typing import Array, Params, PRNGKey

Loss = Callable[[Params, Any, PRNGKey, Array], tuple[Array, dict[str, Array]]]
After = Callable[[Params, Array], Params]


def train_step(
  state: TrainState, batch: Any, loss: Loss, optimizer: optim.Optimizer, seed: int, accumulate: int,
  after: After | None = None,
) -> tuple[TrainState, dict[str, Array]]:  # fmt: skip
  """Takes one step; a non-finite loss or gradient leaves weights, EMA and moments untouched.

  Args:
    batch: a pytree of arrays with a common leading axis.
    loss: (params, batch, key, step) -> (mean loss, other means); see `program.Recipe`.
    accumulate: micro-batches, dividing the leading axis.
    after: (params, updates before this one) -> params; what it changes is not trained.

  Returns:
    The next state, and scalars: the loss' own, `loss`, `grad_norm`, `lr` and `bad_streak`.
  """
  key = jax.random.fold_in(jax.random.key(seed), state.step)
  trainable, frozen = optimizer.split(state.params)

  def objective(trainable: Params, batch: Any, key: PRNGKey) -> tuple[Array, dict[str, Array]]:
    value, extra = loss(optim.merge(trainable, frozen), batch, key, state.step)
    return value, {"loss": value, **extra}

  grads, values = mean_gradient(objective, trainable, batch, key, accumulate)
  norm = optax.tree.norm(grads)
  finite = jnp.isfinite(norm) & jnp.isfinite(values["loss"])

  updates, opt_state = optimizer.transform.update(grads, state.opt_state, trainable)
  params = optim.merge(optax.apply_updates(trainable, updates), frozen)
  ema = optimizer.ema(state.ema, params, state.updates)
  if after is not None:
    params = after(params, state.updates)
    ema = optim.merge(optimizer.split(ema)[0], optimizer.split(params)[1])
  learned = (params, ema, opt_state)
  before = (state.params, state.ema, state.opt_state)
  params, ema, opt_state = jax.tree.map(functools.partial(jnp.where, finite), learned, before)

  bad = (~finite).astype(jnp.int32)
  streak = (state.bad_streak + 1) * bad
  lr = jnp.asarray(optimizer.schedule(state.updates))
  state = state.replace(
    step=state.step + 1,
    params=params,
    ema=ema,
    opt_state=opt_state,
    skipped=state.skipped + bad,
    bad_streak=streak,
  )
  return state, values | {"grad_norm": norm, "lr": lr, "bad_streak": streak}


def validation_step(
  params: Params, batch: Any, number: Array, loss: Loss, seed: int
) -> dict[str, Array]:
  """The loss of a held-out batch, and what else it says: with the same noise each time."""
  key = jax.random.fold_in(jax.random.key(seed), number)
  value, extra = loss(params, batch, key, jnp.zeros((), jnp.int32))
  return {"loss": value, **extra}


def mean_gradient(
  objective: Callable[..., Any], params: Params, batch: Any, key: PRNGKey, accumulate: int
) -> tuple[Params, dict[str, Array]]:
  """Gradient and metrics of `objective`, averaged over micro-batches taken one at a time."""
  gradient = jax.grad(objective, has_aux=True)
  if accumulate == 1:
    return gradient(params, batch, key)

  def cut(x: Array) -> Array:
    # Each micro-batch takes a strided share, so every device's rows stay on that device.
    return jnp.moveaxis(x.reshape(-1, accumulate, *x.shape[1:]), 1, 0)

  def add(total: Any, inputs: tuple[Any, Array]) -> tuple[Any, None]:
    rows, i = inputs
    result = gradient(params, rows, jax.random.fold_in(key, i))
    return jax.tree.map(lambda t, r: t + r / accumulate, total, result), None

  micro = jax.tree.map(cut, batch)
  shapes = jax.eval_shape(gradient, params, jax.tree.map(lambda x: x[0], micro), key)
  zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
  total, _ = jax.lax.scan(add, zeros, (micro, jnp.arange(accumulate)))
  return total
