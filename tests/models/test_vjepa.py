"""Laws of V-JEPA's tokens: their order says nothing, padding is not seen, packed is unpacked."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.models.vjepa import VJEPA, AttentivePooler, grid_positions, standardised, tubelets

MODEL = VJEPA(
  width=24, layers=2, heads=2, mlp_width=32, predictor_width=16, predictor_layers=1,
  predictor_heads=2, predictor_mlp_width=24, patch=(2, 4, 4), frames=6, size=12, mask_tokens=3,
)  # fmt: skip


@pytest.fixture(scope="module")
def clip():
  rng = np.random.default_rng(0)
  video = jnp.asarray(rng.normal(size=(2, 6, 12, 12, 3)), jnp.float32)
  return tubelets(video, MODEL.patch)


@pytest.fixture(scope="module")
def params(clip):
  rng = np.random.default_rng(1)
  values, positions = clip
  made = jax.jit(MODEL.init)(jax.random.key(0), values, positions, positions)["params"]
  return jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape).astype(np.float32), made)


def run(params, values, positions, targets, ids=None, target_ids=None, mask=1):
  features = MODEL.apply({"params": params}, values, positions, ids, method="encode")
  made = MODEL.apply(
    {"params": params}, features, positions, targets, ids, target_ids, mask, method="predict"
  )
  return features, made


run = jax.jit(run)


def close(got, want):
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_the_grid_is_what_is_cut(clip):
  values, positions = clip
  assert MODEL.grid == (3, 3, 3) and values.shape == (2, 27, 96)
  np.testing.assert_array_equal(positions[1], grid_positions(MODEL.grid))
  np.testing.assert_array_equal(positions[0, 14], [1, 1, 2])


def test_order_says_nothing_and_place_does(clip, params, rng):
  values, positions = clip
  order = rng.permutation(27)
  features, made = run(params, values, positions, positions[:, :9])
  moved, same = run(params, values[:, order], positions[:, order], positions[:, :9])
  close(moved, features[:, order])
  close(same, made)
  elsewhere, _ = run(params, values, positions[:, order], positions[:, :9])
  assert np.abs(elsewhere - features).max() > 1e-2
  assert np.abs(np.diff(made, axis=1)).max() > 1e-2


def test_padding_is_not_seen(clip, params):
  values, positions = clip
  seen = jnp.where(jnp.arange(27) < 10, 1, 0) * jnp.ones((2, 1), jnp.int32)
  asked = jnp.where(jnp.arange(5) < 3, 1, 0) * jnp.ones((2, 1), jnp.int32)
  features, made = run(params, values, positions, positions[:, 20:25], seen, asked)
  short = run(params, values[:, :10], positions[:, :10], positions[:, 20:23])
  close(features[:, :10], short[0])
  close(made[:, :3], short[1])


def test_packed_is_unpacked(clip, params):
  values, positions = clip
  ids = jnp.concatenate([jnp.full((1, 27), 1), jnp.full((1, 27), 2)], axis=1)
  pack = lambda x: x.reshape(1, -1, x.shape[-1])  # noqa: E731
  features, made = run(params, values, positions, positions[:, 5:9])
  both = run(params, pack(values), pack(positions), pack(positions[:, 5:9]), ids,
             jnp.asarray([[1] * 4 + [2] * 4]))  # fmt: skip
  close(both[0], pack(features))
  close(both[1], pack(made))


def test_kinds_of_masks_ask_differently(clip, params):
  values, positions = clip
  asked = positions[:, :4]
  first, second, third = (
    run(params, values, positions, asked, mask=jnp.full(2, m))[1] for m in (1, 2, 4)
  )
  assert np.abs(first - second).max() > 1e-3
  close(third, first)  # modulo
  each = run(params, values, positions, asked, mask=jnp.asarray([1, 2]))[1]
  close(each, jnp.stack([first[0], second[1]]))


def test_absolute_positions_tell_where_even_of_a_single_token(rng):
  values = jnp.asarray(rng.normal(size=(1, 1, 96)), jnp.float32)
  here, there = jnp.zeros((1, 1, 3)), jnp.asarray([[[1.0, 2.0, 1.0]]])
  for absolute in (False, True):
    model = MODEL.clone(absolute=absolute)
    params = jax.jit(model.init)(jax.random.key(0), values, here, here)["params"]
    at = lambda where: jax.jit(model.apply)({"params": params}, values, where, where)  # noqa: E731, B023
    moved = np.abs(at(here) - at(there)).max()
    assert moved > 1e-2 if absolute else moved < 1e-5


def test_what_is_recomputed_is_the_same(clip, params):
  values, positions = clip

  def loss(params, model):
    made = model.apply({"params": params}, values, positions, positions[:, :4])
    return jnp.mean(made**2)

  grads = [jax.jit(jax.grad(loss), static_argnums=1)(params, MODEL.clone(remat=r))
           for r in ("none", "full")]  # fmt: skip
  jax.tree.map(close, *grads)


def test_pooling_reads_a_set(rng):
  pooler = AttentivePooler(width=16, layers=1, heads=2, mlp_width=24, queries=3)
  x = jnp.asarray(rng.normal(size=(2, 9, 16)), jnp.float32)
  params = jax.jit(pooler.init)(jax.random.key(0), x)
  params = jax.tree.map(lambda p: p + 0.1 * rng.normal(size=p.shape).astype(np.float32), params)
  pool = jax.jit(pooler.apply)
  pooled = pool(params, x)
  assert pooled.shape == (2, 3, 16)
  close(pool(params, x[:, rng.permutation(9)]), pooled)
  ids = jnp.where(jnp.arange(9) < 6, 1, 0) * jnp.ones((2, 1), jnp.int32)
  close(pool(params, x, ids), pool(params, x[:, :6]))


def test_targets_are_standardised(rng):
  x = standardised(jnp.asarray(3 + 5 * rng.normal(size=(2, 4, 64)), jnp.bfloat16))
  assert x.dtype == jnp.float32
  np.testing.assert_allclose(x.mean(-1), 0, atol=1e-5)
  np.testing.assert_allclose(x.std(-1), 1, atol=1e-3)


def test_centred_targets_say_nothing_that_is_the_same_all_over_a_clip(rng):
  x = jnp.asarray(rng.normal(size=(2, 5, 64)), jnp.float32)
  ids = jnp.asarray([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
  light = jnp.asarray(10 * rng.normal(size=(2, 1, 64)), jnp.float32)
  made = standardised(x, ids, centred=True)
  np.testing.assert_allclose(standardised(x + light, ids, centred=True), made, atol=1e-4)
  np.testing.assert_allclose(standardised(x[1:, :3], centred=True), made[1:, :3], atol=1e-5)
  assert np.abs(standardised(x + light, ids) - standardised(x, ids)).max() > 0.1
