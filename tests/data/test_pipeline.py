"""The laws of the input pipeline: order, shares, mixtures, resuming, and broken clips."""

import json
from collections import Counter

import numpy as np
import pytest

from sora_jax.data import pipeline, sources, video
from sora_jax.data.shards import move
from sora_jax.errors import UserError


class Numbers:
  """Clips whose pixels tell which they are; some cannot be read. At the top: workers pickle it."""

  def __init__(self, count, broken=(), frames=6, name="n"):
    self.count, self.broken, self.frames, self.name = count, frozenset(broken), frames, name

  def __len__(self):
    return self.count

  def __getitem__(self, index):
    if index in self.broken:
      raise UserError(f"clip {index} is broken.")
    clip = np.random.default_rng(index).integers(0, 256, (self.frames, 16, 20, 3), dtype=np.uint8)
    return {"video": clip, "caption": f"goes left {index}", "fps": 8.0, "id": f"{self.name}{index}"}


def tint(sample, rng):
  return sample | {"video": sample["video"] ^ rng.integers(256, dtype=np.uint8)}


SETTINGS = dict(batch_size=4, seed=3, frames=4, size=(8, 8), fps=8.0, transform=tint)


def equal(a, b):
  return a.keys() == b.keys() and all((a[k] == b[k]).all() for k in a)


def take(batches, count):
  return [next(batches) for _ in range(count)]


def ids(batches):
  return [i for batch in batches for i in batch["id"]]


def test_batches_are_what_they_should_be():
  batch = next(pipeline.make(Numbers(10), **SETTINGS, keep=("captions",)))
  assert batch["video"].shape == (4, 4, 8, 8, 3)
  assert batch["video"].dtype == np.uint8 and batch["fps"].dtype == np.float32
  for caption, captions, name in zip(batch["caption"], batch["captions"], batch["id"], strict=True):
    assert captions == [caption] and caption.split()[-1] == name[1:]


def test_every_epoch_holds_every_clip_once_in_a_new_order():
  names = ids(take(pipeline.make(Numbers(12), **SETTINGS), 9))
  epochs = [names[n : n + 12] for n in (0, 12, 24)]
  assert all(sorted(e) == sorted(epochs[0]) and len(set(e)) == 12 for e in epochs)
  assert epochs[0] != epochs[1] != epochs[2]
  once = ids(pipeline.make(Numbers(12), **SETTINGS | {"frames": None}, epochs=1))
  assert sorted(once) == sorted(epochs[0])
  in_order = ids(pipeline.make(Numbers(12), **SETTINGS, epochs=1, shuffle=False))
  assert in_order == [f"n{i}" for i in range(12)]


def test_seeds_decide_everything():
  a, b = (take(pipeline.make(Numbers(20), **SETTINGS), 6) for _ in range(2))
  assert all(map(equal, a, b))
  c = take(pipeline.make(Numbers(20), **SETTINGS | {"seed": 4}), 6)
  assert not any(map(equal, a, c))
  d = take(pipeline.make(Numbers(20), **SETTINGS, threads=0), 6)
  assert all(map(equal, a, d))


def test_augmentations_differ_between_epochs():
  batches = take(pipeline.make(Numbers(4, frames=30), **SETTINGS), 8)
  clips = {v.tobytes() for b in batches for v, i in zip(b["video"], b["id"], strict=True)
           if i == "n1"}  # fmt: skip
  assert len(clips) >= 7


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("consumed", [0, 1, 5])
def test_resumed_equals_uninterrupted(consumed, mixed):
  """With broken clips, over the end of an epoch, through JSON, with reading ahead."""
  source = Numbers(13, broken=(2, 7))
  if mixed:
    source = [(source, 0.6), (Numbers(7, name="m"), 0.4)]
  batches = pipeline.make(source, **SETTINGS)
  take(batches, consumed)
  state = json.loads(json.dumps(batches.get_state()))
  rest = take(batches, 7)
  again = pipeline.make(source, **SETTINGS)
  take(again, 2)
  again.set_state(state)
  assert all(map(equal, rest, take(again, 7)))


@pytest.mark.parametrize("mixed", [False, True])
def test_shards_of_a_batch_are_the_batch(mixed):
  """Whatever is drawn at random, over the end of an epoch that no number of shards divides."""
  source = [(Numbers(13), 0.6), (Numbers(7, name="m"), 0.4)] if mixed else Numbers(13)
  whole = take(pipeline.make(source, **SETTINGS | {"batch_size": 12}), 5)
  parts = [
    take(pipeline.make(source, **SETTINGS, shard_index=i, shard_count=3), 5) for i in range(3)
  ]
  for batch, shards in zip(whole, zip(*parts, strict=True), strict=True):
    assert equal(batch, {key: np.concatenate([s[key] for s in shards]) for key in batch})


