"""Components of published models: which of our modules each is, and its weights, placed as read.

A component is a folder with a config.json, which names its class, and safetensors (`shards`). The
classes that load are those of the modules in `MODULES`; each of them keeps the contract of `names`.
"""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from sora_jax import config as config_lib
from sora_jax.errors import UserError
from sora_jax.interop import (
  dit_xl,
  names,
  sd_vae,
  t5,
  vjepa2,
  vjepa2_classifier,
  wan_dit,
  wan_vae,
)
from sora_jax.interop.folders import read_json
from sora_jax.interop.names import Rule
from sora_jax.interop.shards import Weights
from sora_jax.parallel import sharding
from sora_jax.typing import Params

T = TypeVar("T")
LARGE = 2**28  # bytes
MODULES: tuple[ModuleType, ...] = (
  wan_dit, wan_vae, t5, dit_xl, sd_vae, vjepa2, vjepa2_classifier
)  # fmt: skip


@dataclass(frozen=True)
class Component:
  """A module and where its weights are: all is checked, and only what should be equal is read.

  Attributes:
    module: ours, computing in the type asked for.
    rules: from the tensors' names to our parameters.
    shapes: of our parameters, as nested dicts.
    tensors: the weights.
  """

  module: Any
  rules: Sequence[Rule]
  shapes: Params
  tensors: Mapping[str, np.ndarray]

  def __post_init__(self) -> None:
    for _ in self.pieces():  # views of files: this reads headers, and tied names and copies
      pass

  @property
  def stored(self) -> Params:
    """Our parameters as sampling keeps them: float32, or what the module stores them as."""
    store = getattr(self.module, "stored", lambda params: params)
    return jax.eval_shape(store, self.shapes)

  @property
  def nbytes(self) -> int:
    """Bytes of all parameters as stored."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(self.stored))

  def pieces(self) -> Iterator[tuple[str, int | None, np.ndarray]]:
    """Our parameters layer by layer, as in the files; see `names.pieces`."""
    return names.pieces(self.tensors, self.rules, self.shapes)

  def place(self, mesh: Mesh) -> Params:
    """Reads the parameters, each to where the table of shardings wants it.

    On the host there is one layer of one parameter at a time: those of a stack go one by one into
    a buffer on the devices.
    """
    like = names.flatten(self.stored)
    places = names.flatten(sharding.param_shardings(self.stored, mesh))
    flat: dict[str, Any] = {}
    for path, layer, array in self._parts():
      dtype, place = like[path].dtype, places[path]
      if layer is None:
        flat[path] = _send(array, dtype, place)
        continue
      if layer == 0:
        flat[path] = jnp.zeros(like[path].shape, dtype, device=place)
      part = NamedSharding(mesh, P(*place.spec[1:]))
      flat[path] = jax.block_until_ready(_put(flat[path], _send(array, dtype, part), layer))
    return names.unflatten(flat)

  def _parts(self) -> Iterator[tuple[str, int | None, np.ndarray]]:
    """The pieces, stacks that are large in the files taken apart, too."""
    for path, layer, array in self.pieces():
      if layer is None and array.ndim > 2 and array.nbytes > LARGE:
        yield from ((path, i, part) for i, part in enumerate(array))
      else:
        yield path, layer, array


def class_of(config: Mapping[str, Any]) -> str | None:
  """The class that a published config.json names; None if it is none."""
  named = config.get("architectures")
  first = named[0] if isinstance(named, list | tuple) and named else None
  return config.get("_class_name") or first


def module_of(config: Mapping[str, Any], where: Path) -> ModuleType:
  """The module whose class a config.json names.

  Raises:
    UserError: none loads it; says which do.
  """
  found = class_of(config)
  for module in MODULES:
    if found in classes(module):
      return module
  known = ", ".join(name for module in MODULES for name in classes(module))
  raise UserError(f"{where} is of class {found}, which does not load here: {known} do.")


def classes(module: ModuleType) -> tuple[str, ...]:
  """The published classes that a module of the contract loads."""
  return module.NAMES if hasattr(module, "NAMES") else (module.NAME,)


def built(kind: type[T], section: Mapping[str, Any], **settings: Any) -> T:
  """A module of ours from a section of our config.json: its fields, or a published config.json.

  Args:
    settings: fields in the place of the section's.

  Raises:
    UserError: the section is of another module than `kind`.
  """
  if class_of(section) is None:
    return config_lib.build(kind, section, **settings)
  where = Path("config.json")
  module = described(module_of(section, where), section, where)
  if not isinstance(module, kind):
    raise UserError(
      f"The config.json is of a {class_of(section)}, which is no {kind.__name__}: give a "
      "checkpoint that has one."
    )
  return typing.cast(Any, module).clone(**settings)


def described(contract: ModuleType, config: Mapping[str, Any], where: Path) -> Any:
  """Our module, from a published config.json.

  Args:
    where: the file, for messages.

  Raises:
    UserError: it is of another architecture, lacks a setting, or one is of the wrong kind.
  """
  try:
    module = contract.from_config(config)
  except KeyError as error:
    raise UserError(f"{where} does not say {error}: get it again.") from error
  except (TypeError, ValueError, IndexError, AttributeError, ArithmeticError) as error:
    raise UserError(f"{where} is damaged ({error}): get it again.") from error
  kinds = {"int": (int,), "float": (int, float)}
  for field in dataclasses.fields(module):
    value = getattr(module, field.name)
    if field.type in kinds and not isinstance(value, kinds[field.type]):
      raise UserError(f"{where} is damaged ({field.name} would be {value!r}): get it again.")
  return module


def returned(contract: ModuleType) -> type:
  """The class of ours that a contract's components become."""
  return typing.get_type_hints(contract.from_config)["return"]


