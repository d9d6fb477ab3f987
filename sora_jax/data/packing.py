"""Packs samples of any size into sequences of one length: little is computed on padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import jax
import ml_dtypes
import numpy as np

from sora_jax.diffusion.conditioning import Sample
from sora_jax.models.text import Prompts


@dataclass(frozen=True, kw_only=True)
class Packer:
  """Fills `rows` sequences with as many of the given samples as fit.

  Attributes:
    rows: sequences of a batch. length: tokens of a sequence.
    cond_rows, text_length: room for conditioning rows and word pieces in a sequence.
    text_width: of the states that the samples' prompts have already; 0: they have none.
    short: parts that a sequence may be cut into, 1 or more, see `cut`.
  """

  rows: int
  length: int
  cond_rows: int
  text_length: int
  text_width: int = 0
  short: int = 1

  def cut(self) -> Packer:
    """One with as many tokens in sequences `short` times as short, and as many times more of them.

    Where attention computes all pairs of tokens of a sequence, those of different samples included,
    as XLA's does, it costs as many times less.
    """
    n = self.short
    return replace(
      self, rows=self.rows * n, length=self.length // n, cond_rows=self.cond_rows // n,
      text_length=self.text_length // n, short=1,
    )  # fmt: skip

  def assign(self, samples: Sequence[Sample], prompts: Prompts) -> list[list[int]]:
    """Which samples go into which sequence: best fit, longest first.

    Of more samples than there is room for, the first ones (leaving out the shortest would change
    what is trained on); the others only fill what is left. Some find no room.
    """
    sizes = [len(sample.values) for sample in samples]
    first = int(np.searchsorted(np.cumsum(sizes), self.rows * self.length, side="right"))
    order = [*sorted(range(first), key=lambda i: -sizes[i]), *range(first, len(samples))]
    room = np.tile([self.length, self.cond_rows, self.text_length], (self.rows, 1))
    rows: list[list[int]] = [[] for _ in range(self.rows)]
    for i in order:
      s = samples[i]
      need = np.array([len(s.values), len(s.cond), sum(map(len, prompts(s.prompts)))])
      fits = np.flatnonzero((room >= need).all(axis=1))
      if len(fits):
        row = fits[np.argmin(room[fits, 0])]
        room[row] -= need
        rows[row].append(i)
    return rows

  def fields(
    self, rows: int, patch_width: int, cond_features: int
  ) -> dict[str, jax.ShapeDtypeStruct]:
    """The fields of `Tokens`, with word pieces `pieces` (b s) for the text if it has no states."""
    n, k, s = self.length, self.cond_rows, self.text_length
    f = lambda *shape: jax.ShapeDtypeStruct((rows, *shape), np.float32)  # noqa: E731
    i = lambda *shape: jax.ShapeDtypeStruct((rows, *shape), np.int32)  # noqa: E731
    states = jax.ShapeDtypeStruct((rows, s, self.text_width), ml_dtypes.bfloat16)
    return {
      "values": f(n, patch_width), "positions": f(n, 3), "period": f(n), "segments": i(n),
      "block": i(n), "cond": f(k, cond_features), "cond_index": i(n), "prompt": i(n),
      "text_ids": i(s), **({"text": states} if self.text_width else {"pieces": i(s)}),
    }  # fmt: skip

  def fill(self, rows: Sequence[Sequence[Sample]], prompts: Prompts) -> dict[str, np.ndarray]:
    """Lays out the samples of each row one after the other; returns `fields`, values clean."""
    first = next(s for row in rows for s in row)
    fields = self.fields(len(rows), first.values.shape[1], first.cond.shape[1])
    batch = {name: np.zeros(field.shape, field.dtype) for name, field in fields.items()}
    for r, row in enumerate(rows):
      token = cond = prompt = piece = 0
      for number, s in enumerate(row):
        here = np.s_[r, token : token + len(s.values)]
        for name in ("values", "positions", "period", "block"):
          batch[name][here] = getattr(s, name)
        batch["segments"][here] = number + 1
        batch["cond_index"][here] = s.cond_index + cond
        batch["prompt"][here] = np.where(s.prompt > 0, s.prompt + prompt, 0)
        batch["cond"][r, cond : cond + len(s.cond)] = s.cond
        for i, pieces in enumerate(prompts(s.prompts)):
          prompt += 1
          text = ("text", s.states[i]) if self.text_width else ("pieces", pieces)
          batch[text[0]][r, piece : piece + len(text[1])] = text[1]
          batch["text_ids"][r, piece : piece + len(pieces)] = prompt
          piece += len(pieces)
        token, cond = token + len(s.values), cond + len(s.cond)
    return batch
