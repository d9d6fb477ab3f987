"""Optical flow where it is known, and the warp error of clips that keep to their flow or do not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage
from skimage import registration

from sora_jax.evals import flow

tvl1 = jax.jit(flow.tvl1)


@pytest.fixture(scope="module")
def texture():
  noise = np.random.default_rng(2).normal(size=(64, 64))
  smooth = ndimage.gaussian_filter(noise, 2.5)
  return ((smooth - smooth.min()) / np.ptp(smooth)).astype("f4")


def _moved(image, shift):
  return ndimage.shift(image, shift, order=3, mode="nearest")[12:52, 12:52]


def test_flow_of_a_shift_is_the_shift_and_agrees_with_scikit_image(texture):
  for shift in ((0, 0), (1.5, -2.25), (-3, 2)):
    pair = _moved(texture, (0, 0)), _moved(texture, shift)
    found = np.asarray(tvl1(*pair))
    inside = np.s_[6:-6, 6:-6]
    assert np.abs(found[inside] - shift).mean() < 0.1
    theirs = registration.optical_flow_tvl1(*pair).transpose(1, 2, 0)
    assert np.abs(found - theirs)[inside].mean() < 0.15


def test_sampling_is_bilinear_and_repeats_the_border(rng):
  image = jnp.asarray(rng.uniform(size=(9, 11, 3)), jnp.float32)
  move = jnp.asarray(rng.uniform(-6, 6, size=(9, 11, 2)), jnp.float32)
  place = np.moveaxis(np.indices((9, 11)), 0, -1) + move
  for channel in range(3):
    expected = ndimage.map_coordinates(
      image[..., channel], np.moveaxis(place, -1, 0), order=1, mode="nearest"
    )
    np.testing.assert_allclose(flow.sampled(image, move)[..., channel], expected, atol=1e-5)
    np.testing.assert_allclose(flow.sampled(image[..., channel], move), expected, atol=1e-5)


def test_what_does_not_come_back_is_occluded():
  there = jnp.zeros((8, 10, 2)).at[..., 1].set(2.0)
  assert flow.visible(there, -there).all()
  back = (-there).at[:, 6:].set(0.0)  # what comes to rest there was moving
  seen = np.asarray(flow.visible(there, back))
  assert not seen[:, 4:].any() and seen[:, :4].all()


def test_warp_error_is_that_of_noise_that_no_flow_explains(texture, rng):
  still = np.repeat((texture[None, ..., None] * 180 + 30), 6, axis=0).repeat(3, axis=-1)
  noise = rng.normal(0, 12, size=still.shape)
  clips = np.stack([still, still + noise, still + 2 * noise]).round().astype(np.uint8)
  found = flow.warp_error(clips)
  assert found[0] == 0
  # Two independent draws differ by sqrt(2) sigma; the flow explains some of it away.
  assert 0.5 < found[1] / (np.sqrt(2) * 12 / 255) < 1.1
  assert found[2] > 1.5 * found[1]
  np.testing.assert_allclose(flow.warp_error(clips[1:2]), found[1:2], rtol=1e-6)


def test_warp_error_follows_motion_and_sees_frames_out_of_order(texture, rng):
  clip = np.stack([_moved(texture, (0.7 * t, -1.1 * t)) for t in range(9)])
  clip = (clip[..., None] * 200 + 20).repeat(3, axis=-1).round().astype(np.uint8)
  still_difference = np.sqrt(np.mean(np.square(np.diff(clip / 255, axis=0))))
  ordered, shuffled = flow.warp_error(np.stack([clip, clip[rng.permutation(9)]]))
  assert ordered < 0.3 * still_difference
  assert shuffled > 1.5 * ordered
