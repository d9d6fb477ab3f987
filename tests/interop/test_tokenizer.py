"""Our tokenizers give the ids that transformers' classes and diffusers' pipeline give."""

import importlib.util
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast, T5Tokenizer

from sora_jax.errors import UserError
from sora_jax.interop import tokenizer

# First and last characters of blocks: scripts that are written with and without spaces, from the
# right, with combining marks; full-width forms, symbols, emoji with their joiners, private use.
SCRIPTS = [
  (0x20, 0x7E), (0xA0, 0x17F), (0x300, 0x36F), (0x370, 0x3FF), (0x400, 0x4FF), (0x531, 0x58F),
  (0x5D0, 0x5EA), (0x621, 0x6FF), (0x904, 0x97F), (0xB85, 0xBD7), (0xE01, 0xE5B), (0x10A0, 0x10FF),
  (0x1200, 0x135A), (0x1780, 0x17DD), (0x1E00, 0x1EFF), (0x2000, 0x206F), (0x2100, 0x214F),
  (0x2190, 0x22FF), (0x2581, 0x2588), (0x3000, 0x30FF), (0x3300, 0x33FF), (0x4E00, 0x9FA5),
  (0xAC00, 0xD7A3), (0xE000, 0xE010), (0xFB00, 0xFB06), (0xFE00, 0xFE0F), (0xFF01, 0xFF9D),
  (0x1D400, 0x1D4FF), (0x1F300, 0x1F64F), (0x1F900, 0x1F9FF), (0x20000, 0x20100),
  (0xE0020, 0xE007F),
]  # fmt: skip
ODD = [
  *"\t\n\r\v\f\x00\x01\x07\x1b\x1c\x7f\x85\xa0\xad\u1680\u180e\u200b\u200d\u2028\u202f\u2060\u3000",
  "\ufeff", "\ufffd", "  ", "   ", " \n ", "▁", "▁▁", "</s>", "<pad>", "<unk>", "<s>", "<0x0A>",
  "<extra_id_0>", " <extra_id_99> ", "&amp;", "&amp;lt;b&gt;", "&nbsp;",
  "👩‍👩‍👧‍👦", "🇩🇪", "e\u0301", "ﬁ",
  "don’t", "3.14", "A", "straße", "一只猫", "ภาษาไทย", "नमस्ते", "שלום", "مرحبا", "안녕하세요",
  "こんにちは", " <video>",
]  # fmt: skip
EDGES = [
  "",
  " ",
  "\n",
  "▁",
  "</s>",
  "a" * 5000,
  "word " * 2000,
  "一" * 3000,
  "&amp;amp;lt;",
  "🙂" * 500,
]


def words(rng, count, blocks=SCRIPTS):
  """So many words, each of letters of one block."""
  ranges = [blocks[i] for i in rng.integers(len(blocks), size=count)]
  return ["".join(map(chr, rng.integers(a, b + 1, rng.integers(1, 9)))) for a, b in ranges]


def strings(count=1000):
  """As many strings: all edges, then mixtures of words of every script and odd things."""
  rng = np.random.default_rng(7)
  found = list(EDGES)
  while len(found) < count:
    parts = words(rng, rng.integers(1, 12))
    parts += [ODD[i] for i in rng.integers(len(ODD), size=rng.integers(0, 6))]
    found.append(str(rng.choice(["", " ", "  "])).join(rng.permutation(parts)))
  return found


STRINGS = strings()


def corpus():
  rng = np.random.default_rng(8)
  vocabulary = words(rng, 150, SCRIPTS[:14] + SCRIPTS[19:23]) + [
    "a",
    "red",
    "ball",
    "rolls",
    "left",
  ]
  return [" ".join(rng.choice(vocabulary, 12)) for _ in range(300)]


def write_unigram(folder: Path) -> None:
  """A model as T5's were made, with a piece that is never cut."""
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(corpus()), model_writer=model, vocab_size=900, model_type="unigram",
    pad_id=0, eos_id=1, unk_id=2, bos_id=-1, user_defined_symbols=["<s>"], hard_vocab_limit=False,
    character_coverage=0.99, minloglevel=2, num_threads=1,
  )  # fmt: skip
  (folder / "spiece.model").write_bytes(model.getvalue())


