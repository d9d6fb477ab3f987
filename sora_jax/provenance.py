"""Which code made this."""

from __future__ import annotations

import subprocess
from importlib import metadata
from pathlib import Path


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
