"""The packer wastes little, overfills nothing and keeps every sample whole."""

import numpy as np
import pytest

from sora_jax.data.packing import Packer
from sora_jax.diffusion.conditioning import layout
from sora_jax.interop import wordpieces
from sora_jax.models.text import Prompts


def samples(rng, count):
  sizes = rng.choice([1, 3, 5], count, p=[0.2, 0.3, 0.5])
  return [
    layout(
      rng.normal(size=(lt, 8, 8, 2)), patch=(1, 2, 2), fps=8.0, levels=0.5,
      prompt="a red ball" if rng.random() < 0.9 else "",
    )
    for lt in sizes
  ]  # fmt: skip


@pytest.fixture(scope="module")
def prompts():
  return Prompts.load(wordpieces.TOKENIZER, 12)


def test_assignment_respects_every_limit_and_repeats_nothing(rng, prompts):
  given = samples(rng, 40)
  rows = Packer(rows=6, length=256, cond_rows=4, text_length=12).assign(given, prompts)
  flat = [i for row in rows for i in row]
  assert len(flat) == len(set(flat))
  for row in rows:
    assert sum(len(given[i].values) for i in row) <= 256
    assert len(row) <= 4
    assert sum(len(pieces) for i in row for pieces in prompts(given[i].prompts)) <= 12


def test_a_realistic_mixture_fills_the_rows(rng, prompts):
  given = samples(rng, 64)
  tokens = sum(len(s.values) for s in given)
  packer = Packer(rows=tokens // 256, length=256, cond_rows=16, text_length=80)
  used = sum(len(given[i].values) for row in packer.assign(given, prompts) for i in row)
  assert used >= 0.95 * packer.rows * packer.length


def test_fields_point_at_their_own_rows(rng, prompts):
  given = samples(rng, 3)
  batch = Packer(rows=1, length=300, cond_rows=5, text_length=20).fill([given], prompts)
  start = text = 0
  for number, s in enumerate(given, start=1):
    here = np.s_[0, start : start + len(s.values)]
    np.testing.assert_array_equal(batch["values"][here], s.values)
    np.testing.assert_array_equal(batch["segments"][here], number)
    np.testing.assert_array_equal(batch["cond"][0][batch["cond_index"][here]][:, 0], 0.5)
    text += len(s.prompts)
    np.testing.assert_array_equal(batch["prompt"][here], text if s.prompts else 0)
    start += len(s.values)
  assert (batch["segments"][0, start:] == 0).all()
  (words,) = prompts(["a red ball"])
  rest = [0] * (20 - len(words) * text)
  np.testing.assert_array_equal(batch["pieces"][0], words * text + rest)
  ids = np.repeat(np.arange(1, text + 1), len(words))
  np.testing.assert_array_equal(batch["text_ids"][0], [*ids, *rest])
