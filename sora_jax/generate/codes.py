"""Draws the codes of videos one after the other, with a cache of what the prior has read.

codes that are known, states of a prompt -> `start` -> `draw`, some tokens at a time -> codes
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sora_jax.errors import UserError
from sora_jax.models.videogpt import Grid, Prior
from sora_jax.typing import Array, Float, Int, Key, Params


@dataclass(frozen=True, kw_only=True)
class Sampling:
  """How to draw codes.

  Attributes:
    temperature: logits are divided by it; 0 takes the likeliest code.
    top_k: draws among so many likeliest codes; None: all.
    top_p: draws among the likeliest codes that together have this probability; None: all.
    guidance: scale of classifier-free guidance, on logits; 1 switches it off.
  """

  temperature: float = 1.0
  top_k: int | None = None
  top_p: float | None = None
  guidance: float = 1.0

  def __post_init__(self) -> None:
    if not 0 <= self.temperature < math.inf:
      raise UserError(f"temperature is {self.temperature} but must be at least 0, and finite.")
    if self.top_k is not None and self.top_k < 1:
      raise UserError(f"top_k is {self.top_k} but must be at least 1.")
    if self.top_p is not None and not 0 < self.top_p <= 1:
      raise UserError(f"top_p is {self.top_p} but must be above 0 and at most 1.")
    if not 1 <= self.guidance < math.inf:
      raise UserError(f"Guidance is {self.guidance} but must be at least 1 (1 switches it off).")


class State(NamedTuple):
  """Between two tokens: all codes, 0 for none yet; what cells stand for; the cache."""

  codes: Int[Array, "b n q"]
  z: Float[Array, "b n z"]
  cache: Params


@functools.partial(jax.jit, static_argnums=(0, 1))
def start(
  prior: Prior,
  grid: Grid,
  params: Params,
  known: Int[Array, "b m q"],
  text: Float[Array, "r s e"],
  text_ids: Int[Array, "r s"],
) -> State:
  """The state before the first token that is not known; r is b, or 2 b under guidance."""
  variables = {"params": params}
  fill = [(0, 0), (0, int(np.prod(grid)) - known.shape[1]), (0, 0)]
  z = jnp.pad(jnp.sum(prior.apply(variables, known, method="vectors"), axis=2), fill)
  # The first call makes the cache. If nothing is known it is of the first token, which comes again.
  tokens = jnp.arange(max(1, known.shape[1] // prior.cells))
  told = prior.apply(variables, z, tokens, grid, method="told_tokens")
  told = jnp.tile(told, (len(text) // len(known), 1, 1))
  _, new = prior.apply(
    variables, told, tokens, text, text_ids, method="hidden", mutable=["cache"]
  )  # fmt: skip
  return State(jnp.pad(known, fill), z, new["cache"])


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def draw(
  prior: Prior,
  grid: Grid,
  sampling: Sampling,
  params: Params,
  state: State,
  text: Float[Array, "r s e"],
  text_ids: Int[Array, "r s"],
  keys: Key[Array, " b"],
  tokens: Int[Array, " m"],
) -> State:
  """Draws the codes of some tokens in a row: token by token, cell by cell, depth by depth."""
  run = functools.partial(prior.apply, {"params": params})
  fold = jax.vmap(jax.random.fold_in, (0, None))
  twice = lambda x: jnp.tile(x, (len(text) // len(keys), *[1] * (x.ndim - 1)))  # noqa: E731
  put = functools.partial(jax.lax.dynamic_update_slice_in_dim, axis=1)

  def token(state: State, at: Array) -> tuple[State, None]:
    hidden, new = prior.apply(
      {"params": params, "cache": state.cache},
      twice(run(state.z, at[None], grid, method="told_tokens")), at[None], text, text_ids,
      method="hidden", mutable=["cache"],
    )  # fmt: skip

    def cell(state: State, at: Array) -> tuple[State, None]:
      told = twice(run(state.z, at[None], grid, method="told_cells"))
      features = run(hidden, told, at, method="cell")
      z, codes = jnp.zeros_like(state.z[:, 0]), []
      for depth in range(prior.depth):
        logits = run(features, twice(z)[:, None, None], (depth,), method="logits")[:, 0, 0]
        if sampling.guidance != 1:
          given, free = jnp.split(logits, 2)
          logits = free + sampling.guidance * (given - free)
        codes.append(choose(sampling, logits, fold(fold(keys, at), depth)))
        z = z + jnp.take(params["codebook"][depth], codes[-1], axis=0)
      made = put(state.codes, jnp.stack(codes, axis=-1)[:, None], at)
      return State(made, put(state.z, z[:, None], at), state.cache), None

    state, _ = jax.lax.scan(cell, state, at * prior.cells + jnp.arange(prior.cells))
    return state._replace(cache=new["cache"]), None

  return jax.lax.scan(token, state, tokens)[0]


def choose(
  sampling: Sampling, logits: Float[Array, "b k"], keys: Key[Array, " b"]
) -> Int[Array, " b"]:
  """A code of each row."""
  if sampling.temperature == 0:
    return jnp.argmax(logits, axis=-1)
  logits = jax.nn.log_softmax(logits / sampling.temperature)
  falling = -jnp.sort(-logits, axis=-1)
  if sampling.top_k is not None and sampling.top_k < logits.shape[-1]:
    logits = jnp.where(logits < falling[:, sampling.top_k - 1, None], -jnp.inf, logits)
  if sampling.top_p is not None:
    mass = jnp.exp(falling)
    before = jnp.cumsum(mass, axis=-1) - mass  # the likeliest has nothing before it
    least = jnp.min(jnp.where(before < sampling.top_p, falling, jnp.inf), axis=-1, keepdims=True)
    logits = jnp.where(logits < least, -jnp.inf, logits)
  noise = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[-1:]))(keys)
  return jnp.argmax(logits + noise, axis=-1)
