"""The cache of codes, and batches of it: who depends on what, and each clip with its own words."""

import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.data import codes
from sora_jax.data.transforms import to_float
from sora_jax.errors import UserError
from sora_jax.interop import wordpieces
from sora_jax.models.text import Prompts
from sora_jax.models.vqvae import VQVAE, encode_codes
from sora_jax.worlds import WorldSource
from tests.conftest import random_weights

VQ = VQVAE(width=8, blocks=(1, 1), heads=1, z_channels=4, codes=9, depth=2, linear=True)
WORLDS = dict(count=6, seed=0, height=16, width=16, frames=5)


@pytest.fixture(scope="module")
def params():
  return random_weights(VQ.init, jnp.zeros((1, 5, 16, 16, 3)))


def cached(folder, params, clips=6):
  return codes.cache(
    folder, VQ, params, {"worlds": WORLDS}, clips=clips, frames=5, size=(16, 16), fps=8.0, seed=0,
    batch_size=2,
  )  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory, params):
  return cached(tmp_path_factory.mktemp("codes"), params)


def test_codes_are_those_of_the_clip(source, params):
  assert len(source) == 6 and source.info["words"]
  worlds = WorldSource(**WORLDS)
  for record in (source[0], source[5]):
    world = worlds[int(record["id"].rpartition("-")[2])]
    expected = encode_codes(VQ, params, to_float(world["video"])[None])[0]
    assert record["codes"].dtype == np.uint16 and record["codes"].shape == (2, 2, 2, 2)
    np.testing.assert_array_equal(record["codes"], expected)
    assert record["captions"] == world["captions"]


def test_a_cache_depends_on_the_encoder_and_the_codebook(tmp_path, source, params):
  cached(tmp_path, params)
  for part, folders in (("decoder", 1), ("encoder", 2), ("codebook", 3)):
    kernel = params[part] if part == "codebook" else params[part]["in"]["bias"]
    moved = kernel + 1 if part == "codebook" else params[part] | {"in": {
      "kernel": params[part]["in"]["kernel"], "bias": kernel + 1}}  # fmt: skip
    cached(tmp_path, params | {part: moved})
    assert len(list(tmp_path.iterdir())) == folders
  with pytest.raises(UserError, match="use 5 or 9"):
    codes.cache(
      tmp_path, VQ, params, {"worlds": WORLDS}, clips=1, frames=7, size=(16, 16), fps=8.0, seed=0
    )


def test_batches_hold_each_clip_with_its_own_words(source):
  prompts = Prompts.load(wordpieces.TOKENIZER, 40, cut=True)
  data = codes.batches(source, prompts, 2, seed=3)
  first = [next(data) for _ in range(3)]
  records = {record["id"]: record for record in (source[i] for i in range(6))}
  assert {name for batch in first for name in batch["id"]} == set(records)
  state = data.get_state()
  later = next(data)
  for batch in (*first, later):
    assert batch["codes"].shape == (2, 2, 2, 2, 2) and batch["pieces"].shape == (2, 40)
    for row, name in enumerate(batch["id"]):
      np.testing.assert_array_equal(batch["codes"][row], records[name]["codes"])
      words = batch["pieces"][row][batch["text_ids"][row] == 1].tolist()
      assert words in [list(x) for x in prompts(records[name]["captions"])]
  data.set_state(state)
  again = next(data)
  for name in later:
    np.testing.assert_array_equal(again[name], later[name])
  parts = [next(codes.batches(source, prompts, 1, 3, index, 2)) for index in range(2)]
  for name, whole in first[0].items():
    np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), whole)
