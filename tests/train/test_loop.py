"""Laws of the loop: same result however it is divided, interrupted, accumulated or poisoned."""

from __future__ import annotations

import functools
import gc
import json
import shutil

import fake_recipe
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.errors import UserError
from sora_jax.train import checkpoint, loop, optim, program
from sora_jax.train.state import TrainState
from sora_jax.train.step import train_step


def saved(workdir, made=fake_recipe.Recipe) -> dict[str, np.ndarray]:
  """Everything in the newest checkpoint of a run of the recipe `made`, by path."""
  store = checkpoint.Checkpoints(workdir)
  config = json.loads((workdir / "config.json").read_text())
  recipe = made(fake_recipe.get_config(**config["train"]))
  params = jax.eval_shape(recipe.init, jax.random.key(0))
  optimizer = optim.build(config["optim"], params, config["train"]["steps"], recipe.trainable)
  follow = hasattr(recipe, "after")
  abstract = jax.eval_shape(lambda p: TrainState.create(p, optimizer, follow), params)
  place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  abstract = jax.tree.map(
    lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=place), abstract
  )
  frozen = {name: None for name in params}
  if not follow:
    frozen["frozen"] = jnp.arange(5, dtype=jnp.int8)
  restored = store.restore(abstract, frozen)
  store.close()
  assert restored is not None
  leaves = jax.tree_util.tree_leaves_with_path(restored[1])
  return {jax.tree_util.keystr(p): np.asarray(x) for p, x in leaves}


def lines(workdir) -> list[dict]:
  return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def losses(workdir) -> dict[int, float]:
  return {line["step"]: line["loss"] for line in lines(workdir) if "event" not in line}


def held_out(workdir) -> dict[int, float]:
  """Losses on the held-out batches, by step."""
  found = [line for line in lines(workdir) if line.get("event") == "validation"]
  return {line["step"]: line["loss"] for line in found}


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
  """Twelve uninterrupted steps."""
  workdir = tmp_path_factory.mktemp("reference")
  summary = loop.fit(fake_recipe.get_config(), workdir)
  assert summary["step"] == 12 and summary["skipped"] == 0 and summary["stopped"] is None
  return workdir


def test_it_learns_and_reports(reference):
  curve = losses(reference)
  assert sorted(curve) == list(range(1, 13))
  assert np.mean([curve[i] for i in (10, 11, 12)]) < 0.5 * curve[1]
  assert {"loss", "mae", "lr", "grad_norm", "samples_per_second", "data_wait"} <= set(
    lines(reference)[-1]
  )
  assert sorted(p.name for p in (reference / "checkpoints").iterdir()) == ["12", "8"]  # keep=2


def test_interrupted_and_resumed_is_uninterrupted(reference, tmp_path):
  workdir = tmp_path / "run"
  config = fake_recipe.get_config()

  class Stopping(fake_recipe.Recipe):
    def dataset(self, index, count):
      return StopAfter(super().dataset(index, count), 6)

  class StopAfter:
    def __init__(self, inner, count):
      self.inner, self.left = inner, count

    def __next__(self):
      self.left -= 1
      if self.left < 0:
        raise InterruptedError
      return next(self.inner)

    def get_state(self):
      return self.inner.get_state()

    def set_state(self, state):
      self.inner.set_state(state)

  fake_recipe.use(Stopping)
  with pytest.raises(InterruptedError):
    loop.fit(config, workdir)
  fake_recipe.use(fake_recipe.Recipe)
  assert loop.fit(config, workdir)["step"] == 12
  expected = saved(reference)
  for path, value in saved(workdir).items():
    np.testing.assert_array_equal(value, expected[path], err_msg=path)
  assert losses(workdir) == losses(reference)
  assert [line["step"] for line in lines(workdir)] == list(range(1, 13))