def writer_of(module: Any) -> tuple[ModuleType, dict[str, Any]]:
  """What writes one of our modules, and the config.json of it.

  Raises:
    UserError: it has no published counterpart.
  """
  reason = f"A {type(module).__name__} has no published counterpart: it cannot be written."
  for contract in MODULES:
    if returned(contract) is type(module):
      try:
        return contract, contract.to_config(module)
      except UserError as error:  # another contract may be of the same class
        reason = str(error)
  raise UserError(reason)


def read_component(folder: Path, dtype: Any = None) -> Component:
  """The component in a folder.

  Args:
    dtype: what it computes in; None is float32.

  Raises:
    UserError: its class does not load; a file is missing or damaged; or weights and config.json are
      of different models. Of the weights only tied names and copies are read, to compare them.
  """
  where = folder / "config.json"
  config = read_json(where)
  contract = module_of(config, where)
  module = described(contract, config, where)
  module = module if dtype is None else module.clone(dtype=dtype)
  try:
    return of(contract, module, Weights.open(folder))
  except (TypeError, ValueError, IndexError, ArithmeticError) as error:  # impossible numbers
    raise UserError(f"{where} is damaged ({error}): get it again.") from error


def of(contract: ModuleType, module: Any, tensors: Mapping[str, np.ndarray]) -> Component:
  """A component whose tensors have their published names."""
  return Component(module, contract.rules(module), contract.shapes(module), tensors)


def own(module: Any, shapes: Params, tensors: Mapping[str, np.ndarray]) -> Component:
  """A component whose tensors are called as our parameters are."""
  return Component(module, [Rule(path, path) for path in names.flatten(shapes)], shapes, tensors)


def _send(array: np.ndarray, dtype: Any, place: NamedSharding) -> jax.Array:
  """Puts a part of a file where it belongs; the host then keeps no copy besides it."""
  own = np.array(array, dtype, order="C")
  return jax.block_until_ready(jax.device_put(own, place))


@functools.partial(jax.jit, donate_argnums=0)
def _put(stack: jax.Array, layer: jax.Array, index: int | jax.Array) -> jax.Array:
  return jax.lax.dynamic_update_index_in_dim(stack, layer, index, 0)
