"""Opens the sources a config names.

A config lists them by kind, each with a weight and its own settings; weight 0 switches one off:

  config.data.sources = dict(
    worlds=dict(weight=1.0, count=1000, seed=0), folder=dict(weight=0.0, path="")
  )
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from sora_jax import config as config_lib
from sora_jax.data import sources
from sora_jax.data.pipeline import Source
from sora_jax.errors import UserError
from sora_jax.worlds import WorldSource

KINDS: dict[str, Callable[..., Source]] = {
  "worlds": WorldSource,
  "records": sources.RecordSource,
  "folder": sources.FolderSource,
  "manifest": sources.ManifestSource,
  "photos": sources.PhotoSource,
  "tfds": sources.TFDSSource,
}


def open_sources(sections: Mapping[str, Any] | ConfigDict) -> list[tuple[Source, float]]:
  """The sources of a config section, with their weights.

  Raises:
    UserError: an unknown kind or setting, or no source with a weight above 0.
  """
  opened = []
  for kind, section in sections.items():
    if kind not in KINDS:
      raise UserError(f"There is no data source '{kind}'{config_lib.nearest(kind, KINDS)}.")
    settings = dict(section)
    weight = settings.pop("weight", 1.0)
    if weight > 0:
      opened.append((config_lib.build(KINDS[kind], settings), weight))
  if not opened:
    raise UserError("No data source has a weight above 0: set config.data.sources.KIND.weight.")
  return opened
