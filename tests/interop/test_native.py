"""Checkpoint folders: written whole or not at all, and refused clearly when damaged."""

import os

import ml_dtypes
import numpy as np
import pytest

from sora_jax.errors import UserError
from sora_jax.interop import names, native


def test_an_autoencoder_alone_is_checked_too(tmp_path):
  toy = native.find("toy")
  params = native.read_component(toy, "vae")
  vae, loaded = native.load_vae(toy)
  assert vae.z_channels == 64 and sorted(names.flatten(loaded)) == sorted(names.flatten(params))
  flat = names.flatten(params)
  first = min(flat)
  for changed, says in (
    ({k: x for k, x in flat.items() if k != first}, "there and"),
    ({**flat, first: flat[first][..., :1]}, "there and"),
    ({**flat, "more": flat[first]}, "more is .* there and None here"),
  ):
    native.save(tmp_path / "model", {"vae": names.unflatten(changed)}, native.read_config(toy))
    with pytest.raises(UserError, match=says):
      native.load_vae(tmp_path / "model")


def test_what_is_copied_stays_as_it_is_stored(tmp_path, rng):
  native.save(tmp_path / "one", {"vae": weights(rng)}, {}, dtype=np.float32)
  native.save(tmp_path / "two", {}, {}, native.files(tmp_path / "one", "vae"))
  one, two = (tmp_path / name / "vae.safetensors" for name in ("one", "two"))
  assert one.read_bytes() == two.read_bytes()
  with pytest.raises(UserError, match="has no transformer"):
    native.files(tmp_path / "one", "vae", "transformer")


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


def test_the_old_checkpoint_comes_back_if_the_new_one_gets_no_name(tmp_path, rng, monkeypatch):
  native.save(tmp_path / "model", {"vae": weights(rng)}, {"version": 1})
  replace = os.replace

  def fails(source, target):
    if str(source).endswith(".tmp"):
      raise OSError("no space left")
    replace(source, target)

  monkeypatch.setattr(os, "replace", fails)
  with pytest.raises(OSError, match="no space left"):
    native.save(tmp_path / "model", {"vae": weights(rng)}, {"version": 2})
  assert native.read_config(tmp_path / "model") == {"version": 1}
  assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_link_to_a_checkpoint_stays_one(tmp_path, rng):
  native.save(tmp_path / "disk" / "model", {"vae": weights(rng)}, {"version": 1})
  (tmp_path / "link").symlink_to(tmp_path / "disk" / "model")
  native.save(tmp_path / "link", {"vae": weights(rng)}, {"version": 2})
  assert (tmp_path / "link").is_symlink()
  assert native.read_config(tmp_path / "disk" / "model") == {"version": 2}
  assert sorted(p.name for p in tmp_path.rglob("*") if p.is_dir()) == ["disk", "link", "model"]


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
  with pytest.raises(UserError, match="hold a/b, and a itself"):
    names.unflatten({"a": 1, "a/b": 2})
  with pytest.raises(UserError, match="hold a, and others below it"):
    names.unflatten({"a/b": 2, "a": 1})
  (folder / "config.json").write_text("[" * 100_000)
  with pytest.raises(UserError, match="is damaged"):
    native.read_config(folder)
  (folder / "config.json").write_text("{")
  with pytest.raises(UserError, match="is damaged"):
    native.read_config(folder)
