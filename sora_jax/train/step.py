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

Loss = Callable[[Params, Any, PRNGKey, Array], tuple[Array, dict[str, Any]]]
After = Callable[[Params, Array, Any], Params]

# What a loss puts under this name beside its means is none: arrays with a row for each of the
# batch's, which `after` is given. What follows a batch, such as a codebook, needs to see all of it,
# however it was divided, and its mean is not always enough: a code that nothing uses begins again
# as one of the vectors.
OUTPUTS = "outputs"


def train_step(
  state: TrainState, batch: Any, loss: Loss, optimizer: optim.Optimizer, seed: int, accumulate: int,
  after: After | None = None,
) -> tuple[TrainState, dict[str, Array]]:  # fmt: skip
  """Takes one step; a non-finite loss or gradient leaves weights, EMA and moments untouched.

  Args:
    batch: a pytree of arrays with a common leading axis.
    loss: (params, batch, key, step) -> (mean loss, other means); see `program.Recipe`.
    accumulate: micro-batches, dividing the leading axis. What is taken is the mean of their losses,
      each counting the same. That is the whole batch's loss if it is a mean over rows; of a mean
      over what counts, such as the made tokens of recipe t2v, it is another number: one in a
      micro-batch that has few of them counts more.
    after: (params, updates before this one, `OUTPUTS` of the loss or None) -> params; what it
      changes is not trained.

  Returns:
    The next state, and scalars: the loss' own, `loss`, `grad_norm`, `lr` and `bad_streak`.
  """
  key = jax.random.fold_in(jax.random.key(seed), state.step)

  def objective(params: Params, batch: Any, key: PRNGKey) -> tuple[Array, Any]:
    value, extra = loss(optim.merge(params, state.others), batch, key, state.step)
    values, outputs = _apart(extra)
    return value, ({"loss": value, **values}, outputs)

  # Of the trained weights alone: no gradient of a frozen one is computed.
  grads, values, outputs = mean_gradient(objective, state.params, batch, key, accumulate)
  norm = optax.tree.norm(grads)
  finite = jnp.isfinite(norm) & jnp.isfinite(values["loss"])

  updates, opt_state = optimizer.transform.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  ema = optimizer.ema(state.ema, params, state.updates)
  learned = {"params": params, "ema": ema, "opt_state": opt_state}
  if after is not None:
    moved = after(optim.merge(params, state.others), state.updates, outputs)
    _, learned["followers"] = optimizer.split(moved)
  before = {name: getattr(state, name) for name in learned}
  learned = jax.tree.map(functools.partial(jnp.where, finite), learned, before)

  bad = (~finite).astype(jnp.int32)
  streak = (state.bad_streak + 1) * bad
  lr = jnp.asarray(optimizer.schedule(state.updates))
  state = state.replace(
    step=state.step + 1,
    **learned,
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
  return {"loss": value, **_apart(extra)[0]}


def _apart(extra: dict[str, Any]) -> tuple[dict[str, Array], Any]:
  """The means beside a loss, and its `OUTPUTS`."""
  return {name: x for name, x in extra.items() if name != OUTPUTS}, extra.get(OUTPUTS)


def mean_gradient(
  objective: Callable[..., Any], params: Params, batch: Any, key: PRNGKey, accumulate: int
) -> tuple[Params, dict[str, Array], Any]:
  """Gradient and metrics of `objective`, averaged over micro-batches taken one at a time.

  The last is its outputs, whose rows are in the batch's order.
  """
  gradient = jax.grad(objective, has_aux=True)
  if accumulate == 1:
    grads, (values, outputs) = gradient(params, batch, key)
    return grads, values, outputs

  def cut(x: Array) -> Array:
    # Each micro-batch takes a strided share, so every device's rows stay on that device.
    return jnp.moveaxis(x.reshape(-1, accumulate, *x.shape[1:]), 1, 0)

  def join(x: Array) -> Array:
    return jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:])

  def add(total: Any, inputs: tuple[Any, Array]) -> tuple[Any, Any]:
    rows, i = inputs
    grads, (values, outputs) = gradient(params, rows, jax.random.fold_in(key, i))
    return jax.tree.map(lambda t, r: t + r / accumulate, total, (grads, values)), outputs

  micro = jax.tree.map(cut, batch)
  grads, (values, _) = jax.eval_shape(gradient, params, jax.tree.map(lambda x: x[0], micro), key)
  zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (grads, values))
  total, outputs = jax.lax.scan(add, zeros, (micro, jnp.arange(accumulate)))
  return *total, jax.tree.map(join, outputs)
