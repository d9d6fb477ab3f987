"""A repository of the hub becomes a model that makes what diffusers makes of it."""

import json
import shutil

import huggingface_hub
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler, WanPipeline
from huggingface_hub import constants, errors
from tqdm import tqdm

from sora_jax.cli import main
from sora_jax.diffusion import sampler
from sora_jax.errors import UserError
from sora_jax.generate import model as generate
from sora_jax.generate import tasks
from sora_jax.generate.denoise import Window
from sora_jax.generate.story import Story
from sora_jax.interop import convert, hub, pipelines
from tests.interop.conftest import linked, make_transformer, relative_error

ONE = {"data": 1}
LATENT = (3, 4, 6)
PROMPT, NEGATIVE = "a red  ball &amp; a cube", "blurred"


@pytest.fixture(scope="module")
def model(repository):
  return generate.load(repository, ONE)


def latents_of(model, prompt, negative, seed, **settings):
  """What our sampler makes before it is decoded."""
  request = model.request(size=(32, 48), frames=9, **settings)
  denoiser = model.denoiser(request)
  window = Window(np.zeros((1, *LATENT, 4), np.float32), np.zeros(LATENT, bool), [()])
  return denoiser(
    window, 0, stories=[Story.of(prompt)], negative=negative, seed=seed, samples=np.arange(1),
    bar=tqdm(disable=True),
  )  # fmt: skip


def theirs(pipeline, prompt, negative, seed, steps, guidance):
  noise = np.asarray(sampler.initial_noise(seed, np.arange(1), *LATENT, 4))
  made = pipeline(
    prompt, negative, height=32, width=48, num_frames=9, num_inference_steps=steps,
    guidance_scale=guidance, latents=torch.tensor(np.moveaxis(noise, -1, 1)), output_type="latent",
  )  # fmt: skip
  return np.moveaxis(made.frames.numpy(), 1, -1)


@pytest.mark.parametrize("kind", [UniPCMultistepScheduler, FlowMatchEulerDiscreteScheduler])
def test_the_denoising_loop_is_that_of_diffusers(pipeline, repository, tmp_path, kind):
  """Prompts from words on, guidance, the padding that is read, and a negative prompt or none."""
  folder, negative = linked(repository, tmp_path / "links"), NEGATIVE
  if kind is FlowMatchEulerDiscreteScheduler:
    file, negative = folder / "scheduler" / "scheduler_config.json", ""
    file.unlink()
    kind(shift=3.0).save_pretrained(folder / "scheduler")
  model = generate.load(folder, ONE)
  former, pipeline.scheduler = pipeline.scheduler, kind.from_pretrained(folder / "scheduler")
  try:
    expected = theirs(pipeline, PROMPT, negative, 7, 12, 4.0)
  finally:
    pipeline.scheduler = former
  got = latents_of(model, PROMPT, negative, 7, steps=12, guidance=4.0)
  assert relative_error(got, expected) < 1e-4
  other = latents_of(model, "a blue cube", negative, 7, steps=12, guidance=4.0)
  assert relative_error(other, expected) > 1e-2  # the prompt matters


def test_two_transformers_share_the_levels_as_in_diffusers(pipeline, tmp_path):
  torch.manual_seed(5)
  second = make_transformer()
  with torch.no_grad():
    for parameter in second.parameters():
      parameter.add_(0.05 * torch.randn_like(parameter))
  parts = {**pipeline.components, "transformer_2": second, "boundary_ratio": 0.8}
  both = WanPipeline(**parts)
  both.set_progress_bar_config(disable=True)
  both.save_pretrained(tmp_path / "both")
  model = generate.load(tmp_path / "both", ONE)
  expected = theirs(both, PROMPT, NEGATIVE, 3, 10, 4.0)
  got = latents_of(model, PROMPT, NEGATIVE, 3, steps=10, guidance=4.0)
  assert relative_error(got, expected) < 1e-4
  alone = theirs(pipeline, PROMPT, NEGATIVE, 3, 10, 4.0)
  assert relative_error(alone, expected) > 1e-2  # the second one matters


