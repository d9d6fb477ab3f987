"""The path from prompt to pixels, on a tiny model with random weights."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from sora_jax.cli import main
from sora_jax.data.video import write
from sora_jax.diffusion.guidance import Guidance
from sora_jax.errors import UserError
from sora_jax.generate import model as generate
from sora_jax.generate.denoise import Denoiser
from sora_jax.interop import native


def test_a_prompt_becomes_frames(model):
  video = model.sample("a red ball")
  assert video.shape == (5, 32, 32, 3) and video.dtype == np.uint8
  assert video.std() > 1
  assert model.sample(["a red ball"], frames=1, size=(16, 48)).shape == (1, 1, 16, 48, 3)


def test_the_command_line_makes_the_same_video(folder, model, tmp_path):
  out = tmp_path / "ball.gif"
  flags = (
    "--steps 2 --sampler euler --guidance 2 --seed 3 --frames 5 --size 32x48 --mesh data=1".split()
  )
  call = ["sample", "a ball", "--out", str(out), "--checkpoint", str(folder), *flags]
  assert main.main(call) == 0
  settings = dict(steps=2, sampler="euler", guidance=2.0, seed=3, frames=5, size=(32, 48))
  write(tmp_path / "again.gif", model.sample("a ball", **settings), 8.0)
  assert out.read_bytes() == (tmp_path / "again.gif").read_bytes()


def test_seed_prompt_and_guidance_matter_and_nothing_else_does(model):
  video = model.sample("a red ball", seed=1)
  np.testing.assert_array_equal(video, model.sample("a red ball", seed=1, progress=True))
  for change in (dict(seed=2), dict(guidance=5.0), dict(negative="a ball"), dict(sampler="heun")):
    assert (video != model.sample("a red ball", **{"seed": 1} | change)).any()
  assert (video != model.sample("a ball", seed=1)).any()


def test_nothing_is_asked_without_the_prompt_where_guidance_does_not_act(model, monkeypatch):
  """The videos are those of asking always."""
  sampling = {**model.config["sampling"], "guidance_interval": [0.4, 0.9]}
  narrow = dataclasses.replace(model, config={**model.config, "sampling": sampling})
  pieces, seen = Denoiser._pieces, []

  def always(self, table, guided):
    seen.append(guided)
    return pieces(self, table, np.ones_like(guided))

  video = narrow.sample(["a red ball", "a ball"], seed=1)
  assert (video != model.sample(["a red ball", "a ball"], seed=1)).any()
  monkeypatch.setattr(Denoiser, "_pieces", always)
  asked = narrow.sample(["a red ball", "a ball"], seed=1)
  assert 0 < seen[0].sum() < len(seen[0]) and not seen[0][[0, -1]].any()
  assert np.abs(video.astype(int) - asked).max() <= 1


def test_batch_size_does_not_change_a_sample(model):
  """To the float error of another matrix shape: at most one grey level."""
  prompts = ["a red ball", "a ball", "red"]
  together = model.sample(prompts, batch_size=3).astype(int)
  pairs = model.sample(prompts, batch_size=2).astype(int)
  assert np.abs(together - pairs).max() <= 1


def test_unknown_words_are_named_in_a_warning(model, capsys):
  model.sample("a red dragon")
  assert "without the words dragon" in capsys.readouterr().err


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    (dict(frames=6), "use 5 or 9"),
    (dict(size=(40, 32)), "use 48x32|use 32x32"),
    (dict(size=(33, 32)), "nearest is 32x32"),
    (dict(steps=0), "steps is 0 but must be at least 1"),
    (dict(guidance=0.5), "at least 1"),
    (dict(guidance=np.inf), "at least 1"),
    (dict(shift=np.inf), "and finite"),
    (dict(shift=1e7, steps=30), "give a smaller one"),
    (dict(shift=1e7, steps=30, sampler="unipc"), "give a smaller one"),
    (dict(seed=2**32), "between 0 and 4294967295"),
    (dict(seed=-1), "between 0 and"),
    (dict(batch_size=0), "batch_size is 0"),
    (dict(sampler="ddim"), "choose one of euler"),
    (dict(fps=0), "fps is 0"),
  ],
)
def test_what_the_model_cannot_do_is_refused_with_what_it_can(model, settings, message):
  with pytest.raises(UserError, match=message):
    model.sample("a red ball", **settings)


@pytest.mark.parametrize("interval", [(0.9, 0.1), (np.nan, 1.0), (0.0, 2.0)])
def test_guidance_needs_an_interval(interval):
  with pytest.raises(UserError, match="they must rise, within 0 and 1"):
    Guidance(interval=interval)


@pytest.mark.parametrize(
  "spoiled",
  [dict(vae=3), dict(transformer=[1]), dict(text="x"), dict(sampling=None), dict(known_words=1)],
  ids=str,
)
def test_a_config_that_makes_no_sense_is_damaged(folder, tmp_path, spoiled):
  broken = tmp_path / "broken"
  shutil.copytree(folder, broken)
  (broken / "config.json").write_text(json.dumps(native.read_config(folder) | spoiled))
  with pytest.raises(UserError, match="is damaged"):
    generate.load(broken)


def test_a_checkpoint_without_a_transformer_is_refused(folder, tmp_path):
  broken = tmp_path / "broken"
  shutil.copytree(folder, broken)
  native.save(broken, {}, {"vae": native.read_config(folder)["vae"]})
  with pytest.raises(UserError, match="it cannot make videos"):
    generate.load(broken)


def test_encoding_is_inverted_by_decoding_in_shape(model, rng):
  video = rng.integers(0, 256, (1, 9, 32, 48, 3), dtype=np.uint8)
  latents = model.encode(video)
  assert latents.shape == (1, 3, 4, 6, 4)
  assert model.reconstruct(video).shape == video.shape


def test_request_merges_the_checkpoints_defaults(model):
  request = model.request(steps=3)
  assert request["steps"] == 3 and request["frames"] == 5 and request["sampler"] == "dpm++"
  assert dataclasses.is_dataclass(model)
