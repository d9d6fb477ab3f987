"""Worlds on disk: the `data worlds` verb and the TFDS builder."""

import json
import subprocess
import sys

import numpy as np
import pytest

from sora_jax import worlds
from sora_jax.cli import main
from sora_jax.data.records import RecordSource


def test_data_worlds_writes_what_the_source_renders(tmp_path, capfd):
  out = tmp_path / "clips"
  words = f"data worlds --out {out} --count 3 --seed 5 --size 32x48 --frames 5 --split heldout"
  assert main.main([*words.split(), "--scenes", "roll,orbit", "--json"]) == 0
  printed = json.loads(capfd.readouterr().out)
  assert printed["count"] == 3 and printed["frames_per_second"] > 0
  source = worlds.WorldSource(
    3, 5, "heldout", frames=5, height=32, width=48, scenes=("roll", "orbit")
  )
  records = RecordSource(out)
  assert records.info["settings"]["seed"] == 5
  for i in range(3):
    np.testing.assert_array_equal(records[i]["video"], source[i]["video"])
    assert records[i]["caption"] == source[i]["caption"]
    assert records[i]["truth"]["labels"] == source.spec(i).labels
    assert worlds.Spec.from_json(records[i]["truth"]["spec"]) == source.spec(i)
  # Nothing is overwritten, and the reason is one sentence.
  assert main.main(words.split()) == 2
  assert "not an empty folder" in capfd.readouterr().err


@pytest.mark.parametrize("wrong", ["--size 64", "--size 8x8", "--count 0", "--scenes rol"])
def test_bad_arguments_leave_nothing(wrong, tmp_path, capfd):
  words = f"data worlds --out {tmp_path / 'clips'} --count 2 --seed 0 {wrong}"
  assert main.main(words.split()) == 2
  assert capfd.readouterr().err.count("\n") == 1
  assert list(tmp_path.iterdir()) == []


def test_tfds_builder_without_tensorflow(tmp_path):
  code = """
import sys
from sora_jax.worlds.tfds import Worlds, WorldsConfig
config = WorldsConfig(name="tiny", count=3, frames=2, height=32, width=32)
builder = Worlds(config=config, data_dir=sys.argv[1], file_format="array_record")
builder.download_and_prepare()
for split, count in (("train", 3), ("validation", 1), ("heldout", 1)):
  source = builder.as_data_source(split=split)
  assert len(source) == count
  sample = source[0]
  assert sample["video"].shape == (2, 32, 32, 3)
  assert sample["labels"]["colour"].decode() in sample["caption"].decode()
assert not {"tensorflow", "torch"} & set(sys.modules)
"""
  subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=300)
