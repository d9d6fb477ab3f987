"""Low-rank adapters of linear maps (LoRA, Hu et al. 2021, arXiv:2106.09685).

  y = x W + b + (alpha / rank) (x A) B

An adapter is not another kind of model but parameters beside a kernel W, which `layers.Dense` uses
where it finds them: `lora_down` A (in, rank), `lora_up` B (rank, out), zero at first, and
`lora_alpha`, a number. Under `nn.scan` they are stacked as the kernel is. So any model built of
`Dense` takes an adapter, and a tree without one is the model without one, bit for bit.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from sora_jax.errors import UserError
from sora_jax.typing import Array, Params, PRNGKey

NAMES = ("lora_down", "lora_up", "lora_alpha")
TRAINABLE = r"lora_(down|up)$"  # paths of what training an adapter changes


@dataclass(frozen=True, kw_only=True)
class Lora:
  """A new adapter.

  Attributes:
    rank: of the update of each kernel. alpha: the update is scaled by alpha / rank.
    targets: regex of the paths of the layers that get one, such as `blocks/self_attention/q`.
  """

  rank: int
  alpha: float
  targets: str

  def __post_init__(self):
    if self.rank < 1:
      raise UserError(f"lora.rank is {self.rank} but must be at least 1.")


def add(params: Params, lora: Lora, key: PRNGKey) -> Params:
  """`params` with a new adapter, which changes nothing yet: A is uniform, B zero, in float32.

  Raises:
    UserError: no layer's path matches `lora.targets`.
  """
  found = 0

  def extend(path: str, layer: Mapping[str, Any]) -> Params:
    nonlocal found
    if not re.search(lora.targets, path):
      return {}
    *stack, width, out = layer["kernel"].shape
    found += 1
    bound = width**-0.5  # the variance of A's rows does not depend on the rank
    draw = jax.random.uniform(
      jax.random.fold_in(key, found), (*stack, width, lora.rank), jnp.float32, -bound, bound
    )
    up, alpha = jnp.zeros((*stack, lora.rank, out)), jnp.full(stack, lora.alpha, jnp.float32)
    return dict(zip(NAMES, (draw, up, alpha), strict=True))

  params = _layers(params, lambda path, layer: {**layer, **extend(path, layer)})
  if not found:
    raise UserError(f"No linear layer's path matches lora.targets={lora.targets!r}.")
  return params


def apply(params: Params, adapter: Params, weight: float = 1.0) -> Params:
  """`params` with `adapter`, a tree of the leaves `NAMES` alone, at so much of its strength.

  An adapter that is there already is merged first.
  """

  def extend(tree: Mapping[str, Any], extra: Mapping[str, Any]) -> Params:
    leaves = {name: x for name, x in extra.items() if name in NAMES}
    if leaves:
      leaves["lora_alpha"] = weight * leaves["lora_alpha"]
    deeper = {k: extend(tree[k], x) for k, x in extra.items() if k not in NAMES}
    return {**tree, **deeper, **leaves}

  return extend(merge(params), adapter)


def merge(params: Params) -> Params:
  """`params` without the adapter, its update added to the kernels; in float32, rounded once."""

  def add_update(path: str, layer: Mapping[str, Any]) -> Params:
    rest = {name: x for name, x in layer.items() if name not in NAMES}
    if "lora_down" in layer:
      down, up, alpha = (jnp.asarray(layer[name], jnp.float32) for name in NAMES)
      update = jnp.matmul(down, up, precision="highest")
      scale = (alpha / down.shape[-1])[..., None, None]
      kernel = jnp.asarray(layer["kernel"])
      rest["kernel"] = (kernel.astype(jnp.float32) + scale * update).astype(kernel.dtype)
    return rest

  return _layers(params, add_update)


def adapter_of(params: Mapping[str, Any]) -> Params:
  """The adapter alone: what `apply` takes."""
  tree: Params = {}
  for name, x in params.items():
    kept = adapter_of(x) if isinstance(x, Mapping) else x
    if name in NAMES or (isinstance(x, Mapping) and kept):
      tree[name] = kept
  return tree


def low_rank(x: Array, down: Array, up: Array, alpha: Array) -> Array:
  """(alpha / rank) (x A) B."""
  scale = (alpha / down.shape[-1]).astype(x.dtype)
  return (scale * (x @ down)) @ up


def _layers(
  params: Mapping[str, Any], change: Callable[[str, Mapping[str, Any]], Params], path: str = ""
) -> Params:
  """A copy of the tree, `change`d wherever there is a kernel."""
  tree = {
    name: _layers(x, change, f"{path}/{name}" if path else name) if isinstance(x, Mapping) else x
    for name, x in params.items()
  }
  return change(path, tree) if "kernel" in tree else tree
