"""Step caching in sampling: off is off, short calls are what they say, the error is bounded."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.diffusion import caching, sampler
from sora_jax.diffusion.guidance import Guidance
from sora_jax.errors import UserError
from sora_jax.generate import denoise
from sora_jax.generate.calibrate import calibrated, with_curve
from sora_jax.models.dit import DiT, blank_tokens
from tests.generate.conftest import perturbed


@pytest.fixture(scope="module")
def ready(model):
  return calibrated(model, "a red ball", seed=1)


def test_the_curve_covers_all_levels(ready, model):
  curve = ready.config["sampling"]["residuals"]
  assert [level for level, _ in curve] == pytest.approx(caching.LEVELS)
  sizes = np.array([size for _, size in curve])
  assert np.isfinite(sizes).all() and (sizes > 0).all() and np.ptp(sizes) > 1e-3 * sizes.max()
  assert "residuals" not in model.config["sampling"]


def test_without_a_curve_it_is_refused(model):
  with pytest.raises(UserError, match="no curve of residuals"):
    model.sample("a red ball", cache=0.1)
  with pytest.raises(UserError, match="must be at least 0"):
    model.sample("a red ball", cache=-1.0)


def test_a_file_keeps_the_curve(ready, model, tmp_path, monkeypatch):
  path = tmp_path / "curve.json"
  monkeypatch.setattr("sora_jax.generate.calibrate.calibrated", lambda model: ready)
  assert with_curve(model, path).config == ready.config
  monkeypatch.setattr("sora_jax.generate.calibrate.calibrated", None)  # not measured again
  assert with_curve(model, path).config == ready.config
  half = dataclasses.replace(model, dit=model.dit.clone(dtype=jnp.bfloat16))
  assert with_curve(half, path).config == ready.config
  assert [file.name for file in tmp_path.iterdir()] == ["curve.json"]
  for curve in ("", "[]", "[[0, 1]]", "[[0, 1], [2, 1]]", "[[0, 1], [1, NaN]]", "[1, 2]"):
    path.write_text(f'{{"residuals": {curve}}}')
    with pytest.raises(UserError, match="holds no curve"):
      with_curve(model, path)
  path.write_text('{"transformer": "DiT()", "residuals": [[0, 1], [1, 1]]}')
  with pytest.raises(UserError, match="another transformer's"):
    with_curve(model, path)
  with pytest.raises(UserError, match="There is no folder"):
    with_curve(model, tmp_path / "none" / "curve.json")


def test_off_is_off_and_larger_thresholds_err_more(ready, model):
  plain = model.sample("a red ball", seed=3)
  np.testing.assert_array_equal(ready.sample("a red ball", seed=3, cache=0.0), plain)
  mean = lambda cache: np.abs(  # noqa: E731
    ready.sample("a red ball", seed=3, cache=cache).astype(int) - plain
  ).mean()
  assert mean(1e-9) < 0.01  # no call is short
  assert 0.01 < mean(10.0)


def test_short_calls_take_what_the_blocks_added_before(ready):
  """The loop of the solver is a loop over the model with a residual in hand."""
  dit, params = ready.dit, ready.params["dit"]
  rng = np.random.default_rng(0)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
  n = 6
  ones = jnp.ones((1, n), jnp.int32)
  tokens = dataclasses.replace(
    blank_tokens(dit), values=draw(1, n, dit.patch_width), positions=draw(1, n, 3),
    period=jnp.zeros((1, n)), segments=ones, block=0 * ones, cond_index=0 * ones, prompt=0 * ones,
    cond=jnp.ones((1, 1, dit.cond_features)),
  )  # fmt: skip
  table = sampler.table("euler", np.linspace(1, 0, 6))
  table[[2, 4], -1] = 1
  memory = jnp.zeros((1, n, dit.width))
  carry = denoise.solve(
    dit, Guidance(scale=1.0), params, [tokens], sampler.start(tokens.values, memory), table
  )  # fmt: skip

  @jax.jit
  def whole(y, t):
    at = dataclasses.replace(tokens, values=y, cond=tokens.cond.at[..., 0].multiply(t))
    v, seen = dit.apply({"params": params}, at, mutable=["intermediates"])
    return v, seen["intermediates"]["residual"][0]

  @jax.jit
  def short(y, t, residual):
    at = dataclasses.replace(tokens, values=y, cond=tokens.cond.at[..., 0].multiply(t))
    return dit.apply({"params": params}, at, residual=residual)

  y, levels = tokens.values, np.linspace(1, 0, 6).astype(np.float32)
  for i, (t, s) in enumerate(zip(levels[:-1], levels[1:], strict=True)):
    if i in (2, 4):
      again = whole(y, t)[0]
      v = short(y, t, residual)
      assert np.abs(v - again).max() > 1e-4
    else:
      v, residual = whole(y, t)
      np.testing.assert_allclose(short(y, t, residual), v, atol=1e-5)
    y = y + (s - t) * v
  np.testing.assert_allclose(carry.y, y, atol=2e-5)
  np.testing.assert_allclose(carry.memory, residual, atol=2e-5)


def test_the_curve_of_a_split_transformer_is_of_its_pieces():
  """Two samples and padding: the mean is of the pieces of the tokens that are made, no others."""
  dit = DiT(
    width=32, layers=1, heads=2, mlp_width=48, text_width=16, channels=4, cond_features=4,
    split=True,
  )  # fmt: skip
  params = jax.jit(dit.init)(jax.random.key(0), blank_tokens(dit))["params"]
  params = perturbed(params, jax.random.key(1))
  rng = np.random.default_rng(2)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
  n = 6
  segments = jnp.asarray([[1, 1, 1, 2, 2, 0]])
  tokens = dataclasses.replace(
    blank_tokens(dit), values=draw(1, n, dit.patch_width), positions=draw(1, n, 3),
    period=jnp.zeros((1, n)), segments=segments, block=0 * segments, prompt=0 * segments,
    cond=jnp.ones((1, 2, 4)).at[0, 0, 0].set(0.0), cond_index=jnp.asarray([[0, 1, 1, 0, 1, 1]]),
  )  # fmt: skip
  key, level = jax.random.key(3), 0.4
  [(at, size)] = caching.residual_curve(dit.apply, params, tokens, key, [level])
  noise = np.asarray(jax.random.normal(key, tokens.values.shape))
  levels = level * np.array([0, 1, 1, 0, 1, 1], np.float32)[None, :, None]
  noisy = dataclasses.replace(
    tokens, values=(1 - levels) * tokens.values + levels * noise,
    cond=tokens.cond.at[..., 0].multiply(level),
  )  # fmt: skip
  _, seen = jax.jit(lambda t: dit.apply({"params": params}, t, mutable=["intermediates"]))(noisy)
  residual = np.asarray(seen["intermediates"]["residual"][0])[0]
  assert dit.pieces == 4 and len(residual) == 4 * n
  sizes = np.linalg.norm(residual, axis=-1).reshape(n, 4)
  assert at == pytest.approx(level) and size == pytest.approx(sizes[[1, 2, 4]].mean(), rel=1e-4)
  assert abs(size - sizes.mean()) > 1e-3 * size
