"""What is saved comes back exactly, on any mesh, and what is damaged or full does no harm."""

from __future__ import annotations

import errno
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from sora_jax.errors import UserError
from sora_jax.parallel import sharding
from sora_jax.train import checkpoint, optim
from sora_jax.train.state import TrainState


def _init(key):
  draw = lambda i, *shape: jax.random.normal(jax.random.fold_in(key, i), shape)  # noqa: E731
  return {
    "blocks": {"self_attn": {"q": {"kernel": draw(0, 2, 64, 128)}}},
    "patch_out": {"kernel": draw(1, 64, 16), "bias": draw(2, 16)},
    "int8": jnp.arange(12, dtype=jnp.int8),
  }


def _state(mesh, seed=0):
  """A training state born on `mesh`, and the shapes to restore it to."""
  key = jax.random.key(seed)
  optimizer = optim.build({}, jax.eval_shape(_init, key), 10, "kernel|bias")
  create = lambda key: TrainState.create(_init(key), optimizer)  # noqa: E731
  abstract = jax.eval_shape(create, key)
  places = sharding.param_shardings(abstract, mesh)
  abstract = jax.tree.map(
    lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, places
  )
  return jax.jit(create, out_shardings=places)(key), abstract


def _host(tree):
  return jax.tree.map(lambda x: np.array(x, copy=True), tree)


@pytest.fixture
def mesh():
  return sharding.make_mesh({"data": 2, "fsdp": 4})


@pytest.fixture
def store(tmp_path):
  store = checkpoint.Checkpoints(tmp_path, keep=2)
  yield store
  store.close()


@pytest.mark.parametrize("other", [{"data": 1}, {"fsdp": 2, "tensor": 4}])
def test_round_trip_onto_any_mesh(store, mesh, other):
  state, _ = _state(mesh)
  store.save(3, state, {"next_index": 17, "nested": [1, "a"]})
  store.wait()
  there, abstract = _state(sharding.make_mesh(other), seed=1)
  step, restored, data = store.restore(abstract, there.frozen)
  assert (step, data) == (3, ({"next_index": 17, "nested": [1, "a"]}, 1))
  jax.tree.map(np.testing.assert_array_equal, _host(state), _host(restored))
  for a, r in zip(jax.tree.leaves(abstract), jax.tree.leaves(restored), strict=True):
    assert r.sharding == a.sharding and r.dtype == a.dtype


def test_saving_is_not_disturbed_by_the_donation_that_follows(store, mesh):
  state, abstract = _state(mesh)
  before = _host(state)
  change = jax.jit(lambda s: jax.tree.map(lambda x: x * 0 + 7, s), donate_argnums=0)
  frozen = jax.tree.map(jnp.copy, state.frozen)
  store.save(1, state, b"bytes too")
  for _ in range(5):
    state = change(state)
  _, restored, data = store.restore(abstract, frozen)  # waits for the save
  jax.tree.map(np.testing.assert_array_equal, before, _host(restored))
  assert data.state == b"bytes too"


def test_keeps_the_newest(store, mesh, tmp_path):
  state, _ = _state(mesh)
  for step in (2, 4, 6):
    store.save(step, state, step)
  store.wait()
  assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["4", "6"]
  assert store.latest == 6


def _damage(folder, how):
  largest = max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
  if how == "truncated":
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
  elif how == "overwritten":
    largest.write_bytes(np.random.default_rng(0).bytes(largest.stat().st_size))
  elif how == "no arrays":
    shutil.rmtree(folder / "state")
  elif how == "no data position":
    shutil.rmtree(folder / "data")


@pytest.mark.parametrize("how", ["truncated", "overwritten", "no arrays", "no data position"])
def test_a_damaged_checkpoint_is_reported_and_the_one_before_is_used(tmp_path, mesh, how, capsys):
  store = checkpoint.Checkpoints(tmp_path)
  (old, abstract), (new, _) = _state(mesh), _state(mesh, seed=1)
  store.save(1, old, "old")
  store.save(2, new, "new")
  store.close()
  _damage(tmp_path / "checkpoints" / "2", how)
  store = checkpoint.Checkpoints(tmp_path)
  step, restored, data = store.restore(abstract, old.frozen)
  assert (step, data.state) == (1, "old")
  jax.tree.map(np.testing.assert_array_equal, _host(old), _host(restored))
  assert "checkpoint 2 is damaged" in capsys.readouterr().err
  assert [p.name for p in (tmp_path / "damaged").iterdir()] == ["2"] and store.latest == 1
  store.save(2, new, "again")  # the step can be saved anew
  store.wait()
  assert store.restore(abstract, old.frozen)[2].state == "again"
  _damage(tmp_path / "checkpoints" / "2", how)
  _damage(tmp_path / "checkpoints" / "1", how)
  shutil.rmtree(tmp_path / "damaged")
  with pytest.raises(UserError, match="No checkpoint in .* can be read"):
    store.restore(abstract, old.frozen)
  assert store.latest == 2 and not (tmp_path / "damaged").exists()  # there may be nothing better
  store.close()


