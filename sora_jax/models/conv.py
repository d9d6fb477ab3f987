"""Causal convolutions over videos, and the cache that lets them run chunk by chunk.

A causal layer needs, beside the frames of a chunk, the last few frames of its own input before
the chunk: `kernel_t - stride_t` of them, however long the clip is. When the collection `cache` is
mutable a layer leaves those frames there and finds them at the next call; otherwise it takes its
input for a whole clip. A layer that finds no past is at the first chunk.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jax import lax

from sora_jax.parallel.sharding import batch_shards, gather
from sora_jax.typing import Array, Float, PRNGKey

Initializer = Callable[..., Array]
Padding = tuple[tuple[int, int], ...]


def conv3d(
  x: Float[Array, "b t h w i"],
  kernel: Float[Array, "kt kh kw i o"],
  strides: tuple[int, int, int] = (1, 1, 1),
  padding: Padding = ((0, 0), (0, 0), (0, 0)),
) -> Float[Array, "b _ _ _ o"]:
  """3-D convolution, by whichever of two formulas the backend runs faster; as float32.

  They are equal but for rounding: of bfloat16 inputs the direct one rounds its sums to bfloat16.

  Args:
    x: a video of features.
    kernel: taps in time, rows, columns.
    strides: along t, h, w.
    padding: zeros before and after, along t, h, w.
  """
  folded = jax.default_backend() == "cpu"
  return (conv3d_folded if folded else conv3d_direct)(x, kernel, strides, padding)


def conv3d_direct(x: Array, kernel: Array, strides: tuple[int, ...], padding: Padding) -> Array:
  """The convolution as one operation."""
  y = lax.conv_general_dilated(
    x, kernel, strides, padding, dimension_numbers=("NDHWC", "DHWIO", "NDHWC")
  )
  return y.astype(jnp.float32)


def conv3d_folded(x: Array, kernel: Array, strides: tuple[int, ...], padding: Padding) -> Array:
  """The convolution as a 2-D one, of frames side by side with those that the taps before read.

  On XLA's CPU backend several times faster than the direct form (no fast 3-D kernel there), and up
  to a fifth faster than a sum of 2-D ones. Taps that would read only the padding in front cost
  nothing, so a one-frame video pays for one. Padding behind the last frame is not supported: a
  causal convolution has none.
  """
  stride, (before, after) = strides[0], padding[0]
  if after:
    raise ValueError("conv3d_folded takes no padding after the last frame")
  length = (x.shape[1] + before - kernel.shape[0]) // stride + 1
  if not length:
    shape = jax.eval_shape(lambda x: conv3d_direct(x, kernel, strides, padding), x).shape
    return jnp.zeros(shape, jnp.float32)
  last = (length - 1) * stride  # where the last output's taps begin
  unread = max(0, before - last)
  kernel, before = kernel[unread:], before - unread
  x = jnp.pad(x, [(0, 0), (before, 0), *[(0, 0)] * 3])
  read = [x[:, tap : tap + last + 1 : stride] for tap in range(kernel.shape[0])]
  kernel = rearrange(kernel, "t h w i o -> h w (t i) o")
  return _conv2d(jnp.concatenate(read, axis=-1), kernel, strides[1:], padding[1:])


def _conv2d(x: Array, kernel: Array, strides: tuple[int, ...], padding: Padding) -> Array:
  """The same 2-D convolution on every frame."""
  if kernel.shape[:2] == (1, 1) and strides == (1, 1):
    return jnp.matmul(x, kernel[0, 0], preferred_element_type=jnp.float32)
  frames = rearrange(x, "b t h w c -> (b t) h w c")
  y = _conv_frames(frames, kernel, strides, padding)
  return rearrange(y, "(b t) h w c -> b t h w c", t=x.shape[1])


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _conv_frames(x: Array, kernel: Array, strides: tuple[int, ...], padding: Padding) -> Array:
  return _conv_2d(x, kernel, strides, padding, jnp.float32)


def _conv_2d(x: Array, kernel: Array, strides: Any, padding: Padding, dtype: Any) -> Array:
  layout = ("NHWC", "HWIO", "NHWC")
  return lax.conv_general_dilated(
    x, kernel, strides, padding, dimension_numbers=layout, preferred_element_type=dtype
  )


def _conv_frames_fwd(x, kernel, strides, padding):
  return _conv_frames(x, kernel, strides, padding), (x, kernel)


def _conv_frames_bwd(strides, padding, saved, dy):
  """As automatic, but the kernel's gradient is summed frame by frame from matrix products.

  XLA's CPU backend takes the automatic one as a convolution with a window as large as the image:
  2 to 4 GFLOP/s at 32x32 pixels, against 40 this way (whose working set also stays in the cache).
  Each device sums over its own share of the frames.
  """
  x, kernel = saved
  dy = dy.astype(x.dtype)
  (dx,) = jax.linear_transpose(lambda x: _conv_2d(x, kernel, strides, padding, x.dtype), x)(dy)
  (kh, kw), (sh, sw) = kernel.shape[:2], strides
  h, w = dy.shape[1:3]

  def add_frame(total, frame):
    x, dy = frame
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    columns = [x[:, :, j : j + (w - 1) * sw + 1 : sw] for j in range(kw)]
    x = jnp.concatenate(columns, axis=-1)
    rows = [x[:, i : i + (h - 1) * sh + 1 : sh] for i in range(kh)]
    return total + jnp.stack([jnp.einsum("shwi,shwo->sio", row, dy) for row in rows]), None

  shards = batch_shards(len(x))
  zeros = jnp.zeros((kh, shards, kw * kernel.shape[2], kernel.shape[3]), kernel.dtype)
  x, dy = (rearrange(a, "(s n) h w c -> n s h w c", s=shards) for a in (x, dy))
  dkernel, _ = lax.scan(add_frame, zeros, (x, dy))
  return dx, dkernel.sum(axis=1).reshape(kernel.shape)


_conv_frames.defvjp(_conv_frames_fwd, _conv_frames_bwd)


def normal(key: PRNGKey, shape: tuple[int, ...]) -> Array:
  """`jax.random.normal`, drawn flat: the same numbers, and a program that compiles.

  XLA's CPU backend needs up to half a minute for one draw in four dimensions of odd sizes
  (jax 0.10.2), half a second for a flat one.
  """
  return jax.random.normal(key, (math.prod(shape),)).reshape(shape)


def present_tap() -> Initializer:
  """Fan-in initialisation of the tap that reads the current frame; the past starts at zero.

  Together with zero padding this makes images and videos one training problem: on an image the
  past taps read zeros and stay as they are, so a model trained on images treats each frame of a
  video as it would an image, and learns from there what the past adds. (Padding with copies of
  the first frame starts as smoothly, but spends every tap on every image.)
  """

  def init(key, shape, dtype=jnp.float32, out_sharding=None):
    present = normal(key, shape[1:]) / math.sqrt(math.prod(shape[1:-1]))
    return jnp.zeros(shape, dtype).at[-1].set(present.astype(dtype))

  return init


def same_frames(weights: tuple[float, ...]) -> Initializer:
  """Every output frame starts as this average over the taps: identity in the channels."""

  def init(key, shape, dtype=jnp.float32, out_sharding=None):
    del key
    eye = jnp.tile(jnp.eye(shape[-2], dtype=dtype), shape[-1] // shape[-2])
    return jnp.asarray(weights, dtype).reshape(-1, 1, 1, 1, 1) * eye

  return init


class CausalConv(nn.Module):
  """Convolution that sees the present and the past. The kernel is `(kt, kh, kw, in, out)`.

  With stride 1 rows and columns are padded on both sides (same size); with stride 2 by one zero
  after the last, which halves an even size.
  """

  features: int
  kernel: tuple[int, int, int] = (3, 3, 3)
  strides: tuple[int, int, int] = (1, 1, 1)
  kernel_init: Initializer = present_tap()
  bias_init: Initializer = nn.initializers.zeros
  dtype: Any = None

  @nn.compact
  def __call__(
    self, x: Float[Array, "b t h w i"], before: Float[Array, "b _ h w i"] | None = None
  ) -> Float[Array, "b _ _ _ o"]:
    """Args: before: the frames before the first one (zeros if not given)."""
    kernel = self.param("kernel", self.kernel_init, (*self.kernel, x.shape[-1], self.features))
    bias = self.param("bias", self.bias_init, (self.features,))
    # Whole, whatever it is split over: what moves is kernels, and of a video only its borders.
    kernel = gather("/".join((*self.path, "kernel")), kernel, self.dtype)
    x, kernel = nn.dtypes.promote_dtype(x, kernel, dtype=self.dtype)
    depth = self.kernel[0] - self.strides[0]
    past = swap_past(self, x, depth, before)
    if past is not None:
      x = jnp.concatenate([past, x], axis=1)
    around = [(k // 2, k // 2) if s == 1 else (0, s - 1)
              for k, s in zip(self.kernel[1:], self.strides[1:], strict=True)]  # fmt: skip
    padding = ((0 if past is not None else depth, 0), *around)
    # The bias comes before the sum is rounded.
    return (conv3d(x, kernel, self.strides, padding) + bias).astype(x.dtype)


def swap_past(module: nn.Module, x: Array, depth: int, before: Array | None) -> Array | None:
  """Returns the last `depth` frames before `x` (None for zeros), and keeps those of `x`."""
  if not depth:
    return None
  past = before
  if module.has_variable("cache", "past"):
    past = module.get_variable("cache", "past")
  if streaming(module):
    known = past if past is not None else jnp.zeros((x.shape[0], depth, *x.shape[2:]), x.dtype)
    module.put_variable("cache", "past", jnp.concatenate([known, x], axis=1)[:, -depth:])
  return past


def streaming(module: nn.Module) -> bool:
  """Whether the module is called chunk by chunk, with a feature cache."""
  return module.is_mutable_collection("cache") and not module.is_initializing()
