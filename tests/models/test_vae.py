"""Laws of the autoencoder: causal, the same in chunks, one model for images and videos."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.errors import UserError
from sora_jax.models.conv import CausalConv, conv3d_direct, conv3d_folded, normal
from sora_jax.models.vae import (
  VARIANTS,
  VideoVAE,
  decode_latents,
  decode_stream,
  encode_stream,
  encode_video,
)

# The variants as they are, but narrow; and the toy with levels in its decoder, and both ways.
NARROW = {
  "toy": dict(widths=(6, 8), z_channels=4),
  "decoder": dict(VARIANTS["toy"], widths=(6, 8), z_channels=4, learned=("decoder",)),
  "levels": dict(VARIANTS["toy"], widths=(6, 8), z_channels=4, learned=("encoder", "decoder")),
  "wan2.1": dict(
    widths=(4, 8, 8, 6), z_channels=4, res_blocks=1,
    latent_mean=(0.1, -0.2, 0.3, 0.0), latent_std=(0.5, 1.5, 0.8, 1.2),
  ),
  "wan2.2": dict(
    widths=(4, 4, 4), decoder_widths=(6, 6, 6), time_down=(True, True), kernel_t=(3, 3, 3),
    z_channels=4, res_blocks=1, latent_mean=None, latent_std=None,
  ),
}  # fmt: skip


def random_params(vae):
  """Of the right shapes and about the right scale, and none of them zero."""
  key, rng = jax.random.key(0), np.random.default_rng(7)
  shapes = jax.eval_shape(vae.init, key, clip(1), key)["params"]

  def draw(leaf):
    spread = 1.0 / np.sqrt(np.prod(leaf.shape[:-1])) if leaf.ndim > 1 else 0.2
    values = rng.normal(size=leaf.shape) * spread + (leaf.ndim == 1)
    return jnp.asarray(values, jnp.float32)

  return jax.tree.map(draw, shapes)


def clip(frames, seed=0, size=(16, 24)):
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.uniform(-1.0, 1.0, (1, frames, *size, 3)), jnp.float32)


@pytest.fixture(scope="module", params=list(NARROW))
def model(request):
  vae = VideoVAE(**{**VARIANTS.get(request.param, {}), **NARROW[request.param]})
  return vae, random_params(vae)


def close(a, b, tolerance=2e-5):
  a, b = np.asarray(a), np.asarray(b)
  assert a.shape == b.shape
  np.testing.assert_allclose(a, b, atol=tolerance * np.abs(b).max(initial=1.0), rtol=0)


def test_encoding_is_causal(model):
  vae, params = model
  video = clip(9)
  before = encode_video(vae, params, video)
  for frame in (0, 1, 4, 5, 8):
    after = encode_video(vae, params, video.at[:, frame].add(0.5))
    latent = -(-frame // 4)  # the first latent that covers the frame
    close(after[:, :latent], before[:, :latent])
    assert np.abs(after - before)[:, latent].max() > 1e-3


def test_decoding_is_causal(model):
  vae, params = model
  latents = 0.3 * normal(jax.random.key(3), (1, 3, 2, 3, vae.z_channels))
  before = decode_latents(vae, params, latents)
  for latent in range(3):
    after = decode_latents(vae, params, latents.at[:, latent].add(0.5))
    frame = max(0, 4 * latent - 3)
    close(after[:, :frame], before[:, :frame])
    assert np.abs(after - before)[:, frame].max() > 1e-4


def test_chunked_is_whole(model):
  vae, params = model
  video = clip(9)
  latents = encode_video(vae, params, video)
  frames = decode_latents(vae, params, latents)
  assert latents.shape[1:4] == vae.latent_shape(9, 16, 24)
  assert frames.shape == video.shape
  for chunk in (1, 2):
    close(encode_video(vae, params, video, chunk), latents)
    close(decode_latents(vae, params, latents, chunk), frames)
  irregular = encode_stream(vae, params, (video[:, :1], video[:, 1:]))
  close(jnp.concatenate(list(irregular), axis=1), latents)
  irregular = decode_stream(vae, params, (latents[:, :1], latents[:, 1:]))
  close(jnp.concatenate(list(irregular), axis=1), frames)


def test_cache_does_not_grow(model):
  vae, params = model

  def shapes_after(method, pieces):
    variables, seen = {"params": params}, []
    for i, piece in enumerate(pieces):
      run = partial(vae.apply, first=i == 0, method=method, mutable=["cache"])
      kept = jax.eval_shape(run, variables, piece)[1]
      variables = {"params": params} | kept
      seen.append(jax.tree.map(lambda x: x.shape, kept))
    return seen

  video, latents = clip(1), jnp.zeros((1, 1, 2, 3, vae.z_channels))
  for method, pieces in (
    (vae.encode, [video, clip(4), clip(4), clip(8)]),
    (vae.decode, [latents, latents, latents, jnp.repeat(latents, 3, 1)]),
  ):
    first, *later = shapes_after(method, pieces)
    assert bool(first) == (f"{method.__name__}r" in vae.learned)
    assert all(shapes == first for shapes in later)


def test_image_is_a_video_of_one_frame(model):
  vae, params = model
  video = clip(9)
  latents = encode_video(vae, params, video)
  close(encode_video(vae, params, video[:, :1]), latents[:, :1])
  close(decode_latents(vae, params, latents[:, :1]), decode_latents(vae, params, latents)[:, :1])


def test_images_prepare_for_videos():
  """Untrained and after a step on images alike, each frame of a still clip is what the image is."""
  vae = VideoVAE(widths=(6, 8), z_channels=4, time_down=(True,), kernel_t=(1, 3))
  key, image = jax.random.key(2), clip(1)
  params = jax.jit(vae.init)(key, image, key)["params"]
  of_video = jax.eval_shape(vae.init, key, clip(9), key)["params"]
  assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, of_video)

  @jax.jit
  def step(params):
    def loss(p):
      return jnp.mean(jnp.square(vae.apply({"params": p}, image, key)[0] - image))

    return jax.tree.map(lambda p, g: p - 0.05 * g, params, jax.grad(loss)(params))

  trained = step(params)
  assert (trained["encoder"]["conv_in"]["bias"] != params["encoder"]["conv_in"]["bias"]).all()
  for now in (params, trained):
    latents = encode_video(vae, now, jnp.repeat(image, 5, axis=1))
    close(latents, jnp.repeat(latents[:, :1], 3, axis=1))
    frames = decode_latents(vae, now, latents)
    close(frames, jnp.repeat(frames[:, :1], 5, axis=1))


@pytest.fixture(scope="module")
def toy():
  vae = VideoVAE(**NARROW["levels"])
  return vae, random_params(vae)


def test_standardised_latents_and_clipping(toy):
  vae, params = toy
  mean, std = (0.5, -1.0, 2.0, 0.1), (0.5, 2.0, 1.0, 3.0)
  shifted, video = vae.copy(latent_mean=mean, latent_std=std), clip(1)
  plain = encode_video(vae, params, video)
  latents = encode_video(shifted, params, video)
  close(latents * jnp.array(std) + jnp.array(mean), plain)
  close(decode_latents(shifted, params, latents), decode_latents(vae, params, plain))
  frames = decode_latents(vae, params, 50.0 * plain)
  assert frames.min() == -1.0 and frames.max() == 1.0


def test_reconstruction_samples_the_posterior(toy):
  vae, params = toy
  video, run = clip(1), jax.jit(vae.apply)
  a, mean, logvar = run({"params": params}, video, jax.random.key(0))
  b, _, _ = run({"params": params}, video, jax.random.key(1))
  assert a.shape == video.shape and mean.shape == logvar.shape
  assert np.abs(a - b).max() > 1e-4
  latent = mean + jnp.exp(0.5 * logvar) * normal(jax.random.key(0), mean.shape)
  close(a, vae.apply({"params": params}, latent, method=vae.decode))


@pytest.mark.parametrize(
  "shape, says", [((2, 16, 16), "use 1 or 5"), ((16, 16, 16), "use 13 or 17"),
                  ((0, 16, 16), "use 1 or 5"), ((5, 20, 30), "nearest is 16x32"),
                  ((5, 4, 16), "nearest is 8x16")],
)  # fmt: skip
def test_impossible_sizes_name_the_nearest(shape, says):
  with pytest.raises(UserError, match=says):
    VideoVAE(**VARIANTS["toy"]).latent_shape(*shape)


def test_impossible_calls_are_user_errors(toy):
  vae, params = toy
  with pytest.raises(UserError, match="5 or 9"):
    encode_video(vae, params, clip(6))
  with pytest.raises(UserError, match="at least one"):
    encode_video(vae, params, clip(5), chunk=0)


def test_grey_and_black_have_finite_gradients():
  vae = VideoVAE(widths=(6, 8), z_channels=4, time_down=(True,), kernel_t=(1, 3))
  key = jax.random.key(0)
  params = jax.jit(vae.init)(key, clip(1), key)["params"]  # biases are 0: grey stays 0 inside
  loss = jax.jit(jax.grad(lambda p, x: jnp.sum(jnp.square(vae.apply({"params": p}, x, key)[0]))))
  for level in (0.0, -1.0):
    grads = loss(params, jnp.full((1, 3, 8, 8, 3), level))
    assert all(jnp.isfinite(g).all() for g in jax.tree.leaves(grads))


def test_bfloat16_is_near(toy):
  vae, params = toy
  half, video = vae.copy(dtype=jnp.bfloat16), clip(1)
  a, b = encode_video(half, params, video), encode_video(vae, params, video)
  assert a.dtype == jnp.float32
  assert 0 < np.abs(a - b).mean() < 0.05 * np.abs(b).mean()


@pytest.mark.parametrize(
  "fields", [dict(learned=()), dict(learned=("decoder",)), dict(learned=("decodr",), linear=True)]
)
def test_an_autoencoder_has_both_sides(fields):
  vae, key = VideoVAE(**fields), jax.random.key(0)
  with pytest.raises(UserError, match="must hold encoder and decoder"):
    vae.init(key, clip(1), key)


@pytest.mark.parametrize("name, millions", [("toy", 0.12), ("wan2.1", 126.89)])
def test_parameter_count(name, millions):
  vae, key = VideoVAE(**VARIANTS[name]), jax.random.key(0)
  params = jax.eval_shape(vae.init, key, jnp.zeros((1, 1, 16, 16, 3)), key)["params"]
  assert sum(x.size for x in jax.tree.leaves(params)) / 1e6 == pytest.approx(millions, abs=0.01)


@pytest.mark.parametrize(
  "frames, kernel, strides, padding",
  [
    (5, (3, 3, 3), (1, 1, 1), ((2, 0), (1, 1), (1, 1))),
    (1, (3, 3, 3), (1, 1, 1), ((2, 0), (1, 1), (1, 1))),
    (2, (4, 3, 5), (1, 1, 1), ((3, 0), (1, 1), (2, 2))),
    (7, (3, 1, 1), (2, 1, 1), ((0, 0), (0, 0), (0, 0))),
    (6, (3, 3, 3), (3, 2, 2), ((1, 0), (0, 1), (0, 1))),
    (0, (3, 1, 1), (1, 1, 1), ((2, 0), (0, 0), (0, 0))),
  ],
)
def test_both_convolutions_agree(frames, kernel, strides, padding):
  keys = jax.random.split(jax.random.key(frames), 3)
  x, weights = normal(keys[0], (2, frames, 6, 8, 5)), normal(keys[1], (*kernel, 5, 4))
  results = []
  for conv in (conv3d_direct, conv3d_folded):
    y, back = jax.vjp(lambda x, w, conv=conv: conv(x, w, strides, padding), x, weights)
    results.append((y, *back(normal(keys[2], y.shape))))
  for a, b in zip(*results, strict=True):
    close(a, b)


def test_causal_convolution_pads_the_past_only():
  conv = CausalConv(4, (3, 3, 3))
  keys = jax.random.split(jax.random.key(0), 2)
  x = normal(keys[0], (1, 4, 6, 6, 2))
  variables = {"params": {"kernel": normal(keys[1], (3, 3, 3, 2, 4)), "bias": jnp.ones(4)}}
  zeros = jnp.zeros((1, 2, 6, 6, 2))
  close(conv.apply(variables, x), conv.apply(variables, x, before=zeros))
  changed = conv.apply(variables, x, before=zeros + 1.0) - conv.apply(variables, x)
  assert (np.abs(changed).max(axis=(0, 2, 3, 4)) > 1e-3).tolist() == [True, True, False, False]


def test_normal_is_the_usual_draw():
  key = jax.random.key(3)
  np.testing.assert_array_equal(normal(key, (2, 4, 8)), jax.random.normal(key, (2, 4, 8)))
