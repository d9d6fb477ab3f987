"""Whether published weights are what their config says, and compute what their reference computes.

The structural half reads headers, and those tensors that should be equal to others (tied names,
copies). The other one needs torch, see `probes`.
"""

from __future__ import annotations

import importlib.util
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from sora_jax.interop import convert, probes, published
from sora_jax.interop.folders import read_json
from sora_jax.interop.published import Component
from sora_jax.parallel import sharding

REFERENCES = ("torch", "diffusers", "transformers")
TOLERANCE = 1e-4  # relative error of a layer in float32


@dataclass(frozen=True)
class Structure:
  """What a component's files hold; all of it was found to fit the model.

  Attributes:
    component: its name. kind: its published class. tensors, parameters, bytes: how many.
    dtypes: tensors of each type.
  """

  component: str
  kind: str
  tensors: int
  parameters: int
  bytes: int
  dtypes: dict[str, int]


def structure(source: Path) -> list[Structure]:
  """Checks names, shapes and sizes of all tensors of a model or a component, in either layout.

  Raises:
    UserError: a file is damaged, or a tensor is missing, left over or of another shape.
  """
  if convert.is_published(source):
    found = [
      (place.section, read_json(folder / "config.json"), published.read_component(folder))
      for place, folder in convert.published_components(source).items()
    ]
  else:
    found = [
      (place.section, theirs, component)
      for place, (_, theirs, component) in convert.own_components(source).items()
    ]
  return [_structure(name, str(published.class_of(config)), x) for name, config, x in found]


def _structure(name: str, kind: str, component: Component) -> Structure:
  tensors = list(component.tensors.values())
  return Structure(
    component=name,
    kind=kind,
    tensors=len(tensors),
    parameters=sum(x.size for x in jax.tree.leaves(component.shapes)),
    bytes=sum(x.nbytes for x in tensors),
    dtypes=dict(Counter(str(x.dtype) for x in tensors)),
  )


def missing_references() -> list[str]:
  """The packages that comparing needs and that are not installed."""
  return [name for name in REFERENCES if importlib.util.find_spec(name) is None]


def parity(folder: Path, seed: int = 0) -> probes.Errors:
  """Runs a component in the hub's layout beside its reference, both in float32, layer by layer.

  Raises:
    UserError: the component does not load.
  """
  component = published.read_component(folder)
  probe = probes.PROBES[str(published.class_of(read_json(folder / "config.json")))]
  params = component.place(sharding.make_mesh({}, jax.local_devices()))
  yield from probe(folder, component.module, params, np.random.default_rng(seed))