def write_unigram_with_old_settings(folder: Path) -> None:
  write_unigram(folder)
  named = {"content": "</s>", "lstrip": False, "normalized": False, "rstrip": True}
  special = dict(eos_token=named, unk_token="<unk>", pad_token="<pad>")
  (folder / "special_tokens_map.json").write_text(json.dumps(special))
  extra = ["<extra_id_0>", "<video>"]
  settings = dict(tokenizer_class="T5Tokenizer", extra_ids=30, additional_special_tokens=extra)
  (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def write_converted(folder: Path) -> None:
  """A tokenizer.json as transformers makes one of a sentencepiece model (Wan has one)."""
  write_unigram(folder)
  T5Tokenizer.from_pretrained(folder, extra_ids=50).save_pretrained(folder)
  (folder / "spiece.model").unlink()


def write_added(folder: Path) -> None:
  """Settings that list every added token, with flags."""
  write_unigram(folder)
  size = T5Tokenizer.from_pretrained(folder, extra_ids=10).vocab_size
  flags = dict(lstrip=True, rstrip=True, single_word=False, normalized=False, special=True)
  extra = [f"<extra_id_{i}>" for i in range(10)]
  added = {size - 1 - i: dict(content=x, **flags) for i, x in enumerate(extra)}
  added |= {0: dict(flags, content="<pad>"), 1: dict(flags, content="</s>", lstrip=False)}
  settings = dict(
    tokenizer_class="T5Tokenizer", extra_ids=10, additional_special_tokens=extra,
    added_tokens_decoder=added, eos_token="</s>", pad_token="<pad>", unk_token="<unk>",
  )  # fmt: skip
  (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def write_trained(folder: Path, name: str = "T5Tokenizer") -> None:
  """A tokenizer.json by the tokenizers library's own trainer."""
  made = Tokenizer(models.Unigram())
  made.normalizer = normalizers.NFKC()
  made.pre_tokenizer = pre_tokenizers.Metaspace()
  special = ["<pad>", "</s>", "<unk>"]
  trainer = trainers.UnigramTrainer(
    vocab_size=700, special_tokens=special, unk_token="<unk>", show_progress=False
  )
  made.train_from_iterator(corpus(), trainer)
  made.post_processor = processors.TemplateProcessing(
    single="$A </s>", special_tokens=[("</s>", 1)]
  )
  made.enable_padding(length=7)
  made.enable_truncation(5)
  made.save(str(folder / "tokenizer.json"))
  (folder / "tokenizer_config.json").write_text(json.dumps(dict(tokenizer_class=name)))


def write_mistral(folder: Path) -> None:
  """A real model of many languages, read as a T5 vocabulary."""
  (package,) = importlib.util.find_spec("mistral_common").submodule_search_locations
  shutil.copy(Path(package) / "data" / "tokenizer.model.v1", folder / "spiece.model")


WRITERS = [
  write_unigram, write_unigram_with_old_settings, write_converted, write_added, write_trained,
  write_mistral,
]  # fmt: skip


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_ids_are_those_of_transformers(write, tmp_path):
  write(tmp_path)
  reference = T5Tokenizer.from_pretrained(tmp_path)
  ours = tokenizer.read(tmp_path)
  assert ours.get_vocab_size() == len(reference)
  expected = reference(STRINGS).input_ids
  got = [x.ids for x in ours.encode_batch(STRINGS)]
  assert [s for s, a, b in zip(STRINGS, got, expected, strict=True) if a != b] == []
  assert len(STRINGS) == 1000 and len({tuple(x) for x in got}) > 900


def test_the_tokenizer_of_another_class_is_used_as_it_is(tmp_path):
  write_trained(tmp_path, "PreTrainedTokenizerFast")
  reference = PreTrainedTokenizerFast.from_pretrained(tmp_path)
  expected = reference(STRINGS, padding=False, truncation=False).input_ids
  assert [x.ids for x in tokenizer.read(tmp_path).encode_batch(STRINGS)] == expected


def test_prompts_are_cleaned_as_wans_pipeline_cleans_them(tmp_path):
  write_converted(tmp_path)
  reference = T5Tokenizer.from_pretrained(tmp_path)
  prompts = tokenizer.load(tmp_path, 10**6)
  assert prompts(STRINGS) == reference([prompt_clean(text) for text in STRINGS]).input_ids
  assert prompts([""]) == [[1]]
  for length in (1, 5, 12):
    cut = reference([prompt_clean(x) for x in STRINGS], truncation=True, max_length=length)
    assert tokenizer.load(tmp_path, length, cut=True)(STRINGS) == cut.input_ids


def test_users_prompts_are_neither_empty_nor_too_long(tmp_path):
  write_unigram(tmp_path)
  prompts = tokenizer.load(tmp_path, 8)
  prompts.check(["a red ball"])
  for empty in ("", " \n", "&nbsp;"):
    with pytest.raises(UserError, match="prompt is empty"):
      prompts.check([empty])
  with pytest.raises(UserError, match="but the model reads 8: shorten it"):
    prompts(["a red ball " * 9])
  assert prompts.unknown_words("a flibbertigibbet") == []


def test_pieces_that_the_encoder_lacks_are_refused(tmp_path):
  write_unigram(tmp_path)
  (pieces,) = tokenizer.load(tmp_path, 8)(["a red ball"])
  most = max(pieces)
  assert tokenizer.load(tmp_path, 8, rows=most + 1)(["a red ball"]) == [pieces]
  with pytest.raises(UserError, match=f"is number {most} and the encoder has {most} of them"):
    tokenizer.load(tmp_path, 8, rows=most)(["a red ball"])


def test_what_cannot_be_read_is_named(tmp_path):
  with pytest.raises(UserError, match=r"neither a tokenizer\.json nor a spiece\.model"):
    tokenizer.load(tmp_path, 8)
  write_unigram(tmp_path)
  whole = (tmp_path / "spiece.model").read_bytes()
  for damaged in (b"", whole[: len(whole) // 2], b"\xff" * 40):
    (tmp_path / "spiece.model").write_bytes(damaged)
    with pytest.raises(UserError, match="is damaged"):
      tokenizer.load(tmp_path, 8)
  (tmp_path / "spiece.model").write_bytes(whole)
  (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "AlbertTokenizer"}')
  with pytest.raises(UserError, match=r"An? AlbertTokenizer needs a tokenizer\.json"):
    tokenizer.load(tmp_path, 8)
  (tmp_path / "tokenizer.json").write_text("{")
  with pytest.raises(UserError, match="is damaged"):
    tokenizer.load(tmp_path, 8)
