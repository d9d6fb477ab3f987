"""Where a model is: a folder, the name of one that ships, or `hf:ORG/NAME[@REVISION]`."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from sora_jax.errors import UserError
from sora_jax.interop import native

# Weights, settings and vocabularies; code never.
PATTERNS = ["*.json", "*.safetensors", "*.txt", "*.model"]


def find(name: str | os.PathLike[str]) -> Path:
  """The folder of a model, downloaded if it is of the hub and not in its cache yet.

  Raises:
    UserError: there is none, or it cannot be had.
  """
  if str(name).startswith("hf:"):
    return snapshot(str(name))
  return native.find(name)


def snapshot(name: str) -> Path:
  """The files of `hf:ORG/NAME[@REVISION]` in the cache that all users of the hub share.

  Raises:
    UserError: the name is no such name, there is no such model or revision, it asks for a licence
      to be accepted, or there is no network and it is not in the cache.
  """
  match = re.fullmatch(r"hf:([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", name)
  no_name = f"{name} names no model of the hub: write hf:ORG/NAME or hf:ORG/NAME@REVISION."
  if not match:
    raise UserError(no_name)
  from huggingface_hub import errors, snapshot_download  # slow to import

  repository, revision = match.groups()
  # What all errors of the HTTP library are; which library that is depends on the hub's version.
  parents = errors.HfHubHTTPError.__mro__
  http_error: Any = parents[parents.index(OSError) - 1]
  try:
    return Path(snapshot_download(repository, revision=revision, allow_patterns=PATTERNS))
  except errors.HFValidationError as error:
    raise UserError(no_name) from error
  except errors.GatedRepoError as error:
    reason = "its licence must be accepted first, on the hub's page of it, with `hf auth login`"
    raise UserError(f"{name} cannot be downloaded: {reason}.") from error
  except errors.RevisionNotFoundError as error:
    raise UserError(f"The hub has no revision {revision} of {repository}.") from error
  except errors.RepositoryNotFoundError as error:
    raise UserError(f"The hub has no model {repository}, or it is private.") from error
  except (
    errors.LocalEntryNotFoundError,
    http_error,
    ConnectionError,
    TimeoutError,
  ) as error:
    raise UserError(
      f"{name} is not in the cache and cannot be downloaded ({type(error).__name__}): connect to "
      "the network, or give a folder that holds its files."
    ) from error
