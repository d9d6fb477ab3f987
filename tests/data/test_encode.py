"""The latent cache: encoded once, for one encoder, whoever comes second."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.data import encode, video
from sora_jax.data.records import write_records
from sora_jax.data.transforms import to_float
from sora_jax.errors import UserError
from sora_jax.models.vae import VideoVAE, encode_video
from sora_jax.worlds import WorldSource

VAE = VideoVAE(
  z_channels=4, widths=(6, 8), patch=4, patch_time=4, time_down=(False,), kernel_t=(1, 3),
  linear=True, learned=("decoder",),
)  # fmt: skip
SOURCES = {"worlds": dict(weight=1.0, count=4, seed=0, height=32, width=32, frames=5)}


@pytest.fixture(scope="module")
def params():
  key = jax.random.key(0)
  video = jax.random.uniform(key, (1, 5, 16, 16, 3))
  return jax.jit(VAE.init)(key, video, key)["params"]


def cached(folder, params, clips=4, size=(32, 32)):
  return encode.cache(
    folder, VAE, params, SOURCES, clips=clips, frames=5, size=size, fps=8.0, seed=0,
    batch_size=2,
  )  # fmt: skip


def test_latents_depend_on_the_encoder_alone(tmp_path, params):
  first = cached(tmp_path, params)
  assert len(first) == 4 and first[0]["latents"].shape == (2, 4, 4, 4) and first.info["words"]
  moved = lambda part: params | {part: jax.tree.map(lambda x: x + 1, params[part])}  # noqa: E731
  cached(tmp_path, moved("decoder"))
  assert len(list(tmp_path.iterdir())) == 1
  other = cached(tmp_path, moved("principal"))
  assert len(list(tmp_path.iterdir())) == 2
  assert not np.array_equal(first[0]["latents"], other[0]["latents"])


def test_grids_too_small_for_a_region_within_have_none(tmp_path, params):
  assert "masked" in cached(tmp_path, params)[0]
  for size in ((16, 32), (16, 16)):  # two rows of latents
    assert "masked" not in cached(tmp_path, params, size=size)[0]


def test_a_loop_is_encoded_as_if_it_had_always_been_going_on(tmp_path, params):
  worlds = dict(count=4, seed=0, scenes=("orbit",))
  shape = dict(clips=3, frames=8, size=(32, 32), fps=8.0)
  loops = encode.cache(
    tmp_path, VAE, params, dict(worlds=dict(worlds)), **shape, seed=0, loop=True, batch_size=1
  )
  assert [len(loops[i]["stretch"]) for i in range(3)] == [1, 2, 2]  # of 1, 5 and 5 frames
  for i in range(3):
    assert loops[i]["loop"] and loops[i]["latents"].shape == (2, 4, 4, 4)
    index = int(loops[i]["id"].rpartition("-")[2])
    video = to_float(WorldSource(**worlds, frames=8, height=32, width=32)[index]["video"])
    rounds = jnp.concatenate([video[-1:], video, video])[None]
    latents = np.asarray(encode_video(VAE, params, rounds))[0]
    np.testing.assert_allclose(latents[1:3], latents[3:], atol=1e-5)
    np.testing.assert_allclose(loops[i]["latents"], latents[3:], atol=1e-2)  # stored in half


def test_a_length_that_is_no_loop_or_no_clip_is_refused(tmp_path, params):
  shape = dict(clips=2, size=(32, 32), fps=8.0, seed=0)
  with pytest.raises(UserError, match="A loop has 4k frames, not 5"):
    encode.cache(tmp_path, VAE, params, SOURCES, frames=5, loop=True, **shape)
  with pytest.raises(UserError, match=r"A clip has 4k\+1 frames, not 8"):
    encode.cache(tmp_path, VAE, params, SOURCES, frames=8, **shape)


def test_a_run_that_was_overtaken_reads_the_other_ones_clips(tmp_path, params, monkeypatch):
  def overtaken(path, samples, info):
    write_records(path, list(samples), info)
    raise UserError("the folder is there already")

  monkeypatch.setattr(encode, "write_records", overtaken)
  assert len(cached(tmp_path, params)) == 4


def test_a_failure_stays_one(tmp_path, params, monkeypatch):
  def full(path, samples, info):
    raise UserError("the disk is full")

  monkeypatch.setattr(encode, "write_records", full)
  with pytest.raises(UserError, match="full"):
    cached(tmp_path, params)


def test_what_the_sources_hold_now_is_what_is_trained_on(tmp_path, params, rng):
  folder = tmp_path / "clips"
  folder.mkdir()

  def add(name, caption):
    image = rng.integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)
    video.write(folder / f"{name}.png", image)
    (folder / f"{name}.txt").write_text(caption)

  def clips():
    source = encode.cache(
      tmp_path / "cache", VAE, params, dict(folder=dict(path=str(folder))), clips=4, frames=1,
      size=(32, 32), fps=8.0, seed=0, batch_size=4,
    )  # fmt: skip
    return {source[i]["id"]: source[i] for i in range(len(source))}

  add("a", "a red square")
  first = clips()["a.png"]
  assert clips().keys() == {"a.png"} and len(list((tmp_path / "cache").iterdir())) == 1
  (folder / "a.txt").write_text("a blue square")
  assert clips()["a.png"]["captions"] == ["a blue square"]
  add("a", "a blue square")
  assert not np.array_equal(clips()["a.png"]["latents"], first["latents"])
  add("b", "a green square")
  assert clips().keys() == {"a.png", "b.png"}
  assert len(list((tmp_path / "cache").iterdir())) == 4
