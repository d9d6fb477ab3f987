"""Which code made this."""

from __future__ import annotations

import functools
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict


def training(config: ConfigDict) -> dict[str, Any]:
  """What a checkpoint says of the run that made it: its config, and the commit."""
  return config.to_dict() | {"commit": commit()}


@functools.cache  # a checkout that is changed while a run goes on is not what runs
def commit() -> str | None:
  """The commit of the checkout this package is in, with "+" if it was changed; else its version."""
  here = Path(__file__).parent
  try:
    git = lambda *args: subprocess.run(  # noqa: E731
      ["git", "-C", str(here), *args], capture_output=True, text=True, check=True, timeout=10
    ).stdout.strip()
    git("ls-files", "--error-unmatch", Path(__file__).name)  # installed into another checkout
    return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain") else "")
  except (OSError, subprocess.SubprocessError):
    try:
      return metadata.version("sora_jax")
    except metadata.PackageNotFoundError:
      return None
