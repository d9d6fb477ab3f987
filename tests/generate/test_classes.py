"""Sampling by class, against diffusers' DiTPipeline saved and read in the hub's own layout."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DiTPipeline
from diffusers.pipelines.dit import pipeline_dit
from diffusers.schedulers import scheduling_ddpm
from safetensors.numpy import load_file

from sora_jax.diffusion import sampler as solvers
from sora_jax.errors import UserError
from sora_jax.generate import classes
from sora_jax.interop import dit_pipeline, dit_xl, names, sd_vae
from sora_jax.models.image_vae import decode_images
from tests.interop.conftest import save_dit_pipeline

STEPS, SEED, LABELS = 12, 5, np.array([0, 999, 207], np.int32)
SCHEDULERS = {
  "ddim": DDIMScheduler(clip_sample=False),
  "ddpm": DDPMScheduler(clip_sample=False, timestep_spacing="trailing"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return save_dit_pipeline(tmp_path_factory.mktemp("pipeline"))


def read(folder, scheduler):
  def component(name, module):
    config = json.loads((folder / name / "config.json").read_text())
    model = module.from_config(config)
    tensors = load_file(folder / name / "diffusion_pytorch_model.safetensors")
    return model, names.to_ours(tensors, module.rules(model), module.shapes(model))

  (dit, dit_params), (vae, vae_params) = component("transformer", dit_xl), component("vae", sd_vae)
  index = json.loads((folder / "model_index.json").read_text())
  settings = dict(scheduler.config, _class_name=type(scheduler).__name__)
  params = {"dit": dit_params, "vae": vae_params}
  return classes.from_pipeline(index, settings, dit, vae, params)


@pytest.mark.parametrize("name", ["ddim", "ddpm"])
@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_same_images_as_the_published_pipeline(name, guidance, folder, monkeypatch):
  scheduler = SCHEDULERS[name]
  model = read(folder, scheduler)
  keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(SEED), i))(jnp.arange(3))
  first = solvers.initial_noise(SEED, np.arange(3), 1, 4, 4, 4)[:, 0]
  scheduler.set_timesteps(STEPS)
  times = iter(scheduler.timesteps.tolist())

  def channels_first(x, copies=1):
    return torch.from_numpy(np.array(x)).permute(0, 3, 1, 2).repeat(copies, 1, 1, 1)

  def drawn(shape, **_):  # the pipeline carries two copies of each image
    noise = classes.step_noise(keys, (4, 4, 4), jnp.float32(next(times)))
    return channels_first(noise, shape[0] // 3)

  monkeypatch.setattr(pipeline_dit, "randn_tensor", lambda **_: channels_first(first))
  monkeypatch.setattr(scheduling_ddpm, "randn_tensor", drawn)
  pipeline = DiTPipeline.from_pretrained(folder)
  pipeline.scheduler = scheduler
  pipeline.set_progress_bar_config(disable=True)
  expected = pipeline(
    LABELS.tolist(), guidance_scale=guidance, num_inference_steps=STEPS, output_type="np"
  ).images
  latents = model.latents(LABELS, SEED, steps=STEPS, guidance=guidance)
  decode = jax.jit(decode_images, static_argnums=0)
  pixels = np.clip(decode(model.vae, model.params["vae"], latents) / 2 + 0.5, 0, 1)
  assert np.linalg.norm(pixels - expected) / np.linalg.norm(expected) < 1e-4
  images = model.sample(LABELS.tolist(), seed=SEED, steps=STEPS, guidance=guidance)
  assert np.abs(images - 255 * expected).max() <= 1


def test_a_sample_does_not_depend_on_its_batch(folder):
  model = read(folder, SCHEDULERS["ddpm"])
  for settings in (dict(variance="learned", channels=3), dict(sampler="ddim", spacing="leading")):
    whole = model.latents(LABELS, SEED, steps=11, **settings)
    parts = model.latents(LABELS, SEED, batch_size=2, steps=11, **settings)
    np.testing.assert_allclose(parts, whole, rtol=1e-4, atol=1e-5)
  default = model.latents(LABELS, SEED, steps=11)
  assert np.abs(model.latents(LABELS, SEED, steps=11, channels=3) - default).max() > 1e-3
  assert np.abs(model.latents(LABELS, SEED, steps=11, variance="learned") - default).max() > 1e-3


def test_velocity_is_integrated_from_noise_to_data(folder):
  """Euler's steps of SiT's ODE, dx/ds = v(x, s) from s = 0 (noise) to 1, written out."""
  model = read(folder, SCHEDULERS["ddim"])
  dit = model.dit.copy(predicts="velocity")
  sit = classes.ClassModel(
    dit, model.vae, model.params, model.classes, model.chain, classes.Sampling(sampler="euler")
  )
  got = sit.latents(LABELS, SEED, steps=5, guidance=2.0)
  x = solvers.initial_noise(SEED, np.arange(3), 1, 4, 4, 4)[:, 0]
  apply = jax.jit(dit.apply)
  for i in range(5):
    time = jnp.full(3, i / 5)
    yes, no = (
      apply({"params": model.params["dit"]}, x, time, jnp.asarray(label))
      for label in (LABELS, np.full(3, 1000, np.int32))
    )
    assert yes.shape == x.shape
    x = x + (no + 2 * (yes - no)) / 5
  np.testing.assert_allclose(got, x, rtol=1e-4, atol=1e-5)
  with pytest.raises(UserError, match="Unknown sampler 'ddpm'"):
    sit.request(sampler="ddpm")


def test_classes_have_names(folder):
  model = read(folder, SCHEDULERS["ddim"])
  assert model.numbers(["alias 7", "thing 8", "thing 9, alias 9", 3]).tolist() == [7, 8, 9, 3]
  assert dit_pipeline.class_names({}, 2) == ("0", "1")
  for asked, says in (
    (["alas 7"], "no class 'alas 7'; did you mean 'alias 7'"),
    (["something else"], "no class 'something else'.$"),
    ([1000], "0 to 999"),
    ([], "no classes"),
  ):
    with pytest.raises(UserError, match=says):
      model.sample(asked)


def test_settings_are_checked(folder):
  model = read(folder, SCHEDULERS["ddim"])
  assert model.request().sampler == "ddim" and model.request().steps == 50
  for setting, says in (
    (dict(sampler="heun"), "ddpm or ddim, not 'heun'"),
    (dict(steps=1001), "1 to 1000"),
    (dict(guidance=0.5), "at least 1"),
    (dict(guidance=np.inf), "at least 1"),
    (dict(spacing="trailing", steps=30), "that divides 1000"),
    (dict(shift=3.0), "only a model of velocity"),
    (dict(shift=0.0), "at least 0.001"),
    (dict(variance="large"), "learned or small"),
    (dict(spaces="linspace"), "did you mean 'spacing'"),
  ):
    with pytest.raises(UserError, match=says):
      model.request(**setting)
  for scheduler, says in (
    (dict(_class_name="DDIMScheduler", clip_sample=False, timestep_spacing="linspace"), "linspace"),
    (dict(_class_name="DDIMScheduler"), "clip_sample=True"),
    (dict(_class_name="DDPMScheduler", clip_sample=False, prediction_type="sample"), "sample"),
    (dict(_class_name="PNDMScheduler"), "not known for DiT"),
    (dict(clip_sample=False), "scheduler None is not known"),
    (
      dict(_class_name="DDPMScheduler", clip_sample=False, variance_type="fixed_large"),
      "variance_type='fixed_large'",
    ),
  ):
    with pytest.raises(UserError, match=says):
      dit_pipeline.sampling(scheduler)
  for variance in ("fixed_small", "fixed_small_log"):
    scheduler = dict(_class_name="DDPMScheduler", clip_sample=False, variance_type=variance)
    assert dit_pipeline.sampling(scheduler)["variance"] == "small"
