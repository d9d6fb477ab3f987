"""Laws of the transformer over packed sequences."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.data.packing import Packer
from sora_jax.diffusion.conditioning import Stretch, latent_times, layout
from sora_jax.generate.denoise import read_prompts
from sora_jax.interop import wordpieces
from sora_jax.models.dit import DiT
from sora_jax.models.text import Prompts, TextEncoder
from sora_jax.models.tokens import FEW, select_rows

PATCH = (1, 2, 2)
DIT = DiT(
  width=48, layers=2, heads=2, mlp_width=64, text_width=32, channels=4, cond_features=4,
  absolute=True, affine=True,
)  # fmt: skip
TEXT = TextEncoder(vocabulary=27_628, width=32, layers=1, heads=2, length=12)


@pytest.fixture(scope="module")
def prompts():
  return Prompts.load(wordpieces.TOKENIZER, TEXT.length)


@pytest.fixture(scope="module")
def samples():
  """An image, a clip with a known first frame, a clip with an appended stretch, no text."""
  rng = np.random.default_rng(1)
  draw = lambda *shape: rng.normal(size=(*shape, 4)).astype(np.float32)  # noqa: E731
  known = np.zeros((3, 4, 4), bool)
  known[0] = True
  stretch = Stretch(draw(1, 4, 6), latent_times(1, 8.0, 8))
  return [
    layout(draw(1, 4, 4), patch=PATCH, fps=8.0, levels=0.3, prompt="a red ball"),
    layout(draw(3, 4, 4), patch=PATCH, fps=8.0, levels=0.6, known=known, prompt="two cubes fall"),
    layout(draw(3, 4, 6), patch=PATCH, fps=4.0, levels=0.9, stretches=[stretch]),
  ]


@pytest.fixture(scope="module")
def params(samples, prompts):
  batch = pack([[samples[0]]], prompts, 8)
  key = jax.random.key(0)
  text = jax.jit(TEXT.init)(key, batch["pieces"], batch["text_ids"])["params"]
  dit = jax.jit(DIT.init)(key, read_prompts(TEXT, text, batch))["params"]
  leaves, tree = jax.tree.flatten(dit)  # zero-initialised gates would hide whole branches
  keys = jax.random.split(key, len(leaves))
  noisy = [x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
  return {"dit": jax.tree.unflatten(tree, noisy), "text": text}


def pack(rows, prompts, length):
  packer = Packer(rows=len(rows), length=length, cond_rows=6, text_length=20)
  return {k: jnp.asarray(v) for k, v in packer.fill(rows, prompts).items()}


@functools.partial(jax.jit, static_argnames="dit")
def run(params, batch, dit=DIT):
  tokens = read_prompts(TEXT, params["text"], batch)
  return dit.apply({"params": params["dit"]}, tokens)


def split(values, row):
  """The outputs of the samples of a packed row, in order."""
  ends = np.cumsum([len(s.values) for s in row])
  return np.split(np.asarray(values)[: ends[-1]], ends[:-1])


def test_packed_equals_unpacked(params, samples, prompts):
  length = sum(len(s.values) for s in samples) + 3
  together = split(run(params, pack([samples], prompts, length))[0], samples)
  for sample, got in zip(samples, together, strict=True):
    alone = run(params, pack([[sample]], prompts, len(sample.values)))[0]
    np.testing.assert_allclose(got, alone, atol=2e-5)


def test_order_within_a_pack_does_not_matter(params, samples, prompts):
  length = sum(len(s.values) for s in samples)
  forward = split(run(params, pack([samples], prompts, length))[0], samples)
  backward = split(run(params, pack([samples[::-1]], prompts, length))[0], samples[::-1])
  for a, b in zip(forward, backward[::-1], strict=True):
    np.testing.assert_allclose(a, b, atol=2e-5)


def test_padding_passes_no_gradient_and_no_nan(params, samples, prompts):
  batch = pack([samples], prompts, sum(len(s.values) for s in samples) + 5)
  real = batch["segments"] > 0

  def loss(values):
    out = run(params, batch | {"values": values})
    return jnp.sum(jnp.where(real[..., None], out, 0) ** 2)

  gradient = jax.grad(loss)(batch["values"])
  assert np.isfinite(gradient).all()
  np.testing.assert_array_equal(gradient[~np.asarray(real)], 0)


def test_the_prompt_is_read(params, samples, prompts):
  other = dataclasses.replace(samples[1], prompts=("a green cone rolls",))
  a, b = (run(params, pack([[s]], prompts, 12)) for s in (samples[1], other))
  assert np.abs(a - b).max() > 1e-3


def test_blocks_hide_the_future(params, samples, prompts):
  """With a block per latent frame, early tokens do not depend on late ones; without, they do."""
  sample = samples[1]
  frames = dataclasses.replace(sample, block=sample.positions[:, 0].astype(np.int32))
  for each, causal in ((frames, True), (sample, False)):
    batch = pack([[each]], prompts, 12)
    moved = batch | {"values": batch["values"].at[:, 8:].add(1.0)}
    change = np.abs(run(params, batch) - run(params, moved))[0, :8].max()
    assert (change == 0) == causal


def test_a_rolled_loop_is_the_same_sequence(params, prompts):
  rng = np.random.default_rng(2)
  latents = rng.normal(size=(4, 4, 4, 4)).astype(np.float32)
  lay = lambda x, loop: layout(x, patch=PATCH, fps=8.0, levels=0.5, loop=loop)  # noqa: E731
  for loop in (True, False):
    a, b = (
      np.asarray(run(params, pack([[lay(x, loop)]], prompts, 16))[0])
      for x in (latents, np.roll(latents, 1, axis=0))
    )
    assert np.allclose(np.roll(a, 4, axis=0), b, atol=2e-5) == loop


def test_only_absolute_positions_tell_where(params, samples, prompts):
  batch = pack([samples], prompts, sum(len(s.values) for s in samples))
  moved = {**batch, "positions": batch["positions"] + jnp.asarray([3.0, 2.0, 1.0])}
  for dit, same in ((DIT, False), (DIT.clone(absolute=False), True)):
    assert np.allclose(run(params, batch, dit), run(params, moved, dit), atol=2e-5) == same


def test_what_the_network_does_not_read_still_reaches_the_velocity(params, samples, prompts):
  """Blind to the values, an affine model is an affine function of them; a plain one is constant."""
  batch = pack([samples], prompts, sum(len(s.values) for s in samples))
  blind = params["dit"] | {"patch_in": jax.tree.map(jnp.zeros_like, params["dit"]["patch_in"])}
  velocity = lambda scale: run(  # noqa: E731
    params | {"dit": blind}, batch | {"values": scale * batch["values"]}
  )
  zero, one, three = velocity(0.0), velocity(1.0), velocity(3.0)
  np.testing.assert_allclose(three - zero, 3 * (one - zero), atol=2e-5)
  assert np.abs(one - zero).max() > 0.1
  head = jax.tree.map(lambda x: x[..., : DIT.patch_width], blind["patch_out"])
  plain = DIT.clone(affine=False)
  constant = [
    run(params | {"dit": blind | {"patch_out": head}}, batch | {"values": values}, plain)
    for values in (batch["values"], jnp.zeros_like(batch["values"]))
  ]
  np.testing.assert_array_equal(*constant)
  np.testing.assert_allclose(constant[0], zero, atol=2e-5)


def test_remat_changes_no_gradient(params, samples, prompts):
  batch = pack([samples], prompts, sum(len(s.values) for s in samples))
  tokens = read_prompts(TEXT, params["text"], batch)

  def gradient(remat):
    model = DIT.clone(remat=remat)
    loss = lambda p: jnp.sum(model.apply({"params": p}, tokens) ** 2)  # noqa: E731
    return jax.jit(jax.grad(loss))(params["dit"])

  plain, full = gradient("none"), gradient("full")
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-3), plain, full)


def test_what_sampling_keeps_computes_the_same(params, samples, prompts):
  model = DIT.clone(dtype="bfloat16")
  kept = params | {"dit": model.stored(params["dit"])}
  size = lambda tree: sum(x.nbytes for x in jax.tree.leaves(tree))  # noqa: E731
  assert size(kept["dit"]["blocks"]) < 0.6 * size(params["dit"]["blocks"])
  batch = pack([samples], prompts, sum(len(s.values) for s in samples))
  np.testing.assert_array_equal(run(kept, batch, model), run(params, batch, model))


@pytest.mark.parametrize("rows", [1, 2, FEW, FEW + 1])
def test_each_token_gets_its_row_and_gives_it_its_gradient(rows):
  rng = np.random.default_rng(rows)
  table = rng.normal(size=(2, rows, 3)).astype(np.float32)
  index = rng.integers(rows, size=(2, 50))
  weights = rng.normal(size=(2, 50, 3)).astype(np.float32)
  found, pull = jax.vjp(lambda x: select_rows(x, jnp.asarray(index)), jnp.asarray(table))
  here = (np.arange(2)[:, None], index)
  np.testing.assert_array_equal(found, table[here])
  wanted = np.zeros_like(table)
  np.add.at(wanted, here, weights)
  np.testing.assert_allclose(pull(jnp.asarray(weights))[0], wanted, atol=1e-5)


def test_words_have_noise_where_there_is_a_key_for_it(params, samples, prompts):
  batch, noisy = pack([[samples[0]]], prompts, 8), TEXT.clone(noise=1.0)
  read = lambda *key: read_prompts(noisy, params["text"], batch, *key).text  # noqa: E731
  np.testing.assert_array_equal(read(), read_prompts(TEXT, params["text"], batch).text)
  one, again, other = (read(jax.random.key(seed)) for seed in (0, 0, 1))
  np.testing.assert_array_equal(one, again)
  assert np.abs(one - read()).max() > 0.1 and np.abs(one - other).max() > 0.1
