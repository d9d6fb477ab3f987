"""Laws of the layout: what is given is clean, what is made is noisy, and each token knows where."""

import numpy as np
import pytest

from sora_jax.diffusion import conditioning
from sora_jax.diffusion.conditioning import Mixture, Stretch, layout
from sora_jax.diffusion.time import LevelSampler

PATCH = (1, 2, 2)


def levels_of(sample):
  return sample.cond[sample.cond_index, 0]


def test_tokens_count_rows_columns_and_times(rng):
  sample = layout(rng.normal(size=(3, 4, 6, 2)), patch=PATCH, fps=4.0)
  assert sample.values.shape == (3 * 2 * 3, 8)
  np.testing.assert_array_equal(sample.positions[:4], [[0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 1, 0]])
  np.testing.assert_array_equal(np.unique(sample.positions[:, 0]), [0, 2, 4])  # half the rate


def test_known_prefix_is_one_row_of_level_zero(rng):
  known = np.zeros((3, 4, 4), bool)
  known[0] = True
  sample = layout(rng.normal(size=(3, 4, 4, 2)), patch=PATCH, fps=8.0, levels=0.7, known=known)
  np.testing.assert_array_equal(levels_of(sample), np.float32([0] * 4 + [0.7] * 8))
  assert len(sample.cond) == 2


def test_partly_known_patches_are_made(rng):
  known = np.ones((1, 4, 4), bool)
  known[0, 0, 0] = False
  sample = layout(rng.normal(size=(1, 4, 4, 2)), patch=PATCH, fps=8.0, known=known)
  np.testing.assert_array_equal(levels_of(sample) > 0, [True, False, False, False])


def test_a_stretch_is_appended_at_the_times_it_covers(rng):
  stretch = Stretch(
    rng.normal(size=(2, 4, 4, 2)), conditioning.latent_times(2, 8.0, first_frame=12)
  )
  sample = layout(rng.normal(size=(5, 4, 4, 2)), patch=PATCH, fps=8.0, stretches=[stretch])
  assert len(sample.values) == 7 * 4
  np.testing.assert_array_equal(np.unique(sample.positions[20:, 0]), [3, 4])
  np.testing.assert_array_equal(levels_of(sample) == 0, [False] * 20 + [True] * 8)


def test_a_loop_has_no_first_latent(rng):
  sample = layout(rng.normal(size=(4, 4, 4, 2)), patch=PATCH, fps=16.0, loop=True)
  np.testing.assert_array_equal(np.unique(sample.positions[:, 0]), [0.375, 0.875, 1.375, 1.875])
  np.testing.assert_array_equal(sample.period, np.full(16, 2.0))  # 16 frames at twice the rate


def test_each_token_reads_the_prompt_of_its_time(rng):
  stretch = Stretch(rng.normal(size=(1, 4, 4, 2)), conditioning.latent_times(1, 8.0, 8))
  sample = layout(
    rng.normal(size=(4, 4, 4, 2)), patch=PATCH, fps=8.0, stretches=[stretch],
    prompt=["a", "", "b", "a"],
  )  # fmt: skip
  assert sample.prompts == ("a", "b")
  np.testing.assert_array_equal(sample.prompt[::4], [1, 0, 2, 1, 2])


def test_odd_grids_are_padded_to_whole_patches(rng):
  assert layout(rng.normal(size=(2, 3, 5, 2)), patch=PATCH, fps=8.0).values.shape == (2 * 2 * 3, 8)


def test_features_tell_rate_size_and_shape():
  (row,) = conditioning.features(0.5, fps=16.0, rows=16, columns=4, count=4)
  np.testing.assert_allclose(row, [0.5, 1, 0, -2])
  assert conditioning.features([0.1, 0.2], 16.0, 8, 8, count=1).tolist() == [
    [np.float32(0.1)], [np.float32(0.2)]
  ]  # fmt: skip


def clip(rng):
  mask = np.zeros((5, 4, 4), bool)
  mask[:, :2] = True
  return dict(
    latents=rng.normal(size=(5, 4, 4, 2)), stretch=rng.normal(size=(2, 4, 4, 2)),
    stretch_frame=12, fps=8.0, loop=False, captions=["a", "b"],
    masked=rng.normal(size=(5, 4, 4, 2)), mask=mask,
  )  # fmt: skip


@pytest.mark.parametrize("pattern", Mixture().weights)
def test_every_pattern_leaves_something_to_make(rng, pattern):
  settings = dict(
    patch=PATCH, mixture=Mixture(weights={pattern: 1.0}, images=0), levels=LevelSampler()
  )
  seen = [conditioning.draw(rng, clip(rng), **settings) for _ in range(30)]
  known = [levels_of(s) == 0 for s in seen]
  assert all(not k.all() for k in known)
  assert all(k.any() for k in known) == (pattern not in ("none", "noise"))
  assert any(len(s.cond) > 2 for s in seen) == (pattern == "noise")


@pytest.mark.parametrize("pattern", Mixture().weights)
def test_of_a_loop_only_what_is_encoded_alone_is_known(rng, pattern):
  settings = dict(
    patch=PATCH, mixture=Mixture(weights={pattern: 1.0}, images=0.3), levels=LevelSampler()
  )
  record = clip(rng) | dict(loop=True)
  del record["masked"], record["mask"]
  for sample in (conditioning.draw(rng, record, **settings) for _ in range(30)):
    if len(sample.values) == 4:  # an image of a frame: its latent is that of a first one
      assert (sample.period == 0).all()
      np.testing.assert_allclose(
        sample.values, layout(record["stretch"][:1], patch=PATCH, fps=8.0).values
      )
    else:
      assert (sample.period == 5).all()
      assert (levels_of(sample)[:20] > 0).all()
      assert len(sample.values) == (28 if pattern == "stretch" else 20)


def test_known_values_are_what_the_user_would_have(rng):
  """Spatial masks take the greyed clip's latents, never the complete one's."""
  record = clip(rng)
  settings = dict(
    patch=PATCH, mixture=Mixture(weights={"spatial": 1.0}, images=0), levels=LevelSampler()
  )
  sample = conditioning.draw(rng, record, **settings)
  masked = layout(record["masked"], patch=PATCH, fps=8.0).values
  known = levels_of(sample) == 0
  np.testing.assert_allclose(sample.values[known], masked[known], atol=1e-6)


def test_images_and_dropped_texts_come_at_their_rates(rng):
  settings = dict(patch=PATCH, mixture=Mixture(), levels=LevelSampler())
  seen = [conditioning.draw(rng, clip(rng), **settings) for _ in range(600)]
  images = np.mean([np.ptp(s.positions[:, 0]) == 0 for s in seen])
  assert abs(images - 0.2) < 0.06
  assert abs(np.mean([not s.prompts for s in seen]) - 0.1) < 0.05
