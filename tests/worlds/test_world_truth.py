"""Worlds as physics and pixels: trajectories, periods, occlusion, segmentation, antialiasing."""

import dataclasses

import numpy as np
import pytest

from sora_jax import worlds
from sora_jax.worlds import film, looks, physics

THING = film.THING


def _specs(scene, count=6, split="train", **fields):
  source = worlds.WorldSource(count, seed=11, split=split, scenes=[scene])
  return [dataclasses.replace(source.spec(i), **fields) for i in range(count)]


def _direction(spec):
  return {"left": -1, "right": 1}[spec.motion.rpartition("_")[2]]


@pytest.mark.parametrize("scene", ["roll", "bounce", "collide", "push", "topple", "occlusion"])
def test_motion_does_not_depend_on_the_frame_rate(scene):
  for spec in _specs(scene, 2):
    slow = physics.move(spec, np.arange(17) / 8, 17 / 8)
    fast = physics.move(spec, np.arange(49) / 24, 49 / 24, contacts=False)
    odd = physics.move(spec, np.arange(15) / 7, 15 / 7)
    np.testing.assert_allclose(slow.position, fast.position[::3], atol=1e-9)
    np.testing.assert_allclose(slow.rotation, fast.rotation[::3], atol=1e-9)
    np.testing.assert_allclose(odd.position[7], slow.position[8], atol=1e-9)


@pytest.mark.parametrize("scene", ["pendulum", "orbit"])
@pytest.mark.parametrize("frames", [9, 17, 40])
def test_periodic_clips_loop(scene, frames):
  for spec in _specs(scene, 3):
    clip = physics.move(spec, np.arange(2 * frames) / 8, frames / 8)
    np.testing.assert_allclose(clip.position[:frames], clip.position[frames:], atol=1e-9)
    np.testing.assert_allclose(clip.rotation[:frames], clip.rotation[frames:], atol=1e-9)
    # The step from the last frame to the first is no longer than the others.
    steps = np.linalg.norm(np.diff(clip.position[: frames + 1, 0], axis=0), axis=-1)
    assert steps[-1] <= steps.max() and steps.max() > 0.1
    # And the velocity is the derivative.
    fine = physics.move(spec, np.arange(400) / 400, frames / 8)
    numeric = np.gradient(fine.position[:, 0], 1 / 400, axis=0)
    np.testing.assert_allclose(numeric[1:-1], fine.velocity[1:-1, 0], atol=0.02)


def test_objects_do_what_the_motion_says():
  for scene in ("roll", "push", "collide", "topple", "fall", "bounce"):
    for spec in _specs(scene):
      move = physics.move(spec, np.arange(17) / 8, 17 / 8)
      way = move.position[-1, 0] - move.position[0, 0]
      kind = worlds.motion_family(spec.motion)
      if kind == "across":
        assert way[0] * _direction(spec) > 1.2
      elif kind == "depth":
        assert way[1] * (1 if spec.motion == "away" else -1) > 3
      elif kind == "pushed":
        assert way[0] * _direction(spec) > 0.8
        assert np.abs(move.position[-1, 0] - move.position[-4, 0]).max() < 0.01
      elif kind == "hits":
        pairs = {(c.first, c.second) for c in move.contacts}
        assert (0, 1) in pairs
        assert (move.position[-1, 1, 0] - move.position[0, 1, 0]) * _direction(spec) > 0.5
      elif kind == "topples":
        assert move.position[-1, 0, 2] < 0.5 * move.position[0, 0, 2]
      elif kind == "falls":
        assert way[2] < -0.8 and np.abs(move.velocity[-1, 0]).max() < 0.2
      elif kind == "bounces":
        floor = [c.time for c in move.contacts if c.second == "floor" and c.first == 0]
        assert len(floor) >= 2 and np.ptp(move.position[:, 0, 2]) > 0.8


