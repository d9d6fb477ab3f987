"""Prompts: word pieces, limits, and words nobody taught the model."""

import pytest

from sora_jax.errors import UserError
from sora_jax.interop import wordpieces
from sora_jax.models.text import Prompts, words


@pytest.fixture(scope="module")
def prompts():
  return Prompts.load(wordpieces.TOKENIZER, 12, ["a", "red", "ball"])


def test_any_word_can_be_spelled_and_nothing_is_unknown_to_the_tokenizer(prompts):
  unknown = prompts.tokenizer.token_to_id("[UNK]")
  ids = prompts(["a flibbertigibbet"])[0]
  assert unknown not in ids
  assert prompts.tokenizer.decode(ids).replace(" ##", "") == "a flibbertigibbet"


def test_words_of_any_script_are_words():
  assert words("Ein grüner Würfel's Schatten, rolls-left_3") == [
    "ein", "grüner", "würfel's", "schatten", "rolls", "left", "3"
  ]  # fmt: skip
  assert words("红球 向左") == ["红球", "向左"]


def test_unknown_words_are_named_once_and_in_order(prompts):
  assert prompts.unknown_words("A purple ball, a PURPLE dragon") == ["purple", "dragon"]


@pytest.mark.parametrize(("text", "message"), [("  ", "is empty"), ("ball " * 30, "shorten it")])
def test_empty_and_overlong_prompts_are_refused(prompts, text, message):
  with pytest.raises(UserError, match=message):
    prompts.check([text])


def test_a_damaged_tokenizer_is_named(tmp_path):
  (tmp_path / "tokenizer.json").write_text("{")
  with pytest.raises(UserError, match=r"tokenizer\.json is not a readable"):
    Prompts.load(tmp_path / "tokenizer.json", 12)


def test_captions_are_cut_in_training_with_one_warning(capsys):
  prompts = Prompts.load(wordpieces.TOKENIZER, 12, cut=True)
  assert len(prompts(["ball " * 30])[0]) == 12
  prompts(["ball " * 40])
  assert capsys.readouterr().err.count("captions are cut") == 1
