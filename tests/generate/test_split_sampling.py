"""Sampling on several devices: the same videos, weights by the table of rules, clear refusals."""

import dataclasses

import jax
import numpy as np
import pytest

from sora_jax.cli import main
from sora_jax.data.video import read
from sora_jax.errors import UserError
from sora_jax.generate import denoise, tasks
from sora_jax.generate import model as generate
from sora_jax.parallel import sharding

PROMPTS = ["a red ball", "a ball", "red"]
MESHES = [None, dict(data=2, context=4), dict(fsdp=2, context=2, tensor=2), dict(data=4)]


def rescaled(model):
  """A model whose guidance looks at all tokens of a clip at once, at some noise levels."""
  settings = dict(guidance_rescale=0.7, guidance_interval=[0.0, 0.9])
  sampling = {**model.config["sampling"], **settings}
  return dataclasses.replace(model, config={**model.config, "sampling": sampling})


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_any_mesh_makes_the_same_videos(folder, model, mesh):
  """To the float error of other sums: at most one grey level."""
  other = generate.load(folder, mesh)
  for prompts, size in ((PROMPTS, (32, 48)), ("a red ball", (16, 48))):  # 12 tokens, and 6
    want, got = (
      rescaled(m).sample(prompts, steps=2, seed=3, size=size).astype(int) for m in (model, other)
    )
    assert want.shape == got.shape and np.abs(got - want).max() <= 1


def test_what_is_given_is_encoded_alike(folder, model, rng):
  video = rng.integers(0, 256, (9, 32, 32, 3), dtype=np.uint8)
  other = generate.load(folder, dict(data=2, context=4))
  canvas = tasks.extend(video[:5], 4)
  want, got = (m.sample("red", canvas=canvas, steps=2).astype(int) for m in (model, other))
  assert np.abs(got - want).max() <= 1
  want, got = (m.reconstruct(video[None]).astype(int) for m in (model, other))
  assert np.abs(got - want).max() <= 1
  np.testing.assert_allclose(other.encode(video[None]), model.encode(video[None]), atol=1e-5)


def test_parameters_are_placed_by_the_rules_of_training(folder):
  model = generate.load(folder, dict(data=2, context=4))
  mesh = sharding.mesh_of(model.params)
  assert mesh.shape == dict(data=2, fsdp=1, context=4, tensor=1)
  for leaf, want in zip(
    jax.tree.leaves(model.params),
    jax.tree.leaves(sharding.param_shardings(model.params, mesh)),
    strict=True,
  ):
    assert leaf.sharding == want
  kernel = model.params["dit"]["blocks"]["mlp"]["up"]["kernel"]
  assert kernel.sharding.shard_shape(kernel.shape) == (2, 12, 64)  # 48 rows over context
  assert sharding.mesh_of(generate.load(folder).params).shape["context"] == 4  # the default: 2 x 4


def test_a_sampler_in_pieces_is_one_program(folder):
  model = generate.load(folder, dict(data=2, context=4))
  before = denoise.solve._cache_size()
  model.sample("a red ball", steps=7, size=(16, 32))
  assert denoise.solve._cache_size() == before + 1


def test_the_command_line_takes_a_mesh(folder, model, tmp_path):
  out = tmp_path / "ball.png"
  flags = "--steps 2 --seed 3 --frames 1 --mesh context=-1,data=2".split()
  assert (
    main.main(["sample", "a ball", "--out", str(out), "--checkpoint", str(folder), *flags]) == 0
  )
  want = model.sample("a ball", steps=2, seed=3, frames=1).astype(int)
  assert np.abs(read(out)[0].astype(int) - want).max() <= 1


@pytest.mark.parametrize(
  ("mesh", "message"),
  [
    ("model=2", "There is no mesh axis 'model'; the axes are data, fsdp, context, tensor"),
    ("data=3,context=4", "needs 12 devices and there are 8"),
    ("data=-1,context=-1", "at most one of them -1"),
    ("data=0", "must be positive"),
    ("data", "--mesh data is not a mesh"),
    ("data=2,data=4", "write each axis once"),
  ],
)
def test_a_mesh_that_cannot_be_is_refused(folder, tmp_path, capsys, mesh, message):
  call = ["sample", "a ball", "--out", str(tmp_path / "a.png"), "--checkpoint", str(folder)]
  assert main.main([*call, "--mesh", mesh]) == 2
  assert message in capsys.readouterr().err


def test_a_mesh_is_refused_in_python_too(folder):
  with pytest.raises(UserError, match="no mesh axis"):
    generate.load(folder, {"sequence": 2})
