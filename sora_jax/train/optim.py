"""From an `optim` section of a config to an optimiser.

Three groups of parameters are told apart by their paths:

  frozen   does not match the recipe's `trainable`: no gradient, no update, no moments
  muon     matrices and convolutions inside the network (name="muon"): orthogonalised momentum,
           https://kellerjordan.github.io/posts/muon, scaled as in arXiv:2502.16982 so that
           AdamW's learning rate and weight decay carry over
  adamw    everything else: embeddings, norms, biases, modulation tables, and what `muon_exclude`
           names, first and last layers of most networks

A frozen leaf is `None` in the trees the optimiser sees (an empty subtree to JAX).
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sora_jax.config import build as build_from_section
from sora_jax.errors import UserError
from sora_jax.parallel.sharding import path_string
from sora_jax.typing import Array, Float, Params

SCHEDULES = ("constant", "cosine", "linear")
MUON_RMS = 0.2  # the update's RMS that AdamW has in practice (arXiv:2502.16982, section 2.2)
# Each is the odd quintic nearest to 1 on what the one before it makes of singular values from 0.002
# to 1 (Amsel et al. 2025, arXiv:2505.16932). Jordan's one quintic takes five steps to reach as low.
QUINTICS = (
  (8.4268, -24.9361, 18.4925),
  (4.1116, -3.0591, 0.5750),
  (3.7146, -2.7781, 0.5429),
  (2.7819, -2.0749, 0.4635),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimConfig:
  """The `optim` section.

  Attributes:
    name: "adamw" or "muon".
    lr: peak learning rate.
    warmup: updates of linear warm-up from 0.
    schedule: after the warm-up "constant", "cosine" or "linear" decay, to `final * lr` at the end.
    clip: global gradient norm above which gradients are scaled down; 0 = never.
    decay: weight decay, multiplied by the learning rate. By "adamw" of kernels, see
      `decay_exclude`; by "muon" of all the matrices that it updates itself, and of nothing else.
    decay_exclude: regex of paths without weight decay by "adamw". Vectors never have it.
    ema_decay: decay of the averaged weights, with warm-up; 0 = the average is the weights.
    lr_multipliers: pairs (regex, factor); the first that matches a path scales its updates.
    muon_exclude: regex of matrices that AdamW updates all the same.
  """

  name: str = "adamw"
  lr: float = 3e-4
  warmup: int = 100
  schedule: str = "cosine"
  final: float = 0.0
  b1: float = 0.9
  b2: float = 0.99
  eps: float = 1e-8
  clip: float = 1.0
  decay: float = 0.0
  decay_exclude: str = r"embed|modulation|table|norm|bias|scale"
  ema_decay: float = 0.999
  lr_multipliers: tuple[tuple[str, float], ...] = ()
  muon_exclude: str = r"embed|modulation|table|norm|patch|head|time|cond"


@dataclasses.dataclass(frozen=True)
class Optimizer:
  """An optax transformation over the trainable part of a parameter tree."""

  config: OptimConfig
  transform: optax.GradientTransformation
  schedule: optax.Schedule
  trainable: str

  def split(self, params: Params) -> tuple[Params, Params]:
    """(trainable, frozen); see `split`."""
    return split(params, self.trainable)

  def ema(self, ema: Params, params: Params, updates: jax.Array) -> Params:
    """One step of the average; its decay is min(ema_decay, (1 + updates) / (10 + updates))."""
    decay = jnp.minimum(self.config.ema_decay, (1.0 + updates) / (10.0 + updates))
    return jax.tree.map(lambda e, p: (e + (1.0 - decay) * (p - e)).astype(e.dtype), ema, params)


def split(params: Params, trainable: str) -> tuple[Params, Params]:
  """(trainable, frozen): two trees of `params`' structure with `None` for the others' leaves."""
  mask = path_mask(params, trainable)
  return (
    jax.tree.map(lambda m, p: p if m else None, mask, params),
    jax.tree.map(lambda m, p: None if m else p, mask, params),
  )


def merge(trainable: Params, frozen: Params) -> Params:
  """The inverse of `split`."""
  return jax.tree.map(lambda t, f: f if t is None else t, trainable, frozen, is_leaf=_is_none)


def build(section: Any, params: Params, steps: int, trainable: str = ".*") -> Optimizer:
  """The optimiser for `params` (arrays or shapes) over `steps` updates.

  Raises:
    UserError: an unknown key, name or schedule, or a pattern that no parameter matches or that is
      no regular expression.
  """
  config = build_from_section(OptimConfig, section)
  if config.name not in ("adamw", "muon"):
    raise UserError(f"optim.name={config.name!r} is unknown; choose adamw or muon.")
  mask = path_mask(params, trainable)
  if not any(jax.tree.leaves(mask)):
    raise UserError(
      f"No parameter's path matches trainable={trainable!r}; nothing would be trained."
    )
  for pattern in (config.decay_exclude, config.muon_exclude):
    _search(pattern)
  tree = jax.tree.map(lambda m, p: p if m else None, mask, params)
  for pattern, _ in config.lr_multipliers:
    if not any(jax.tree.leaves(path_mask(params, pattern))):
      raise UserError(f"No parameter's path matches {pattern!r} in optim.lr_multipliers.")
  schedule = make_schedule(config, steps)
  parts = [optax.clip_by_global_norm(config.clip)] if config.clip else []
  parts.append(_muon(config, schedule) if config.name == "muon" else _adamw(config, schedule))
  if config.lr_multipliers:
    parts.append(_scale_by_path(_multipliers(tree, config)))
  return Optimizer(config, optax.chain(*parts), schedule, trainable)


def make_schedule(config: OptimConfig, steps: int) -> optax.Schedule:
  """Updates done so far -> learning rate."""
  if config.schedule not in SCHEDULES:
    known = ", ".join(SCHEDULES)
    raise UserError(f"optim.schedule={config.schedule!r} is unknown; choose one of {known}.")
  rest = max(1, steps - config.warmup)
  after = {
    "constant": optax.constant_schedule(config.lr),
    "cosine": optax.cosine_decay_schedule(config.lr, rest, alpha=config.final),
    "linear": optax.linear_schedule(config.lr, config.final * config.lr, rest),
  }[config.schedule]
  if not config.warmup:
    return after

  def warm(count: jax.typing.ArrayLike) -> jax.typing.ArrayLike:
    return config.lr * (count + 1) / config.warmup  # the first update already moves

  return optax.join_schedules([warm, after], [config.warmup])


def path_mask(tree: Any, pattern: str) -> Any:
  """True for each leaf whose path contains `pattern`. Raises UserError: that is no regex."""
  matches = _search(pattern)
  return jax.tree_util.tree_map_with_path(lambda p, _: bool(matches(path_string(p))), tree)


def _search(pattern: str) -> Callable[[str], re.Match[str] | None]:
  """The search for a pattern of a config in paths. Raises UserError: it is no regex."""
  try:
    return re.compile(pattern).search
  except re.error as e:
    raise UserError(
      f"The pattern {pattern!r} of parameter paths is no regular expression ({e}): correct it."
    ) from None


def decay_mask(tree: Any, exclude: str) -> Any:
  """True for each leaf that is decayed: no vector, and not excluded by its path."""
  excluded = path_mask(tree, exclude)
  return jax.tree.map(lambda m, leaf: not m and leaf.ndim > 1, excluded, tree)


def muon_mask(tree: Any, exclude: str) -> Any:
  """True for each kernel that Muon updates."""
  excluded = _search(exclude)

  def taken(path: tuple[Any, ...], leaf: Any) -> bool:
    name = path_string(path)
    matrix = leaf.ndim - _is_stacked(name) > 1
    return matrix and name.endswith("kernel") and not excluded(name)

  return jax.tree_util.tree_map_with_path(taken, tree)


def orthogonalize(x: Float[Array, "*b m n"]) -> Float[Array, "*b m n"]:
  """U V^T of each matrix U S V^T, up to singular values in about [0.7, 1.45].

  Quintic Newton-Schulz steps, X <- X (a + b G + c G^2) with G = X^T X, a, b, c of `QUINTICS`. Each
  G is a polynomial in the first one. So where X is taller than wide, many times in a convolution,
  the steps are taken on it alone and X is read twice instead of eight times; near a square that
  takes more products. Singular values below 0.002 of the Frobenius norm end lower.
  """
  rows, columns = x.shape[-2:]
  if rows < columns:
    return orthogonalize(x.mT).mT
  with jax.default_matmul_precision("highest"):  # in bfloat16 eigenvalues near 0 turn negative
    x = x / (jnp.linalg.norm(x, axis=(-2, -1), keepdims=True) + 1e-8)
    if rows < 1.5 * columns:
      for a, b, c in QUINTICS:
        gram = x.mT @ x
        x = a * x + x @ (b * gram + c * (gram @ gram))
      return x
    gram = x.mT @ x
    total = eye = jnp.eye(x.shape[-1], dtype=x.dtype)
    for a, b, c in QUINTICS:
      step = a * eye + b * gram + c * (gram @ gram)
      total, gram = total @ step, step @ gram @ step
    return x @ total


def _orthogonalize_kernel(path: tuple[Any, ...], kernel: Array) -> Array:
  """Kernels are `(in, out)`, or `(layers, in, out)` where `nn.scan` stacks them: each layer alone.

  A convolution `(taps..., in, out)` is the matrix from all it reads to what it writes.
  """
  layers = kernel.shape[:1] if _is_stacked(path_string(path)) else ()
  matrices = kernel.reshape(*layers, -1, kernel.shape[-1])
  scale = MUON_RMS * math.sqrt(max(matrices.shape[-2:]))
  return scale * orthogonalize(matrices).reshape(kernel.shape)


def _is_stacked(name: str) -> bool:
  return bool(re.search(r"(^|/)\w*blocks(/|$)", name))


def _adamw(config: OptimConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
  return optax.adamw(
    schedule,
    config.b1,
    config.b2,
    config.eps,
    weight_decay=config.decay,
    mask=lambda tree: decay_mask(tree, config.decay_exclude),
  )


def _muon(config: OptimConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
  muon = optax.chain(
    optax.trace(0.95, nesterov=True),
    optax.stateless(
      lambda updates, _: jax.tree_util.tree_map_with_path(_orthogonalize_kernel, updates)
    ),
    optax.add_decayed_weights(config.decay),
    optax.scale_by_learning_rate(schedule),
  )
  adam = optax.adamw(schedule, config.b1, config.b2, config.eps, weight_decay=0.0, nesterov=True)

  def labels(tree: Params) -> Any:
    mask = muon_mask(tree, config.muon_exclude)
    return jax.tree.map(lambda m: "muon" if m else "adam", mask)

  return optax.partition({"muon": muon, "adam": adam}, labels)


def _multipliers(tree: Params, config: OptimConfig) -> Params:
  def factor(path: tuple[Any, ...], _: Any) -> float:
    name = path_string(path)
    return next((f for pattern, f in config.lr_multipliers if re.search(pattern, name)), 1.0)

  return jax.tree_util.tree_map_with_path(factor, tree)


def _scale_by_path(factors: Params) -> optax.GradientTransformation:
  return optax.stateless(lambda updates, _: jax.tree.map(lambda u, f: u * f, updates, factors))


def _is_none(x: Any) -> bool:
  return x is None
