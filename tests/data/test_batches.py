"""Three ways to batch the same samples: they differ in padding and programs, not in content."""

import collections
import dataclasses

import numpy as np
import pytest

from sora_jax.data.batches import Batches
from sora_jax.data.packing import Packer
from sora_jax.diffusion.conditioning import Mixture
from sora_jax.diffusion.time import LevelSampler
from sora_jax.errors import UserError
from sora_jax.interop import wordpieces
from sora_jax.models.text import Prompts

GRIDS = {"square": (5, 8, 8), "wide": (3, 8, 12), "short": (2, 4, 4)}
SHARES = {"square": 0.5, "wide": 0.2, "short": 0.3}
MANY_SHORT = {"square": 0.2, "wide": 0.1, "short": 0.7}  # a batch of these in every five


@pytest.fixture(scope="module")
def batches():
  rng = np.random.default_rng(0)
  caches = {
    name: [
      dict(
        latents=rng.normal(size=(*grid, 2)),
        stretch=rng.normal(size=(min(grid[0], 3), *grid[1:], 2)),
        stretch_frame=4, fps=8.0, loop=False, captions=["a red ball"], id=f"{name}-{i}",
      )
      for i in range(20)
    ]
    for name, grid in GRIDS.items()
  }  # fmt: skip
  return Batches(
    caches=caches, shares=SHARES, mixture=Mixture(), levels=LevelSampler(), patch=(1, 2, 2),
    cond_features=4, packer=Packer(rows=4, length=160, cond_rows=16, text_length=40),
    prompts=Prompts.load(wordpieces.TOKENIZER, 8), samples=16, seed=0,
  )  # fmt: skip


@pytest.fixture(scope="module")
def cut(batches):
  """With sequences cut in two for the shape that fits: "short", of 16 tokens at most."""
  packer = dataclasses.replace(batches.packer, cond_rows=60, text_length=240, short=2)
  return dataclasses.replace(batches, packer=packer)


def drawn(iterator, count):
  return [next(iterator) for _ in range(count)]


@pytest.mark.parametrize("way", ["pack", "bucket", "pad"])
def test_shapes_come_at_their_shares_in_whole_rows(batches, way):
  seen: collections.Counter[str] = collections.Counter()
  for batch in drawn(batches(way), 150):
    assert len(batch["values"]) % batches.packer.rows == 0
    seen.update(str(name).partition("-")[0] for name in batch["id"])
    rows = [len(set(row[row > 0])) for row in batch["segments"]]
    assert sum(rows) == len(batch["id"])
    if way != "pack":
      assert set(rows) == {1}
  for name, share in SHARES.items():
    # A bucket of small images is many samples at once.
    near = 0.1 if way == "bucket" else 0.05
    assert seen[name] / seen.total() == pytest.approx(share, abs=near)


def test_small_shapes_share_shorter_sequences(batches, cut):
  seen: collections.Counter[str] = collections.Counter()
  fill: dict[tuple[int, int], list[float]] = collections.defaultdict(list)
  for batch in drawn(cut("pack"), 200):
    names = {str(name).partition("-")[0] for name in batch["id"]}
    length = batch["values"].shape[1]
    assert names == {"short"} if length == 80 else names <= {"square", "wide"}
    fill[batch["segments"].shape].append(np.mean(batch["segments"] > 0))
    seen.update(str(name).partition("-")[0] for name in batch["id"])
  assert set(fill) == {(4, 160), (8, 80)}
  assert all(np.mean(full) > 0.85 for full in fill.values())
  for name, share in SHARES.items():
    assert seen[name] / seen.total() == pytest.approx(share, abs=0.06)
  whole = next(batches("pack"))
  assert whole["values"].shape[:2] == (4, 160)


def test_programs_are_as_many_as_grids(batches):
  shapes = lambda way: {b["values"].shape for b in drawn(batches(way), 60)}  # noqa: E731
  assert len(shapes("pack")) == len(shapes("pad")) == 1
  assert 3 <= len(shapes("bucket")) <= 2 * len(GRIDS)


