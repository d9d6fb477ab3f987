"""Configs: Python files that return an `ml_collections.ConfigDict`, changed from the command line.

`configs/toy.py:smoke` calls `get_config("smoke")` of that file; `--config.optim.lr=1e-3` replaces
one existing value by another of its type. Whatever is not known is an error that names the nearest
key that is.
"""

from __future__ import annotations

import ast
import difflib
import importlib.util
import inspect
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

from ml_collections import ConfigDict

from sora_jax.errors import UNREADABLE, UserError

T = TypeVar("T")
Section: TypeAlias = Mapping[str, Any] | ConfigDict  # a ConfigDict is no Mapping to isinstance

# Keys of tuples that keep their length: one number for each axis, or for each end. Others, such as
# the widths of a model's stages, may grow and shrink.
_FIXED = ("size", "patch", "momentum")
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


def load(name: str, overrides: Sequence[str] = ()) -> ConfigDict:
  """The locked config `path/to/file.py[:arg]`, with `a.b=value` overrides applied.

  Raises:
    UserError: no such file, no `get_config` in it, an argument it does not take, an unknown key,
      or a value of the wrong type.
  """
  path, _, arg = name.partition(":")
  if not os.path.isfile(path):
    folder = os.path.dirname(path) or "."
    found = os.listdir(folder) if os.path.isdir(folder) else []
    near = nearest(os.path.basename(path), [f for f in found if f.endswith(".py")])
    raise UserError(f"There is no config file {path!r}{near}.")
  spec = importlib.util.spec_from_file_location("sora_jax_config", path)
  if spec is None or spec.loader is None:
    raise UserError(f"The config {path!r} is not a Python file; its name must end in .py.")
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
  except Exception as e:
    raise UserError(f"The config {path!r} cannot be run: {type(e).__name__}: {e}.") from e
  if not hasattr(module, "get_config"):
    raise UserError(f"The config {path!r} has no function get_config.")
  if arg and not inspect.signature(module.get_config).parameters:
    raise UserError(f"The config {path!r} takes no argument; leave out {':' + arg!r}.")
  try:
    config = module.get_config(arg) if arg else module.get_config()
  except ValueError as e:
    raise UserError(f"The config {path!r} does not take {arg!r}: {e}.") from e
  for override in overrides:
    apply_override(config, override)
  return config.lock()


def apply_override(config: ConfigDict, override: str) -> None:
  """Sets `a.b.c=value` in `config`; the value is read as the type of the one it replaces.

  `None` is Python's, and so is `none` but in the place of another string.

  Raises:
    UserError: there is no such key, or the value is of another type, or, for a size and the like,
      of another length.
  """
  key, equals, text = override.partition("=")
  if not equals:
    raise UserError(f"--config.{key} needs a value: --config.{key}=VALUE.")
  *parents, last = key.split(".")
  section = config
  for depth, parent in enumerate(parents):
    section = _child(section, parent, parents[:depth])
    if not isinstance(section, ConfigDict):
      raise UserError(f"config.{'.'.join(parents[: depth + 1])} is a value and has no keys.")
  old = _child(section, last, parents)
  if isinstance(old, ConfigDict):
    raise UserError(f"config.{key} is a section; set one of its keys: {', '.join(old)}.")
  value = _parse(key, text, old)
  tuples = isinstance(old, tuple | list) and isinstance(value, tuple | list)
  if last in _FIXED and tuples and len(value) != len(old):
    raise UserError(
      f"config.{key} holds {len(old)} numbers, not {len(value)}: write them all, such as "
      f"--config.{key}={','.join(map(str, old))}."
    )
  section[last] = value


def build(target: Callable[..., T], section: Section, **extra: Any) -> T:
  """`target(**section, **extra)`: a dataclass, module or function from a section of a config.

  Sections become dicts and lists tuples, so that modules stay hashable.

  Raises:
    UserError: a key `target` does not take (names the nearest it does), or one that is missing.
  """
  parameters = inspect.signature(target).parameters
  known = [n for n in parameters if n not in ("parent", "name") or not hasattr(target, "apply")]
  arguments = {key: _plain(value) for key, value in section.items()} | extra
  label = getattr(target, "__name__", str(target))
  if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
    for key in arguments:
      if key not in known:
        raise UserError(f"{label} has no setting {key!r}{nearest(key, known)}.")
  required = [n for n in known if parameters[n].default is inspect.Parameter.empty]
  for key in required:
    kind = parameters[key].kind
    if key not in arguments and kind not in (kind.VAR_KEYWORD, kind.VAR_POSITIONAL):
      raise UserError(f"{label} needs a value for {key!r}; add it to the config.")
  return target(**arguments)


def nearest(word: str, known: Iterable[str]) -> str:
  """`; did you mean 'x'?`-style ending of an error sentence, without the final stop."""
  known = sorted(known)
  if close := difflib.get_close_matches(word, known, n=1, cutoff=0.6):
    return f"; did you mean {close[0]!r}"
  return f"; there are {', '.join(known)}" if known else ""


def flatten(config: Section, prefix: str = "") -> dict[str, Any]:
  """`{"a": {"b": 1}}` -> `{"a.b": 1}`, with tuples as lists: what JSON gives back."""
  flat: dict[str, Any] = {}
  for key, value in config.items():
    if isinstance(value, Mapping | ConfigDict) and len(value):
      flat |= flatten(value, f"{prefix}{key}.")
    else:
      flat[f"{prefix}{key}"] = _listed(value)
  return flat


def _child(section: ConfigDict, key: str, parents: Sequence[str]) -> Any:
  if key in section:
    return section[key]
  where = ".".join(["config", *parents])
  raise UserError(f"{where} has no key {key!r}{nearest(key, section.keys())}.")


def _parse(key: str, text: str, old: Any) -> Any:
  try:
    return _convert(text, old)
  except (ValueError, SyntaxError, TypeError, *UNREADABLE):
    kind = type(old).__name__
    raise UserError(f"config.{key} is of type {kind}, and {text!r} is not; now {old!r}.") from None


def _convert(text: str, old: Any) -> Any:
  if text in ("None", "null") or (text == "none" and not isinstance(old, str)):
    return None
  if isinstance(old, bool):
    return _BOOLEANS[text.lower()] if text.lower() in _BOOLEANS else _fail()
  if isinstance(old, int):
    value = float(text) if "e" in text.lower() else int(text)
    return int(value) if value == int(value) else _fail()
  if isinstance(old, float):
    return float(text)
  if isinstance(old, tuple | list):
    values = ast.literal_eval(text if text[:1] in "([" else f"({text},)")
    if not isinstance(values, tuple | list):  # (2) is a number
      values = (values,)
    return type(old)(_element(v, old) for v in values)
  if old is None:
    try:
      return ast.literal_eval(text)
    except (ValueError, SyntaxError):
      return text
  return text if isinstance(old, str) else _fail()


def _element(value: Any, old: Sequence[Any]) -> Any:
  kinds = {type(v) for v in old}
  if kinds == {float} and isinstance(value, int):
    return float(value)
  return value if not kinds or type(value) in kinds else _fail()


def _fail() -> Any:
  raise ValueError


def _plain(value: Any) -> Any:
  if isinstance(value, Mapping | ConfigDict):
    return {k: _plain(v) for k, v in value.items()}
  return tuple(_plain(v) for v in value) if isinstance(value, tuple | list) else value


def _listed(value: Any) -> Any:
  if isinstance(value, Mapping | ConfigDict):
    return {k: _listed(v) for k, v in value.items()}
  return [_listed(v) for v in value] if isinstance(value, tuple | list) else value
