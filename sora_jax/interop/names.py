"""Name tables between published state dicts and our parameter trees, both ways.

A table is a list of rules; each maps one family of tensors. The published side is a flat dict of
numpy arrays, ours a nested dict. Every tensor must be consumed exactly once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sora_jax.errors import UserError
from sora_jax.typing import Params


@dataclass(frozen=True)
class Rule:
  """One tensor, or with `{i}` in its published name one per scanned layer, stacked on axis 0.

  Attributes:
    theirs: published name. ours: our path, joined by "/".
    to_ours, to_theirs: layout changes of one layer's array, inverse to one another.
  """

  theirs: str
  ours: str
  to_ours: Callable[[np.ndarray], np.ndarray] = lambda x: x
  to_theirs: Callable[[np.ndarray], np.ndarray] = lambda x: x


def linear(theirs: str, ours: str) -> list[Rule]:
  """Kernel and bias of a linear layer; published kernels are (out, in)."""
  return [
    Rule(f"{theirs}.weight", f"{ours}/kernel", np.transpose, np.transpose),
    Rule(f"{theirs}.bias", f"{ours}/bias"),
  ]


def to_ours(tensors: Mapping[str, np.ndarray], rules: Sequence[Rule], layers: int) -> Params:
  """Our tree from a published state dict.

  Raises:
    UserError: a tensor is missing, or one is left over.
  """
  left = dict(tensors)
  flat = {}
  for rule in rules:
    names = [rule.theirs.format(i=i) for i in range(layers if "{i}" in rule.theirs else 1)]
    missing = [name for name in names if name not in left]
    if missing:
      raise UserError(f"The weights lack the tensor {missing[0]}: they are of another model.")
    arrays = [rule.to_ours(left.pop(name)) for name in names]
    flat[rule.ours] = np.stack(arrays) if "{i}" in rule.theirs else arrays[0]
  if left:
    raise UserError(f"The weights hold a tensor no rule knows, {min(left)}: of another model.")
  return unflatten(flat)


def to_theirs(params: Params, rules: Sequence[Rule], layers: int) -> dict[str, np.ndarray]:
  """The inverse of `to_ours`."""
  flat = flatten(params)
  out: dict[str, np.ndarray] = {}
  for rule in rules:
    array = np.asarray(flat.pop(rule.ours))
    if "{i}" in rule.theirs:
      out |= {rule.theirs.format(i=i): rule.to_theirs(array[i]) for i in range(layers)}
    else:
      out[rule.theirs] = rule.to_theirs(array)
  if flat:
    raise UserError(f"The parameter {min(flat)} has no published counterpart.")
  return out


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """Nested dict to {"a/b": leaf}."""
  flat: dict[str, Any] = {}
  for name, value in tree.items():
    path = f"{prefix}{name}"
    flat |= flatten(value, f"{path}/") if isinstance(value, Mapping) else {path: value}
  return flat


def unflatten(flat: Mapping[str, np.ndarray]) -> Params:
  """{"a/b": leaf} to nested dict."""
  tree: Params = {}
  for path, value in flat.items():
    *parents, name = path.split("/")
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[name] = value
  return tree