def test_occlusion_events_tell_the_same_story_as_the_motion():
  source = worlds.WorldSource(90, seed=5, scenes=["occlusion"], truth=True, height=48, width=48)
  found: dict[str, list[int]] = {"passes": [], "hides": [], "stays": []}
  for i in range(len(source)):
    found[worlds.motion_family(source.spec(i).motion)].append(i)
  for i in [i for some in found.values() for i in some[:3]]:
    truth = source[i]["truth"]
    motion = truth["labels"]["motion"]
    mine = [e for e in truth["events"] if e.get("thing") == 0]
    story = [e["type"] for e in mine]
    shown = truth["visibility"][:, 0]
    if motion.startswith("passes"):
      assert story == ["occluded", "reappears"]
      assert mine[0]["time"] < mine[1]["time"]
      hidden = (truth["times"] >= mine[0]["time"]) & (truth["times"] < mine[1]["time"])
      assert shown[hidden].max() < 0.3
      columns = np.nonzero((truth["segmentation"][-3] == THING).any(0))[0]
      assert (columns.mean() > 24) == motion.endswith("right")
    elif motion == "hides":
      assert story == ["occluded"] and shown[-1] == 0
    else:
      assert story == [] and shown.min() > 0.9
  assert all(found.values())


def test_segmentation_visibility_and_depth_agree():
  source = worlds.WorldSource(5, seed=8, truth=True, frames=5, scenes=["orbit", "still_life"])
  for i in range(5):
    truth = source[i]["truth"]
    count = truth["labels"]["count"]
    assert truth["visibility"].shape == (5, count) and len(truth["spec"]["things"]) == count
    seg = truth["segmentation"]
    for thing in range(count):
      share = (seg == THING + thing).mean((1, 2))
      np.testing.assert_allclose(share, truth["coverage"][:, thing], atol=0.01)
      assert np.all((share > 0.01) <= (truth["visibility"][:, thing] > 0))
    assert truth["depth"][seg >= THING].max() < truth["depth"][seg == 0].min()
    # The main object's pixels are where the camera projects its centre, at its distance.
    t = 2
    forward = truth["camera_forward"][t]
    offset = truth["position"][t, 0] - truth["camera_position"][t]
    along = offset @ forward
    y = offset @ truth["camera_up"][t] / (along * truth["camera_tangent"][t])
    x = offset @ np.cross(forward, truth["camera_up"][t]) / (along * truth["camera_tangent"][t])
    row, column = round(32 - 32 * y), round(32 + 32 * x)
    if truth["visibility"][t, 0] > 0.99:
      assert seg[t, row, column] == THING
      assert abs(truth["depth"][t, row, column] - along) < 1.0


def test_looks_show_the_main_colour():
  spec = dataclasses.replace(_specs("roll", 1)[0], light="day")
  red = dataclasses.replace(spec.main, colour="red")
  green = dataclasses.replace(spec.main, colour="green")
  for look in worlds.VOCABULARY.looks:
    clips = [
      worlds.render(dataclasses.replace(spec, look=look, things=(thing,)), 3, 48, 48).video
      for thing in (red, green)
    ]
    inside = worlds.render(spec, 3, 48, 48, truth=True).truth["segmentation"] == THING
    r, g = (clip[inside].mean(0) for clip in clips)
    assert r[0] > 1.5 * r[1] and g[1] > 1.5 * g[0], look


def test_frames_are_antialiased(rng):
  spec = dataclasses.replace(_specs("roll", 1)[0], look="plain")
  video = worlds.render(spec, 2, 64, 64).video
  scale = film.supersampling(64, 64)
  shots = rng.integers(0, 256, (2, 64 * scale, 64 * scale, 3)).astype(np.uint8)
  mean = shots.reshape(2, 64, scale, 64, scale, 3).mean((2, 4))
  np.testing.assert_allclose(looks.shrink(shots, scale), mean, atol=0.51)
  # A sharp silhouette has pixels between its two sides.
  assert len(np.unique(video[0].reshape(-1, 3), axis=0)) > 100
