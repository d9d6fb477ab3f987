"""Known frames, warped by the simulator's depth and cameras, are what later cameras see."""

import functools

import numpy as np
import pytest

from sora_jax.evals import reprojection
from sora_jax.worlds import Camera, Spec, Thing, render
from sora_jax.worlds.film import FLOOR

KNOWN = 3


@functools.cache
def still(kind):
  things = (
    Thing("cube", "red", "medium", 0.49, (0.0, 0.0, 0.42), yaw=0.4),
    Thing("ball", "blue", "small", 0.4, (0.9, 0.5, 0.4)),
  )
  camera = Camera(kind=kind, elevation=0.45, fov=0.8, amount=1.5 if kind != "zoom_in" else 1.4)
  spec = Spec("still_life", "stays", things, floor="checkered", camera=camera)
  return render(spec, 7, 64, 64, truth=True)


def test_points_are_seen_where_they_are_seen():
  """To a frame's own camera, and to another one: what is projected is a pixel of the same thing."""
  truth = still("orbit_left").truth
  where = reprojection.points(truth, 2)
  at, depth = reprojection.project(truth, 2, where)
  np.testing.assert_allclose(at, np.indices((64, 64)), atol=1e-4)
  np.testing.assert_allclose(depth, truth["depth"][2], rtol=1e-5)
  floor = truth["segmentation"][2] == FLOOR
  assert np.abs(where[floor][:, 2]).max() < 0.05
  ball = where[truth["segmentation"][2] == 11]
  np.testing.assert_allclose(np.linalg.norm(ball - (0.9, 0.5, 0.4), axis=-1), 0.4, atol=0.03)


@pytest.mark.parametrize("kind", ["orbit_left", "orbit_right", "pan_left", "zoom_in"])
def test_the_true_views_agree_and_others_do_not(kind):
  clip = still(kind)
  video, truth = clip.video, clip.truth
  seen = [reprojection.expected(video, truth, t, KNOWN)[1].mean() for t in range(7)]
  assert min(seen[:KNOWN]) == 1 and 0.5 < seen[-1] < 1
  true = reprojection.errors(video, video, truth, KNOWN)
  frozen = video[np.minimum(np.arange(7), KNOWN - 1)]
  swapped = video[[0, 1, 2, 6, 5, 4, 3]]
  for other in (frozen, swapped):
    worse = reprojection.errors(other, video, truth, KNOWN)
    assert worse[0] > 1.5 * true[0] and worse[1] > 1.5 * true[1]
  assert true[0] < 8


def test_the_error_is_the_difference(rng):
  """A known one is added: everywhere, or on one thing alone."""
  clip = still("orbit_left")
  video = (clip.video // 2).astype(np.uint8)
  base = reprojection.errors(video, video, clip.truth, KNOWN)
  expected = [reprojection.expected(video, clip.truth, t, KNOWN) for t in range(KNOWN, 7)]
  made = video.copy()
  made[KNOWN:] = [np.rint(image + 40) for image, _ in expected]
  everywhere, near = reprojection.errors(made, video, clip.truth, KNOWN)
  assert everywhere == pytest.approx(40, abs=0.3) and near == pytest.approx(40, abs=0.3)
  ball = clip.truth["segmentation"] == 11
  made = np.where(ball[..., None], 255 - video, video)
  everywhere, near = reprojection.errors(made, video, clip.truth, KNOWN)
  assert near - base[1] > 3 * (everywhere - base[0]) > 0


def test_what_was_hidden_is_not_asked_about():
  """A pixel of the floor that the cube covers in all known frames is no pixel of the error."""
  clip = still("orbit_left")
  image, seen = reprojection.expected(clip.video, clip.truth, 6, KNOWN)
  where = reprojection.points(clip.truth, 6)
  hidden = np.ones((64, 64), bool)
  for source in range(KNOWN):
    at, z = reprojection.project(clip.truth, source, where)
    row, column = np.clip(np.rint(at), 0, 63).astype(int)
    hidden &= clip.truth["depth"][source][row, column] < 0.9 * z
  assert hidden.sum() > 20 and not seen[hidden].any()
  assert not image[~seen].any()
