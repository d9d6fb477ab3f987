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
from sora_jax.generate.classes import Sampling
from sora_jax.interop import (
  dit_pipeline,
  names,
  native,
  pipelines,
  published,
  schedulers,
  sd_vae,
  shards,
  vjepa2,
)
from sora_jax.interop.folders import read_json, write_json, written
from sora_jax.interop.pipelines import INDEX
from sora_jax.interop.published import Component
from sora_jax.models.dit import DiT
from sora_jax.models.dit_class import ClassDiT
from sora_jax.models.image_vae import ImageVAE
from sora_jax.models.t5 import T5Encoder
from sora_jax.models.text import TextEncoder
from sora_jax.models.vae import VideoVAE
from sora_jax.models.vjepa import VJEPA, VideoClassifier

LAYOUTS = ("diffusers", "sora_jax")
WHOLE = 2**63  # bytes: our files are not cut into shards


@dataclasses.dataclass(frozen=True)
class Place:
  """Where a component is, there and here.

  Attributes:
    folder: in a repository. file, prefix: our file of weights, and what its tensors' names begin
      with. section: of our config.json.
    kinds: of our modules; a section that has fields is of the first.
  """

  folder: str
  file: str
  prefix: str
  section: str
  kinds: tuple[type, ...]


TRANSFORMER = Place("transformer", "transformer", "dit/", "transformer", (DiT, ClassDiT))
LOW = Place(pipelines.SECOND, "low", "", "low", (DiT,))
VAE = Place("vae", "vae", "", "vae", (VideoVAE, ImageVAE))
TEXT = Place("text_encoder", "text", "", "text", (TextEncoder, T5Encoder))
VJEPA2 = Place("vjepa", "vjepa", "", "vjepa", (VJEPA, VideoClassifier))
PLACES = (TRANSFORMER, LOW, VAE, TEXT, VJEPA2)
# Pipelines, and the components of each; `LOW` may come with the first. One of classes has
# `classes` in our config.json.
WHOLE_OF = {"WanPipeline": (TRANSFORMER, VAE, TEXT), dit_pipeline.NAME: (TRANSFORMER, VAE)}


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
  return published.class_of(native.read_config(folder)) is not None


def published_components(source: Path) -> dict[Place, Path]:
  """The components of a source in the hub's layout, and the folder of each.

  Raises:
    UserError: its class does not load.
  """
  if (source / INDEX).is_file():
    kind = read_json(source / INDEX).get("_class_name")
    if kind not in WHOLE_OF:
      known = " and ".join(WHOLE_OF)
      raise UserError(f"{source / INDEX} is a {kind}, which does not load here: {known} do.")
    second = (LOW,) if pipelines.has_second(source) else ()
    return {place: source / place.folder for place in (*WHOLE_OF[kind], *second)}
  contract = published.module_of(native.read_config(source), source / "config.json")
  module = published.returned(contract)
  return {next(place for place in PLACES if module in place.kinds): source}


def own_components(source: Path) -> dict[Place, tuple[ModuleType, dict[str, Any], Component]]:
  """The components of a source in our layout: what writes each, its config.json, and itself.

  Raises:
    UserError: one has no published counterpart, or is damaged; or there is none.
  """
  config, found = native.read_config(source), {}
  for place in PLACES:
    if place.section in config:
      contract, theirs, module = _own_module(place, config)
      tensors = native.open_weights(source, place.file).within(place.prefix)
      if place is VJEPA2 and any(name.startswith("target/") for name in tensors):
        raise UserError(
          f"{source} has two encoders, one of them for the targets; a {vjepa2.NAME} has one."
        )
      found[place] = contract, theirs, published.own(module, contract.shapes(module), tensors)
  if not found:
    sections = ", ".join(place.section for place in PLACES)
    raise UserError(f"{source} holds no component that could be written: none of {sections}.")
  return found


def _own_module(place: Place, config: Mapping[str, Any]) -> tuple[ModuleType, dict[str, Any], Any]:
  """What writes a component, its config.json, and the module."""
  section = config[place.section]
  if published.class_of(section):
    where = Path("config.json")
    contract = published.module_of(section, where)
    return contract, dict(section), published.described(contract, section, where)
  kind = ClassDiT if place is TRANSFORMER and "classes" in config else place.kinds[0]
  module = config_lib.build(kind, section)
  return *published.writer_of(module), module


