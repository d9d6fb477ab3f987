"""Laws of the discrete autoencoder: nearest codes, causality, codebooks that follow the data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.errors import UserError
from sora_jax.models import vqvae as lib
from sora_jax.models.vqvae import VQVAE
from tests.conftest import random_weights

MODEL = VQVAE(
  width=12, blocks=(1, 1), heads=2, patch=(4, 4, 4), z_channels=5, codes=7, depth=3, linear=True
)
FRAMES, SIZE = 13, 12


@pytest.fixture(scope="module")
def video():
  rng = np.random.default_rng(0)
  return jnp.asarray(rng.uniform(-1, 1, size=(2, FRAMES, SIZE, SIZE, 3)), jnp.float32)


@pytest.fixture(scope="module")
def params(video):
  return random_weights(MODEL.init, video, scale=0.2)


def apply(params, x, method):
  return MODEL.apply({"params": params}, x, method=method)


apply = jax.jit(apply, static_argnums=2)


def test_codes_are_the_nearest_to_what_is_left(rng):
  books = rng.normal(size=(3, 7, 5)).astype(np.float32)
  z = rng.normal(size=(2, 4, 5)).astype(np.float32)
  codes, made = lib.residual_codes(jnp.asarray(books), jnp.asarray(z))
  for where in np.ndindex(2, 4):
    rest = z[where].astype(np.float64)
    for depth, book in enumerate(books):
      best = min(range(7), key=lambda k, book=book, rest=rest: np.sum((rest - book[k]) ** 2))
      assert codes[where][depth] == best
      rest = rest - book[best]
      np.testing.assert_allclose(made[(depth, *where)], z[where] - rest, atol=1e-5)
  each = lib.vectors(jnp.asarray(books), codes)
  np.testing.assert_allclose(each.sum(-2), made[-1], atol=1e-5)


def test_the_grid(video, params):
  assert MODEL.grid(FRAMES, SIZE, SIZE) == (4, 3, 3)
  assert apply(params, video, "encode").shape == (2, 4, 3, 3, 5)
  for shape, says in (((12, 12, 12), "use 9 or 13"), ((13, 12, 14), "nearest is 12x16")):
    with pytest.raises(UserError, match=says):
      MODEL.grid(*shape)
  with pytest.raises(UserError, match="squares"):
    jax.eval_shape(MODEL.clone(patch=(4, 4, 2)).init, jax.random.key(0), video)


@pytest.mark.parametrize("length", [1, 5, 9])
def test_what_follows_changes_nothing(length, video, params, rng):
  cells = 1 + (length - 1) // 4
  other = video.at[:, length:].set(rng.uniform(-1, 1, size=video[:, length:].shape))
  for clip in (video[:, :length], other):
    np.testing.assert_allclose(
      apply(params, clip, "encode")[:, :cells], apply(params, video, "encode")[:, :cells],
      rtol=1e-4, atol=1e-5,
    )  # fmt: skip
  z = apply(params, video, "encode")
  whole = apply(params, z, "decode")
  changed = z.at[:, cells:].add(1.0)
  np.testing.assert_allclose(
    apply(params, changed, "decode")[:, :length], whole[:, :length], rtol=1e-4, atol=1e-5
  )
  assert np.abs(apply(params, changed, "decode")[:, length:] - whole[:, length:]).max() > 1e-2
  past = apply(params, video.at[:, 0].multiply(-1.0), "encode")
  assert np.abs(past[:, -1] - z[:, -1]).max() > 1e-3  # but all that went before does


def test_gradients_pass_straight_through(video, params, rng):
  """An encoder's output moves the result as the decoder's input does, where it was quantised."""
  weight = jnp.asarray(rng.normal(size=video.shape), jnp.float32)

  def whole(params):
    made, _, _, commitment = MODEL.apply({"params": params}, video)
    return jnp.sum(made * weight), commitment

  grads, commitment = jax.jit(jax.grad(whole, has_aux=True))(params)
  z = apply(params, video, "encode")
  _, stood = apply(params, z, "quantise")
  inner = jax.jit(jax.grad(lambda z: jnp.sum(apply(params, z, "decode") * weight)))(stood)
  np.testing.assert_allclose(
    grads["encoder"]["out"]["bias"], inner.sum(axis=(0, 1, 2, 3)), rtol=1e-3, atol=1e-3
  )
  assert not np.any(grads["codebook"])
  _, made = lib.residual_codes(params["codebook"], z)
  np.testing.assert_allclose(commitment, np.mean((np.asarray(made) - z) ** 2), rtol=1e-4)


def test_a_clip_is_what_its_codes_decode_to(video, params):
  codes = lib.encode_codes(MODEL, params, video)
  made, _, same, _ = jax.jit(MODEL.apply)({"params": params}, video)
  np.testing.assert_array_equal(codes, same)
  decoded = lib.decode_codes(MODEL, params, codes)
  np.testing.assert_allclose(decoded, jnp.clip(made, -1, 1), rtol=1e-4, atol=1e-4)


update = jax.jit(lib.update, static_argnums=(4, 5))


def state_of(rng, depth=2, codes=6, z=4):
  count = rng.dirichlet(np.full(codes, 20.0), size=depth).astype(np.float32)
  total = rng.normal(size=(depth, codes, z)).astype(np.float32)
  return {"codebook": total / count[..., None], "count": count, "total": total}


def test_codebooks_are_running_means(rng):
  """van den Oord et al. 2017, appendix A.1, with loops."""
  state, decay = state_of(rng), 0.9
  z = rng.normal(size=(2, 5, 3, 1, 4)).astype(np.float32)
  codes = rng.integers(0, 6, size=(2, 5, 3, 1, 2))
  made = update(state, z, codes, jax.random.key(0), decay, 0.0)
  rest = z.reshape(-1, 4).copy()
  for depth in range(2):
    chosen = codes.reshape(-1, 2)[:, depth]
    for k in range(6):
      members = rest[chosen == k]
      count = decay * state["count"][depth, k] + (1 - decay) * len(members) / len(rest)
      total = decay * state["total"][depth, k] + (1 - decay) * members.sum(axis=0) / len(rest)
      np.testing.assert_allclose(made["count"][depth, k], count, rtol=1e-5)
      np.testing.assert_allclose(made["codebook"][depth, k], total / count, rtol=1e-4, atol=1e-5)
    rest = rest - state["codebook"][depth][chosen]


def test_a_code_that_was_never_used_stays(rng):
  state = state_of(rng)
  state["count"][0, 2], state["total"][0, 2] = 0.0, 0.0
  z, codes = rng.normal(size=(30, 4)).astype(np.float32), np.zeros((30, 2), np.int32)
  made = update(state, z, codes, jax.random.key(0), 0.9, 0.0)
  np.testing.assert_array_equal(made["codebook"][0, 2], state["codebook"][0, 2])
  assert np.isfinite(made["codebook"]).all()


def test_codes_that_nothing_uses_begin_again_as_data(rng):
  state = state_of(rng)
  state["count"][0, 2] = state["count"][1, 4] = 1e-6
  z = rng.normal(size=(30, 4)).astype(np.float32)
  codes = np.stack([np.arange(30) % 2, np.arange(30) % 4], axis=-1)
  made = update(state, z, codes, jax.random.key(0), 0.9, 1e-3)
  kept = update(state, z, codes, jax.random.key(0), 0.9, 0.0)
  rests = z, z - state["codebook"][0][codes[:, 0]]
  for depth, k in ((0, 2), (1, 4)):
    begun = made["codebook"][depth, k]
    assert np.abs(rests[depth] - begun).max(axis=1).min() < 1e-6
    assert made["count"][depth, k] == pytest.approx(1 / 6)
    others = np.arange(6) != k
    np.testing.assert_array_equal(made["codebook"][depth, others], kept["codebook"][depth, others])


def test_codebooks_begin_as_clusters_of_data(rng):
  centres = rng.normal(size=(40, 4)).astype(np.float32)
  z = centres[rng.integers(0, 40, size=200)] + 0.05 * rng.normal(size=(200, 4))
  z = jnp.asarray(z, jnp.float32)
  empty, key = jnp.zeros((2, 12, 4)), jax.random.key(3)
  books = jax.jit(lib.begin)(empty, z, key)
  error = lambda book, x: np.mean((x - book[lib.nearest(book, x)]) ** 2)  # noqa: E731
  drawn = jax.random.randint(jax.random.fold_in(key, 0), (12,), 0, 200)
  assert error(books[0], z) < 0.9 * error(z[drawn], z)
  rest = z - books[0][lib.nearest(books[0], z)]
  assert error(books[1], rest) < 0.7 * np.mean(rest**2)


def test_usage_and_perplexity():
  codes = jnp.asarray([[0, 1], [0, 1], [3, 1], [3, 1]])
  used, perplexity = jax.jit(lib.usage, static_argnums=1)(codes, 4)
  assert used == pytest.approx((0.5 + 0.25) / 2)
  assert perplexity == pytest.approx((2 + 1) / 2)
