"""The plan of a canvas, and what its windows are told."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sora_jax.errors import UserError
from sora_jax.generate import canvas as canvases
from sora_jax.generate import tasks
from sora_jax.generate.canvas import Canvas, Plan, in_grid, known_latents, legal, stretches, windows

CLIP = np.zeros((9, 16, 16, 3), np.uint8)
masks = st.lists(st.booleans(), min_size=17, max_size=60).map(np.array)


def frames(known, height=16, width=16):
  """A mask of whole frames."""
  return np.tile(np.asarray(known, bool)[:, None, None], (1, height, width))


@given(masks)
def test_windows_make_every_unknown_frame_and_begin_beside_a_known_one(known):
  done = known.copy()
  for start in windows(known, 17, 4):
    part = done[start : start + 17]
    assert len(part) and not part.all()
    assert part.any() or not done.any()
    done[start : start + 17] = True
  assert done.all()


def test_windows_go_forward_with_their_context_and_backward_from_what_is_known():
  assert windows(np.arange(33) < 9, 17, 4) == [0, 8, 16]
  assert windows(np.arange(33) >= 24, 17, 4) == [16, 8, 0]
  assert windows(np.zeros(17, bool), 17, 4) == [0]
  assert windows(np.ones(40, bool), 17, 4) == []


def test_the_last_window_of_a_gap_sees_both_of_its_sides():
  gap = lambda count: (np.arange(60) < 20) | (np.arange(60) >= 20 + count)  # noqa: E731
  assert windows(gap(8), 17, 4) == [15]  # 5 frames before it, 4 after it
  assert windows(gap(12), 17, 4) == [19]
  assert windows(gap(16), 17, 4) == [11, 23]
  assert windows(gap(20), 17, 4) == [11, 27]


def test_a_clip_of_any_length_is_one_window_if_it_is_short():
  for count in (1, 2, 5, 6, 16, 17):
    plan = Plan.of(canvases.blank(1, count, (16, 16)), 17, 4)
    assert plan.starts == [0] and plan.length == legal(count + 3, 4)


@given(masks)
def test_what_is_told_is_known_and_covers_all_that_is(known):
  mask = frames(known)
  told = np.zeros(len(known), int)
  told[: in_grid(mask, 4)] += 1
  for part in stretches(mask, 4):
    assert (part.stop - part.start) % 4 == 1 and part.stop <= len(known)
    told[part] += 1
  np.testing.assert_array_equal(told, known)


def test_a_latent_is_known_if_all_it_sees_is():
  known = frames(np.arange(9) < 7)
  np.testing.assert_array_equal(
    known_latents(Canvas(CLIP[None], known), 4, 8)[:, 0, 0], [True, True, False]
  )
  spatial = np.ones((9, 16, 16), bool)
  spatial[6, 3, 12] = False
  cells = known_latents(Canvas(CLIP[None], spatial), 4, 8)
  assert not cells[2, 0, 1] and cells.sum() == cells.size - 1


def test_tasks_say_what_is_known():
  clip = np.arange(6 * 16 * 16 * 3, dtype=np.uint8).reshape(6, 16, 16, 3)
  when = lambda canvas: canvas.known.all(axis=(1, 2)).astype(int).tolist()  # noqa: E731
  assert when(tasks.animate(clip[0], 5)) == [1, 0, 0, 0, 0]
  assert when(tasks.extend(clip, 2)) == [1] * 6 + [0] * 2
  assert when(tasks.extend(clip, 2, "backward")) == [0] * 2 + [1] * 6
  assert when(tasks.extend(clip, 1, "both")) == [0] + [1] * 6 + [0]
  assert when(tasks.connect(clip[:2], clip[3:], 3)) == [1, 1, 0, 0, 0, 1, 1, 1]
  assert when(tasks.fill(clip, [(1, 2), (4, 4)])) == [1, 0, 0, 1, 0, 1]
  assert when(tasks.loop_of(clip[:2], 3)) == [1, 1, 0, 0, 0, 1, 1]
  assert tasks.loop_of(clip[:2], 3).shown == 5
  assert when(tasks.loop(8, (16, 16))) == [0] * 8 and tasks.loop(8, (16, 16)).loop
  mixed = tasks.blend(clip, clip[::-1], 0.5).video[0]
  np.testing.assert_array_equal(mixed[0], clip[0])
  np.testing.assert_array_equal(mixed[-1], clip[0])
  np.testing.assert_array_equal(tasks.connect(clip[:2], clip[3:], 3).video[0, 5:], clip[3:])
  wide = tasks.outpaint(clip, (16, 32))
  assert wide.known[:, :, 8:24].all() and wide.known.sum() == clip[..., 0].size
  np.testing.assert_array_equal(wide.video[0][:, :, 8:24], clip)
  mask = np.zeros((16, 16), bool)
  mask[:8] = True
  np.testing.assert_array_equal(tasks.inpaint(clip, mask).known[3], ~mask)
  assert not tasks.edit(clip, 0.5).known.any()


SHORT = CLIP[:6]


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda: tasks.extend(SHORT, 0), "more frames than 0"),
    (lambda: tasks.extend(SHORT, 4, "sideways"), "choose one of forward"),
    (lambda: tasks.connect(SHORT, SHORT[:, :8], 4), "16x16 and 8x16"),
    (lambda: tasks.blend(SHORT, SHORT[:, :8], 0.5), "16x16 and 8x16"),
    (lambda: Plan.of(tasks.loop(10, (16, 16)), 17, 4), "4k frames, not 10; use 8"),
    (lambda: Canvas(SHORT[None], np.ones((6, 16, 16), bool), loop=True), "tasks.loop_of"),
    (lambda: tasks.fill(SHORT, [(4, 6)]), "4-6 are not in 0-5"),
    (lambda: tasks.fill(SHORT, [(1, 3), (3, 4)]), "3-4 overlap"),
    (lambda: tasks.inpaint(SHORT, np.zeros((16, 16), bool)), "Nothing is to be made"),
    (lambda: tasks.inpaint(SHORT, np.ones((16, 16), bool)), "Nothing is known"),
    (lambda: tasks.inpaint(SHORT, np.ones((2, 8, 8), bool)), "mask is 2x8x8"),
    (lambda: tasks.outpaint(SHORT, (8, 32)), "must hold the video's 16x16"),
    (lambda: tasks.edit(SHORT, 0.0), "between 0 and 1"),
    (lambda: Canvas(SHORT[None], np.ones((6, 16, 8), bool)), "mask is 6x16x8"),
  ],
)
def test_what_makes_no_sense_is_refused(make, message):
  with pytest.raises(UserError, match=message):
    make()
