"""Damage is found where it was done, and nowhere in clips that have none."""

import numpy as np
import pytest

from sora_jax.generate import damage
from sora_jax.worlds import WorldSource


@pytest.fixture(scope="module")
def clips():
  source = WorldSource(24, 7, "validation")
  return [source[i]["video"] for i in range(24)]


def test_sound_clips_show_none(clips):
  assert not any(damage.find(clip).any() for clip in clips)


@pytest.mark.parametrize("what", ["black", "white", "noise"])
@pytest.mark.parametrize("where", ["frames", "band"])
def test_damage_is_found_where_it_was_done(clips, rng, what, where):
  found, missed = [], []
  for clip in clips[:12]:
    torn, truth = clip.copy(), np.zeros(clip.shape[:3], bool)
    count = 1 if what == "noise" else 3
    truth[6 : 6 + count, slice(None) if where == "frames" else slice(20, 32)] = True
    fill = {"black": 0, "white": 255, "noise": rng.integers(0, 256, clip.shape)}[what]
    torn = np.where(truth[..., None], fill, clip).astype(np.uint8)
    if np.abs(torn - clip.astype(float))[truth].mean() < 40:
      continue  # white on the paper of a line drawing
    made = damage.find(torn)
    found.append(made[truth].mean())
    missed.append(made[~truth].mean())
  assert len(found) >= 8
  assert np.mean(found) > 0.95 and np.max(missed) < 0.01
