"""The V-JEPA recipe: what it predicts, what follows, and one step however it is divided."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax import config as config_lib
from sora_jax.evals import probe
from sora_jax.evals.features import frozen
from sora_jax.evals.surprise import Surprise
from sora_jax.interop import native
from sora_jax.train import loop, program, vjepa

ROWS = 8


def smoke(**train):
  config = config_lib.load("configs/vjepa_toy.py:smoke")
  config.model.update(layers=1, width=24, heads=2, predictor_heads=2)
  config.train.update(batch_size=ROWS, **train)
  return config


@pytest.fixture(scope="module")
def batch():
  recipe, rng = vjepa.build(smoke()), np.random.default_rng(0)
  samples = []
  for _ in range(ROWS):
    video = rng.integers(0, 256, size=(6, 32, 32, 3), dtype=np.uint8)
    samples.append(recipe.masks({"video": video}, rng))
  batch = {name: np.stack([sample[name] for sample in samples]) for name in samples[0]}
  assert {name: (x.shape, x.dtype) for name, x in batch.items()} == {
    name: (x.shape, x.dtype) for name, x in recipe.batch().items()
  }
  return batch


@pytest.fixture(scope="module")
def params():
  rng = np.random.default_rng(1)
  made = jax.jit(vjepa.build(smoke()).init)(jax.random.key(0))
  jax.tree.map(np.testing.assert_array_equal, made["target"], made["encoder"])
  return jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape).astype(np.float32), made)


def test_the_loss_by_hand(batch, params):
  """One mask at a time, without padding, gathers or repeats."""
  recipe = vjepa.build(smoke())
  values, positions = vjepa.tubelets(
    vjepa.to_float(jnp.asarray(batch["video"][:1])), recipe.vjepa.patch
  )

  @jax.jit
  def one(params, shown, where, asked, kind):
    run = lambda names, *x, **k: recipe.vjepa.apply({"params": names}, *x, **k)  # noqa: E731
    context = run(params, shown, where, method="encode")
    made = run(params, context, where, asked, mask=kind, method="predict")
    return made, run({"encoder": params["target"]}, values, positions, method="encode")

  errors = []
  names = sorted(recipe.masks.kinds)
  for kind in range(len(names)):
    seen, asked = (batch[name][0, kind] for name in ("context", "targets"))
    seen, asked = seen[seen >= 0], asked[asked >= 0]
    where = positions[:, seen], positions[:, asked]
    made, goal = one(params, values[:, seen], *where, jnp.full(1, kind))
    goal = np.asarray(goal, np.float64)
    goal -= goal.mean(1, keepdims=True)
    goal = (goal - goal.mean(-1, keepdims=True)) / np.sqrt(goal.var(-1, keepdims=True) + 1e-5)
    errors.append(np.abs(made - goal[:, asked]).mean())
  few = {name: x[:1] for name, x in batch.items()}
  loss, found = jax.jit(recipe.loss)(params, few, jax.random.key(0), jnp.zeros((), jnp.int32))
  np.testing.assert_allclose(loss, np.mean(errors), rtol=1e-4)
  np.testing.assert_allclose([found[name] for name in names], errors, rtol=1e-4)


def test_targets_teach_and_do_not_learn(batch, params):
  recipe = vjepa.build(smoke())
  value = lambda p, x: recipe.loss(p, x, jax.random.key(0), jnp.zeros((), jnp.int32))[0]  # noqa: E731
  grads = jax.jit(jax.grad(value))(params, batch)
  assert all(not np.any(x) for x in jax.tree.leaves(grads["target"]))
  assert all(np.any(x) for x in jax.tree.leaves([grads["encoder"], grads["predictor"]]))


def test_the_target_follows_ever_more_slowly(params):
  config = smoke(steps=10)
  config.momentum = (0.5, 1.0)
  recipe = vjepa.build(config)
  for updates, share in ((0, 0.5), (5, 0.25), (10, 0.0), (99, 0.0)):
    moved = recipe.after(params, jnp.asarray(updates), None)
    jax.tree.map(
      lambda new, t, e, share=share: np.testing.assert_allclose(
        new, (1 - share) * t + share * e, rtol=1e-5, atol=1e-6
      ),
      moved["target"], params["target"], params["encoder"],
    )  # fmt: skip
    assert moved["encoder"] is params["encoder"]


@pytest.mark.slow
def test_a_step_on_eight_devices_is_that_of_one(batch):
  found = []
  for mesh in ({"data": 1}, {"data": 2, "fsdp": 2, "tensor": 2}):
    made = program.build(smoke(mesh=mesh))
    with jax.set_mesh(made.mesh):
      state = jax.jit(
        lambda key, made=made: made.create(made.recipe.init(key)), out_shardings=made.shardings
      )(jax.random.key(0))
      state, numbers = made.step(state, loop.to_devices(batch, made.mesh))
      found.append(jax.device_get((state.params, numbers)))
  (params, numbers), (other, others) = found
  for name, value in numbers.items():
    np.testing.assert_allclose(others[name], value, rtol=1e-3, err_msg=name)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, rtol=1e-3, atol=3e-5), params, other)


@pytest.mark.slow
def test_from_worlds_to_what_is_read_off_them(tmp_path):
  config = config_lib.load("configs/vjepa_toy.py:smoke")
  result = loop.fit(config, tmp_path)
  assert result["step"] == 4 and np.isfinite(result["loss"])
  model, params = native.load_vjepa(tmp_path / "export")
  config.init_from = str(tmp_path / "export")
  again = program.build_recipe(config).init(jax.random.key(1))
  jax.tree.map(np.testing.assert_array_equal, again, jax.device_get(params))
  clips = next(program.build_recipe(config).validation(0, 1))["video"]
  scorer = Surprise.load(tmp_path / "export")
  assert (scorer.mask, scorer.context) == (0, round(0.35 * 3 * 4 * 4))
  assert scorer.surprise(clips).shape == (2, 2)
  known, held_out = (probe.Labelled.draw(4, 0, split, model) for split in ("train", "validation"))
  encoders = {"vjepa": frozen(model, params["target"]), **probe.baselines(model)}
  results = probe.compare(encoders, model.grid, known, held_out, steps=2, batch=2)
  assert set(results.metrics) == {"vjepa", "random", "pixels"}
