"""What every system is asked: ours goes on from what it is given, and looks at the past only."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.data.packing import Packer
from sora_jax.diffusion import conditioning
from sora_jax.diffusion.loss import flow_matching
from sora_jax.diffusion.sampler import initial_noise
from sora_jax.errors import UserError
from sora_jax.evals import probe, systems
from sora_jax.evals.surprise import Surprise
from sora_jax.evals.systems import Continuer, Diffusion, Surprised
from sora_jax.generate import load as generate
from sora_jax.generate import tasks
from sora_jax.generate.denoise import read_prompts
from sora_jax.interop import native
from sora_jax.models.vjepa import VJEPA
from tests.generate.conftest import folder, model  # noqa: F401

FIELDS = dict(
  width=24, layers=1, heads=2, mlp_width=32, predictor_width=16, predictor_layers=1,
  predictor_heads=2, predictor_mlp_width=24, patch=[2, 8, 8], frames=8, size=16, mask_tokens=3,
)  # fmt: skip


@pytest.fixture(scope="module")
def system(model):  # noqa: F811
  return Diffusion(model)


@pytest.fixture
def clips(rng):
  return rng.integers(0, 256, size=(3, 13, 32, 32, 3), dtype=np.uint8)


@pytest.mark.parametrize(("known", "frames"), [(5, 9), (6, 9)])
def test_it_continues_as_its_task_does(system, clips, known, frames):
  made = system.continued(clips[:2, :known], ["a red ball", ""], seed=4, frames=frames)
  assert made.shape == (2, frames, 32, 32, 3) and made.dtype == np.uint8
  canvas = tasks.extend(clips[1, :known], frames - known)
  canvas = dataclasses.replace(canvas, video=np.repeat(canvas.video, 2, axis=0))
  canvas.video[0, :known] = clips[0, :known]
  np.testing.assert_array_equal(
    made, system.model.sample(["a red ball", ""], canvas=canvas, seed=4)
  )
  np.testing.assert_array_equal(made[:, :known], system.reconstruct(clips[:2, :known]))
  assert (made[:, known:] != made[:, known - 1 : known]).any()


def test_surprise_knows_nothing_of_what_comes_later(system, clips, rng):
  before = system.surprise(clips)
  assert before.shape == (3, 3) and np.isfinite(before).all() and (before > 0).all()
  other = clips.copy()
  other[:, 5:9] = rng.integers(0, 256, size=other[:, 5:9].shape, dtype=np.uint8)
  after = system.surprise(other)
  np.testing.assert_allclose(after[:, 0], before[:, 0], rtol=1e-5)
  assert np.abs(after[:, 1:] - before[:, 1:]).min() > 1e-5


def test_surprise_is_the_same_in_any_batch_and_length(system, clips):
  whole = system.surprise(clips)
  np.testing.assert_allclose(system.surprise(clips[1:2])[0], whole[1], rtol=1e-5)
  np.testing.assert_allclose(system.surprise(clips[:, :12]), whole[:, :2], rtol=1e-5)


def test_surprise_is_the_loss_of_training(system, clips, monkeypatch):
  """Each moment alone, unpacked, with the noise it gets in a sequence of all."""
  level, m = 0.6, 2
  monkeypatch.setattr(systems, "LEVELS", (level,))
  found = system.surprise(clips[:1])[0]
  model = system.model  # noqa: F811
  latents = model.encode(clips[:1, :9])[0]
  known = np.zeros(latents.shape[:3], bool)
  known[:m] = True
  noise = np.asarray(initial_noise(0, np.zeros(1, int), *latents.shape))[0]

  def packed(grid):
    sample = conditioning.layout(
      grid, patch=model.dit.patch, fps=8.0, known=known, levels=level, cond_features=4
    )  # fmt: skip
    packer = Packer(
      rows=1, length=len(sample.values), cond_rows=2, text_length=model.prompts.length
    )
    return packer.fill([[sample]], model.prompts)

  tokens = read_prompts(model.text, model.params["text"], packed(latents))
  corruption = packed(noise)["values"]
  monkeypatch.setattr(jax.random, "normal", lambda key, shape, dtype: jnp.asarray(corruption))
  apply = lambda tokens: model.dit.apply({"params": model.params["dit"]}, tokens)  # noqa: E731
  loss, _ = flow_matching(apply, tokens, jax.random.key(0))
  np.testing.assert_allclose(found[m - 1], float(loss), rtol=1e-4)


def test_two_transformers_share_the_levels(system, clips):
  """The second one answers for its levels alone."""
  half = jax.tree.map(lambda x: 0.5 * x, system.model.params["dit"])
  boundary = float(np.mean(systems.LEVELS))
  sampling = {**system.model.config["sampling"], "boundary": boundary}
  config = {**system.model.config, "sampling": sampling}
  both = dataclasses.replace(
    system.model, low=system.model.dit, params={**system.model.params, "low": half}, config=config
  )
  one, two = np.array([Diffusion(m).surprise(clips) for m in (system.model, both)])
  assert np.abs(one - two).max() > 1e-4
  never = dataclasses.replace(
    both, config={**config, "sampling": {**config["sampling"], "boundary": 0.0}}
  )
  np.testing.assert_array_equal(Diffusion(never).surprise(clips), one)


def save_vjepa(path, training):
  vjepa = VJEPA(**{**FIELDS, "patch": (2, 8, 8)})
  zeros, where = np.zeros((1, 1, 384), np.float32), np.zeros((1, 1, 3), np.float32)
  params = jax.jit(vjepa.init)(jax.random.key(0), zeros, where, where)["params"]
  native.save(path, {"vjepa": params}, {"vjepa": FIELDS, **training})
  return path


def test_a_checkpoint_gives_what_it_can_do(folder, tmp_path, monkeypatch):  # noqa: F811
  ours = systems.load(folder)
  assert isinstance(ours, Continuer) and isinstance(ours, Surprised)
  masks = {"context": 0.5, "targets": 0.5, "kinds": {"short": {}, "future": {}}}
  jepa = systems.load(save_vjepa(tmp_path / "jepa", {"training": {"masks": masks}}))
  assert isinstance(jepa, Surprised) and not isinstance(jepa, Continuer)
  assert (jepa.mask, jepa.context) == (0, 8)  # of the kinds in their order; half of 4 x 2 x 2

  class Other:
    def continued(self, known, prompts, *, seed, frames, progress=False):
      return known

  other = Other()
  monkeypatch.setattr(generate, "load", lambda name: other)
  assert systems.load(folder) is other
  monkeypatch.setattr(generate, "load", lambda name: object())
  with pytest.raises(UserError, match="neither continues clips nor is surprised"):
    systems.load(folder)


def test_a_converted_vjepa_was_never_asked_for_the_future(tmp_path):
  converted = save_vjepa(tmp_path / "converted", {})
  with pytest.raises(UserError, match="never asked for what comes next.*are none"):
    Surprise.load(converted)
  with pytest.raises(UserError, match="trained elsewhere"):
    probe.suite(converted, 2, 0)
  kinds = {"training": {"masks": {"kinds": {"short": {}, "long": {}}}}}
  with pytest.raises(UserError, match="'future', and are long, short"):
    systems.load(save_vjepa(tmp_path / "other", kinds))
