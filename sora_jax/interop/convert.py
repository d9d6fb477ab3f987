"""Between the hub's layout and ours, bit for bit, tensor by tensor; types stay as they are.

A source is a whole model or one component of it: in the hub's layout a repository (`pipelines`) or
a folder with config.json and safetensors, in ours a folder that holds some of the components.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import jax

from sora_jax import config as config_lib
from sora_jax.errors import UserError
from sora_jax.interop import names, native, pipelines, published, schedulers, shards
from sora_jax.interop.folders import read_json, write_json, written
from sora_jax.interop.pipelines import INDEX
from sora_jax.interop.published import Component
from sora_jax.models.dit import DiT
from sora_jax.models.text import TextEncoder
from sora_jax.models.vae import VideoVAE

LAYOUTS = ("diffusers", "sora_jax")
WHOLE = 2**63  # bytes: our files are not cut into shards


@dataclasses.dataclass(frozen=True)
class Place:
  """Where a component is, there and here.

  Attributes:
    folder: in a repository. file, prefix: our file of weights, and what its tensors' names begin
      with. section: of our config.json.
  """

  folder: str
  file: str
  prefix: str
  section: str


PLACES = (
  Place("transformer", "transformer", "dit/", "transformer"),
  Place("vae", "vae", "", "vae"),
  Place("text_encoder", "text", "", "text"),
)


def convert(source: Path, target: Path, to: str) -> list[str]:
  """Writes a model, or a component of one, in the other layout; returns the components' names.

  Args:
    target: a new folder. to: one of `LAYOUTS`.

  Raises:
    UserError: the source is in that layout already, is damaged, or cannot be expressed in it; or
      there is something in the target's place.
  """
  theirs = is_published(source)
  if theirs == (to == "diffusers"):
    raise UserError(f"{source} is in the layout of {to} already: there is nothing to convert.")
  with written(target) as folder:
    return _to_ours(source, folder) if theirs else _to_theirs(source, folder)


def is_published(folder: Path) -> bool:
  """Whether a folder is in the hub's layout, and not in ours."""
  if (folder / INDEX).is_file():
    return True
  config = native.read_config(folder)
  return "_class_name" in config or "architectures" in config


def published_components(source: Path) -> dict[Place, Path]:
  """The components of a source in the hub's layout, and the folder of each.

  Raises:
    UserError: one lacks its config.json, or is of a class that does not load.
  """
  if (source / INDEX).is_file():
    return {place: source / place.folder for place in PLACES}
  contract = published.module_of(native.read_config(source), source / "config.json")
  kinds = {DiT: PLACES[0], VideoVAE: PLACES[1]}
  return {kinds.get(published.returned(contract), PLACES[2]): source}


def own_components(source: Path) -> dict[Place, tuple[ModuleType, dict[str, Any], Component]]:
  """The components of a source in our layout: what writes each, its config.json, and itself.

  Raises:
    UserError: one has no published counterpart, or is damaged; or there is none.
  """
  config, found = native.read_config(source), {}
  for place in PLACES:
    if place.section in config:
      module = _own_module(place.section, config[place.section])
      contract, theirs = published.writer_of(module)
      tensors = native.open_weights(source, place.file).within(place.prefix)
      found[place] = contract, theirs, published.own(module, contract.shapes(module), tensors)
  if not found:
    raise UserError(f"{source} holds no transformer, autoencoder or text encoder.")
  return found


def _own_module(name: str, section: Mapping[str, Any]) -> Any:
  if "architectures" in section:
    return published.module_of(section, Path("config.json")).from_config(section)
  kinds = {"transformer": DiT, "vae": VideoVAE, "text": TextEncoder}
  return config_lib.build(kinds[name], section)


def _to_ours(source: Path, folder: Path) -> list[str]:
  config: dict[str, Any] = {}
  found = published_components(source)
  if (source / INDEX).is_file():
    config = {"sampling": pipelines.sampling_of(source), "known_words": []}
    shutil.copytree(source / "tokenizer", folder / "tokenizer")
  for place, where in found.items():
    component = published.read_component(where)
    config[place.section] = (
      read_json(where / "config.json") if place.section == "text" else fields(component.module)
    )
    stream = names.stream(component.tensors, component.rules, component.shapes)
    named = ((f"{place.prefix}{path}", x) for path, x in stream)
    shards.write(folder, specs_of(component, place.prefix), named, place.file, WHOLE)
  write_json(folder / "config.json", config)
  return [place.section for place in found]


def _to_theirs(source: Path, folder: Path) -> list[str]:
  config, found = native.read_config(source), own_components(source)
  alone = len(found) == 1
  index: dict[str, Any] = {"_class_name": "WanPipeline"}
  for place, (contract, theirs, component) in found.items():
    where = folder if alone else folder / place.folder
    where.mkdir(exist_ok=True)
    write_json(where / "config.json", theirs)
    rules, flat = contract.rules(component.module), component.tensors
    specs = {
      name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in names.stream_back(flat, rules)
    }
    library, stem = ("diffusers", shards.STEMS[0])
    if "architectures" in theirs:
      library, stem = ("transformers", shards.STEMS[1])
    shards.write(where, specs, names.stream_back(flat, rules), stem)
    kind = theirs.get("_class_name") or theirs["architectures"][0]
    index[place.folder] = [library, kind]
  if not alone:
    if len(found) < len(PLACES) or not (source / "tokenizer").is_dir():
      raise UserError(
        f"{source} is neither one component nor a whole model with its tokenizer: its autoencoder "
        "and its transformer can be written one by one."
      )
    _finish(source, folder, index, config["sampling"])
  return [place.section for place in found]


def _finish(source: Path, folder: Path, index: dict[str, Any], sampling: Mapping[str, Any]) -> None:
  """The rest of a repository: tokenizer, scheduler and the index of all."""
  shutil.copytree(source / "tokenizer", folder / "tokenizer")
  tokenizer = source / "tokenizer" / "tokenizer_config.json"
  kind = read_json(tokenizer).get("tokenizer_class") if tokenizer.is_file() else None
  scheduler = schedulers.to_config(sampling)
  (folder / "scheduler").mkdir()
  write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
  index["tokenizer"] = ["transformers", kind or "T5TokenizerFast"]
  index["scheduler"] = ["diffusers", scheduler["_class_name"]]
  write_json(folder / INDEX, index)


def fields(module: Any) -> dict[str, Any]:
  """A Linen module as a section of a config; what is None is left out."""
  found = ((f.name, getattr(module, f.name)) for f in dataclasses.fields(module))
  return {k: v for k, v in found if k not in ("parent", "name") and v is not None}


def specs_of(component: Component, prefix: str) -> dict[str, jax.ShapeDtypeStruct]:
  """Our parameters in the order in which they are read, in the types that the files have."""
  like, held = names.flatten(component.shapes), names.found(component.tensors, component.rules)
  return {
    f"{prefix}{rule.ours}": jax.ShapeDtypeStruct(
      like[rule.ours].shape, component.tensors[found[0]].dtype
    )
    for rule, found in zip(component.rules, held, strict=True)
  }
