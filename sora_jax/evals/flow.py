"""Optical flow by TV-L1, and the warp error of a clip: how well each frame foretells the next.

Flow: Zach, Pock & Bischof 2007, "A Duality Based Approach for Realtime TV-L1 Optical Flow", as
algorithm 1 of Wedel et al. 2009, "An Improved Algorithm for TV-L1 Optical Flow": the field u that
minimises the sum of |grad u| and lambda |I1(x + u) - I0(x)|, coarse to fine. Nothing is learned.

Warp error: Lai et al. 2018, "Learning Blind Video Temporal Consistency", arXiv:1808.00449, eq. 9:
the difference of a frame from the next one, warped onto it by their flow, where nothing is
occluded. Occlusion is that of Ruder et al. 2016, "Artistic Style Transfer for Videos",
arXiv:1604.08610, eq. 5: there and back again does not lead back.

The protocol is frozen:
  1. pairs (i, i + 1) of neighbouring frames, `PAIRS` of them, spread evenly over the clip;
  2. the longer side resized to `SIZE` pixels if it has more (bilinear, antialiased);
  3. flow of the luma in [0, 1], both ways, with the constants below;
  4. root-mean-square difference of the colours in [0, 1] over what is not occluded; the mean over
     the pairs of a clip. NaN if all of it is occluded.

A still clip has no warp error at all, so its value means nothing without that of real clips.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from sora_jax.evals.reconstruction import luma
from sora_jax.typing import Array, Float, UInt8

PAIRS, SIZE = 4, 128
DATA, TIGHT = 15.0, 0.3  # lambda and theta, for images in [0, 1]
WARPS, STEPS, DUAL_STEPS = 5, 10, 2
COARSEST = 16  # pixels of the shorter side, or more, at the top of the pyramid

Flow = Float[Array, "h w 2"]
Grey = Float[Array, "h w"]


def sampled(image: Array, flow: Flow) -> Array:
  """`image` (`h w` or `h w c`) at x + flow(x): bilinear, the border repeated outside."""
  height, width = image.shape[:2]
  grid = jnp.stack(jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij"), -1)
  place = jnp.clip(grid + flow, 0.0, jnp.array([height - 1.0, width - 1.0]))
  low = jnp.floor(place).astype(jnp.int32)
  high = jnp.minimum(low + 1, jnp.array([height - 1, width - 1]))
  part = place - low
  dy, dx = (part[..., axis].reshape(part.shape[:2] + (1,) * (image.ndim - 2)) for axis in (0, 1))
  (top, left), (bottom, right) = ((at[..., 0], at[..., 1]) for at in (low, high))
  above = image[top, left] * (1 - dx) + image[top, right] * dx
  below = image[bottom, left] * (1 - dx) + image[bottom, right] * dx
  return above * (1 - dy) + below * dy


def tvl1(first: Grey, second: Grey) -> Flow:
  """The flow u with second(x + u(x)) = first(x), in pixels: rows, then columns."""
  shapes = [first.shape]
  while min(shapes[0]) // 2 >= COARSEST:
    shapes.insert(0, tuple(-(-side // 2) for side in shapes[0]))
  flow = jnp.zeros((*shapes[0], 2), jnp.float32)
  for shape in shapes:
    scale = jnp.array([now / before for now, before in zip(shape, flow.shape[:2], strict=True)])
    flow = jax.image.resize(flow, (*shape, 2), "bilinear") * scale
    one, other = (jax.image.resize(image, shape, "bilinear") for image in (first, second))
    flow = _refined(one, other, flow)
  return flow


def _refined(first: Grey, second: Grey, flow: Flow) -> Flow:
  """`WARPS` linearisations of one level of the pyramid; the dual variables go on throughout."""

  def warp(_: Array, state: tuple[Flow, Array]) -> tuple[Flow, Array]:
    flow, dual = state
    warped = sampled(second, flow)
    slope = jnp.stack(jnp.gradient(warped), -1)
    power = jnp.sum(jnp.square(slope), -1, keepdims=True)
    rest = (warped - first - jnp.sum(slope * flow, -1))[..., None]

    def step(_: Array, state: tuple[Flow, Array]) -> tuple[Flow, Array]:
      flow, dual = state
      error = rest + jnp.sum(slope * flow, -1, keepdims=True)
      most = DATA * TIGHT
      inside = jnp.abs(error) <= most * power
      move = jnp.where(inside, error / jnp.where(power > 0, power, 1.0), most * jnp.sign(error))
      return _smoothed(flow - move * slope, dual)

    return jax.lax.fori_loop(0, STEPS, step, (flow, dual))

  dual = jnp.zeros((2, *flow.shape), jnp.float32)
  return jax.lax.fori_loop(0, WARPS, warp, (flow, dual))[0]


def _smoothed(target: Flow, dual: Float[Array, "2 h w 2"]) -> tuple[Flow, Float[Array, "2 h w 2"]]:
  """Total variation denoising by steps of Chambolle 2004 from the last dual variables."""
  smooth = target
  for _ in range(DUAL_STEPS):
    slope = jnp.stack([
      jnp.diff(smooth, axis=axis, append=jax.lax.slice_in_dim(smooth, -1, None, axis=axis))
      for axis in (0, 1)
    ])  # fmt: skip
    size = jnp.sqrt(jnp.sum(jnp.square(slope), axis=0))
    dual = (dual - 0.25 * slope) / (1 + 0.25 / TIGHT * size)[None]
    gain = -dual[0] - dual[1]
    gain = gain.at[1:].add(dual[0, :-1]).at[:, 1:].add(dual[1, :, :-1])
    smooth = target + gain
  return smooth, dual


def visible(there: Flow, back: Flow) -> Float[Array, "h w"]:
  """1 where the flow back leads to where the flow there came from, else 0."""
  returned = sampled(back, there)
  miss = jnp.sum(jnp.square(there + returned), -1)
  length = jnp.sum(jnp.square(there), -1) + jnp.sum(jnp.square(returned), -1)
  return (miss <= 0.01 * length + 0.5).astype(jnp.float32)


def pair_error(first: Float[Array, "h w 3"], second: Float[Array, "h w 3"]) -> Float[Array, ""]:
  """Steps 3 and 4 of the protocol for one pair of frames in [0, 1]."""
  a, b = luma(first), luma(second)
  there, back = tvl1(a, b), tvl1(b, a)
  seen = visible(there, back)
  square = jnp.mean(jnp.square(first - sampled(second, there)), -1)
  return jnp.sqrt(jnp.sum(square * seen) / jnp.sum(seen))


@functools.partial(jax.jit, static_argnums=1)
def _errors(clip: Array, shape: tuple[int, int]) -> Array:
  frames = len(clip)
  starts = np.unique(np.round(np.linspace(0, frames - 2, min(PAIRS, frames - 1))).astype(int))
  x = clip.astype(jnp.float32) / 255
  x = jax.image.resize(x, (frames, *shape, 3), "bilinear")
  return jax.vmap(pair_error)(x[starts], x[starts + 1])


def warp_error(clips: UInt8[np.ndarray, "b t h w 3"]) -> Float[np.ndarray, " b"]:
  """The warp error of each clip of two frames or more, in [0, 1]."""
  longest = max(clips.shape[2:4])
  shape = tuple(max(1, round(side * min(1.0, SIZE / longest))) for side in clips.shape[2:4])
  pairs = np.stack([np.asarray(_errors(clip, shape)) for clip in clips])
  seen = ~np.isnan(pairs)
  total = np.where(seen, pairs, 0).sum(axis=1)
  return np.where(seen.any(axis=1), total / np.maximum(seen.sum(axis=1), 1), np.nan).astype("f4")