@pytest.mark.parametrize("mesh", [{"data": 1}, {"data": 2, "fsdp": 2, "tensor": 2}])
def test_any_mesh_learns_the_same(reference, tmp_path, mesh):
  loop.fit(fake_recipe.get_config(mesh=mesh), tmp_path)
  expected = saved(reference)
  for path, value in saved(tmp_path).items():
    if "params" in path or "ema" in path:
      np.testing.assert_allclose(value, expected[path], rtol=2e-3, atol=2e-4, err_msg=path)


def test_resumes_on_another_mesh(reference, tmp_path):
  workdir = tmp_path / "run"
  shutil.copytree(reference, workdir)
  before = saved(workdir)
  loop.fit(fake_recipe.get_config(mesh={"fsdp": 4, "tensor": 2}), workdir)  # nothing left to do
  for path, value in saved(workdir).items():
    np.testing.assert_array_equal(value, before[path])
  loop.fit(fake_recipe.get_config(mesh={"fsdp": 4, "tensor": 2}, steps=14), workdir)
  assert sorted(losses(workdir)) == list(range(1, 15))


def _step(accumulate, state, optimizer, recipe, batch):
  @jax.jit
  def step(state, batch):
    return train_step(state, batch, recipe.loss, optimizer, seed=0, accumulate=accumulate)

  return step(state, batch)


@pytest.fixture
def pieces(rng):
  config = fake_recipe.get_config()
  config.model.noise = 0.0  # micro-batches have keys of their own
  recipe = fake_recipe.Recipe(config)
  params = recipe.init(jax.random.key(1))
  optimizer = optim.build({"warmup": 0}, params, 10, recipe.trainable)
  batch = {
    "x": jnp.asarray(rng.normal(size=(8, 8)), jnp.float32),
    "y": jnp.asarray(rng.normal(size=(8, 4)), jnp.float32),
  }
  return TrainState.create(params, optimizer), optimizer, recipe, batch


