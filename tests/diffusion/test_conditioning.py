"""Laws of the layout: what is given is clean, what is made is noisy, and each token knows where."""

import numpy as np
import pytest

from sora_jax.diffusion import conditioning
from sora_jax.diffusion.conditioning import MASK_EVERY, PATTERNS, Mixture, Stretch, layout
from sora_jax.diffusion.time import LevelSampler
from sora_jax.errors import UserError

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


@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_pattern_leaves_something_to_make(rng, pattern):
  settings = dict(
    patch=PATCH, mixture=Mixture(weights={pattern: 1.0}, images=0), levels=LevelSampler()
  )
  seen = [conditioning.draw(rng, clip(rng), **settings) for _ in range(30)]
  known = [levels_of(s) == 0 for s in seen]
  assert all(not k.all() for k in known)
  assert all(k.any() for k in known) == (pattern not in ("none", "noise"))
  assert any(len(s.cond) > 2 for s in seen) == (pattern == "noise")
  assert max(len(s.cond) for s in seen) == settings["mixture"].rows(5)


@pytest.mark.parametrize("pattern", PATTERNS)
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


def test_next_asks_for_the_last_frame_of_a_beginning_and_says_nothing(rng):
  mixture = Mixture(weights={"next": 1.0}, images=0, text_dropout=0)
  record, lengths = clip(rng), set()
  for _ in range(40):
    sample = conditioning.draw(rng, record, patch=PATCH, mixture=mixture, levels=LevelSampler())
    levels = levels_of(sample)
    frames = len(levels) // 4
    lengths.add(frames)
    assert (levels[:-4] == 0).all() and (levels[-4:] > 0).all()
    whole = layout(record["latents"], patch=PATCH, fps=8.0)
    np.testing.assert_array_equal(sample.values, whole.values[: len(levels)])
    np.testing.assert_array_equal(sample.positions, whole.positions[: len(levels)])
    assert not any(sample.prompts)
  assert lengths == {2, 3, 4, 5}


def test_images_and_dropped_texts_come_at_their_rates(rng):
  settings = dict(patch=PATCH, mixture=Mixture(), levels=LevelSampler())
  seen = [conditioning.draw(rng, clip(rng), **settings) for _ in range(600)]
  images = np.mean([np.ptp(s.positions[:, 0]) == 0 for s in seen])
  assert abs(images - 0.2) < 0.06
  assert abs(np.mean([not s.prompts for s in seen]) - 0.1) < 0.05


def test_patterns_have_their_weights_whoever_was_encoded_with_a_mask(rng):
  mixture = Mixture()
  seen = [mixture.pattern(rng, masked=i % MASK_EVERY == 0) for i in range(1000 * MASK_EVERY)]
  for name, weight in mixture.weights.items():
    assert seen.count(name) / len(seen) == pytest.approx(weight, abs=0.015), name
  greedy = Mixture(weights=dict(spatial=3.0, none=1.0))
  assert {greedy.pattern(rng, masked=True) for _ in range(30)} == {"spatial"}
  assert {greedy.pattern(rng, masked=False) for _ in range(30)} == {"none"}


def test_masks_are_drawn_of_masked_clips_alone(rng):
  mixture = Mixture(weights=dict(none=0.95, spatial=0.05), images=0)
  record = clip(rng)
  bare = {name: x for name, x in record.items() if name not in ("masked", "mask")}
  known = lambda record: [  # noqa: E731
    (levels_of(conditioning.draw(
      rng, record, patch=PATCH, mixture=mixture, levels=LevelSampler()
    )) == 0).any() for _ in range(400)
  ]  # fmt: skip
  assert np.mean(known(record)) == pytest.approx(0.05 * MASK_EVERY, abs=0.1)
  assert not any(known(bare))


@pytest.mark.parametrize(("weights", "message"), [
  (dict(strech=1.0), "no pattern 'strech'; did you mean 'stretch'"),
  (dict(none=1.0, first=-0.1), "first=-0.1 must be a number of at least 0"),
  (dict(none=float("nan")), "none=nan must be"), (dict(none=0.0, noise=0.0), "none=1.0"),
  ({}, "none=1.0"),
])  # fmt: skip
def test_weights_that_are_none_are_refused(weights, message):
  with pytest.raises(UserError, match=message):
    Mixture(weights=weights)
