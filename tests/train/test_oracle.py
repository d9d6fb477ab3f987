"""The oracle's training examples: labels follow the pixels through flips, shifts and damage."""

import dataclasses
import os
import platform

import jax
import numpy as np
import pytest

from sora_jax import config as config_lib
from sora_jax import worlds
from sora_jax.evals.adherence import ATTRIBUTES
from sora_jax.train import oracle


@pytest.fixture(scope="module")
def clips() -> oracle.Clips:
  rows = [oracle._labelled(index, seed=5) for index in range(8)]
  video, masks, labels, visible = (np.stack(column) for column in zip(*rows, strict=True))
  return oracle.Clips(video, masks, np.asarray(labels, np.int8), visible)


def test_labels_are_the_worlds(clips):
  for index in range(8):
    spec, _ = oracle.world(index, seed=5)
    names = [
      classes[i] for classes, i in zip(ATTRIBUTES.values(), clips.labels[index], strict=True)
    ]
    assert names == [spec.labels[key] for key in ATTRIBUTES]
    mask = clips.mask(index)
    assert mask.shape == (17, 64, 64) and mask.any()


def test_the_mask_lies_on_the_object(clips):
  for index in range(8):
    if ATTRIBUTES["look"][clips.labels[index][3]] != "plain":
      continue
    colour = np.array(worlds.vocabulary.COLOURS[ATTRIBUTES["colour"][clips.labels[index][0]]])
    pixels = clips.video[index][clips.mask(index)].mean(0)
    ground = clips.video[index][~clips.mask(index)].mean(0)
    unit = lambda x: x / np.linalg.norm(x)  # noqa: E731
    assert unit(pixels) @ unit(colour) > unit(ground) @ unit(colour)


def test_examples(clips):
  example = oracle.Example(clips)
  valid, mirrored = 0, 0
  for index in range(8):
    for seed in range(12):
      out = example(index, np.random.default_rng([index, seed]))
      again = example(index, np.random.default_rng([index, seed]))
      np.testing.assert_array_equal(out["video"], again["video"])
      if not out["valid"]:
        assert (out["labels"] == -1).all() and (out["slot_shape"] == -1).all()
        assert not out["heat"].any()
        continue
      valid += 1
      want = clips.labels[index].astype(int)
      if out["labels"][2] != want[2]:
        mirrored += 1
        name = ATTRIBUTES["motion"][want[2]]
        assert ATTRIBUTES["motion"][out["labels"][2]] == worlds.mirror_motion(name)
      np.testing.assert_array_equal(out["labels"][[0, 1, 3]], want[[0, 1, 3]])
      assert set(out["slot_colour"]) <= {want[0], len(ATTRIBUTES["colour"]), -1}
      sums = out["heat"].sum(-1)
      assert np.all(np.isclose(sums, 1) | (sums == 0)) and sums.any()
  assert 40 < valid < 90 and mirrored > 0


def test_stills_are_one_frame_that_shows_the_object(clips):
  example = oracle.Example(clips, still=True)
  valid = 0
  for index in range(8):
    for seed in range(8):
      out = example(index, np.random.default_rng([index, seed]))
      assert (out["labels"][2] == -1).all()
      if out["valid"]:
        valid += 1
        assert out["heat"][0].any()
        np.testing.assert_allclose(out["heat"], out["heat"][:1].repeat(6, axis=0), atol=1e-6)
        assert len(set(out["slot_colour"])) == 1
        assert np.abs(np.diff(out["video"].astype(int), axis=0)).mean() < 10  # mild noise at most
  assert 20 < valid < 60


def test_loss_has_a_term_per_answer(clips):
  config = config_lib.load("configs/oracle.py:smoke")
  recipe = oracle.build(config)
  example = oracle.Example(clips)
  rows = [example(i, np.random.default_rng(i)) for i in range(2)]
  batch = {k: np.stack([row[k] for row in rows]) for k in rows[0] if k != "id"}
  key = jax.random.key(0)
  params = jax.eval_shape(recipe.init, key)
  assert sum(x.size for x in jax.tree.leaves(params)) < 1_000_000
  loss, terms = jax.eval_shape(recipe.loss, params, batch, key, np.int32(0))
  assert loss.shape == ()
  assert {*ATTRIBUTES, "valid", "heat", "slot_colour", "slot_shape"} <= terms.keys()


FAST = {"video": np.zeros(2), "masks": np.ones(2), "labels": np.arange(2), "visible": np.ones(2)}


@pytest.fixture
def renders(monkeypatch):
  """A stand-in for `_render`: what it is called with, and what it does before it is done."""
  calls, then = [], []

  def render(folder, count, seed, workers):
    calls.append((count, seed))
    for name, array in FAST.items():
      np.save(folder / f"{name}.npy", array)
    for act in then:
      act()

  monkeypatch.setattr(oracle, "_render", render)
  return calls, then


def test_clips_are_rendered_once_and_anew_if_made_otherwise_or_damaged(tmp_path, renders):
  calls, _ = renders
  folder = tmp_path / "parents" / "clips"
  assert len(oracle.Clips.open(folder, 2, seed=5)) == 2
  oracle.Clips.open(folder, 2, seed=5)
  assert calls == [(2, 5)]
  oracle.Clips.open(folder, 2, seed=6)
  (folder / "info.json").write_text('{"count": ')
  oracle.Clips.open(folder, 2, seed=6)
  assert calls == [(2, 5), (2, 6), (2, 6)]
  assert list(folder.parent.iterdir()) == [folder]


def test_clips_have_no_name_before_they_are_whole(tmp_path, renders):
  """Killed at any moment, a run leaves nothing that the next one stumbles over."""
  _, then = renders
  folder, found = tmp_path / "clips", []
  left = (
    tmp_path / f".clips.{platform.node()}.{os.getpid()}.tmp"
  )  # by a run of the same number in a container
  left.mkdir()
  then.append(lambda: found.append(folder.exists()))
  replace = os.replace
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(
      os, "replace", lambda a, b: (found.append((a / "info.json").is_file()), replace(a, b))
    )
    oracle.Clips.open(folder, 2, seed=5)
  assert found == [False, True]


def test_clips_of_a_faster_run_are_taken_as_they_are(tmp_path, renders):
  calls, then = renders
  folder = tmp_path / "clips"

  def other():
    then.clear()
    oracle.Clips.open(folder, 2, seed=5)
    (folder / "theirs").touch()

  then.append(other)
  assert len(oracle.Clips.open(folder, 2, seed=5)) == 2
  assert len(calls) == 2 and (folder / "theirs").exists()
  then.append(lambda: 1 / 0)
  with pytest.raises(ZeroDivisionError):
    oracle.Clips.open(folder, 3, seed=5)
  assert (folder / "theirs").exists()


def test_a_render_is_what_is_opened(tmp_path):
  opened = oracle.Clips.open(tmp_path / "clips", 2, seed=5)
  for index in range(2):
    rows = oracle._labelled(index, seed=5)
    for part, row in zip(dataclasses.astuple(opened), rows, strict=True):
      np.testing.assert_array_equal(part[index], np.asarray(row, part.dtype))