@pytest.mark.parametrize("accumulate", [2, 4, 8])
def test_accumulated_is_whole(pieces, accumulate):
  state, whole = _step(1, *pieces)
  state_n, parts = _step(accumulate, *pieces)
  for a, b in zip(jax.tree.leaves((state, whole)), jax.tree.leaves((state_n, parts)), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_bad_batch_changes_nothing_but_the_counters(pieces, accumulate):
  state, optimizer, recipe, batch = pieces
  state, _ = _step(1, state, optimizer, recipe, batch)
  bad = batch | {"y": batch["y"].at[5, 1].set(jnp.nan)}
  after, values = _step(accumulate, state, optimizer, recipe, bad)
  for name in ("params", "ema", "opt_state"):
    jax.tree.map(np.testing.assert_array_equal, getattr(after, name), getattr(state, name))
  assert (int(after.step), int(after.skipped), int(after.bad_streak)) == (2, 1, 1)
  assert int(after.updates) == 1 and int(values["bad_streak"]) == 1
  after, values = _step(accumulate, after, optimizer, recipe, batch)
  assert int(after.bad_streak) == 0 and int(after.skipped) == 1
  assert not np.array_equal(after.params["mid"]["kernel"], state.params["mid"]["kernel"])


def test_noise_depends_on_seed_and_step_only(pieces):
  state, optimizer, recipe, batch = pieces
  recipe.config.model.noise = 1.0

  @functools.partial(jax.jit, static_argnums=1)
  def run(state, seed):
    return train_step(state, batch, recipe.loss, optimizer, seed=seed, accumulate=1)[1]["loss"]

  assert run(state, 0) == run(state, 0) != run(state, 1)
  assert run(state.replace(step=jnp.asarray(5)), 0) != run(state, 0)


def test_skipped_samples_are_named(tmp_path):
  config = fake_recipe.get_config()
  config.data.poison = (11,)
  summary = loop.fit(config, tmp_path)
  events = [line for line in lines(tmp_path) if line.get("event") == "skipped"]
  assert summary["skipped"] == len(events) in (1, 2)  # 12 steps of 8 are one and a half epochs
  assert all("sample11" in event["ids"] and len(event["ids"]) == 8 for event in events)
  assert all(np.isfinite(value) for value in losses(tmp_path).values())
  assert all(np.isfinite(x).all() for p, x in saved(tmp_path).items() if "params" in p)


def _poison_after(config, first, count):
  """Makes batches first+1 ... first+count of the stream bad, once."""

  class Poisoned(fake_recipe.Recipe):
    def dataset(self, index, processes):
      inner = super().dataset(index, processes)

      class Stream:
        read = 0

        def __next__(self):
          batch = next(inner)
          Stream.read += 1
          if first < Stream.read <= first + count:
            batch["y"] = np.full_like(batch["y"], np.nan)
          return batch

        get_state, set_state = inner.get_state, inner.set_state

      return Stream()

  fake_recipe.use(Poisoned)
  return config


def test_rolls_back_then_goes_on_with_later_data(tmp_path, monkeypatch):
  restore, left = checkpoint.Checkpoints.restore, []

  def one_at_a_time(self, abstract, frozen):
    self.wait()  # the copies that are being saved
    gc.collect()
    live = [x for x in jax.live_arrays() if x.shape == abstract.params["mid"]["kernel"].shape]
    left.append((len(live), [x.is_deleted() for x in jax.tree.leaves(frozen)]))
    return restore(self, abstract, frozen)

  monkeypatch.setattr(checkpoint.Checkpoints, "restore", one_at_a_time)
  config = _poison_after(fake_recipe.get_config(), first=5, count=4)
  summary = loop.fit(config, tmp_path)
  events = [line["event"] for line in lines(tmp_path) if "event" in line]
  assert "rolled back" in events and events.count("skipped") >= 3
  assert summary["step"] == 12
  assert left == [(0, [False])]  # the bad state is gone before the good one comes
  assert all(np.isfinite(x).all() for p, x in saved(tmp_path).items() if "params" in p)


@pytest.mark.parametrize("precision", [None, "BF16_BF16_F32"])
def test_products_have_the_precision_that_is_asked_for(precision):
  """Forward and backward: of each of the three layers, the gradient of the input of two."""
  config = fake_recipe.get_config()
  with config.unlocked():
    config.train.precision = precision
  made = program.build(config)
  text = str(made.step.trace(made.state, made.recipe.batch()).jaxpr)
  assert text.count("BF16_BF16_F32") == (0 if precision is None else 3 + 3 + 2)
  assert jax.config.values["jax_default_matmul_precision"] is None


def test_stops_when_it_happens_again(tmp_path):
  with pytest.raises(UserError, match="again after going back"):
    loop.fit(_poison_after(fake_recipe.get_config(), first=5, count=99), tmp_path)
  assert loop.checkpoint.Checkpoints(tmp_path).latest == 4


def test_stops_when_there_is_nothing_to_go_back_to(tmp_path):
  with pytest.raises(UserError, match="with no checkpoint"):
    loop.fit(_poison_after(fake_recipe.get_config(), first=0, count=99), tmp_path)


@pytest.mark.parametrize(
  ("train", "message"),
  [
    ({"batch_size": 9, "accumulate": 2}, "no multiple"),
    ({"batch_size": 12, "mesh": {"data": 8}}, "nearest batch size that can be is 16"),
    ({"mesh": {"model": 2}}, "no mesh axis 'model'"),
    ({"stepz": 3}, "did you mean 'steps'"),
    ({"steps": 0}, "at least 1"),
    ({"keep": 0}, "train.keep=0 must be at least 1"),
    ({"keep": -1}, "train.keep=-1 must be at least 1"),
    ({"validate_batches": 0}, "train.validate_batches=0 must be at least 1"),
    ({"max_bad_steps": 0}, "train.max_bad_steps=0 must be at least 1"),
    ({"precision": "half"}, "none that JAX knows, such as BF16_BF16_F32"),
  ],
)
def test_bad_train_sections(tmp_path, train, message):
  config = fake_recipe.get_config()
  with config.unlocked():
    config.train.update(train)
  with pytest.raises(UserError, match=message):
    loop.fit(config, tmp_path)


def test_unknown_recipe_and_data_that_ends(tmp_path):
  config = fake_recipe.get_config()
  config.recipe = "gan"
  with pytest.raises(UserError, match="no recipe 'gan'"):
    loop.fit(config, tmp_path)

  class Ending(fake_recipe.Recipe):
    def dataset(self, index, count):
      return iter([])

  config = fake_recipe.get_config()
  fake_recipe.use(Ending)
  with pytest.raises(UserError, match="data ended after step 0"):
    loop.fit(config, tmp_path)


def test_previews_and_exports_see_the_average(tmp_path, rng):
  seen = []

  class Looking(fake_recipe.Recipe):
    def preview(self, params, key):
      seen.append(("preview", np.asarray(params["mid"]["bias"]).copy()))
      return {"sample": rng.integers(0, 255, (5, 16, 16, 3), dtype=np.uint8)}

    def export(self, params, workdir):
      seen.append(("export", np.asarray(params["mid"]["bias"]).copy()))

  config = fake_recipe.get_config(preview_every=6)
  fake_recipe.use(Looking)
  loop.fit(config, tmp_path)
  assert [name for name, _ in seen] == ["export", "preview", "export", "export", "preview"]
  state = saved(tmp_path)
  np.testing.assert_array_equal(seen[-1][1], state[".ema['mid']['bias']"])
  assert not np.array_equal(seen[-1][1], state[".params['mid']['bias']"])
  assert len(list((tmp_path / "previews").glob("*.gif"))) == 2


@pytest.mark.parametrize("prompts", [(), ("a ball",)])
def test_no_prompts_no_preview(tmp_path, prompts):
  class Prompted(fake_recipe.Recipe):
    def preview(self, params, key):
      return {prompt: np.zeros((5, 16, 16, 3), np.uint8) for prompt in self.config.preview}

  config = fake_recipe.get_config(preview_every=1, steps=1)
  with config.unlocked():
    config.preview = prompts
  fake_recipe.use(Prompted)
  loop.fit(config, tmp_path)
  assert (tmp_path / "previews").exists() == bool(prompts)


def test_held_out_batches_measure_the_averaged_weights(tmp_path):
  config = fake_recipe.get_config(validate_every=6, validate_batches=3)
  loop.fit(config, tmp_path)
  found = held_out(tmp_path)
  assert sorted(found) == [6, 12] and found[12] < found[6]
  ema = {
    name: {leaf: saved(tmp_path)[f".ema['{name}']['{leaf}']"] for leaf in ("kernel", "bias")}
    for name in ("patch_in", "mid", "patch_out")
  }
  recipe, data = fake_recipe.Recipe(config), fake_recipe.Recipe(config).validation(0, 1)
  expected = [
    recipe.loss(ema, loop.numeric(next(data)), jax.random.fold_in(jax.random.key(3), i), 0)[0]
    for i in range(3)
  ]
  assert found[12] == pytest.approx(float(np.mean(expected)), rel=1e-5)


def test_what_holds_nothing_out_says_so(tmp_path):
  class Plain(fake_recipe.Recipe):
    validation = property()

  config = fake_recipe.get_config(validate_every=6)
  fake_recipe.use(Plain)
  with pytest.raises(UserError, match="holds no samples out: set train.validate_every=0"):
    loop.fit(config, tmp_path)


def test_held_out_samples_are_opened_before_the_first_step(tmp_path):
  class Unreadable(fake_recipe.Recipe):
    def validation(self, index, count):
      raise UserError("There is no folder data/validation.")

  config = fake_recipe.get_config(validate_every=10)
  fake_recipe.use(Unreadable)
  with pytest.raises(UserError, match="no folder"):
    loop.fit(config, tmp_path)
  assert not (tmp_path / "metrics.jsonl").exists()
  config.train.validate_every = 0
  assert loop.fit(config, tmp_path)["step"] == 12
