"""The pretrained word pieces that ship: a tokenizer and a frozen table of embeddings.

Made by `sora_jax.interop.minilm`, which says where they come from. Checkpoints do not repeat them.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from sora_jax.errors import UserError
from sora_jax.typing import Float

FOLDER = Path(__file__).parent
TOKENIZER = FOLDER / "tokenizer.json"


def table() -> Float[np.ndarray, "v 384"]:
  """One row per word piece, each of unit root mean square; stored in int8 with a scale per row."""
  stored = load_file(FOLDER / "table.safetensors")
  return stored["rows"].astype(np.float32) * stored["scale"]


def check(rows: int, where: str | os.PathLike[str]) -> None:
  """Raises UserError if the checkpoint at `where` reads another table, one of `rows` pieces."""
  if rows != len(table()):
    raise UserError(
      f"{where} reads {rows} word pieces and this version has {len(table())}: train and export it "
      "with this version, or use it with the one that made it."
    )
