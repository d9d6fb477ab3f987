"""Name tables between published state dicts and our parameter trees, both ways.

A table is a list of rules; each maps one family of tensors. The published side is a mapping of
numpy arrays (which may read a tensor only when it is asked for), ours a nested dict. Every tensor
must be consumed exactly once.

Each `interop/<model>.py` has the table of one published class and three functions around it:

  NAME, or NAMES          its class, as `_class_name` or `architectures` of a config.json has it
  from_config(config)     our module, from a published config.json
  to_config(module)       the config.json with which the reference implementation builds it
  rules(module)           the table
  shapes(module)          our parameters' shapes, computing nothing
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from einops import EinopsError

from sora_jax.errors import UserError
from sora_jax.typing import Params


@dataclass(frozen=True)
class Rule:
  """One tensor, or one per scanned layer, stacked on axis 0.

  Attributes:
    theirs: published name, with `{i}` where the number of a layer stands.
    ours: our path, joined by "/".
    to_ours, to_theirs: layout changes of one layer's array, inverse to one another.
    layers: how many are stacked; 0 is one tensor that is not.
    copies: the layers' tensors are copies of one, and ours is that one, not stacked.
    tied: further names that the tensor (not a stacked one) may have. A file holds it under one of
      them or under several, and we write the first.
  """

  theirs: str
  ours: str
  to_ours: Callable[[np.ndarray], np.ndarray] = lambda x: x
  to_theirs: Callable[[np.ndarray], np.ndarray] = lambda x: x
  layers: int = 0
  copies: bool = False
  tied: tuple[str, ...] = ()

  @property
  def stacked(self) -> bool:
    """Whether our array has an axis of layers."""
    return self.layers > 0 and not self.copies

  @property
  def names(self) -> list[str]:
    """The published tensors, in the order of the layers."""
    return [self.theirs.format(i=i) for i in range(self.layers)] if self.layers else [self.theirs]


def linear(theirs: str, ours: str, bias: bool = True) -> list[Rule]:
  """Kernel and bias of a linear layer; published kernels are (out, in)."""
  kernel = Rule(f"{theirs}.weight", f"{ours}/kernel", np.transpose, np.transpose)
  return [kernel, Rule(f"{theirs}.bias", f"{ours}/bias")] if bias else [kernel]


def norm(theirs: str, ours: str, bias: bool = True) -> list[Rule]:
  """Scale and bias of a `LayerNorm` of `models.layers`."""
  ours = f"{ours}/LayerNorm_0"
  scale = Rule(f"{theirs}.weight", f"{ours}/scale")
  return [scale, Rule(f"{theirs}.bias", f"{ours}/bias")] if bias else [scale]


def stacked(layers: int, rules: Iterable[Rule], copies: bool = False) -> list[Rule]:
  """The rules of one layer, for all `layers` of them; `copies` as in `Rule`."""
  return [dataclasses.replace(rule, layers=layers, copies=copies) for rule in rules]


def found(tensors: Mapping[str, Any], rules: Sequence[Rule]) -> list[list[str]]:
  """For each rule the tensors it takes; of tied ones all that are there.

  Raises:
    UserError: a tensor is missing or left over.
  """
  held = [[name for name in (*rule.names, *rule.tied) if name in tensors] for rule in rules]
  for rule, names in zip(rules, held, strict=True):
    if len(names) < len(rule.names):
      name = next(name for name in rule.names if name not in tensors)
      raise UserError(f"The weights lack the tensor {name}: they are of another model.")
  taken = {name for names in held for name in names}
  if left := tensors.keys() - taken:
    raise UserError(f"The weights hold a tensor no rule knows, {min(left)}: of another model.")
  assert len(taken) == sum(map(len, held)), "two rules take one tensor"
  return held


def pieces(
  tensors: Mapping[str, np.ndarray], rules: Sequence[Rule], shapes: Params
) -> Iterator[tuple[str, int | None, np.ndarray]]:
  """Our parameters layer by layer: (path, layer, array); layer None is a parameter as a whole.

  One tensor is read when it is asked for, and none before all names are found right.

  Args:
    shapes: what our parameters look like (anything with `.shape`), as nested dicts.

  Raises:
    UserError: a tensor is missing or left over, has another shape than the model, or other values
      than one that it should be the same as.
  """
  held = found(tensors, rules)
  like = flatten(shapes)
  for rule, names in zip(rules, held, strict=True):
    shape = tuple(like[rule.ours].shape)
    for other in () if rule.stacked else names[1:]:
      if not np.array_equal(tensors[names[0]], tensors[other]):
        raise UserError(f"The tensors {names[0]} and {other} should be the same and are not.")
    for layer, name in enumerate(names if rule.stacked else names[:1]):
      tensor = tensors[name]
      try:
        array = rule.to_ours(tensor)
      except (EinopsError, IndexError, ValueError) as error:  # of another rank
        raise UserError(
          f"The tensor {name} of shape {tensor.shape} makes no {rule.ours} of shape {shape}: it is "
          "of another model."
        ) from error
      if array.shape != shape[1 if rule.stacked else 0 :]:
        made = (rule.layers, *array.shape) if rule.stacked else array.shape
        raise UserError(
          f"The tensor {name} makes {rule.ours} of shape {made} where the config "
          f"asks for {shape}: they are of another model."
        )
      yield rule.ours, layer if rule.stacked else None, array


def stream(
  tensors: Mapping[str, np.ndarray], rules: Sequence[Rule], shapes: Params
) -> Iterator[tuple[str, np.ndarray]]:
  """Our parameters one by one, as (path, array), in the order of the rules; see `pieces`.

  Raises:
    UserError: as `pieces` does, and if layers of one parameter differ in type.
  """
  like = flatten(shapes)
  for path, layer, array in pieces(tensors, rules, shapes):
    if layer is None:
      yield path, array
      continue
    if layer == 0:
      whole = np.empty(like[path].shape, array.dtype)
    if array.dtype != whole.dtype:
      raise UserError(f"Layer {layer} of {path} is {array.dtype}, the others are {whole.dtype}.")
    whole[layer] = array
    if layer + 1 == len(whole):
      yield path, whole


def to_ours(tensors: Mapping[str, np.ndarray], rules: Sequence[Rule], shapes: Params) -> Params:
  """Our tree from a published state dict, all of it at once; see `stream`."""
  return unflatten(dict(stream(tensors, rules, shapes)))


def to_theirs(params: Params, rules: Sequence[Rule]) -> dict[str, np.ndarray]:
  """The inverse of `to_ours`; see `stream_back`."""
  return dict(stream_back(flatten(params), rules))


def stream_back(flat: Mapping[str, Any], rules: Sequence[Rule]) -> Iterator[tuple[str, np.ndarray]]:
  """The published tensors one by one, as (name, array), in the order of the rules.

  Args:
    flat: our parameters by path; one is asked for when its first tensor is.

  Raises:
    UserError: a parameter has no published counterpart, or one is missing.
  """
  if extra := flat.keys() - {rule.ours for rule in rules}:
    raise UserError(f"The parameter {min(extra)} has no published counterpart.")
  if lacking := {rule.ours for rule in rules} - flat.keys():
    raise UserError(f"The parameter {min(lacking)} is missing.")
  for rule in rules:
    array = np.asarray(flat[rule.ours])
    layers = array if rule.stacked else [array] * len(rule.names)
    for name, layer in zip(rule.names, layers, strict=True):
      yield name, rule.to_theirs(layer)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """Nested dict to {"a/b": leaf}."""
  flat: dict[str, Any] = {}
  for name, value in tree.items():
    path = f"{prefix}{name}"
    flat |= flatten(value, f"{path}/") if isinstance(value, Mapping) else {path: value}
  return flat


def unflatten(flat: Mapping[str, Any]) -> Params:
  """{"a/b": leaf} to nested dict. Raises UserError: a leaf has leaves below it."""
  tree: Params = {}
  for path, value in flat.items():
    *parents, name = path.split("/")
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
      if not isinstance(node, dict):
        raise UserError(f"The weights hold {path}, and {parent} itself: get them again.")
    if name in node:
      raise UserError(f"The weights hold {path}, and others below it: get them again.")
    node[name] = value
  return tree