def test_videos_are_made_on_any_mesh_and_by_the_command(model, repository, tmp_path):
  settings = dict(steps=2, frames=5, size=(32, 32), seed=3)
  video = model.sample("a red ball", **settings)
  assert video.shape == (5, 32, 32, 3) and video.std() > 1
  split = generate.load(repository, {"fsdp": 2, "context": 2}).sample("a red ball", **settings)
  assert np.abs(split.astype(int) - video.astype(int)).max() <= 1
  out = tmp_path / "ball.gif"
  flags = "--steps 2 --frames 5 --size 32x32 --seed 3 --mesh data=1 --dtype bfloat16".split()
  call = ["sample", "a red ball", "--out", str(out), "--checkpoint", str(repository), *flags]
  assert main.main(call) == 0 and out.exists()


def test_tasks_keep_what_is_known(model, rng):
  """Known tokens have level 0, which is all such a model is told of a task."""
  image = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
  canvas = tasks.animate(image, 5)
  one, other = (model.sample("a red ball", canvas=canvas, steps=2, seed=seed) for seed in (0, 1))
  np.testing.assert_array_equal(one[0], model.reconstruct(image[None, None])[0, 0])
  np.testing.assert_array_equal(one[0], other[0])
  assert (one[1:] != other[1:]).any()


def test_the_defaults_are_the_published_ones(model):
  request = model.request()
  wanted = dict(steps=50, guidance=5.0, shift=3.0, sampler="unipc", frames=81, size=[480, 832])
  assert {key: request[key] for key in wanted} == wanted
  assert model.denoiser(request).rate == 8.0  # latent frames are one unit of time apart


def test_both_layouts_know_the_rows_of_the_text_encoder(repository, tmp_path):
  convert.convert(repository, tmp_path / "ours", "sora_jax")
  for folder in (repository, tmp_path / "ours"):
    assert pipelines.open_model(folder).prompts.rows == 64


def test_compute_type(repository):
  parts = pipelines.open_model(repository, jnp.bfloat16)
  types = {name: component.module.dtype for name, component in parts.components.items()}
  assert types == {"dit": jnp.bfloat16, "vae": None, "text": jnp.bfloat16}
  assert parts.components["dit"].nbytes < pipelines.open_model(repository).components["dit"].nbytes


def test_repositories_that_do_not_load_are_refused(repository, tmp_path):
  folder = tmp_path / "broken"
  shutil.copytree(repository, folder)
  index = json.loads((folder / "model_index.json").read_text())

  def refused(match, **changes):
    (folder / "model_index.json").write_text(json.dumps(index | changes))
    with pytest.raises(UserError, match=match):
      generate.load(folder)

  refused("is a LTXPipeline, which does not load", _class_name="LTXPipeline")
  second = ["diffusers", "WanTransformer3DModel"]
  refused("no boundary_ratio between them", transformer_2=second, boundary_ratio=None)
  refused("transformer_2.*config.json is missing", transformer_2=second, boundary_ratio=0.9)
  shutil.rmtree(folder / "tokenizer")
  refused("tokenizer.json")
  with pytest.raises(UserError, match="is one component of a model"):
    generate.load(repository / "vae")
  for file in (folder / "text_encoder").glob("*.safetensors*"):
    file.unlink()
  (folder / "text_encoder" / "pytorch_model.bin").touch()
  refused("is a pickle")


def test_a_failing_network_is_named(monkeypatch):
  def fails(*_, **__):
    raise errors.HfHubHTTPError.__mro__[1]("no route")  # of the HTTP library

  monkeypatch.setattr(huggingface_hub, "snapshot_download", fails)
  with pytest.raises(UserError, match="cannot be downloaded.*: connect to the network"):
    hub.find("hf:tiny/wan")


def test_the_cache_of_the_hub_is_read_without_a_network(repository, tmp_path, monkeypatch):
  monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
  monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
  revision = "0123456789abcdef0123456789abcdef01234567"
  cached = tmp_path / "models--tiny--wan"
  linked(repository, cached / "snapshots" / revision)
  (cached / "refs").mkdir()
  (cached / "refs" / "main").write_text(revision)
  for name in ("hf:tiny/wan", f"hf:tiny/wan@{revision}"):
    assert hub.find(name) == cached / "snapshots" / revision
  with pytest.raises(UserError, match="not in the cache and cannot be downloaded"):
    hub.find("hf:tiny/other")
  names = ("hf:", "hf:wan", "hf:a/b/c", "hf:a/b@", "hf:org/my--model", "hf:-x/y", "hf:org/name..x")
  for name in names:
    with pytest.raises(UserError, match="names no model of the hub"):
      hub.find(name)
