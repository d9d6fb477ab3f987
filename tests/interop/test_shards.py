"""Weights on disk: read one tensor at a time, as stored; whatever is wrong is named before that."""

import json
import struct

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sora_jax.errors import UserError
from sora_jax.interop import shards
from sora_jax.interop.shards import Weights

INDEX = "diffusion_pytorch_model.safetensors.index.json"


@pytest.fixture
def tensors(rng):
  return {
    "a.weight": rng.normal(size=(3, 4)).astype(np.float32),
    "a.bias": rng.normal(size=5).astype(ml_dtypes.bfloat16),
    "b.half": rng.normal(size=(2, 2, 2)).astype(np.float16),
    "b.none": np.zeros((0, 3), np.float32),
    "c.scalar": np.asarray(7, np.int64),
  }


def write(folder, tensors, **how):
  folder.mkdir(parents=True, exist_ok=True)
  specs = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in tensors.items()}
  shards.write(folder, specs, tensors.items(), **how)
  return folder


def same(got, expected):
  assert got.keys() == expected.keys()
  for name, x in expected.items():
    assert got[name].dtype == x.dtype
    np.testing.assert_array_equal(got[name], x)


@pytest.mark.parametrize("limit", [shards.SHARD, 20, 60])
def test_what_is_written_is_read_in_its_type(tmp_path, tensors, limit):
  folder = write(tmp_path / "model", tensors, limit=limit)
  same(Weights.open(folder), tensors)
  files = sorted(folder.glob("*.safetensors"))
  others = {name: x for file in files for name, x in load_file(file).items()}
  same(others, tensors)  # safetensors itself reads them
  if limit < 100:
    index = json.loads((folder / INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in tensors.values())
    assert {p.name for p in files} == set(index["weight_map"].values())
    assert files[0].name == f"diffusion_pytorch_model-00001-of-{len(files):05d}.safetensors"


def test_links_of_the_cache_and_other_names_are_read(tmp_path, tensors):
  blobs, folder = tmp_path / "blobs", tmp_path / "snapshot"
  blobs.mkdir(), folder.mkdir()
  save_file(tensors, blobs / "1f")
  (folder / "anything.safetensors").symlink_to(blobs / "1f")
  same(Weights.open(folder), tensors)
  (folder / "model.safetensors").symlink_to(blobs / "1f")  # is preferred by its name
  same(Weights.open(folder), tensors)
  (folder / "model.safetensors").unlink()
  (folder / "other.safetensors").symlink_to(blobs / "1f")
  with pytest.raises(UserError, match="several weights, anything"):
    Weights.open(folder)


def test_pickles_are_refused_with_the_reason(tmp_path):
  (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04")
  with pytest.raises(UserError, match=r"pytorch_model\.bin is a pickle.*runs.*safe_serialization"):
    Weights.open(tmp_path)
  with pytest.raises(UserError, match="holds no weights"):
    Weights.open(tmp_path / "nothing")


def header_of(path):
  content = path.read_bytes()
  (length,) = struct.unpack("<Q", content[:8])
  return json.loads(content[8 : 8 + length]), content[8 + length :]


def rewrite(path, table, data):
  text = table if isinstance(table, bytes) else json.dumps(table).encode()
  path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def test_damaged_files_are_named_before_anything_is_read(tmp_path, tensors):
  folder = write(tmp_path / "model", tensors)
  path = folder / "diffusion_pytorch_model.safetensors"
  table, data = header_of(path)
  whole = path.read_bytes()
  damages = {
    r"damaged \(cut off within the tensor c.scalar": whole[:-3],
    r"damaged \(cut off within the tensor a.weight": whole[: -len(data) + 2],
    r"damaged \(its header would have": whole[:40],
    r"is damaged \(": whole[:5],
    "3 bytes after its last tensor": whole + b"123",
  }
  for says, content in damages.items():
    path.write_bytes(content)
    with pytest.raises(UserError, match=says):
      Weights.open(folder)
  edits = {
    "place of the tensor a.weight does not fit": dict(shape=[3, 5]),
    "wrong about the tensor a.weight": dict(dtype="F12"),
    "has no place of its own": dict(data_offsets=[8, 56]),
  }
  for says, change in edits.items():
    rewrite(path, table | {"a.weight": table["a.weight"] | change}, data)
    with pytest.raises(UserError, match=says):
      Weights.open(folder)
  for places in ([0, None], [0.0, 48.0], [0, 48, 48], [False, 48]):
    rewrite(path, table | {"a.weight": table["a.weight"] | dict(data_offsets=places)}, data)
    with pytest.raises(UserError, match="wrong about the tensor a.weight"):
      Weights.open(folder)
  huge = b'{"a": {"dtype": "F32", "shape": [0, 1%s], "data_offsets": [0, 0]}}' % (b"0" * 30)
  for none in (b"[]", b'{"a": 1}', b"3", b"[" * 100_000, huge):
    rewrite(path, none, data)
    with pytest.raises(UserError, match="is damaged"):
      Weights.open(folder)
  twice = json.dumps(table)[:-1] + ', "a.bias": ' + json.dumps(table["a.bias"]) + "}"
  rewrite(path, twice.encode(), data)
  with pytest.raises(UserError, match="a.bias is there twice"):
    Weights.open(folder)


def test_an_index_that_does_not_fit_is_refused(tmp_path, tensors):
  folder = write(tmp_path / "model", tensors, limit=60)
  path = folder / INDEX
  index = json.loads(path.read_text())
  places = index["weight_map"]

  def refused(match, changed):
    path.write_text(json.dumps({"weight_map": changed}))
    with pytest.raises(UserError, match=match):
      Weights.open(folder)

  for name in ("/etc/passwd", "../secret.safetensors", "sub/x.safetensors", ".."):
    refused("not a file of its folder", places | {"a.bias": name})
  refused(r"missing\.safetensors is missing", places | {"a.bias": "missing.safetensors"})
  refused("lists the tensor ghost in .*, which lacks it", places | {"ghost": places["a.bias"]})
  refused("lists the tensor a.bias", places | {"a.bias": places["c.scalar"]})
  without = {name: file for name, file in places.items() if name != "a.bias"}
  refused("holds the tensor a.bias, which the index lacks", without)
  path.write_text("{")
  with pytest.raises(UserError, match="is damaged"):
    Weights.open(folder)
  path.write_text(json.dumps(index))
  last = folder / places["c.scalar"]
  save_file({"a.weight": tensors["a.weight"], "c.scalar": tensors["c.scalar"]}, last)
  with pytest.raises(UserError, match=r"a\.weight is in diffusion.* and in"):
    Weights.open(folder)
