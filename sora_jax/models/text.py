"""The text side: words to encoder states.

A frozen table of pretrained word pieces under a small transformer that is trained together with the
diffusion transformer. The table makes words the training captions never used mean something: they
lie near the words that were used.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer

from sora_jax.errors import UserError
from sora_jax.models.layers import Attention, Dense, LayerNorm, Mlp
from sora_jax.parallel.sharding import constrain
from sora_jax.typing import Array, Float, Int

# What encodes prompts: a module called with word pieces and ids, as `TextEncoder` is.
Encoder = nn.Module


class TextEncoder(nn.Module):
  """Pre-norm transformer encoder over word pieces. Several prompts may be packed into one row.

  `ids` says which prompt a piece belongs to, from 1; 0 is padding. Prompts never see each other.

  Attributes:
    vocabulary, table_width: shape of the pretrained table `pieces`, which is not trained.
    width, layers, heads: of the encoder. length: the longest prompt, in pieces.
    noise: standard deviation of what is added to rows of the table (which have a root mean square
      of 1) where there is a random stream "noise": in training, so that neighbours of a word that
      is trained on come to mean about the same.
  """

  vocabulary: int
  table_width: int = 384
  width: int = 256
  layers: int = 2
  heads: int = 4
  length: int = 48
  noise: float = 0.0
  dtype: Any = None

  @nn.compact
  def __call__(self, pieces: Int[Array, "b s"], ids: Int[Array, "b s"]) -> Float[Array, "b s e"]:
    table = self.param("pieces", nn.initializers.normal(1.0), (self.vocabulary, self.table_width))
    position = self.param("position", nn.initializers.normal(0.02), (self.length, self.width))
    place = jnp.sum(jnp.tril(ids[:, :, None] == ids[:, None, :], -1), axis=-1)  # in its prompt
    x = jnp.take(table, pieces, axis=0)
    if self.noise and self.has_rng("noise"):
      x += self.noise * jax.random.normal(self.make_rng("noise"), x.shape)
    x = Dense(self.width, dtype=self.dtype, name="table_in")(x)
    x = constrain(x + jnp.take(position, place, axis=0, mode="clip").astype(x.dtype), "tokens")
    for i in range(self.layers):
      attention = Attention(self.width, self.heads, dtype=self.dtype, name=f"attention_{i}")
      x = x + attention(LayerNorm(affine=True, name=f"norm_{i}a")(x), ids)
      mlp = Mlp(4 * self.width, self.width, self.dtype, name=f"mlp_{i}")
      x = constrain(x + mlp(LayerNorm(affine=True, name=f"norm_{i}b")(x)), "tokens")
    return LayerNorm(affine=True, name="norm_out")(x).astype(jnp.float32)


NOTHING = -1  # in the place of a word piece


class Prompts:
  """Turns prompts into word-piece ids, and knows which words training has seen.

  Args:
    tokenizer: a `tokenizers.Tokenizer`.
    length: the longest prompt, in pieces.
    known_words: lower-case words of the training captions; empty when unknown.
    cut: what happens to a longer prompt: an error, since cutting drops words, or (for captions in
      training, which must go on) it is cut, with one warning.
    clean: what is done to a prompt before anything else.
    ending: how many of the last pieces end a prompt, and stay when it is cut.
    padded: whether the transformer reads `length` pieces of every prompt, even of an empty one:
      after its words come `NOTHING`s, whose states are zeros that are attended (Wan).
    rows: of the encoder's table, where the tokenizer may know pieces that it has none for.
  """

  def __init__(
    self,
    tokenizer: Tokenizer,
    length: int,
    known_words: Iterable[str] = (),
    cut: bool = False,
    clean: Callable[[str], str] = str,
    ending: int = 0,
    padded: bool = False,
    rows: int | None = None,
  ):
    self.tokenizer, self.length, self.known_words = tokenizer, length, frozenset(known_words)
    self.cut, self.clean, self.ending, self.padded = cut, clean, ending, padded
    self.rows = rows
    self._warned = False

  @classmethod
  def load(
    cls, path: Path, length: int, known_words: Iterable[str] = (), cut: bool = False
  ) -> Prompts:
    """Reads a `tokenizer.json`.

    Raises:
      UserError: there is none, or it cannot be read.
    """
    try:
      return cls(Tokenizer.from_file(str(path)), length, known_words, cut)
    except Exception as error:  # the library raises bare Exceptions
      raise UserError(f"{path} is not a readable tokenizer.json ({error}).") from error

  @property
  def vocabulary(self) -> int:
    """Rows the encoder's table needs."""
    return self.tokenizer.get_vocab_size()

  def check(self, prompts: Sequence[str]) -> None:
    """Refuses what cannot be a user's prompt. (An empty one may be what guidance leads away from.)

    Raises:
      UserError: a prompt is empty, or too long and not to be cut.
    """
    if any(not self.clean(prompt).strip() for prompt in prompts):
      raise UserError("The prompt is empty: describe the video in a few words.")
    self(prompts)

  def __call__(self, prompts: Sequence[str]) -> list[list[int]]:
    """The word pieces of each prompt, at most `length`, or as many if they are padded.

    Raises:
      UserError: a prompt is too long and not to be cut, or has a piece that the table lacks.
    """
    out = []
    for prompt in prompts:
      ids = self.tokenizer.encode(self.clean(prompt)).ids
      if len(ids) > self.length:
        self._too_long(prompt, len(ids))
        kept = self.length - self.ending
        ids = ids[:kept] + ids[len(ids) - self.ending :]
      if self.rows is not None and (most := max(ids, default=0)) >= self.rows:
        piece = self.tokenizer.id_to_token(most)
        raise UserError(
          f"The word piece {piece!r} is number {most} and the encoder has {self.rows} of them: "
          "leave it out of the prompt, or get the tokenizer of this model."
        )
      out.append(ids + [NOTHING] * (self.length - len(ids) if self.padded else 0))
    return out

  def in_rows(
    self, prompts: Sequence[str]
  ) -> tuple[Int[np.ndarray, "b s"], Int[np.ndarray, "b s"]]:
    """Word pieces and ids of prompts, one in each row, filled up to `length`."""
    pieces, ids = np.zeros((2, len(prompts), self.length), np.int32)
    for row, here in enumerate(self(prompts)):
      pieces[row, : len(here)], ids[row, : len(here)] = here, 1
    return pieces, ids

  def _too_long(self, prompt: str, count: int) -> None:
    excess = f"{count} word pieces but the model reads {self.length}"
    if not self.cut:
      raise UserError(f"The prompt has {excess}: shorten it.")
    if not self._warned:
      print(f"warning: captions are cut; '{prompt}' has {excess}", file=sys.stderr)
      self._warned = True

  def unknown_words(self, prompt: str) -> list[str]:
    """Words of the prompt that no training caption used, in order, without repetition."""
    if not self.known_words:
      return []
    return [w for w in dict.fromkeys(words(prompt)) if w not in self.known_words]

  def warn_of_unknown_words(self, prompts: Iterable[str]) -> None:
    """Says on stderr which words of the prompts no training caption used."""
    if unknown := dict.fromkeys(w for prompt in prompts for w in self.unknown_words(prompt)):
      print(
        f"warning: the model was trained without the words {', '.join(unknown)}; it can only "
        "guess at them",
        file=sys.stderr,
      )


def words(text: str) -> list[str]:
  """Lower-case words of a text in any script; hyphenated words count as their parts."""
  return re.findall(r"[^\W_]+(?:'[^\W_]+)*", text.lower())
