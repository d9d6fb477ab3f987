"""Reconstruction metrics against their definitions, and the signs of mush on controls."""

import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.evals import reconstruction as recon


@pytest.fixture
def clips(rng) -> np.ndarray:
  """Two smooth textures; a bright square crosses the first, nothing moves in the second."""
  texture = np.cumsum(np.cumsum(rng.normal(size=(2, 1, 48, 40, 3)), 2), 3)
  texture = 60 + 120 * (texture - texture.min()) / np.ptp(texture)
  video = np.repeat(texture, 9, axis=1)
  for t in range(9):
    video[0, t, 20:28, 3 * t : 3 * t + 8] = 250
  return video.astype(np.uint8)


def test_psnr_is_its_definition_and_moving_pixels_are_judged_alone(clips):
  noisy = clips.copy()
  noisy[:, :, :10] += 10  # far from the square: an error of 10 on static pixels only
  x, y = jnp.asarray(clips) / 255, jnp.asarray(noisy) / 255
  expected = -10 * np.log10(((clips / 255 - noisy / 255) ** 2).mean(axis=(1, 2, 3, 4)))
  np.testing.assert_allclose(recon.psnr(x, y), expected, rtol=1e-4)
  where = recon.moving(x)
  assert where[0, :, 20:28].any() and not where[0, :, :20].any() and not where[1].any()
  moving = np.asarray(recon.psnr(x, y, where))
  assert moving[0] == 100 and np.isnan(moving[1])


def test_ssim_of_equality_is_one_and_of_constants_is_the_luminance_term(clips):
  x = jnp.asarray(clips) / 255
  np.testing.assert_allclose(recon.ssim(x, x), 1, rtol=1e-5)
  a, b = jnp.full_like(x, 0.3), jnp.full_like(x, 0.6)
  np.testing.assert_allclose(
    recon.ssim(a, b), (2 * 0.3 * 0.6 + 1e-4) / (0.3**2 + 0.6**2 + 1e-4), rtol=1e-3
  )
  assert (recon.ssim(x, x[:, ::-1, ::-1]) < 0.9).all()


def test_streaming_means_equal_the_batch(rng):
  values = rng.normal(3, 2, size=50)
  values[7] = np.nan
  mean = recon.Mean()
  for part in np.split(values, [3, 4, 30]):
    mean.add(part)
  assert mean.count == 49
  np.testing.assert_allclose(
    [mean.mean, mean.std], [np.nanmean(values), np.nanstd(values, ddof=1)], rtol=1e-9
  )


def test_accumulator_ranks_damage(clips, rng):
  scores = []
  for sigma in (2, 8, 24):
    judge = recon.Reconstruction()
    noisy = np.clip(clips + rng.normal(0, sigma, clips.shape), 0, 255).astype(np.uint8)
    judge.update(clips, noisy)
    summary = judge.summary()
    assert summary["psnr"]["n"] == 2 and summary["psnr_moving"]["n"] == 1
    scores.append([summary[k]["mean"] for k in ("psnr", "psnr_moving", "ssim", "lpips")])
  slopes = np.diff(scores, axis=0)
  assert (slopes[:, :3] < 0).all() and (slopes[:, 3] > 0).all()


def test_blur_lowers_sharpness_and_only_unsteady_pixels_flicker(clips, rng):
  x = jnp.asarray(clips) / 255
  blurred = (x + jnp.roll(x, 1, 2) + jnp.roll(x, 1, 3) + jnp.roll(x, 2, 3)) / 4
  assert (recon.sharpness(blurred) < 0.8 * np.asarray(recon.sharpness(x))).all()
  assert np.asarray(recon.flicker(x))[1] < 1e-6
  assert np.asarray(recon.flicker(x))[0] < 2 / 255  # the square is motion, hardly flicker
  # One value per frame: all static pixels go up and down together.
  level = rng.choice([-1, 1], size=(1, 9, 1, 1, 1)).astype("f4") * np.float32(6 / 255)
  assert (recon.flicker(x + level) > 3 / 255).all()
  assert recon.grey_ratio(0.0, 0.0) == 1
