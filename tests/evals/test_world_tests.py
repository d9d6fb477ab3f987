"""Each test of the bench: answers known by construction, and the truth above its controls."""

import dataclasses
import functools

import numpy as np
import pytest

from sora_jax.errors import UserError
from sora_jax.evals import degrade, world, world_controls
from sora_jax.evals.world_cases import KNOWN, LOST, World, draw, everyday, still_lifes
from sora_jax.evals.world_tests import FASTEST, TESTS
from sora_jax.worlds.impossible import changed

COUNT = 6
SHARES = (
  "the same thing", "seen when it should be", "moves", "and stays", "the target", "momentum",
  "stays", "things", "count", "in its place",
)  # fmt: skip


@functools.cache
def worlds(name):
  return tuple(TESTS[name].worlds(COUNT, 3))


def score(name, known, clip):
  return TESTS[name].score([known], clip[None])[0]


def moved(known, clip, thing, way):
  """A clip with a thing displaced by (rows, columns) in each frame that was made; None: gone."""
  out = clip.copy()
  mask = known.mask(thing)
  for t in range(KNOWN, len(clip)):
    out[t][mask[t]] = known.empty[t][mask[t]]
    if way is not None:
      at = np.argwhere(mask[t]) + np.rint(way(t)).astype(int)
      inside = ((at >= 0) & (at < 64)).all(1)
      out[t][tuple(at[inside].T)] = clip[t][mask[t]][inside]
  return out


LONG = [f"continuity, {n} frames" for n in (33, 49)]


@pytest.mark.parametrize(
  "name", [pytest.param(n, marks=[pytest.mark.slow] if n in LONG else []) for n in TESTS]
)
def test_the_truth_is_above_its_controls(name, monkeypatch):
  monkeypatch.setattr(world, "SEARCHED", 6)
  test, known = TESTS[name], worlds(name)
  clips = {
    other: world.continuation(system, known, test, 0)
    for other, system in world.controls(test, known).items()
  }
  rows = []
  for metric, row in world.compared(name, test, known, clips, rows).items():
    share = metric.startswith(SHARES)
    assert share == ("mean" in row["truth"])
    if share:
      assert row["truth"]["mean"] > 0.6  # the oracle errs, and rarely anything else
    if row["truth"]["n"] >= COUNT:  # of a few worlds any may be easy
      assert not world_controls.unranked(row), metric
  assert len(rows) == len(clips) * COUNT


def test_what_is_empty_is_the_place_without_its_things():
  for name in ("gravity", "collision", "still scenes", "interaction", "permanence"):
    for known in worlds(name)[:2]:
      things = known.truth["segmentation"] >= 10
      assert (np.abs(known.video.astype(int) - known.empty)[things] > 20).any()
      # Shadows and smoothed edges differ too, and nothing else.
      assert np.abs(known.video.astype(int) - known.empty)[~things].mean() < 6


def test_things_are_found_where_they_are():
  for name in ("gravity", "collision", "interaction"):
    for known in worlds(name):
      for thing in range(len(known.spec.things)):
        assert np.median(known.errors(known.video, thing)) < 0.5


@pytest.mark.parametrize("shift", [(0, 3), (-4, 0), (3, -4)])
def test_errors_are_the_distance(shift):
  known = worlds("gravity")[0]
  clip = moved(known, known.video, 0, lambda t: shift)
  found = score("gravity", known, clip)["position error, px"]
  inside = known.mask(0)[KNOWN:]
  if not (inside[:, :5].any() or inside[:, -5:].any() or inside[:, :, -5:].any()):
    assert found == pytest.approx(np.hypot(*shift), abs=0.7)
  assert score("gravity", known, moved(known, known.video, 0, None)) == {
    "position error, px": LOST, f"position error, {known.spec.scene}, px": LOST
  }  # fmt: skip


def test_no_thing_is_as_fast_as_a_jump():
  fastest = max(
    np.linalg.norm(np.diff(known.places[:, 0], axis=0), axis=-1).max()
    for name in ("continuity, 17 frames", "gravity", "collision", "interaction")
    for known in worlds(name)
  )
  assert 4 < fastest < FASTEST - 1


