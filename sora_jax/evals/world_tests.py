"""What is asked of a continuation, and how the answer is read off its pixels.

A test draws worlds, gives the first `KNOWN` frames of each, and scores what comes after them.
Things are found by their colours, against the simulator's own picture of the place without them, so
no judge is needed but for shape. A score is a flag (or one for each thing), of which the share of
right ones is reported, or an error, of which the median is; shares are better high, errors low.
Each ranks the simulator's own continuation above a frozen frame, linear motion, shuffled frames and
the nearest training clip (`world_controls`, docs/world.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from sora_jax.evals import motion, reprojection
from sora_jax.evals.adherence import FRAMES, Judge
from sora_jax.evals.features import Clips
from sora_jax.evals.world_cases import KNOWN, LEAST, World, draw, everyday, in_sight, still_lifes
from sora_jax.typing import Clip
from sora_jax.worlds.spec import Spec

Scores = dict[str, bool | float | list[bool]]

FASTEST = 14.0  # px a frame: no thing of these worlds is as fast
NEAR = 6.0  # px: about a third of a thing's width
HIDDEN, BACK = 0.3, 0.5  # parts of a thing that count as none of it, and as it
ALIKE = (0.7, 1.4)  # areas over the true one that count as the same size
STRANGE = 0.25  # least distance of the hue of what stands out from that of what is behind it
LAST = 4  # frames that tell how it ended
TAIL = 8  # frames that tell how a longer clip goes on


@dataclass(frozen=True)
class Test:
  """One question about the world.

  Attributes:
    worlds: (count, seed) -> worlds. score: what is read off a continuation of each of them.
    scenes: that the training clips are of, among which the nearest is looked for.
    frames: of a clip, given and made.
  """

  worlds: Callable[[int, int], list[World]]
  score: Callable[[Sequence[World], Clips], list[Scores]]
  scenes: tuple[str, ...]
  frames: int = FRAMES


def _test(
  score: Callable[[World, Clip], Scores],
  scenes: tuple[str, ...],
  wanted: Callable[[Spec], bool] = everyday,
  accept: Callable[[World], bool] = in_sight,
  frames: int = FRAMES,
) -> Test:
  """A test that looks at one clip at a time."""
  return Test(
    lambda count, seed: draw(count, seed, scenes, frames, wanted, accept),
    lambda worlds, clips: [score(*pair) for pair in zip(worlds, clips, strict=True)],
    scenes,
    frames,
  )


def permanence(worlds: Sequence[World], clips: Clips) -> list[Scores]:
  """What goes behind a wall comes out again as it was, when it should; nothing else does.

  By the oracle (`adherence.Reading.permanent`), and by pixels: hidden where it is hidden, back
  within two frames of the true one, and of the same colour and size. Of a thing that stays behind
  the wall, and of the empty control, everything but the return is asked.
  """
  out: list[Scores] = []
  for world, clip, read in zip(worlds, clips, Judge()(clips), strict=True):
    labels = world.spec.labels
    kind = labels["motion"].partition("_")[0]
    same = read.permanent(labels["colour"], labels["shape"], labels["motion"])
    seen = _sightings(world, clip)
    scores: Scores = {"the same thing": same, "seen when it should be": seen}
    if kind == "passes":
      scores |= {f"{name}, where it comes back": scores[name] for name in tuple(scores)}
    out.append(scores)
  return out


def _sightings(world: World, clip: Clip) -> bool:
  true = world.areas[:, 0]
  full = np.median(true[true > BACK * true.max()])
  made = np.array([mask.sum() for mask in world.found(clip)])
  visible = world.truth["visibility"][:, 0]
  hidden = np.flatnonzero(visible[KNOWN:] < 0.05) + KNOWN
  if not len(hidden):  # it rests beside the wall
    return bool((world.errors(clip) < NEAR).all()) and _alike(made[KNOWN:], true[KNOWN:])
  if (made[hidden[1:-1]] > HIDDEN * full).any():  # but for a frame at each end
    return False
  after = np.arange(len(true)) > hidden[0]
  returns, back = after & (true > BACK * full), after & (made > BACK * full)
  if not returns.any():
    return not back.any()
  if not back.any() or abs(int(np.argmax(back)) - int(np.argmax(returns))) > 2:
    return False
  both = returns & back
  return not both.any() or _alike(made[both], true[both])


def _alike(made: np.ndarray, true: np.ndarray) -> bool:
  return bool(ALIKE[0] <= np.median(made / true) <= ALIKE[1])


def continuity(world: World, clip: Clip) -> Scores:
  """A thing in sight moves on, never jumps, is never gone, stays the only one, ends in its place.

  Its way must be from half to twice as long as the true one; it jumps if it moves more than
  `FASTEST` from one frame to the next. The last `TAIL` frames tell where it ends.
  """
  masks = world.found(clip)
  places = np.stack([motion.centre(mask) for mask in masks])
  there = not np.isnan(places[KNOWN:]).any()
  way = np.linalg.norm(np.diff(places[KNOWN - 1 :], axis=0), axis=-1)
  true = np.linalg.norm(np.diff(world.places[KNOWN - 1 :, 0], axis=0), axis=-1)
  steady = there and bool(way.max() <= FASTEST and 0.5 <= way.sum() / true.sum() <= 2)
  alone = not any(strangers(world, clip, t, masks[t]) for t in range(KNOWN, len(clip)))
  errors = world.errors(clip)[-TAIL:]
  return {
    "moves without a jump": steady,
    "and stays the only thing": steady and alone,
    "in its place at the end": bool(np.median(errors) < NEAR),
    "position error at the end, px": float(errors.mean()),
  }


def strangers(world: World, clip: Clip, t: int, known: np.ndarray) -> int:
  """Parts of frame t that stand out from the place, in colour too, and do not touch `known`."""
  x, behind = clip[t].astype(np.float32), world.empty[t].astype(np.float32)
  apart = np.linalg.norm(x - behind, axis=-1) > motion.STANDS_OUT
  coloured = np.linalg.norm(motion.hue(x) - motion.hue(behind), axis=-1) > STRANGE
  parts = motion.parts((apart & coloured) | known, 2 * LEAST)
  return sum(not (part & known).any() for part in parts)


def trajectory(world: World, clip: Clip) -> Scores:
  """How far a thing that falls or bounces is from its place, on average over the frames made."""
  error = float(world.errors(clip).mean())
  return {"position error, px": error, f"position error, {world.spec.scene}, px": error}


def collision(world: World, clip: Clip) -> Scores:
  """What is hit moves on, as far as it should, and so does what hit it.

  Momentum goes where it should if both end near their true places.
  """
  tracks = world.track(clip, 1), world.places[:, 1]
  way, true = (track[-1] - world.places[KNOWN - 1, 1] for track in tracks)
  along = float(way @ true) / float(true @ true)
  errors = [world.errors(clip, thing) for thing in (0, 1)]
  return {
    "the target moves on": 0.5 <= along <= 1.5,
    "momentum goes where it should": all(error[-LAST:].mean() < NEAR for error in errors),
    "position error of the target, px": float(errors[1].mean()),
  }


def hit_in_time(world: World) -> bool:
  """The things touch after the frames that are given, early enough for what follows to be seen."""
  times = [
    event["time"] * 8
    for event in world.truth["events"]
    if event["type"] == "contact" and {event["first"], event["second"]} == {0, 1}
  ]
  return bool(times) and KNOWN - 1 < times[0] < 10 and in_sight(world)


def interaction(world: World, clip: Clip) -> Scores:
  """What was pushed lies where it was pushed to, once the paddle has gone back, and stays there."""
  end = world.track(clip)[-LAST:]
  error = float(world.errors(clip)[-LAST:].mean())
  rests = bool(np.ptp(end, axis=0).max() < 2) and not np.isnan(end).any()
  return {
    "stays where it was pushed": rests and error < NEAR,
    "position error at the end, px": error,
  }


def pushed_on(world: World) -> bool:
  """In the frames that are given the push is under way and not over."""
  way = np.linalg.norm(world.places[-1, 0] - world.places[KNOWN - 1, 0])
  return bool(way > NEAR) and in_sight(world)


def still_scene(world: World, clip: Clip) -> Scores:
  """A moving camera shows one scene, in which all things at rest stay what and where they are.

  How far the views are from the true surfaces is the error of `reprojection`, in grey levels. In
  the last frame a thing is there if something of its colour is near its place, and the count is
  right if all are there and nothing else is.
  """
  everywhere, around = reprojection.errors(clip, world.video, world.truth, KNOWN)
  t = len(clip) - 1
  colours, known = world.segment(clip[t], t), np.zeros(clip.shape[1:3], bool)
  there = []
  for thing, place in enumerate(world.places[t]):
    parts = motion.parts(colours == thing, LEAST)
    near = [part for part in parts if np.linalg.norm(motion.centre(part) - place) < NEAR]
    there.append(bool(near))
    known |= np.any(near, axis=0) if near else False
  right = all(there) and not strangers(world, clip, t, known)
  few = "1 to 3" if len(there) <= 3 else "4 to 6"
  return {
    "reprojection error": everywhere,
    "reprojection error around things": around,
    "things in their places": there,
    "count right": right,
    f"count right, {few}": right,
  }


LENGTHS = (17, 33, 49)
TESTS: dict[str, Test] = {
  "permanence": Test(
    lambda count, seed: draw(
      count, seed, ("occlusion",), FRAMES, lambda spec: spec.look == "plain", lambda world: True
    ),
    permanence,
    ("occlusion",),
  ),
  "gravity": _test(trajectory, ("fall", "bounce")),
  "collision": _test(collision, ("collide",), accept=hit_in_time),
  "interaction": _test(interaction, ("push",), accept=pushed_on),
  "still scenes": Test(
    lambda count, seed: still_lifes(count, seed, FRAMES),
    lambda worlds, clips: [still_scene(*pair) for pair in zip(worlds, clips, strict=True)],
    ("still_life",),
  ),
  **{
    f"continuity, {n} frames": _test(continuity, ("roll", "fall", "bounce"), frames=n)
    for n in LENGTHS
  },
}
