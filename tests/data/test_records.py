import json
import os
import pickle
import platform
import subprocess
from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sora_jax.data import records
from sora_jax.errors import UserError

ARRAYS = st.one_of(
  hnp.arrays(np.uint8, hnp.array_shapes(min_dims=4, max_dims=4, max_side=5)),
  hnp.arrays(np.float16, hnp.array_shapes(max_dims=3), elements=st.floats(-9, 9, width=16)),
  hnp.arrays(np.int64, hnp.array_shapes(min_dims=0, max_dims=2, min_side=0)),
  hnp.arrays(bool, (3, 2)),
)
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-(2**40), 2**40), st.text())
NESTED = st.recursive(
  st.one_of(ARRAYS, SCALARS),
  lambda x: st.one_of(st.lists(x, max_size=3), st.dictionaries(st.text(max_size=4), x, max_size=3)),
  max_leaves=8,
)


def same(a, b):
  if isinstance(a, np.ndarray):
    return a.dtype == b.dtype and a.shape == b.shape and (a == b).all()
  if isinstance(a, dict):
    return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
  if isinstance(a, list):
    return len(a) == len(b) and all(map(same, a, b))
  return a == b


@settings(max_examples=60)
@given(sample=st.dictionaries(st.text(max_size=4), NESTED, max_size=4))
def test_decode_undoes_encode(sample):
  assert same(sample, records.decode(records.encode(sample)))


def test_bfloat16_and_writable(rng):
  latents = rng.normal(size=(2, 3)).astype(ml_dtypes.bfloat16)
  back = records.decode(records.encode({"latents": latents}))["latents"]
  assert same(latents, back)
  back[0] = 0  # a view of the record's bytes would refuse


def clips(rng, count=11):
  for n in range(count):
    shape = (rng.integers(1, 6), 8, 12, 3)
    video = rng.integers(0, 256, shape, dtype=np.uint8)
    yield {"video": video, "caption": f"clip {n} ü", "fps": 8.0, "id": f"c{n}", "truth": {"n": n}}


@pytest.fixture
def folder(rng, tmp_path):
  records.write_records(tmp_path / "set", clips(rng), {"seed": 7}, shard_size=4)
  return tmp_path / "set"


def test_written_is_read(folder):
  source = records.RecordSource(folder)
  expected = list(clips(np.random.default_rng(0)))
  assert len(source) == 11 and source.info["seed"] == 7 and source.info["shards"] == [4, 4, 3]
  assert all(map(same, expected, map(source.__getitem__, range(11))))
  for copy in (source, pickle.loads(pickle.dumps(source))):
    with ThreadPoolExecutor(4) as pool:
      order = np.random.default_rng(1).integers(0, 11, 60).tolist()
      assert all(map(same, [expected[i] for i in order], pool.map(copy.__getitem__, order)))
  with pytest.raises(IndexError):
    source[11]
  assert not list(folder.parent.glob(".*"))


def test_still_backgrounds_cost_little(rng, tmp_path):
  video = np.repeat(rng.integers(0, 256, (1, 64, 64, 3), dtype=np.uint8), 17, axis=0)
  video[np.arange(17), np.arange(17), 5:9] ^= 255
  sample = {"video": video, "caption": "", "fps": 8.0, "id": "a"}
  records.write_records(tmp_path / "set", [sample] * 8)
  size = sum(p.stat().st_size for p in (tmp_path / "set").iterdir())
  assert size / 8 < video.nbytes / 8


def test_nothing_is_left_of_a_failed_write(rng, tmp_path):
  def failing():
    yield from clips(rng, 5)
    raise RuntimeError("renderer died")

  with pytest.raises(RuntimeError, match="renderer died"):  # no failure to write
    records.write_records(tmp_path / "set", failing(), shard_size=2)
  with pytest.raises(KeyboardInterrupt):
    records.write_records(tmp_path / "set", interrupted(rng), shard_size=2)
  with pytest.raises(UserError, match="no clips"):
    records.write_records(tmp_path / "set", [])
  assert not list(tmp_path.iterdir())


def test_what_killed_writers_left_is_removed(rng, tmp_path):
  gone = subprocess.Popen(["true"])
  gone.wait()
  prefix = f".set.{platform.node()}."
  for process in (gone.pid, os.getppid()):
    (tmp_path / f"{prefix}{process}.tmp").mkdir()
  records.write_records(tmp_path / "set", clips(rng, 2))
  assert sorted(p.name for p in tmp_path.iterdir()) == [f"{prefix}{os.getppid()}.tmp", "set"]


def interrupted(rng):
  yield from clips(rng, 3)
  raise KeyboardInterrupt


def test_folders_in_use_are_kept(rng, folder):
  before = {p.name: p.read_bytes() for p in folder.iterdir()}
  with pytest.raises(UserError, match="not an empty folder"):
    records.write_records(folder, clips(rng))
  with pytest.raises(UserError, match="cannot be made"):
    records.write_records(folder / "info.json" / "below", clips(rng))
  assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
  (folder.parent / "empty").mkdir()
  records.write_records(folder.parent / "empty", clips(rng))
  assert len(records.RecordSource(folder.parent / "empty")) == 11
  records.write_records(folder.parent / "not" / "there", clips(rng))
  assert len(records.RecordSource(folder.parent / "not" / "there")) == 11


DAMAGES = ("missing", "empty", "cut", "garbage", "info", "version", "gone")


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_folders_are_refused(rng, folder, damage):
  shard = folder / "clips-00001.array_record"
  if damage == "missing":
    shard.unlink()
  elif damage == "empty":
    shard.write_bytes(b"")
  elif damage == "cut":
    shard.write_bytes(shard.read_bytes()[:-3000])
  elif damage == "garbage":
    shard.write_bytes(rng.bytes(5000))
  elif damage == "info":
    (folder / "info.json").write_text('{"format": 1, "cou')
  elif damage == "version":
    info = json.loads((folder / "info.json").read_text())
    (folder / "info.json").write_text(json.dumps(info | {"format": 99}))
  else:
    folder = folder / "nowhere"
  with pytest.raises(UserError) as error:
    records.RecordSource(folder)
  assert "\n" not in str(error.value) and str(folder) in str(error.value)


def test_flipped_bytes_never_go_unnoticed(rng, folder):
  """Every record is checksummed: it reads as written, or raises."""
  expected = list(clips(np.random.default_rng(0)))
  shard = folder / "clips-00000.array_record"
  whole = shard.read_bytes()
  refused = 0
  used = np.flatnonzero(np.frombuffer(whole, np.uint8))  # most of a small file is padding
  for position in rng.choice(used, 25):
    damaged = bytearray(whole)
    damaged[position] ^= 0x55
    shard.write_bytes(damaged)
    for n in range(4):
      try:
        assert same(records.RecordSource(folder)[n], expected[n])
      except UserError:
        refused += 1
  assert refused
