"""The measures of movement on clips whose worth is known, and the suite on a model that copies."""

import numpy as np
import pytest

from sora_jax.evals import motion, tasks
from sora_jax.evals.report import table


@pytest.fixture(scope="module")
def cases():
  return tasks.cases(6, 0)


def test_objects_are_found_where_the_simulator_has_them(cases):
  for case in cases:
    behind = motion.background(case.video, case.thing)
    errors = [
      np.linalg.norm(motion.find(frame, behind, case.colour) - motion.centre(thing))
      for frame, thing in zip(case.video, case.thing, strict=True)
    ]
    assert np.median(errors) < 1


def test_a_cut_is_a_seam_and_an_even_movement_is_none(cases):
  x = np.zeros((12, 32, 32, 3), np.uint8)
  for t in range(12):
    x[t, 8:16, 2 * t : 2 * t + 8] = 200
  assert motion.seam(x, [5]) == pytest.approx(1)
  assert motion.seam(x, [0], cyclic=True) > 3
  other = x.copy()
  other[6:] = 255 - x[6:]
  assert motion.seam(other, [6]) > 10 and motion.seam(other, [5]) == pytest.approx(1)
  assert np.isnan(motion.seam(x[[0] * 5], [1]))


def test_tracks_agree_with_themselves_and_not_with_their_mirror_image(cases):
  moving = [case for case in cases if case.labels["motion"] in ("left", "right", "swings")]
  assert moving
  for case in moving:
    track = motion.track(case.video)
    mirrored = motion.track(case.video[:, :, ::-1])
    assert motion.agreement(track, track) == pytest.approx(1)
    assert motion.agreement(track, mirrored) < -0.8
  assert motion.agreement(track, np.full_like(track, np.nan)) == 0


def test_a_border_shows_where_a_region_was_replaced(cases):
  known = np.ones((64, 64), bool)
  known[16:48, 16:48] = False
  plain = np.median([motion.border(case.video, known) for case in cases])
  torn = np.median([
    motion.border(np.where(known[None, ..., None], case.video, 255 - case.video), known)
    for case in cases
  ])  # fmt: skip
  assert plain < 1.3 and torn > 2


class Copy:
  """Knows the worlds of the suite: whatever is asked for, it is shown as it really was."""

  def __init__(self, honest):
    self.honest = honest

  def sample(self, prompts, *, canvas=None, seed=0, frames=None, size=None, progress=False):
    count = 1 if isinstance(prompts, str) else len(prompts)
    if canvas is None:
      made = np.random.default_rng(seed).integers(0, 256, (count, frames, *size, 3), np.uint8)
    else:
      made = canvas.video[:, : canvas.shown]
      made = np.repeat(made, count // len(made), axis=0)
      if not self.honest:
        made = np.where(canvas.known[: made.shape[1], ..., None], made, 255 - made[:, ::-1])
    return made[0] if isinstance(prompts, str) else made

  def reconstruct(self, video):
    return video


@pytest.mark.parametrize("honest", [True, False])
def test_the_suite_tells_a_copy_from_a_fake(honest, monkeypatch):
  monkeypatch.setattr(tasks, "SHAPES", {"image": (1, 64, 64)})
  metrics = tasks.suite(Copy(honest), 2, 0).metrics
  assert metrics["extend"]["given frames exactly as decoded"]["mean"] == 1
  fill = metrics["fill"]["middle third"]
  assert (fill["position error, px"]["median"] < 1) == honest
  assert (fill["seam"]["median"] < 1.5) == honest
  assert fill["of interpolated positions, px"]["median"] > 0.1
  assert (metrics["inpaint"]["seam across the border"]["median"] < 1.5) == honest
  assert (metrics["edit"]["strength 0.4"]["motion kept, correlation"]["median"] > 0.9) == honest
  assert metrics["loop"]["of real loops"]["median"] < 1.5
  assert "position error" in table(metrics)