def test_jumps_gaps_and_doubles_are_no_continuity(rng):
  waited = 0
  for known in worlds("continuity, 17 frames"):
    kept = ("moves without a jump", "and stays the only thing")
    of = lambda clip: [score("continuity, 17 frames", known, clip)[k] for k in kept]  # noqa: B023, E731
    assert all(of(known.video))
    t = KNOWN + 4
    away = 20 if known.places[t, 0, 1] < 32 else -20
    jump = moved(known, known.video, 0, lambda i, away=away: (0, away * (i == KNOWN + 4)))
    assert not any(of(jump))
    gap = known.video.copy()
    gap[t] = known.empty[t]
    assert not any(of(gap))
    far = np.linalg.norm(known.places[:, 0] - known.places[KNOWN - 1, 0], axis=-1)
    if (far > FASTEST + 1).any():  # it waits and catches up: as long a way, in one step
      late = known.video.copy()
      late[KNOWN : int(np.argmax(far > FASTEST + 1))] = known.video[KNOWN - 1]
      assert not any(of(late))
      waited += 1
    masks = known.mask(0)
    double = degrade.doubled(known.video, masks, rng)
    double[: KNOWN + 2] = known.video[: KNOWN + 2]
    assert not of(double)[1]
  assert waited


def test_another_thing_or_another_time_is_no_permanence(rng):
  passing = [
    known for known in TESTS["permanence"].worlds(14, 5)
    if known.spec.motion.startswith("passes") and len(known.spec.things) == 1
  ][:2]  # fmt: skip
  assert passing
  key = "seen when it should be, where it comes back"
  shown = []
  for known in passing:
    after = 1 + int(np.flatnonzero(known.truth["visibility"][:, 0] < 0.05)[-1])
    wrong, gone, late, slightly = (known.video.copy() for _ in range(4))
    wrong[after:] = World.film(changed(known.spec, "colour", rng, 0.0), "", 17).video[after:]
    for clip in (gone, late, slightly):
      clip[after:] = known.empty[after:]
    late[after + 4 :] = known.video[after : 17 - 4]
    slightly[after + 1 :] = known.video[after:16]
    shown += [known.video, slightly, wrong, gone, late]
  known = [known for known in passing for _ in range(5)]
  found = [row[key] for row in TESTS["permanence"].score(known, np.stack(shown))]
  assert found == [True, True, False, False, False] * len(passing)


def test_momentum_is_passed_on():
  for known in worlds("collision"):
    assert score("collision", known, known.video)["momentum goes where it should"]
    rest = known.places[KNOWN - 1, 1]
    stuck = moved(known, known.video, 1, lambda t, k=known, r=rest: r - k.places[t, 1])
    found = score("collision", known, stuck)
    assert not found["the target moves on"] and not found["momentum goes where it should"]
    twice = moved(known, known.video, 1, lambda t, k=known, r=rest: -2 * (k.places[t, 1] - r))
    assert not score("collision", known, twice)["the target moves on"]


def test_what_was_pushed_stays():
  for known in worlds("interaction"):
    assert score("interaction", known, known.video)["stays where it was pushed"]
    side = np.sign(known.places[-1, 0] - known.places[0, 0])[1]
    back = moved(known, known.video, 0, lambda t, s=side: (0, -s * max(0, t - 10) * 2))
    found = score("interaction", known, back)
    assert not found["stays where it was pushed"] and found["position error at the end, px"] > 6
    start = known.places[KNOWN - 1, 0]
    left = moved(known, known.video, 0, lambda t, k=known, s=start: s - k.places[t, 0])
    assert not score("interaction", known, left)["stays where it was pushed"]


def test_what_is_missing_or_too_much_is_counted(rng):
  known = worlds("still scenes")[3]
  assert len(known.spec.things) == 4
  assert all(score("still scenes", known, known.video)["things in their places"])
  assert score("still scenes", known, known.video)["count right"]
  fewer = dataclasses.replace(known.spec, things=known.spec.things[:3])
  found = score("still scenes", known, World.film(fewer, "", 17).video)
  assert sum(found["things in their places"]) == 3 and not found["count right"]
  more = known.video.copy()
  more[:, 2:12, 2:12] = (255, 0, 200)
  found = score("still scenes", known, more)
  assert all(found["things in their places"]) and not found["count right"]


def test_still_lifes_have_one_to_six_things():
  assert [len(known.spec.things) for known in worlds("still scenes")] == [1, 2, 3, 4, 5, 6]
  assert all((known.areas[-1] > 20).all() for known in still_lifes(3, 8, 17))


def test_worlds_are_held_out_and_their_own():
  first, again, other = (TESTS["gravity"].worlds(2, seed) for seed in (1, 1, 2))
  for one, same, different in zip(first, again, other, strict=True):
    np.testing.assert_array_equal(one.video, same.video)
    assert one.prompt == same.prompt and one.spec != different.spec
    assert everyday(one.spec)


def test_worlds_that_there_are_not_are_refused(monkeypatch):
  monkeypatch.setattr("sora_jax.evals.world_cases.TRIES", 2)
  with pytest.raises(UserError, match="no 2 worlds of roll"):
    draw(2, 0, ("roll",), 17, lambda spec: False, lambda world: True)
