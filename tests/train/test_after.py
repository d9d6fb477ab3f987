"""What a recipe changes after each update, beside what is learned: exact, resumed and divided."""

import json

import fake_recipe
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_loop import saved

from sora_jax.train import loop
from sora_jax.train.step import OUTPUTS

RATE = 0.25


class Following(fake_recipe.Recipe):
  """Keeps an average of a kernel among its parameters, and how many updates it has seen."""

  trainable = r"^(?!frozen|follower|count)"

  def init(self, key):
    params = super().init(key)
    return params | {"follower": {"kernel": params["mid"]["kernel"]}, "count": jnp.zeros(())}

  def loss(self, params, batch, key, step):
    learned = {k: v for k, v in params.items() if k not in ("follower", "count")}
    value, extra = super().loss(learned, batch, key, step)
    return value, extra | {"follower": jnp.sum(params["follower"]["kernel"]), "mid": jnp.sum(
      params["mid"]["kernel"])}  # fmt: skip

  def after(self, params, updates, outputs):
    follow = params["follower"]["kernel"]
    follow = follow + RATE * (params["mid"]["kernel"] - follow)
    return params | {"follower": {"kernel": follow}, "count": updates + 1.0}


def run(workdir, recipe=Following, **train):
  config = fake_recipe.get_config(checkpoint_every=1, keep=20, **{"steps": 6, **train})
  fake_recipe.use(recipe)
  loop.fit(config, workdir)
  return saved(workdir, Following)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  return run(tmp_path_factory.mktemp("whole"), mesh={"data": 1})


def test_it_follows_what_is_learned(whole, tmp_path):
  before = run(tmp_path, steps=5, mesh={"data": 1})  # the schedule of the rate knows the steps
  expected = run(tmp_path, mesh={"data": 1})
  kernel = ".followers['follower']['kernel']"
  moved = before[kernel] + RATE * (expected[".params['mid']['kernel']"] - before[kernel])
  np.testing.assert_allclose(expected[kernel], moved, rtol=1e-6)
  assert whole[".followers['count']"] == 6
  assert not np.array_equal(whole[kernel], whole[".params['mid']['kernel']"])


def test_it_has_neither_an_average_nor_moments(whole):
  assert not np.array_equal(whole[".ema['mid']['kernel']"], whole[".params['mid']['kernel']"])
  assert {path.split("[")[0] for path in whole if "'follower'" in path} == {".followers"}


def test_resumed_is_uninterrupted(whole, tmp_path):
  class Stopping(Following):
    def dataset(self, index, count):
      inner = super().dataset(index, count)

      class Stream:
        left = 3

        def __next__(self):
          Stream.left -= 1
          if Stream.left < 0:
            raise InterruptedError
          return next(inner)

        get_state, set_state = inner.get_state, inner.set_state

      return Stream()

  with pytest.raises(InterruptedError):
    run(tmp_path, Stopping, mesh={"data": 1})
  for path, value in run(tmp_path, mesh={"data": 1}).items():
    np.testing.assert_array_equal(value, whole[path], err_msg=path)


def test_eight_devices_do_as_one(whole, tmp_path):
  for path, value in run(tmp_path, mesh={"data": 2, "fsdp": 2, "tensor": 2}).items():
    if path.startswith((".params", ".ema", ".followers")):
      np.testing.assert_allclose(value, whole[path], rtol=2e-3, atol=2e-4, err_msg=path)


def test_a_bad_step_changes_nothing(tmp_path):
  config = fake_recipe.get_config(steps=1)
  config.data.poison = tuple(range(64))
  fake_recipe.use(Following)
  loop.fit(config, tmp_path)
  state = saved(tmp_path, Following)
  assert state[".skipped"] == 1 and state[".followers['count']"] == 0
  first = jax.device_get(Following(config).init(jax.random.key(config.seed)))
  np.testing.assert_array_equal(state[".followers['follower']['kernel']"], first["mid"]["kernel"])


class Remembering(fake_recipe.Recipe):
  """Keeps what its loss saw of the last batch."""

  trainable = r"^(?!frozen|seen)"

  def init(self, key):
    return super().init(key) | {"seen": jnp.zeros((8, 8))}

  def loss(self, params, batch, key, step):
    learned = {k: v for k, v in params.items() if k != "seen"}
    value, extra = super().loss(learned, batch, key, step)
    return value, extra | {OUTPUTS: {"x": batch["x"]}}

  def after(self, params, updates, outputs):
    return params | {"seen": outputs["x"]}


@pytest.mark.parametrize(
  "divided", [{}, {"accumulate": 4}, {"accumulate": 2, "mesh": {"data": 2, "fsdp": 2}}]
)
def test_all_rows_of_a_batch_are_handed_on_in_order(divided, tmp_path):
  config = fake_recipe.get_config(
    **{"steps": 2, "mesh": {"data": 1}, "validate_every": 2} | divided
  )
  fake_recipe.use(Remembering)
  loop.fit(config, tmp_path)
  data = Remembering(config).dataset(0, 1)
  last = [next(data) for _ in range(2)][-1]
  np.testing.assert_array_equal(saved(tmp_path, Remembering)[".followers['seen']"], last["x"])
  lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
  assert len(lines) == 3 and not any(OUTPUTS in json.loads(line) for line in lines)
