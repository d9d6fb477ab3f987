"""Laws of the round trip through pixels: pieces are the whole, and need no more memory."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from sora_jax.data import video
from sora_jax.generate import codec as codec_lib
from sora_jax.generate.codec import Codec
from sora_jax.models.vae import VideoVAE

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def codec():
  vae = VideoVAE(z_channels=3, widths=(6, 8), time_down=(True,), kernel_t=(1, 3))
  key = jax.random.key(0)
  clip = jax.ShapeDtypeStruct((1, 1, 8, 8, 3), np.float32)
  shapes = jax.eval_shape(vae.init, key, clip, key)["params"]
  rng = np.random.default_rng(0)
  return Codec(vae, jax.tree.map(lambda x: 0.3 * rng.normal(size=x.shape).astype("f"), shapes))


def test_pieces_are_the_whole(codec, rng, monkeypatch, tmp_path):
  latents = rng.normal(size=(1, 5, 3, 2, 3)).astype(np.float32)
  whole = codec.decode(latents)
  assert whole.shape == (1, 9, 12, 8, 3) and whole.dtype == np.uint8 and whole.std() > 1
  pieces = list(codec.stream(latents[:, a:b] for a, b in ((0, 2), (2, 3), (3, 5))))
  assert [piece.shape[1] for piece in pieces] == [3, 2, 4]
  assert np.abs(np.concatenate(pieces, axis=1).astype(int) - whole).max() <= 1
  video.write(tmp_path / "a.mp4", (piece[0] for piece in codec.stream([latents])), 8.0)
  assert video.read(tmp_path / "a.mp4")[0].shape == whole.shape[1:]

  encoded, reconstructed, looped = (
    codec.encode(whole),
    codec.reconstruct(whole),
    codec.decode(latents, loop=True),
  )
  monkeypatch.setattr(codec_lib, "PIXELS", 2 * 2 * 12 * 8)  # two latent frames at a time
  for got, expected in (
    (codec.decode(latents), whole),
    (codec.decode(latents, loop=True), looped),
    (codec.reconstruct(whole), reconstructed),
  ):
    assert np.abs(got.astype(int) - expected).max() <= 1
  np.testing.assert_allclose(codec.encode(whole), encoded, atol=1e-5)


@pytest.mark.slow
def test_a_minute_needs_no_more_memory_than_its_first_seconds():
  command = [sys.executable, "benchmarks/decode_memory.py", "--quick", "--json"]
  command += ["--seconds", "2", "60"]  # after one, x264 does not yet hold all it looks ahead at
  done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
  assert done.returncode == 0, done.stderr
  peaks = {row["seconds"]: row["peak MB"] for row in map(json.loads, done.stdout.splitlines())}
  assert peaks[60] < 1.05 * peaks[2]  # the pixels of a minute would be 16 % more
