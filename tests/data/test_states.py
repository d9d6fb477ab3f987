"""Cached states are what the encoder makes of the words, wherever they end up."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.data import encode
from sora_jax.data.packing import Packer
from sora_jax.data.states import ROWS, Reader
from sora_jax.diffusion import conditioning
from sora_jax.diffusion.conditioning import Mixture, layout
from sora_jax.diffusion.time import LevelSampler
from sora_jax.generate.denoise import read_prompts
from sora_jax.interop import wordpieces
from sora_jax.interop.names import flatten
from sora_jax.models.t5 import T5Encoder
from sora_jax.models.text import Prompts
from sora_jax.models.vae import VideoVAE

TEXT = T5Encoder(vocabulary=27_628, width=16, layers=1, heads=2, head_width=8, mlp_width=24)
LENGTH = 12
WORDS = ["a red ball", "two cubes fall to the floor", "", "a green cone"]
VAE = VideoVAE(
  z_channels=4, widths=(6, 8), patch=4, patch_time=4, time_down=(False,), kernel_t=(1, 3),
  linear=True, learned=("decoder",),
)  # fmt: skip


@pytest.fixture(scope="module")
def params():
  pieces = jnp.ones((1, 4), jnp.int32)
  return jax.jit(TEXT.init)(jax.random.key(0), pieces, pieces)["params"]


def reader_of(params, padded=True, place=None):
  tokenizer = Prompts.load(wordpieces.TOKENIZER, LENGTH).tokenizer
  prompts = Prompts(tokenizer, LENGTH, cut=True, padded=padded)
  tensors = {name: np.asarray(x) for name, x in flatten(params).items()}
  return Reader(TEXT, prompts, tensors, place or (lambda mesh: params))


@pytest.fixture(scope="module")
def states(params):
  read = reader_of(params).load()
  many = [f"a red ball and {i} cubes" for i in range(ROWS)]
  together = read([*many, *WORDS, *WORDS])
  assert list(together) == many + WORDS
  alone = {text: read([text])[text] for text in WORDS}
  for text in WORDS:  # of its words alone, whoever it was read beside
    assert alone[text].shape == together[text].shape and alone[text].dtype == jnp.bfloat16
    np.testing.assert_allclose(
      np.float32(alone[text]), np.float32(together[text]), rtol=0.02, atol=0.02
    )
  return together


@pytest.mark.parametrize("padded", [False, True])
def test_a_batch_of_states_is_a_batch_of_words_that_were_read(params, states, padded, rng):
  prompts = reader_of(params, padded).prompts
  lay = lambda text: layout(  # noqa: E731
    rng.normal(size=(2, 4, 4, 4)), patch=(1, 2, 2), fps=8.0, prompt=text, empty=padded,
    states=states,
  )  # fmt: skip
  rows = [[lay(WORDS[0]), lay(WORDS[2])], [lay(WORDS[1])]]
  packer = Packer(rows=2, length=20, cond_rows=2, text_length=30)
  words = packer.fill(rows, prompts)
  cached = dataclasses.replace(packer, text_width=TEXT.width).fill(rows, prompts)
  expected, got = read_prompts(TEXT, params, words), read_prompts(None, None, cached)
  np.testing.assert_allclose(np.float32(got.text), expected.text, rtol=0.02, atol=0.02)
  real = np.abs(np.asarray(expected.text)).max(axis=-1) > 0
  assert (np.asarray(expected.text_ids)[~real] > 0).any() == padded  # zeros that are attended
  for field in dataclasses.fields(got):
    if field.name != "text":
      np.testing.assert_array_equal(getattr(got, field.name), getattr(expected, field.name))


def test_a_sample_without_its_prompt_brings_the_states_of_nothing(states, rng):
  clip = dict(
    latents=rng.normal(size=(2, 4, 4, 4)), stretch=rng.normal(size=(1, 4, 4, 4)), stretch_frame=0,
    fps=8.0, loop=False, captions=WORDS[:2], states=states,
  )  # fmt: skip
  draw = lambda **changes: conditioning.draw(  # noqa: E731
    rng, clip, patch=(1, 2, 2), mixture=Mixture(**changes), levels=LevelSampler(), empty=True
  )
  (none,) = draw(text_dropout=1.0).states
  np.testing.assert_array_equal(none, states[""])
  sample = draw(text_dropout=0.0)
  np.testing.assert_array_equal(sample.states[0], states[sample.prompts[0]])


def test_the_cache_holds_states_and_is_named_by_their_encoder(tmp_path, params):
  key = jax.random.key(0)
  video = jax.random.uniform(key, (1, 5, 16, 16, 3))
  vae_params = jax.jit(VAE.init)(key, video, key)["params"]
  worlds = {"worlds": dict(weight=1.0, count=4, seed=0, height=32, width=32, frames=5)}
  cached = lambda reader: encode.cache(  # noqa: E731
    tmp_path, VAE, vae_params, worlds, clips=4, frames=5, size=(32, 32), fps=8.0, seed=0,
    batch_size=2, reader=reader,
  )  # fmt: skip
  reader = reader_of(params)
  first = cached(reader)
  for record in (first[0], first[3]):
    assert list(record["states"]) == [*dict.fromkeys(record["captions"]), ""]
    caption = record["captions"][0]
    np.testing.assert_allclose(
      np.float32(record["states"][caption]), np.float32(reader.load()([caption])[caption]),
      rtol=0.02, atol=0.02,
    )  # fmt: skip

  def unused(mesh):
    raise AssertionError("there is nothing to encode")

  assert len(cached(reader_of(params, place=unused))) == 4
  moved = params | {"relative": params["relative"] + 1}
  for other in (None, reader_of(moved), reader_of(params, padded=False)):
    assert cached(other).path != first.path
  assert "states" not in cached(None)[0]
