"""Worlds as data: determinism, splits, sizes, what the labels and captions promise."""

import itertools
import json
import math
import multiprocessing
import pickle
import re

import numpy as np
import pytest

from sora_jax import worlds
from sora_jax.errors import UserError
from sora_jax.worlds import VOCABULARY as V
from sora_jax.worlds import captions, phrases


def _digest(sample):
  return sample["video"].astype(np.int64).sum(), sample["caption"], sample["id"]


def _digest_of(args):
  source, index = args
  return _digest(source[index])


def test_items_depend_on_seed_and_index_only():
  source = worlds.WorldSource(40, seed=3, frames=5)
  forward = [source[i] for i in (1, 17, 30)]
  again = worlds.WorldSource(1000, seed=3, frames=5)
  backward = [again[i] for i in (30, 17, 1)][::-1]
  for a, b in zip(forward, backward, strict=True):
    np.testing.assert_array_equal(a["video"], b["video"])
    assert a["caption"] == b["caption"] and a["id"] == b["id"]
  other = worlds.WorldSource(40, seed=4, frames=5)
  assert _digest(other[1]) != _digest(forward[0])
  # A fresh process, another order, through pickle: as Grain's workers do.
  with multiprocessing.get_context("spawn").Pool(1) as pool:
    remote = pool.map(_digest_of, [(pickle.loads(pickle.dumps(source)), i) for i in (30, 1)])
  assert remote == [_digest(forward[2]), _digest(forward[0])]


@pytest.mark.parametrize(("height", "width", "frames"), [(64, 64, 17), (48, 96, 1), (80, 32, 6)])
def test_any_form(height, width, frames):
  source = worlds.WorldSource(3, seed=0, height=height, width=width, frames=frames, fps=12.5)
  sample = source[-1]
  assert sample["video"].shape == (frames, height, width, 3)
  assert sample["video"].dtype == np.uint8
  assert sample["fps"] == 12.5
  np.testing.assert_array_equal(sample["video"], source[2]["video"])


def test_every_object_of_any_aspect_stays_in_view():
  # The shorter side has the stated field of view: a wide frame only adds to its sides.
  square = worlds.WorldSource(4, seed=2, height=48, width=48, truth=True)
  wide = worlds.WorldSource(4, seed=2, height=48, width=96, truth=True)
  for i in range(4):
    a, b = square[i]["truth"]["segmentation"], wide[i]["truth"]["segmentation"]
    assert (a == b[:, :, 24:72]).mean() > 0.99


def test_bad_parameters_are_named():
  for bad in (
    {"height": 4},
    {"frames": 0},
    {"fps": 0.0},
    {"fps": math.nan},
    {"split": "tset"},
    {"scenes": ["rol"]},
  ):
    with pytest.raises(UserError):
      worlds.WorldSource(1, 0, **bad)
  with pytest.raises(IndexError):
    worlds.WorldSource(2, 0)[2]


def test_splits_share_no_combination_and_miss_no_value():
  seen = {}
  for split in V.splits:
    source = worlds.WorldSource(200, seed=1, split=split)
    labels = [source.spec(i).labels for i in range(200)]
    seen[split] = {(x["colour"], x["shape"], worlds.motion_family(x["motion"])) for x in labels}
    for key, values in (("colour", V.colours), ("shape", V.shapes), ("scene", V.scenes)):
      assert {x[key] for x in labels} == set(values)
    assert {x["look"] for x in labels} == set(V.looks)
  assert not seen["train"] & seen["heldout"]
  assert not seen["validation"] & seen["heldout"]
  assert len(seen["train"] & seen["validation"]) > 25
  # The same index of another split is another world.
  a, b = (worlds.WorldSource(9, 1, split=s).spec(5) for s in ("train", "validation"))
  assert a != b


