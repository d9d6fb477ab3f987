"""A model that knows nothing; statistics in the place of networks and flow, tested elsewhere."""

import numpy as np

from sora_jax.evals import efficientnet, flow, i3d
from sora_jax.worlds import WorldSource


class Frames:
  """Colours of quarters of the frames: how they look, and how they change."""

  def __call__(self, clips):
    x = clips[:, :16].astype(np.float32) / 255
    b, t, h, w, _ = x.shape
    x = x[:, :, : h // 8 * 8, : w // 8 * 8].reshape(b, t, 8, h // 8, 8, w // 8, 3)
    cells, fine = x.mean((3, 5)), x.std((3, 5)).mean((1, 2, 3))
    steps = np.abs(np.diff(cells, axis=1)).mean((2, 3))
    few = np.concatenate([cells[:, ::5].mean((2, 3)).reshape(b, -1), fine, steps.reshape(b, -1)], 1)
    return np.pad(few, ((0, 0), (0, i3d.FEATURES - few.shape[1])))


class Images:
  """Colours and spreads of cells of an image."""

  def __call__(self, images):
    b, h, w, _ = images.shape
    x = images[:, : h // 4 * 4, : w // 4 * 4].astype(np.float32) / 255
    x = x.reshape(b, 4, h // 4, 4, w // 4, 3)
    few = np.concatenate([x.mean((2, 4)).reshape(b, -1), x.std((2, 4)).reshape(b, -1)], 1)
    return np.pad(few, ((0, 0), (0, 128 - few.shape[1])))


def steps(clips):
  """Root-mean-square difference of neighbouring frames: the warp error where nothing moves."""
  return np.sqrt(np.mean(np.square(np.diff(clips / 255, axis=1)), axis=(1, 2, 3, 4))).astype("f4")


class Blind:
  """A model that makes noise of any prompt, and reconstructs grey."""

  config: dict = {}

  def sample(self, prompts, *, seed, frames, size, progress):
    shape = (len(prompts), frames, *size, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)

  def reconstruct(self, clips):
    return np.full_like(clips, 128)


_RENDER, _RENDERED = WorldSource.__getitem__, {}


def rendered_once(source, index):
  """A world, which does not depend on how many there are."""
  key = repr([(k, v) for k, v in vars(source).items() if k != "count"]), index % len(source)
  if key not in _RENDERED:
    _RENDERED[key] = _RENDER(source, index)
  return dict(_RENDERED[key])


def install(monkeypatch, folder) -> None:
  """Puts them in place, renders each world once, and keeps features of real clips in `folder`."""
  monkeypatch.setattr(i3d, "Features", Frames)
  monkeypatch.setattr(efficientnet, "Features", Images)
  monkeypatch.setattr(flow, "warp_error", steps)
  monkeypatch.setattr(WorldSource, "__getitem__", rendered_once)
  monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