def _loop_of_links(folder):
  """Makes a file of the arrays one that the disk will not open, which TensorStore says in words."""
  largest = max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
  largest.unlink()
  largest.symlink_to(largest.name)


@pytest.mark.parametrize(
  "error",
  [
    MemoryError(),
    OSError(errno.EIO, "Input/output error"),
    OSError(errno.ESTALE, "Stale file handle"),
    PermissionError(errno.EACCES, "Permission denied"),
    RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 4294967296 bytes."),
    None,
  ],
  ids=repr,
)
def test_what_the_machine_or_the_disk_did_is_no_damage(store, mesh, tmp_path, monkeypatch, error):
  state, abstract = _state(mesh)
  for step in (1, 2):
    store.save(step, state, step)
  store.wait()
  if error is None:
    _loop_of_links(tmp_path / "checkpoints" / "2")

  def read(self, directory):
    raise error

  with monkeypatch.context() as patch:
    if error is not None:
      patch.setattr(checkpoint._JsonPosition, "_read", read)
    with pytest.raises(Exception) as raised:  # noqa: PT011
      store.restore(abstract, state.frozen)
  assert not isinstance(raised.value, UserError)
  assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["1", "2"]
  assert store.latest == 2 and not (tmp_path / "damaged").exists()
  if error is not None:
    assert store.restore(abstract, state.frozen)[0] == 2


def test_frozen_weights_are_left_out_and_must_be_the_same_again(store, mesh, tmp_path):
  state, abstract = _state(mesh)
  large = jax.random.randint(jax.random.key(0), (1 << 22,), -128, 128, jnp.int8)
  frozen = state.frozen | {"int8": large}
  store.save(1, state.replace(frozen=frozen), None)
  store.wait()
  assert sum(p.stat().st_size for p in tmp_path.rglob("*") if p.is_file()) < large.size / 2
  with pytest.raises(UserError, match="was made with other frozen weights"):
    store.restore(abstract, frozen | {"int8": large.at[3].add(1)})
  restored = store.restore(abstract, frozen)[1]
  assert restored.frozen["int8"] is large
  assert store.latest == 1  # and not set aside


def test_nothing_to_restore(store, mesh):
  assert store.latest is None
  state, abstract = _state(mesh)
  assert store.restore(abstract, state.frozen) is None


def test_a_full_disk_is_one_sentence_and_leaves_the_last_checkpoint(
  store, mesh, monkeypatch, tmp_path
):
  state, abstract = _state(mesh)
  store.save(1, state, "kept")
  store.wait()
  usage = shutil.disk_usage(tmp_path)._replace(free=1000)
  with monkeypatch.context() as patch:
    patch.setattr(checkpoint.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match="full; the last checkpoint .step 1 is intact"):
      store.save(2, state, "no room")

  async def fails(self, directory):
    async def write():
      raise OSError(errno.ENOSPC, "No space left on device")

    return write()

  with monkeypatch.context() as patch:
    patch.setattr(checkpoint._JsonPosition, "save", fails)
    store.save(3, state, "fails in the background")
    with pytest.raises(UserError, match="is full"):
      store.wait()
  assert store.restore(abstract, state.frozen)[2].state == "kept"


CONFIG = {
  "seed": 1, "optim": {"lr": 1e-3}, "train": {"steps": 10, "keep": 2}, "widths": (1, 2),
  "data": {"workers": 0},
}  # fmt: skip


def test_a_workdir_belongs_to_its_config(tmp_path):
  workdir = tmp_path / "a" / "b"
  checkpoint.claim(workdir, ConfigDict(CONFIG | {"seed": 5}))  # nothing trained yet
  checkpoint.claim(workdir, ConfigDict(CONFIG))
  (workdir / "checkpoints" / "4").mkdir(parents=True)
  assert json.loads((workdir / "config.json").read_text())["optim"]["lr"] == 1e-3
  checkpoint.claim(workdir, ConfigDict(CONFIG))
  checkpoint.claim(workdir, ConfigDict(CONFIG | {"train": {"steps": 99, "keep": 5}}))
  with pytest.raises(UserError, match=r"another config: optim.lr \(0.001 there\), seed \(1 there"):
    checkpoint.claim(workdir, ConfigDict(CONFIG | {"seed": 2, "optim": {"lr": 2e-3}}))
  with pytest.raises(UserError, match="train.batch_size"):
    checkpoint.claim(workdir, ConfigDict(CONFIG | {"train": {"batch_size": 8}}))
  with pytest.raises(UserError, match="data.workers"):  # the position of the data is theirs
    checkpoint.claim(workdir, ConfigDict(CONFIG | {"data": {"workers": 2}}))
  (workdir / "config.json").write_text('{"seed": ')
  with pytest.raises(UserError, match="damaged"):
    checkpoint.claim(workdir, ConfigDict(CONFIG))


def test_a_workdir_that_is_a_file(tmp_path):
  (tmp_path / "file").write_text("x")
  with pytest.raises(UserError, match="cannot be written"):
    checkpoint.claim(tmp_path / "file", ConfigDict(CONFIG))
  with pytest.raises(UserError, match="cannot be written"):
    checkpoint.claim(tmp_path / "file" / "below", ConfigDict(CONFIG))