def _to_ours(source: Path, folder: Path) -> list[str]:
  folders, words = published_components(source), source / "tokenizer"
  whole = TEXT in folders and len(folders) > 1
  if whole and not words.is_dir():
    raise UserError(f"{words} is missing: get it again.")
  found = {place: published.read_component(where) for place, where in folders.items()}
  config = _settings(source, found) if (source / INDEX).is_file() else {}
  if whole:
    shutil.copytree(words, folder / "tokenizer")
  for place, component in found.items():
    module = component.module
    config[place.section] = (
      fields(module) if isinstance(module, DiT | VideoVAE)
      else read_json(folders[place] / "config.json")
    )  # fmt: skip
    stream = names.stream(component.tensors, component.rules, component.shapes)
    named = ((f"{place.prefix}{path}", x) for path, x in stream)
    shards.write(folder, specs_of(component, place.prefix), named, place.file, WHOLE)
  write_json(folder / "config.json", config)
  return [place.section for place in found]


def _settings(source: Path, found: Mapping[Place, Component]) -> dict[str, Any]:
  """What our config.json says of a repository beside its components."""
  index = read_json(source / INDEX)
  if index["_class_name"] != dit_pipeline.NAME:
    return {"sampling": pipelines.sampling_of(source), "known_words": []}
  scheduler = read_json(source / "scheduler" / "scheduler_config.json")
  return {
    "classes": list(dit_pipeline.class_names(index, found[TRANSFORMER].module.classes)),
    "process": dit_pipeline.process(scheduler),
    "sampling": dit_pipeline.sampling(scheduler),
  }


def _to_theirs(source: Path, folder: Path) -> list[str]:
  config, found = native.read_config(source), own_components(source)
  index: dict[str, Any] = {}
  for place, parts in found.items():
    where = folder if len(found) == 1 else folder / place.folder
    where.mkdir(exist_ok=True)
    index[place.folder] = _write_theirs(where, *parts)
  if len(found) > 1:
    _finish(source, folder, index, config)
  return [place.section for place in found]


def _write_theirs(
  folder: Path, contract: ModuleType, theirs: dict[str, Any], component: Component
) -> list[str]:
  """Writes a component; returns its library and its class, as an index has them."""
  write_json(folder / "config.json", theirs)
  rules, flat = contract.rules(component.module), component.tensors
  specs = {
    name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in names.stream_back(flat, rules)
  }
  library, stem = ("diffusers", shards.STEMS[0])
  if "architectures" in theirs:
    library, stem = ("transformers", shards.STEMS[1])
  shards.write(folder, specs, names.stream_back(flat, rules), stem)
  return [library, str(published.class_of(theirs))]


def _finish(source: Path, folder: Path, index: dict[str, Any], config: Mapping[str, Any]) -> None:
  """The rest of a repository: tokenizer or names of classes, scheduler and the index of all.

  Raises:
    UserError: the components do not make a pipeline.
  """
  kind = dit_pipeline.NAME if "classes" in config else "WanPipeline"
  if index.keys() - {LOW.folder} != {place.folder for place in WHOLE_OF[kind]} or (
    kind == "WanPipeline" and not (source / "tokenizer").is_dir()
  ):
    raise UserError(
      f"{source} is neither one component nor a whole model with its tokenizer: its autoencoder "
      "and its transformer can be written one by one."
    )
  if kind == dit_pipeline.NAME:
    if index["vae"][1] != sd_vae.NAME:
      raise UserError(f"A {kind} has an {sd_vae.NAME}: the autoencoder of {source} is another.")
    sampling = dataclasses.asdict(config_lib.build(Sampling, config["sampling"]))
    scheduler = dit_pipeline.scheduler_of(config["process"], sampling)
    index["id2label"] = {str(i): name for i, name in enumerate(config["classes"])}
  else:
    shutil.copytree(source / "tokenizer", folder / "tokenizer")
    tokenizer = source / "tokenizer" / "tokenizer_config.json"
    words = read_json(tokenizer).get("tokenizer_class") if tokenizer.is_file() else None
    scheduler = schedulers.to_config(config["sampling"])
    if LOW.folder in index:
      index["boundary_ratio"] = config["sampling"]["boundary"]
    if config["sampling"].get("expand_timesteps"):
      index["expand_timesteps"] = True
    index["tokenizer"] = ["transformers", words or "T5TokenizerFast"]
  (folder / "scheduler").mkdir()
  write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
  index["scheduler"] = ["diffusers", scheduler["_class_name"]]
  write_json(folder / INDEX, {"_class_name": kind} | index)


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
