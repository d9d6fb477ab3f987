"""Pairs of a possible and an impossible clip: alike until the event, each frame one of a world."""

import functools

import numpy as np
import pytest

from sora_jax import worlds
from sora_jax.errors import UserError
from sora_jax.evals.surprise import expectation
from sora_jax.worlds.impossible import KINDS, ImpossiblePairs

TURNS = 2  # the second exchanges the roles of the two worlds
COUNT = TURNS * len(KINDS)
FORM = dict(frames=16, height=48, width=48)


@functools.cache
def pair(index):
  return ImpossiblePairs(COUNT, seed=5, **FORM)[index]


@pytest.mark.parametrize("index", range(COUNT), ids=lambda i: f"{KINDS[i % len(KINDS)]}{i}")
def test_alike_until_the_event(index):
  made = pair(index)
  assert made.kind == KINDS[index % len(KINDS)]
  assert made.possible.shape == made.impossible.shape == (16, 48, 48, 3)
  assert 3 <= made.splice <= made.event < 16
  np.testing.assert_array_equal(made.impossible[: made.event], made.possible[: made.event])
  assert (made.impossible[made.event] != made.possible[made.event]).any()
  if made.kind.startswith("open"):
    assert made.event == made.splice
  if made.kind == "hover":  # still from the splice on, so it differs a frame later
    assert made.event == made.splice + 1


@pytest.mark.parametrize("index", [0, 10, 3, 8])
def test_each_frame_is_of_a_possible_world(index):
  made = pair(index)
  before, after = (worlds.render(spec, 16, 48, 48, truth=True) for spec in made.specs)
  np.testing.assert_array_equal(made.possible, before.video)
  np.testing.assert_array_equal(made.impossible[: made.splice], before.video[: made.splice])
  np.testing.assert_array_equal(made.impossible[made.splice :], after.video[made.splice :])
  if made.kind.startswith("hidden"):  # nobody sees it happen
    seen = before.truth["visibility"][made.splice, 0]
    assert seen < 0.02 and before.truth["visibility"][:, 0].max() > 0.5


def test_roles_are_exchanged():
  turns = [pair(KINDS.index("hidden_presence") + k * len(KINDS)) for k in range(TURNS)]
  gone = [[spec.main.position[1] < -10 for spec in made.specs] for made in turns]
  assert gone == [[False, True], [True, False]]
  ways = []
  for k in range(TURNS):
    first, second = pair(KINDS.index("hidden_place") + k * len(KINDS)).specs
    ways.append((second.main.position[0] - first.main.position[0]) * first.main.velocity[0])
  assert ways[0] > 0 > ways[1]


def test_one_thing_changes():
  colour, shape = (pair(KINDS.index(f"hidden_{x}")).specs for x in ("colour", "shape"))
  assert colour[0].main.colour != colour[1].main.colour
  assert colour[0].main.shape == colour[1].main.shape
  assert shape[0].main.shape != shape[1].main.shape
  assert shape[0].main.colour == shape[1].main.colour
  for before, after in (colour, shape):
    assert before.things[1:] == after.things[1:] and before.fixtures == after.fixtures


def test_a_pair_is_its_seed_and_index():
  again = ImpossiblePairs(1000, seed=5, **FORM)[4]
  np.testing.assert_array_equal(again.possible, pair(4).possible)
  np.testing.assert_array_equal(again.impossible, pair(4).impossible)
  assert (again.event, again.id, again.specs) == (pair(4).event, pair(4).id, pair(4).specs)
  other = ImpossiblePairs(5, seed=6, **FORM)[4]
  assert not np.array_equal(other.possible, again.possible)
  only = ImpossiblePairs(5, seed=5, kinds=("hover",), **FORM)
  np.testing.assert_array_equal(only[0].impossible, pair(KINDS.index("hover")).impossible)


def test_perfect_memory_finds_all():
  pairs = [pair(i) for i in range(len(KINDS))]
  real = {made.possible[0].tobytes(): made.possible for made in pairs}

  def remembers(clips):
    known = np.stack([real[clip[0].tobytes()] for clip in clips])
    return np.abs(clips.astype(float) - known).mean(axis=(2, 3, 4))

  results = expectation(remembers, pairs)
  for measure in ("max", "mean"):
    assert all(number["mean"] == 1.0 for number in results.metrics[measure].values())


def test_what_cannot_be_is_refused():
  with pytest.raises(UserError, match="unknown kind 'flying'"):
    ImpossiblePairs(1, 0, kinds=("flying",))
  with pytest.raises(UserError, match="too few"):
    ImpossiblePairs(1, 0, frames=8)
  with pytest.raises(UserError, match="must not be negative"):
    ImpossiblePairs(-1, 0)
