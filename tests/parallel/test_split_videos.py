"""However a video is split among eight devices, the autoencoder does what it does on one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.models.vae import VARIANTS, VideoVAE, decode_latents, encode_video
from sora_jax.parallel import sharding
from sora_jax.plan import hlo

VAES = {
  "linear": VideoVAE(**VARIANTS["toy"] | dict(z_channels=4)),
  "levels": VideoVAE(z_channels=4, widths=(8, 8, 16)),
  "attention": VideoVAE(
    z_channels=4, widths=(8, 16), time_down=(True,), kernel_t=(1, 3), mid_attention=True
  ),
}
MESHES = [
  dict(context=8),
  dict(data=2, context=4),
  dict(data=2, fsdp=2, context=1, tensor=2),
]
WHOLE = (1, 5, 64, 32)


@functools.cache
def problem(name, shape):
  """An autoencoder with no zeros in it, a video, its latents and what is made of them."""
  vae, rng, key = VAES[name], np.random.default_rng(0), jax.random.key(0)
  shapes = jax.eval_shape(vae.init, key, jnp.zeros((1, 1, 16, 16, 3)), key)["params"]
  draw = lambda x: rng.normal(size=x.shape) / np.sqrt(max(1, np.prod(x.shape[:-1])))  # noqa: E731
  params = jax.tree.map(lambda x: jnp.asarray(draw(x), jnp.float32), shapes)
  video = jnp.asarray(rng.uniform(-1, 1, (*shape, 3)), jnp.float32)
  latents = encode_video(vae, params, video)
  return vae, params, video, latents, decode_latents(vae, params, 0.3 * latents)


def on_mesh(mesh, params, vae, function, x):
  """The compiled program, and what it makes."""
  params = jax.device_put(params, sharding.param_shardings(params, mesh))
  with jax.set_mesh(mesh):
    program = jax.jit(functools.partial(function, vae)).lower(params, np.asarray(x)).compile()
    return program, program(params, jax.device_put(x, program.input_shardings[0][1]))


def close(a, b):
  np.testing.assert_allclose(a, b, atol=1e-5 * max(1, np.abs(b).max()), rtol=0)


@pytest.mark.parametrize("sizes", MESHES, ids=str)
@pytest.mark.parametrize("name", VAES)
def test_split_is_whole(name, sizes):
  vae, params, video, latents, made = problem(name, WHOLE)
  mesh = sharding.make_mesh(sizes)
  for function, x, want in ((encode_video, video, latents), (decode_latents, 0.3 * latents, made)):
    _, got = on_mesh(mesh, params, vae, function, x)
    close(got, want)
    assert got.sharding.shard_shape(got.shape)[2] == got.shape[2] // 8


@pytest.mark.parametrize(
  ("shape", "shard"),
  [
    ((1, 5, 24, 64), (1, 5, 24, 8)),  # three rows of latents: the columns are split
    ((2, 5, 32, 24), (1, 5, 8, 24)),  # two clips: one for each half of the devices
    ((1, 1, 24, 40), (1, 1, 24, 40)),  # nothing divides
  ],
)
@pytest.mark.parametrize("name", ["linear", "levels"])
def test_sizes_that_do_not_divide(name, shape, shard):
  vae, params, video, latents, made = problem(name, shape)
  mesh = sharding.make_mesh(dict(data=2, context=4))
  close(on_mesh(mesh, params, vae, encode_video, video)[1], latents)
  got = on_mesh(mesh, params, vae, decode_latents, 0.3 * latents)[1]
  close(got, made)
  assert got.sharding.shard_shape(got.shape)[:4] == shard


@pytest.mark.parametrize("name", ["linear", "levels"])
def test_devices_hold_their_part_and_send_borders(name):
  vae, params, video, latents, _ = problem(name, (1, 9, 128, 64))
  one, all_ = sharding.make_mesh({}), sharding.make_mesh(dict(context=8))
  weights = sum(x.nbytes for x in jax.tree.leaves(params))
  for function, x in ((encode_video, video), (decode_latents, latents)):
    alone = hlo.costs(on_mesh(one, params, vae, function, x)[0])
    costs = hlo.costs(on_mesh(all_, params, vae, function, x)[0])
    assert costs.memory.peak - weights < (alone.memory.peak - weights) / 4
    assert not costs.collectives.keys() - {"all-gather", "collective-permute"}
    gathered = costs.collectives.get("all-gather")
    assert gathered is None or gathered.bytes <= weights
    if name == "levels":
      assert costs.collectives["collective-permute"].bytes < video.nbytes * 2


def test_training_on_rows_has_the_same_gradients():
  vae, params, video, _, _ = problem("levels", WHOLE)

  def loss(params, video):
    made, mean, _ = vae.apply({"params": params}, video, jax.random.key(1))
    return jnp.mean(jnp.square(made - video)) + jnp.mean(jnp.square(mean))

  want = jax.jit(jax.grad(loss))(params, video)
  mesh = sharding.make_mesh(dict(data=2, context=4))
  with jax.set_mesh(mesh):
    placed = jax.device_put(params, sharding.param_shardings(params, mesh))
    got = jax.jit(jax.grad(loss))(placed, np.asarray(video))
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    assert np.linalg.norm(a - b) <= 1e-4 * np.linalg.norm(b)
