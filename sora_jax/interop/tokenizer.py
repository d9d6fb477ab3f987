"""The tokenizers of published text encoders, with the ids that transformers' classes give.

A repository's folder holds a `tokenizer.json` or a sentencepiece model, and files of settings.
`T5Tokenizer` (umT5's too) takes only the vocabulary and the table that normalises characters from
either, and has one way to go on: text is split at white space, each word is cut into the likeliest
pieces (Kudo 2018, arXiv:1804.10959), and `</s>` ends it. The `tokenizer.json` of another class is
used as it is.
"""

from __future__ import annotations

import base64
import html
import importlib
import importlib.util
import json
import re
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors

from sora_jax.errors import UserError
from sora_jax.models.text import Prompts

SENTENCEPIECE = ("spiece.model", "tokenizer.model")
T5 = ("T5Tokenizer", "T5TokenizerFast")
# What T5's settings are where they are not given.
DEFAULTS = dict(eos_token="</s>", unk_token="<unk>", pad_token="<pad>", extra_ids=100)
NAMED = tuple(f"{x}_token" for x in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
UNKNOWN = 2  # the row of `<unk>` in T5's vocabularies
CONTROL, USER = 3, 4  # sentencepiece's types of pieces that are found in a text before it is cut


def load(
  folder: Path,
  length: int,
  cut: bool = False,
  clean: Callable[[str], str] | None = None,
  padded: bool = False,
  rows: int | None = None,
) -> Prompts:
  """The tokenizer in a folder, as prompts of at most `length` pieces, `</s>` among them.

  Args:
    cut: whether longer prompts are cut (`</s>` stays) instead of refused.
    clean: what is done to each prompt first; None is `clean_prompt`, as Wan has it.
    padded, rows: see `Prompts`.

  Raises:
    UserError: there is none, or it is damaged, or of a class that is not known.
  """
  try:
    tokenizer = read(folder)
  except UserError:
    raise
  except Exception as error:  # the tokenizers library raises bare Exceptions
    raise UserError(f"The tokenizer in {folder} is damaged ({error}): get it again.") from error
  return Prompts(
    tokenizer, length, cut=cut, clean=clean or clean_prompt, ending=1, padded=padded, rows=rows
  )


def clean_prompt(text: str) -> str:
  """A prompt as diffusers' Wan pipelines clean it.

  HTML entities become characters, runs of white space one space. Where `ftfy` is installed, which
  is as optional here as it is there, it repairs wrongly decoded text first.
  """
  if importlib.util.find_spec("ftfy"):
    text = importlib.import_module("ftfy").fix_text(text)
  text = html.unescape(html.unescape(text)).strip()
  return re.sub(r"[^\S\x1c-\x1f]+", " ", text).strip()  # Unicode's White_Space, so not `re`'s


def read(folder: Path) -> Tokenizer:
  """The tokenizer in a folder.

  Raises:
    UserError: there is none, or of a class that is not known.
    Exception: whatever a damaged file leads to; `load` says so in a sentence.
  """
  config = DEFAULTS | _settings(folder)
  name = config.get("tokenizer_class", T5[0])
  file = folder / "tokenizer.json"
  if file.is_file():
    stored = json.loads(file.read_text(encoding="utf-8"))
    if name not in T5 or stored["model"]["type"] != "Unigram":
      tokenizer = Tokenizer.from_file(str(file))
      tokenizer.no_padding()
      tokenizer.no_truncation()
      return tokenizer
    added = {token["id"]: token for token in stored["added_tokens"]}
    config.setdefault("added_tokens_decoder", added)
    pieces = [(piece, score) for piece, score in stored["model"]["vocab"]]
    return _unigram(pieces, _charsmap(stored["normalizer"]), config, [])
  found = [folder / name for name in SENTENCEPIECE if (folder / name).is_file()]
  if not found:
    raise UserError(f"{folder} has neither a tokenizer.json nor a {SENTENCEPIECE[0]}.")
  if name not in T5:
    raise UserError(f"A {name} needs a tokenizer.json, which {folder} has not: save one from it.")
  typed, charsmap = _sentencepiece(found[0].read_bytes())
  special = [
    AddedToken(piece, normalized=False, special=kind == CONTROL)
    for piece, _, kind in typed
    if kind in (CONTROL, USER)
  ]
  pieces = [(piece, score) for piece, score, _ in typed]
  pieces += [(piece, 0.0) for piece in reversed(_sentinels(config))]
  return _unigram(pieces, charsmap, config, special)


def _settings(folder: Path) -> dict[str, Any]:
  """tokenizer_config.json, and what older repositories keep beside it."""
  config: dict[str, Any] = {}
  for name in ("tokenizer_config.json", "special_tokens_map.json"):
    if (folder / name).is_file() and "added_tokens_decoder" not in config:
      config |= json.loads((folder / name).read_text(encoding="utf-8"))
  return config


def _sentinels(config: Mapping[str, Any]) -> list[str]:
  return [f"<extra_id_{i}>" for i in range(config["extra_ids"])]


def _unigram(
  pieces: list[tuple[str, float]],
  charsmap: bytes,
  config: Mapping[str, Any],
  special: list[AddedToken],
) -> Tokenizer:
  """T5's tokenizer of a vocabulary of pieces with the logarithms of their probabilities.

  Args:
    charsmap: sentencepiece's table of characters to normalise; empty: none are.
    special: what is found in a text as it is, besides sentinels and what the settings name.
  """
  tokenizer = Tokenizer(models.Unigram(pieces, unk_id=UNKNOWN, byte_fallback=False))
  if charsmap:
    tokenizer.normalizer = normalizers.Precompiled(charsmap)
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
    [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
  )
  decoder = config.get("added_tokens_decoder", {})
  extra = config.get("extra_special_tokens") or config.get("additional_special_tokens")
  tokens = [_token(decoder[row]) for row in sorted(decoder, key=int)]
  tokens += [_token(config[name]) for name in NAMED if config.get(name)]
  tokens += [_token(token) for token in extra or []]
  if not extra:
    tokens += [*special, *(_token(token) for token in _sentinels(config))]
  first: dict[str, AddedToken] = {}
  for token in tokens:
    first.setdefault(token.content, token)
  tokenizer.add_tokens(list(first.values()))
  end = _token(config["eos_token"]).content
  tokenizer.post_processor = processors.TemplateProcessing(
    single="$A </s>", special_tokens=[("</s>", tokenizer.token_to_id(end))]
  )
  return tokenizer


def _token(value: str | Mapping[str, Any]) -> AddedToken:
  if isinstance(value, str):
    return AddedToken(value, special=True)
  known = ("single_word", "lstrip", "rstrip", "normalized", "special")
  flags = {name: value[name] for name in known if name in value}
  return AddedToken(value["content"], **{"special": True} | flags)


def _charsmap(normalizer: Mapping[str, Any] | None) -> bytes:
  """Sentencepiece's table in the normalizers of a tokenizer.json; empty if there is none."""
  parts = (normalizer or {}).get("normalizers", [normalizer or {}])
  tables = (part["precompiled_charsmap"] for part in parts if part.get("type") == "Precompiled")
  return base64.b64decode(next(tables, ""))


def _sentencepiece(data: bytes) -> tuple[list[tuple[str, float, int]], bytes]:
  """Pieces, each with score and type, and the table of characters, of a sentencepiece model."""
  pieces, charsmap = [], b""
  for field, value in _fields(data):
    if field == 1:  # a piece
      part = dict(_fields(value))
      pieces.append((part[1].decode(), struct.unpack("<f", part[2])[0], part.get(3, 1)))
    elif field == 3:  # the normalizer
      charsmap = dict(_fields(value)).get(2, b"")
  if not pieces:
    raise ValueError("it holds no pieces")
  return pieces, charsmap


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
  """The fields of a protocol buffer message: numbers as int, all else as bytes."""
  at = 0
  while at < len(data):
    key, at = _varint(data, at)
    if key & 7 == 0:
      value, at = _varint(data, at)
      yield key >> 3, value
      continue
    if key & 7 == 2:
      size, at = _varint(data, at)
    else:
      size = {1: 8, 5: 4}[key & 7]
    if at + size > len(data):
      raise ValueError("the file ends too early")
    yield key >> 3, data[at : at + size]
    at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
  """A number of seven bits a byte, lowest first, and where the next field begins."""
  value = shift = 0
  while True:
    value |= (data[at] & 127) << shift
    shift, at = shift + 7, at + 1
    if data[at - 1] < 128:
      return value, at
