"""Opens the sources a config names.

A config lists them by kind, each with a weight and its own settings; weight 0 switches one off, and
`distractor=0.25` covers a quarter of each picture with noise (`worlds.distract`):

  config.data.sources = dict(
    worlds=dict(weight=1.0, count=1000, seed=0), folder=dict(weight=0.0, path="")
  )
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from sora_jax import config as config_lib
from sora_jax.data import sources
from sora_jax.data.pipeline import Source
from sora_jax.errors import UserError
from sora_jax.worlds import WorldSource
from sora_jax.worlds.distract import Distracted, check

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
    UserError: an unknown kind or setting, a share of distractors outside [0, 0.8], or no source
      with a weight above 0.
  """
  opened = []
  for kind, section in sections.items():
    if kind not in KINDS:
      raise UserError(f"There is no data source '{kind}'{config_lib.nearest(kind, KINDS)}.")
    settings = dict(section)
    weight = settings.pop("weight", 1.0)
    share = settings.pop("distractor", 0.0)
    check(share)
    if weight > 0:
      source = config_lib.build(KINDS[kind], settings)
      opened.append((Distracted(source, share) if share else source, weight))
  if not opened:
    raise UserError("No data source has a weight above 0: set config.data.sources.KIND.weight.")
  return opened


def identity(opened: Sequence[tuple[Source, float]]) -> Iterator[bytes]:
  """What open sources hold beside what their settings say, for a hash; nothing is decoded.

  Sources may have a method `identity` that lists paths, of which size and time of the last change
  are taken, and texts. Others make their clips of their settings alone.
  """
  for source, _ in opened:
    inner = source.source if isinstance(source, Distracted) else source
    for part in getattr(inner, "identity", tuple)():
      yield f"{part!r}\n".encode()
      if isinstance(part, Path):
        stat = part.stat()
        yield f"{stat.st_size} {stat.st_mtime_ns}\n".encode()
