"""Sampling code by code: the cache, the draws, batches, beginnings that are known, surprise."""

import json
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sora_jax
from sora_jax.cli import main
from sora_jax.data import video
from sora_jax.errors import UserError
from sora_jax.generate import videogpt
from sora_jax.generate.codes import Sampling, choose
from sora_jax.generate.videogpt import VideoGPT
from sora_jax.interop import native, wordpieces
from sora_jax.models.text import TextEncoder
from sora_jax.models.videogpt import Prior, surprisal
from sora_jax.models.vqvae import VQVAE, encode_codes
from tests.conftest import random_weights

VQ = dict(
  width=8, blocks=[1, 1], heads=1, patch=[4, 4, 4], z_channels=4, codes=6, depth=2, linear=False
)
CONFIG = {
  "vqvae": VQ,
  "videogpt": dict(width=24, layers=2, heads=2, mlp_width=32, patch=[2, 1]),
  "text": dict(width=16, layers=1, heads=2, length=12),
  "known_words": ["a", "red", "ball", "blue", "cube", "falls"],
  "sampling": dict(
    temperature=1.0, top_k=None, top_p=None, guidance=1.0, frames=9, size=[8, 12], fps=8.0
  ),
}
PROMPTS = ["a red ball", "a blue cube falls", "a cube"]
GRID = (3, 2, 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A tiny checkpoint with random weights, large enough to make prompts and codes matter."""
  vqvae = VQVAE(**VQ | dict(blocks=(1, 1), patch=(4, 4, 4)))
  rows, table = wordpieces.table().shape
  text = TextEncoder(**CONFIG["text"], vocabulary=rows, table_width=table)
  prior = Prior(
    **CONFIG["videogpt"] | dict(patch=(2, 1)),
    text_width=16,
    codes=6,
    depth=2,
    z_channels=4,
    grid=GRID,
  )
  pieces = jnp.ones((1, 12), jnp.int32)
  states, codes = jnp.ones((1, 12, 16)), jnp.zeros((1, *GRID, 2), jnp.int32)
  components = {
    "vqvae": random_weights(vqvae.init, jnp.zeros((1, 9, 8, 12, 3))),
    "prior": {
      "prior": random_weights(prior.init, codes, states, pieces),
      "text": random_weights(text.init, pieces, pieces),
    },
  }
  components["vqvae"]["codebook"] *= 10  # or positions would say most
  del components["prior"]["prior"]["codebook"], components["prior"]["text"]["pieces"]
  folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
  config = CONFIG | {"text": CONFIG["text"] | {"vocabulary": rows}}
  native.save(folder, components, config, dtype=np.float16)
  return folder


@pytest.fixture(scope="module")
def model(folder):
  model = sora_jax.load(folder)
  assert isinstance(model, VideoGPT)
  return model


def codes_of(model, prompts=PROMPTS, known=None, seed=5, batch_size=16, **settings):
  known = np.zeros((len(prompts), 0, 2, 3, 2), np.int32) if known is None else known
  return model._codes(known, prompts, GRID, model.request(**settings), seed, batch_size, False)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_as_without_a_cache(guidance, model):
  """Every code from a forward pass of all codes so far."""
  made = codes_of(model, guidance=guidance)
  forward = jax.jit(lambda p, *x: model.prior.apply({"params": p}, *x))
  pieces, ids = model.prompts.in_rows(PROMPTS)
  states = [
    videogpt.read(model.text, model.params["text"], pieces * keep, ids * keep) for keep in (1, 0)
  ]
  codes = np.zeros((3, *GRID, 2), np.int32)
  for number, (t, w, h, depth) in enumerate(np.ndindex(3, 3, 2, 2)):  # tokens are two cells high
    given, free = (
      forward(model.params["prior"], codes, x, ids * keep)[:, t, h, w, depth]
      for x, keep in zip(states, (1, 0), strict=True)
    )
    for row in range(3):
      key = jax.random.fold_in(jax.random.key(5), row)
      key = jax.random.fold_in(jax.random.fold_in(key, number // 2), depth)
      logits = free[row] + guidance * (given[row] - free[row])
      codes[row, t, h, w, depth] = jax.random.categorical(key, logits)
  np.testing.assert_array_equal(made, codes)
  assert len(np.unique(codes)) >= 5


def test_without_prompts_there_is_nothing_to_guide(model, monkeypatch):
  rows, start = [], videogpt.start
  monkeypatch.setattr(videogpt, "start", lambda *x: rows.append(len(x[-1])) or start(*x))
  free = [codes_of(model, ["", ""], guidance=guidance) for guidance in (1.0, 3.0)]
  np.testing.assert_array_equal(*free)
  assert rows == [2, 2]  # and not twice each


def test_a_sample_does_not_depend_on_its_batch(model):
  whole = codes_of(model)
  np.testing.assert_array_equal(codes_of(model, batch_size=2), whole)
  np.testing.assert_array_equal(codes_of(model, PROMPTS[:1]), whole[:1])
  assert np.any(codes_of(model, seed=6) != whole)
  assert np.any(codes_of(model, PROMPTS[::-1])[0] != whole[0])


def test_codes_that_are_known_are_continued_as_if_drawn(model):
  whole = codes_of(model)
  for known in (1, 2):
    np.testing.assert_array_equal(codes_of(model, known=whole[:, :known]), whole)
  other = (whole[:, :1] + 1) % 6
  made = codes_of(model, known=other)
  np.testing.assert_array_equal(made[:, :1], other)
  assert np.any(made[:, 1:] != whole[:, 1:])


def test_clips_begin_as_what_is_known(model, rng):
  known = rng.integers(0, 256, size=(2, 5, 8, 12, 3), dtype=np.uint8)
  made = model.continued(known, ["", "a red ball"], seed=1)
  assert made.shape == (2, 9, 8, 12, 3) and made.dtype == np.uint8
  shown = model.reconstruct(known)
  assert np.abs(made[:, :5].astype(int) - shown).max() <= 1
  short = model.continued(known[:, :1], ["", "a red ball"], frames=5)
  assert short.shape[1] == 5
  for count, frames, says in (
    (9, 9, "give at most 5"), (5, 5, "give at most 1"), (4, 9, "use 1 or 5"), (1, 13, "up to 9"),
    (1, 7, "use 5 or 9"),
  ):  # fmt: skip
    clips = np.zeros((1, count, 8, 12, 3), np.uint8)
    with pytest.raises(UserError, match=says):
      model.continued(clips, [""], frames=frames)
  with pytest.raises(UserError, match="2 clips for 1 prompts"):
    model.continued(known, [""])


def test_surprise_is_that_of_each_moment(model, rng):
  clips = rng.integers(0, 256, size=(3, 9, 8, 12, 3), dtype=np.uint8)
  found = model.surprise(clips)
  assert found.shape == (3, 2)
  codes = encode_codes(model.vqvae, model.params["vqvae"], videogpt.to_float(clips))
  zeros = jnp.zeros((3, 12), jnp.int32)
  states = jnp.asarray(rng.normal(size=(3, 12, 16)), jnp.float32)  # nobody reads them
  logits = jax.jit(model.prior.apply)({"params": model.params["prior"]}, codes, states, zeros)
  nats = np.asarray(surprisal(logits, codes)).reshape(3, 3, -1).mean(axis=-1)
  np.testing.assert_allclose(found, nats[:, 1:], rtol=1e-4)
  other = clips.copy()
  other[:, 5:] = rng.integers(0, 256, size=other[:, 5:].shape)
  again = model.surprise(other)
  np.testing.assert_allclose(again[:, 0], found[:, 0], rtol=1e-5)
  assert np.abs(again[:, 1] - found[:, 1]).min() > 1e-4
  assert model.surprise(clips[:, :5]).shape == (3, 1)
  with pytest.raises(UserError, match="8x12 pixels, not 8x8"):
    model.surprise(clips[:, :, :, :8])


def test_draws_have_the_right_frequencies(rng):
  logits = jnp.asarray(rng.normal(size=6), jnp.float32)
  keys = jax.random.split(jax.random.key(0), 4000)
  draws = jax.jit(choose, static_argnums=0)
  order = np.argsort(-np.asarray(logits))

  def shares(**settings):
    rows = jnp.tile(logits, (len(keys), 1))
    drawn = draws(Sampling(**settings), rows, keys)
    return np.bincount(drawn, minlength=6) / len(keys)

  def expected(temperature, kept):
    p = np.where(np.isin(np.arange(6), kept), np.exp(logits / temperature), 0)
    return p / p.sum()

  full = expected(1.0, order)
  mass = np.cumsum(full[order])
  for settings, goal in (
    (dict(), full),
    (dict(temperature=0.5), expected(0.5, order)),
    (dict(top_k=2), expected(1.0, order[:2])),
    (dict(top_k=99), full),
    (dict(top_p=float(mass[1] + 1e-3)), expected(1.0, order[:3])),
    (dict(top_p=float(mass[1] - 1e-3)), expected(1.0, order[:2])),
    (dict(top_p=1e-6), expected(1.0, order[:1])),
    (dict(temperature=0.0), expected(1.0, order[:1])),
  ):
    found = shares(**settings)
    np.testing.assert_allclose(found, goal, atol=0.03, err_msg=str(settings))
    assert not np.any(found[goal == 0])


def test_what_the_model_cannot_do_is_one_sentence(model, folder):
  for prompts, settings, says in (
    ("a cube", dict(frames=13), "up to 9 frames"),
    ("a cube", dict(frames=6), "use 5 or 9"),
    ("a cube", dict(size=(8, 8)), "8x12 pixels, not 8x8"),
    ("a cube", dict(guidance=0.5), "at least 1"),
    ("a cube", dict(temperature=-1.0), "at least 0"),
    ("a cube", dict(temperature=math.inf), "and finite"),
    ("a cube", dict(top_k=0), "at least 1"),
    ("a cube", dict(top_p=1.5), "at most 1"),
    ("a cube", dict(temprature=1.0), "did you mean 'temperature'"),
    ("", {}, "prompt is empty"),
    ([], {}, "no prompts"),
  ):
    with pytest.raises(UserError, match=says):
      model.sample(prompts, **settings)
  with pytest.raises(UserError, match="give no mesh"):
    sora_jax.load(folder, mesh={"data": 1})
  with pytest.raises(UserError, match="is no VideoGPT"):
    videogpt.load("toy")


def test_from_the_command_line(folder, model, tmp_path, capsys):
  out = tmp_path / "ball.mp4"
  words = ["sample", "a red ball", "--checkpoint", str(folder), "--out", str(out)]
  assert main.main([*words, "--seed=2", "--temperature=0.5", "--top-k=3", "--guidance=2"]) == 0
  made = model.sample("a red ball", seed=2, temperature=0.5, top_k=3, guidance=2.0)
  assert made.shape == (9, 8, 12, 3)
  shown, _ = video.read(out)
  assert shown.shape == made.shape
  assert main.main([*words[:-1], str(tmp_path / "one.png"), "--frames=1", "--seed=2"]) == 0
  still, _ = video.read(tmp_path / "one.png")
  np.testing.assert_array_equal(still, model.sample("a red ball", seed=2, frames=1))
  out.unlink()
  for says, *more in (
    ("is a VideoGPT: it cannot use --steps", "--steps=3"),
    ("is a VideoGPT: it cannot use --task", "--task=loop"),
    ("8x12 pixels, not 8x8", "--size=8x8"),
    ("up to 9 frames", "--frames=13"),
  ):
    assert main.main([*words, *more]) == 2
    assert says in capsys.readouterr().err
  assert main.main([*words[:2], "--top-k=3", "--out", str(out)]) == 2
  assert "toy draws no codes: it cannot use --top-k" in capsys.readouterr().err
  assert not out.exists()


def test_a_checkpoint_of_other_shapes_is_refused(folder, tmp_path):
  other = tmp_path / "other"
  shutil.copytree(folder, other)
  config = json.loads((other / "config.json").read_text())
  config["videogpt"]["mlp_width"] += 8
  (other / "config.json").write_text(json.dumps(config))
  with pytest.raises(UserError, match="prior of .* does not fit the config"):
    videogpt.load(other)
