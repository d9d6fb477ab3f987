"""Everything a training run is: one pytree, saved whole and restored whole."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from sora_jax.train.optim import Optimizer, merge
from sora_jax.typing import Array, Int, Params


class TrainState(struct.PyTreeNode):
  """The state between two steps.

  A step consumes one whole batch, its micro-batches accumulated inside, so no state exists in the
  middle of an accumulation and a checkpoint never holds one. Random numbers come from
  `fold_in(key(seed), step)`: there is no key to save.

  Attributes:
    step: batches consumed, the skipped ones included.
    params: the weights that are trained; None in the place of the others.
    ema: their running average, of the same structure.
    opt_state: the optimiser's moments of them.
    followers: weights that a recipe's `after` sets, such as a target encoder.
    frozen: the other weights. No checkpoint holds them: they are what the recipe's `init` made.
    skipped: batches whose loss or gradient was not finite; they changed nothing above.
    bad_streak: how many of the last batches in a row were skipped.
  """

  # Not typed as arrays: the same tree also holds their shapes and their shardings.
  step: Any
  params: Any
  ema: Any
  opt_state: Any
  followers: Any
  frozen: Any
  skipped: Any
  bad_streak: Any

  @property
  def weights(self) -> Params:
    """All weights, trained or not."""
    return merge(self.params, self.others)

  @property
  def average(self) -> Params:
    """All weights, the trained ones averaged: what is measured, shown and exported."""
    return merge(self.ema, self.others)

  @property
  def others(self) -> Params:
    """The weights that are not trained."""
    return merge(self.followers, self.frozen)

  @property
  def updates(self) -> Int[Array, ""]:
    """Updates applied so far: what schedules and the EMA's warm-up count."""
    return self.step - self.skipped

  @classmethod
  def create(cls, params: Params, optimizer: Optimizer, follow: bool = False) -> TrainState:
    """The state before the first step; `follow`: what is not trained does not stay as it is."""
    trainable, others = optimizer.split(params)
    none = jax.tree.map(lambda _: None, others)
    return cls(
      step=jnp.zeros((), jnp.int32),
      params=trainable,
      # A copy, not the same buffers: the step donates both.
      ema=jax.tree.map(jnp.copy, trainable),
      opt_state=optimizer.transform.init(trainable),
      followers=others if follow else none,
      frozen=none if follow else others,
      skipped=jnp.zeros((), jnp.int32),
      bad_streak=jnp.zeros((), jnp.int32),
    )