def test_little_of_a_packed_batch_is_padding(batches):
  fill = {
    way: np.mean([(b["segments"] > 0).mean() for b in drawn(batches(way), 60)])
    for way in ("pack", "bucket", "pad")
  }
  assert fill["pack"] > 0.9 > fill["bucket"] > fill["pad"]


@pytest.mark.parametrize("way", ["pack", "cut", "bucket", "pad"])
def test_an_iterator_resumes_where_it_was(batches, cut, way):
  batches, way = (cut, "pack") if way == "cut" else (batches, way)
  data = batches(way)
  drawn(data, 3)
  state = data.get_state()
  expected = drawn(data, 3)
  again = batches(way)
  again.set_state(state)
  for one, other in zip(expected, drawn(again, 3), strict=True):
    for name in one:
      np.testing.assert_array_equal(one[name], other[name])


def test_processes_share_the_clips_of_an_epoch(batches):
  assert len(next(batches("pack", 1, 2))["values"]) == batches.packer.rows // 2
  seen = [
    {name for b in drawn(batches("pack", process, 2), 2) for name in b["id"]} for process in (0, 1)
  ]
  assert seen[0] and seen[1] and not seen[0] & seen[1]


def test_a_shape_that_never_fits_is_refused(batches):
  small = dataclasses.replace(batches, packer=dataclasses.replace(batches.packer, length=120))
  for way in ("pack", "pad"):
    with pytest.raises(UserError, match="set packing.length to 128"):
      small(way)
  next(small("bucket"))


@pytest.mark.parametrize(("way", "packer", "others", "message"), [
  ("pack", dict(cond_rows=4), {}, "square have up to 5 noise levels: set packing.cond_rows to 5"),
  ("pad", dict(cond_rows=4), {}, "square have up to 5 noise levels: set packing.cond_rows to 5"),
  ("pack", dict(text_length=7), {}, "up to 8 word pieces.*set packing.text_length to 8"),
  ("pack", dict(short=0), {}, "packing.short=0 must be at least 1"),
  ("pack", {}, dict(samples=0), "data.samples=0 must be at least 1"),
])  # fmt: skip
def test_room_that_some_samples_would_never_find_is_refused(batches, way, packer, others, message):
  packer = dataclasses.replace(batches.packer, **packer)
  with pytest.raises(UserError, match=message):
    dataclasses.replace(batches, packer=packer, **others)(way)


def test_given_frames_alone_need_two_levels(batches):
  packer = dataclasses.replace(batches.packer, cond_rows=2)
  tight = dataclasses.replace(
    batches, packer=packer, mixture=Mixture(weights=dict(none=0.5, first=0.5, noise=0.0))
  )
  assert next(tight("pad"))["cond"].shape[1] == 2


@pytest.mark.parametrize("tight", [dict(short=4, cond_rows=5), dict(short=2, text_length=15)])
def test_a_shape_stays_in_long_sequences_if_short_ones_lack_any_room_for_it(batches, tight):
  packer = dataclasses.replace(batches.packer, **tight)
  whole = dataclasses.replace(batches, packer=packer, shares=MANY_SHORT)
  assert {b["values"].shape[:2] for b in drawn(whole("pack"), 12)} == {(4, 160)}


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_together_draw_what_one_would(batches, hosts):
  """Two groups of shapes, and room for all, so that what is drawn is what the batches hold."""
  packer = Packer(rows=8, length=254, cond_rows=200, text_length=400, short=2)
  roomy = dataclasses.replace(batches, packer=packer, samples=12, shares=MANY_SHORT)
  parts = [drawn(roomy("pack", host, hosts), 12) for host in range(hosts)]
  lengths = set()
  for whole, *shards in zip(drawn(roomy("pack"), 12), *parts, strict=True):
    assert sum(len(b["values"]) for b in shards) == len(whole["values"])
    assert sorted(name for b in shards for name in b["id"]) == sorted(whole["id"])
    lengths |= {b["values"].shape[1] for b in (whole, *shards)}
  assert lengths == {127, 254}


def test_there_is_no_other_way(batches):
  with pytest.raises(UserError, match="choose one of pack, bucket, pad"):
    batches("sort")