@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 1), (2, 4)])
def test_other_shards_go_on_at_the_same_batch(before, after):
  make = lambda i, n: pipeline.make(  # noqa: E731
    Numbers(13), **SETTINGS | {"batch_size": 12 // n}, shard_index=i, shard_count=n
  )
  whole, saved, reopened = make(0, 1), make(0, before), make(0, before)
  take(whole, 3), take(saved, 3)
  reopened.set_state(json.loads(json.dumps(saved.get_state())))
  parts = [make(i, after) for i in range(after)]
  for part in parts:
    move(part, reopened)
  for batch in take(whole, 4):
    read = [next(part) for part in parts]
    assert equal(batch, {key: np.concatenate([r[key] for r in read]) for key in batch})


def test_mixtures_keep_their_proportions():
  mixture = [(Numbers(5, name="a"), 6.0), (Numbers(50, name="b"), 3.0), (Numbers(9, name="c"), 1.0)]
  counts = Counter(i[0] for i in ids(take(pipeline.make(mixture, **SETTINGS), 50)))
  assert [abs(counts[k] - n) <= 2 for k, n in (("a", 120), ("b", 60), ("c", 20))] == [True] * 3


def test_mixed_sources_of_equal_length_are_shuffled_differently():
  mixture = [(Numbers(20, name="a"), 1.0), (Numbers(20, name="b"), 1.0)]
  names = ids(take(pipeline.make(mixture, **SETTINGS), 10))
  assert [i[1:] for i in names if i[0] == "a"] != [i[1:] for i in names if i[0] == "b"]


def test_broken_clips_are_reported_once_and_skipped(capfd):
  names = ids(take(pipeline.make(Numbers(10, broken=(1, 4)), **SETTINGS), 10))
  assert set(names) == {f"n{i}" for i in range(10)} - {"n1", "n4"}
  err = capfd.readouterr().err
  assert err.count("clip 1 is broken") == 1 and err.count("clip 4 is broken") == 1


def test_nothing_readable_is_an_error(capfd):
  with pytest.raises(UserError, match="None of the last"):
    next(pipeline.make(Numbers(5, broken=range(5)), **SETTINGS))
  with pytest.raises(UserError, match="too few"):
    next(pipeline.make(Numbers(5, frames=3), **SETTINGS))
  held = next(pipeline.make(Numbers(5, frames=3), **SETTINGS, short="repeat"))["video"]
  assert (held[:, 3] == held[:, 2]).all() and held.shape[1] == 4


def test_bad_arguments_are_errors():
  for source, bad in ((Numbers(10), dict(batch_size=0)), (Numbers(0), {})):
    with pytest.raises(UserError):
      pipeline.make(source, **SETTINGS | bad)
  for mixture in ([], [(Numbers(3), 0.0)], [(Numbers(3), -1.0)]):
    with pytest.raises(UserError):
      pipeline.make(mixture, **SETTINGS)

  class Growing(Numbers):
    def __getitem__(self, index):
      clip = super().__getitem__(index)
      return clip | {"video": clip["video"][:, : 8 + index]}

  with pytest.raises(UserError, match="set a size"):
    next(pipeline.make(Growing(6), **SETTINGS | {"size": None}))


def test_a_folder_with_a_broken_file_trains_on(rng, tmp_path, capfd):
  """Files end to end: other rates and sizes than wanted, one cut off, one no video at all."""
  for n, fps in enumerate((8.0, 24.0, 30.0)):
    frames = rng.integers(0, 256, (40, 24, 40, 3), dtype=np.uint8)
    video.write(tmp_path / f"{n}.mp4", frames, fps)
  whole = (tmp_path / "1.mp4").read_bytes()
  (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 3])
  (tmp_path / "text.mp4").write_text("no video")
  for path in list(tmp_path.glob("*.mp4")):
    path.with_suffix(".txt").write_text(f"this is {path.stem}")
  source = sources.FolderSource(tmp_path)
  settings = dict(batch_size=3, seed=0, frames=9, size=(16, 16), fps=8.0)
  batches = pipeline.make(source, **settings)
  seen = take(batches, 4)
  assert all(b["video"].shape == (3, 9, 16, 16, 3) and (b["fps"] == 8).all() for b in seen)
  assert {"0.mp4", "1.mp4", "2.mp4"} <= set(ids(seen)) and "text.mp4" not in ids(seen)
  assert capfd.readouterr().err.count("text.mp4") == 1
  state, rest = batches.get_state(), take(batches, 2)
  again = pipeline.make(sources.FolderSource(tmp_path), **settings)
  again.set_state(state)
  assert all(map(equal, rest, take(again, 2)))


def test_workers_change_nothing():
  """Spawned processes give the same batches as none."""
  batches = pipeline.make(Numbers(9), **SETTINGS, workers=2)
  assert all(map(equal, take(pipeline.make(Numbers(9), **SETTINGS), 5), take(batches, 5)))
  batches.close()


@pytest.mark.slow
def test_workers_resume():
  batches = pipeline.make(Numbers(9), **SETTINGS, workers=2)
  take(batches, 2)
  state, rest = batches.get_state(), take(batches, 3)
  batches.close()
  again = pipeline.make(Numbers(9), **SETTINGS, workers=2)
  again.set_state(state)
  assert all(map(equal, rest, take(again, 3)))
  again.close()


def test_clips_that_lack_something_are_skipped_by_name(capsys):
  class Odd(Numbers):
    def __getitem__(self, index):
      sample = super().__getitem__(index)
      return sample | {"video": sample["video"][:0]} if index == 1 else sample

  settings = SETTINGS | {"frames": 4, "short": "repeat"}

  class Windows(Odd):
    def clip(self, index, rng, **settings):
      return self[index]

  names = ids(take(pipeline.make(Odd(5), **settings), 4))
  assert "n1" not in names and "n1 has no frames" in capsys.readouterr().err
  for source in (Odd(5), Windows(5)):
    with pytest.raises(UserError, match="n. holds no 'truth'"):
      next(pipeline.make(source, **settings, keep=("truth",)))
  assert "truth" not in capsys.readouterr().err  # no clip after the other
