"""A decoder trained on what the sampler hands over: the pairs, the run, what it leaves alone."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax import config as config_lib
from sora_jax.data.records import write_records
from sora_jax.data.transforms import to_float
from sora_jax.errors import UserError
from sora_jax.generate.model import load
from sora_jax.interop import native
from sora_jax.interop.names import flatten
from sora_jax.train import decoder, loop, program

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp("decoder")


@pytest.fixture(scope="module")
def components(folder):
  """The shipped model with a decoder of components alone, and statistics that matter."""
  toy, config = native.find("toy"), native.read_config(native.find("toy"))
  vae = config["vae"] | dict(learned=(), latent_mean=[0.5] * 64, latent_std=[2.0] * 64)
  params = {"principal": native.read_component(toy, "vae")["principal"]}
  shutil.copytree(toy, folder / "components")
  native.save(folder / "vae", {"vae": params}, config | {"vae": vae}, dtype=np.float32)
  for name in ("vae.safetensors", "config.json"):
    shutil.copyfile(folder / "vae" / name, folder / "components" / name)
  (folder / "components" / "tokenizer").mkdir()
  (folder / "components" / "tokenizer" / "tokenizer.json").write_text("{}")
  return folder / "components"


@pytest.fixture(scope="module")
def config(folder, components):
  config = config_lib.load("configs/decoder_toy.py:smoke")
  config.init_from, config.data.cache = str(components), str(folder / "pairs")
  return config


@pytest.fixture(scope="module")
def export(folder, config):
  config = config.copy_and_resolve_references()
  config.data.cache = str(folder / "others")  # pairs are made in the run, on its mesh
  assert loop.fit(config, folder / "run")["step"] == config.train.steps
  return folder / "run" / "export"


@pytest.fixture
def copied(config):
  return config.copy_and_resolve_references()


@pytest.fixture(scope="module")
def model(components):
  return load(components)


def test_given_latents_are_as_encoded_and_made_ones_are_others(config, model):
  recipe = program.build_recipe(config)
  distance = {}
  for name, source in recipe.pairs.items():
    pairs = [source[i] for i in range(len(source))]
    latents = np.stack([pair["latents"] for pair in pairs])
    encoded = model.encode(np.stack([pair["video"] for pair in pairs]))
    distance[name] = np.sqrt(np.mean((latents - encoded) ** 2)) / np.std(encoded)
  assert distance["given"] < 1e-5
  assert 0.1 < distance["made"] < 1.5  # far: with these statistics the transformer is lost


def test_latents_are_made_clean_with_their_caption(config, model):
  recipe = program.build_recipe(config)
  pairs = [recipe.pairs["made"][i] for i in range(2)]
  batch = {"video": np.stack([pair["video"] for pair in pairs])}
  request = model.request(5, (48, 48), 8.0, steps=1)

  def made(captions):
    return decoder.handed_over(model, request, batch | {"captions": captions}, (0.7, 0.7), 0, 0)

  one, other = (made([[c]] * 2) for c in ("a red ball rolls", "a blue cube falls"))
  assert np.abs(one - other).max() > 1e-3


def test_a_caption_that_is_too_long_is_cut(folder, config, model):
  clip = np.zeros((5, 48, 48, 3), np.uint8)
  long = dict(video=clip, caption="a red ball " * 80, fps=8.0, id="long")
  write_records(folder / "long", [long] * 2)
  data = config.data.copy_and_resolve_references()
  data.sources = dict(records=dict(weight=1.0, path=str(folder / "long")))
  pairs = decoder.cache(folder / "pairs", model, data, data.pairs.made, 0)
  assert np.isfinite(pairs[0]["latents"]).all()


def test_other_guidance_means_other_pairs(folder, config, model):
  data, kind = config.data, config.data.pairs.made
  first = decoder.cache(folder / "pairs", model, data, kind, 0)
  settings = dict(model.config, sampling=dict(model.config["sampling"], guidance=1.5))
  other = dataclasses.replace(model, config=settings)
  second = decoder.cache(folder / "pairs", other, data, kind, 0)
  assert first.path != second.path
  assert first.path == decoder.cache(folder / "pairs", model, data, kind, 0).path


def test_only_the_decoder_changes(components, export):
  assert (components / "transformer.safetensors").read_bytes() == (
    export / "transformer.safetensors"
  ).read_bytes()
  assert (export / "tokenizer" / "tokenizer.json").exists()
  before, after = (native.read_component(f, "vae") for f in (components, export))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2**-8), before["principal"],
               after["principal"])  # fmt: skip
  assert max(np.abs(x).max() for x in flatten(after["decoder"]["conv_out"]).values()) > 0
  before, after = (native.read_config(f) for f in (components, export))
  rest = lambda config: {n: x for n, x in config.items() if not n.startswith("vae")}  # noqa: E731
  assert rest(before) == rest(after)
  assert after["vae"]["latent_mean"] == before["vae"]["latent_mean"]
  assert after["vae_training"][:-1] == before["vae_training"]


def test_the_export_samples_with_its_decoder(export):
  model = load(export)
  assert "decoder" in model.vae.learned
  clip = model.sample("a red ball", size=(32, 32), frames=5, steps=2)
  assert clip.shape == (5, 32, 32, 3)


def test_an_export_is_trained_further_and_keeps_its_log(export, copied, folder):
  copied.init_from = str(export)
  recipe = program.build_recipe(copied)
  params = recipe.read(jax.random.key(0))
  stored, found = flatten(native.read_component(export, "vae")), flatten(params["vae"])
  assert stored.keys() == found.keys() and any(x.startswith("decoder/") for x in stored)
  assert all(np.array_equal(stored[name], found[name]) for name in stored)
  (folder / "next").mkdir()
  (folder / "next" / "metrics.jsonl").write_text('{"step": 1}\n')
  recipe.export(params, folder / "next")
  log = (folder / "next" / "export" / "vae.jsonl").read_text()
  assert log == (export / "vae.jsonl").read_text() + '{"step": 1}\n'


@pytest.mark.parametrize(
  "change, message",
  [
    (dict(patch_time=2, time_down=(True,)), "set model.patch_time=4"),
    (dict(channels=4), "set model.channels=3"),
    (dict(learned=("encoder", "decoder")), "has no levels: set model.learned"),
    (dict(learned=()), 'add "decoder" to model.learned'),
  ],
)
def test_another_autoencoder_is_refused(copied, change, message):
  with copied.unlocked():
    copied.model.update(change)
  with pytest.raises(UserError, match=message):
    program.build_recipe(copied)


def test_other_levels_than_the_decoder_has_are_refused(export, copied):
  copied.init_from, copied.model.widths = str(export), (24, 16)
  with pytest.raises(UserError, match="set model.widths="):
    program.build_recipe(copied)


def test_pairs_that_make_no_sense_are_refused(copied):
  copied.data.pairs.made.levels = (0.5, 0.2)
  with pytest.raises(UserError, match="lower one first"):
    program.build_recipe(copied)
  for kind in copied.data.pairs.values():
    kind.share = 0.0
  with pytest.raises(UserError, match="set config.data.pairs.NAME.share above 0"):
    program.build_recipe(copied)


def test_fresh_levels_add_nothing_to_what_is_handed_over(config, model):
  recipe = program.build_recipe(config)
  params = recipe.read(jax.random.key(0))
  batch = next(recipe.dataset(0, 1))
  batch = {name: batch[name] for name in recipe.batch()}
  fresh = np.clip(recipe._reconstruct(params, batch), -1, 1)
  decoded = to_float(model.decode(batch["latents"]))
  np.testing.assert_allclose(fresh, decoded, atol=0.6 / 127.5)
  worse = batch | {"latents": batch["latents"] + 1}
  key, step = jax.random.key(1), jnp.int32(0)
  losses = [float(recipe.loss(params, x, key, step)[0]) for x in (batch, worse)]
  assert losses[0] < losses[1]