def test_held_out_combinations():
  triples = list(itertools.product(V.colours, V.shapes, V.motions))
  share = np.mean([worlds.is_heldout(*x) for x in triples])
  assert 0.07 < share < 0.13
  for colour, shape, motion in triples:
    # A flipped clip must not show what is held out.
    mirrored = worlds.mirror_motion(motion)
    assert worlds.mirror_motion(mirrored) == motion
    assert worlds.is_heldout(colour, shape, motion) == worlds.is_heldout(colour, shape, mirrored)
  for shape, motion in itertools.product(V.shapes, V.motions):
    assert sum(worlds.is_heldout(c, shape, motion) for c in V.colours) <= 1


def test_a_clip_of_another_shape_is_that_of_a_source_of_this_shape():
  source = worlds.WorldSource(4, 0, height=32, width=32)
  other = worlds.WorldSource(4, 0, frames=5, height=32, width=48, fps=4.0)
  clip = source.clip(2, np.random.default_rng(0), frames=5, fps=4.0, size=(32, 48))
  np.testing.assert_array_equal(clip["video"], other[2]["video"])
  assert clip["captions"] == other[2]["captions"] and clip["fps"] == 4.0
  same = source.clip(2, np.random.default_rng(0), frames=17)
  np.testing.assert_array_equal(same["video"], source[2]["video"])


def test_specs_survive_json():
  for i in range(30):
    spec = worlds.sample_spec(i)
    assert worlds.Spec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def _sides(text):
  return set(re.findall(r"\b(left|right)(?:wards?)?\b", text))


def _words(text):
  return re.findall(r"[a-z]+", text.lower())


@pytest.mark.parametrize("wording", captions.WORDINGS)
def test_captions_agree_with_the_world(wording):
  for i in range(60):
    spec = worlds.sample_spec(i)
    for level in (0, 1, 2):
      text = captions.describe(spec, level, i, wording)
      words = _words(text)
      assert spec.main.colour in words
      names = {spec.main.shape, *itertools.chain(*phrases.SHAPES[spec.main.shape].values())}
      assert any(name in text or phrases.plural(name) in text for name in names)
      sides = _sides(text)
      side = spec.motion.rpartition("_")[2]
      moving = spec.camera.kind != "static"
      if side in ("left", "right"):
        assert side in sides
      elif spec.motion != "swings" and not moving:
        assert not sides
      assert (spec.look == "plain") == (
        captions.describe(spec, level, i, wording) == _plain(spec, level, i, wording)
      )


def _plain(spec, level, rng, wording):
  data = spec.to_json()
  data["look"] = "plain"
  return captions.describe(worlds.Spec.from_json(data), level, rng, wording)


def test_levels_add_detail():
  length = [
    np.mean([len(captions.describe(worlds.sample_spec(i), level, i)) for i in range(60)])
    for level in (0, 1, 2)
  ]
  assert length[0] < length[1] < length[2]


def test_held_out_wordings_are_never_trained_on():
  train, heldout = (
    {captions.describe(worlds.sample_spec(i), 0, i, wording) for i in range(300)}
    for wording in captions.WORDINGS
  )
  assert not train & heldout
  words = [{w for text in texts for w in _words(text)} for texts in (train, heldout)]
  assert {"orb", "block"} <= words[1] - words[0]
  for table in (*phrases.EVENTS.values(), *phrases.LIGHTS.values(), *phrases.LOOKS.values()):
    trained = [f" {wording.strip(' ,')} " for wording in table["train"]]
    for wording in table["heldout"]:
      assert not any(part in f" {wording.strip(' ,')} " for part in trained), wording


def test_what_a_look_hides_is_not_said():
  lights = {x for table in phrases.LIGHTS.values() for side in table.values() for x in side}
  for i in range(200):
    spec = worlds.sample_spec(i)
    drawn = worlds.Spec.from_json(spec.to_json() | {"look": "line"})
    text = captions.describe(drawn, 2, i, captions.WORDINGS[i % 2])
    assert f"{spec.floor} floor" not in text and f"floor is {spec.floor}" not in text
    assert not any(light in text for light in lights)
    mono = worlds.Spec.from_json(spec.to_json() | {"look": "mono"})
    bystanders = {x.colour for x in spec.things if x.role == "extra"}
    shown = {x.colour for x in spec.things if x.role != "extra"}
    assert not set(_words(captions.describe(mono, 1, i))) & (bystanders - shown - {spec.floor})
