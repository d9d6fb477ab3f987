"""Checkpoint folders: written whole or not at all, and refused clearly when damaged."""

import ml_dtypes
import numpy as np
import pytest

from sora_jax.errors import UserError
from sora_jax.interop import native


def weights(rng):
  return {"a": {"kernel": rng.normal(size=(3, 4)).astype(np.float32)}, "b": rng.normal(size=5)}


def test_round_trip_keeps_what_bfloat16_can_hold(tmp_path, rng):
  params = weights(rng)
  native.save(tmp_path / "model", {"vae": params}, {"vae": {"z": 4}})
  back = native.load_params(tmp_path / "model", "vae", params)
  expected = params["a"]["kernel"].astype(ml_dtypes.bfloat16).astype(np.float32)
  np.testing.assert_array_equal(back["a"]["kernel"], expected)
  assert native.read_config(tmp_path / "model") == {"vae": {"z": 4}}


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path, rng):
  native.save(tmp_path / "model", {"vae": weights(rng)}, {"version": 1})
  with pytest.raises(TypeError):
    native.save(tmp_path / "model", {"vae": weights(rng)}, {"version": object()})
  assert native.read_config(tmp_path / "model") == {"version": 1}
  assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_what_is_wrong_is_named(tmp_path, rng):
  params = weights(rng)
  folder = tmp_path / "model"
  with pytest.raises(UserError, match="no checkpoint 'nothing'"):
    native.find("nothing")
  with pytest.raises(UserError, match=r"holds no config\.json"):
    native.find(tmp_path)
  native.save(folder, {"vae": params}, {})
  with pytest.raises(UserError, match="has no transformer"):
    native.read_component(folder, "transformer")
  with pytest.raises(UserError, match=r"a/kernel is \(3, 4\) there and \(3, 5\) here"):
    native.load_params(folder, "vae", params | {"a": {"kernel": np.zeros((3, 5))}})
  file = folder / "vae.safetensors"
  file.write_bytes(file.read_bytes()[:-3])
  with pytest.raises(UserError, match="is damaged"):
    native.read_component(folder, "vae")
  (folder / "config.json").write_text("{")
  with pytest.raises(UserError, match="is damaged"):
    native.read_config(folder)
