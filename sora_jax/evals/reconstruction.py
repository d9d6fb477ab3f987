"""How close a reconstruction is to its reference, and two reference-free signs of mush.

All metrics take uint8 clips, as files hold them, and are computed in float32 on [0, 1].
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from sora_jax.evals.lpips import LPIPS
from sora_jax.typing import Array, Float, UInt8

Clips = UInt8[np.ndarray, "b t h w 3"]

# A pixel moves when its reference changes by more than this between neighbouring frames.
MOVING = 8 / 255
# A pixel is static when its temporally smoothed value stays within this range over the clip.
STATIC = 12 / 255
GREY_LEVEL = 1 / 255
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


@dataclass
class Mean:
  """Streaming mean and spread of per-clip numbers; NaN (nothing to measure) is left out."""

  count: int = 0
  total: float = 0.0
  square: float = 0.0

  def add(self, values: Float[np.ndarray, " b"] | list[float]) -> None:
    kept = np.asarray(values, np.float64)
    kept = kept[~np.isnan(kept)]
    self.count += kept.size
    self.total += float(kept.sum())
    self.square += float(np.square(kept).sum())

  @property
  def mean(self) -> float:
    return self.total / self.count if self.count else float("nan")

  @property
  def std(self) -> float:
    """Standard deviation over clips, with n - 1."""
    if self.count < 2:
      return float("nan")
    return max(self.square - self.total**2 / self.count, 0.0) ** 0.5 / (self.count - 1) ** 0.5

  def summary(self) -> dict[str, float | int]:
    return {"mean": self.mean, "std": self.std, "n": self.count}


def psnr(
  x: Float[Array, "b t h w 3"],
  y: Float[Array, "b t h w 3"],
  where: Float[Array, "b t h w 1"] | None = None,
) -> Float[Array, " b"]:
  """Peak signal-to-noise ratio in dB of videos in [0, 1], from the clip's mean squared error.

  `where` weighs the pixels; a clip with no weight gives NaN. Capped at 100 dB (equal clips).
  """
  weight = jnp.ones_like(x[..., :1]) if where is None else where
  error = jnp.sum(jnp.square(x - y) * weight, axis=(1, 2, 3, 4))
  error = error / (3 * jnp.sum(weight, axis=(1, 2, 3, 4)))
  return -10 * jnp.log10(jnp.maximum(error, 1e-10))


def moving(x: Float[Array, "b t h w 3"]) -> Float[Array, "b t h w 1"]:
  """1 where a pixel differs from the previous or the next frame by more than `MOVING`, else 0."""
  change = jnp.max(jnp.abs(jnp.diff(x, axis=1)), axis=-1, keepdims=True) > MOVING
  still = jnp.zeros_like(change[:, :1])
  before, after = (jnp.concatenate(pair, 1) for pair in ((still, change), (change, still)))
  return (before | after).astype(x.dtype)


def ssim(x: Float[Array, "b t h w 3"], y: Float[Array, "b t h w 3"]) -> Float[Array, " b"]:
  """Structural similarity of videos in [0, 1], mean over frames, channels and valid windows.

  Wang et al. 2004, "Image quality assessment", eq. 13: Gaussian window of 11 px and sigma 1.5,
  K1 = 0.01, K2 = 0.03, per frame and channel.
  """

  def blur(z: Array) -> Array:
    offsets = jnp.arange(11) - 5.0
    window = jnp.exp(-jnp.square(offsets) / (2 * 1.5**2))
    window = window / window.sum()
    rows = sum(window[i] * z[:, :, i : z.shape[2] - 10 + i] for i in range(11))
    return sum(window[i] * rows[:, :, :, i : z.shape[3] - 10 + i] for i in range(11))  # type: ignore

  mean_x, mean_y = blur(x), blur(y)
  var_x, var_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
  cov = blur(x * y) - mean_x * mean_y
  c1, c2 = 0.01**2, 0.03**2
  index = (2 * mean_x * mean_y + c1) * (2 * cov + c2)
  index = index / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
  return jnp.mean(index, axis=(1, 2, 3, 4))


def sharpness(x: Float[Array, "b t h w 3"]) -> Float[Array, " b"]:
  """Gradient energy of the luma: mean squared difference of neighbouring pixels, both ways."""
  y = luma(x)
  rows = jnp.mean(jnp.square(jnp.diff(y, axis=2)), axis=(1, 2, 3))
  return rows + jnp.mean(jnp.square(jnp.diff(y, axis=3)), axis=(1, 2, 3))


def flicker(x: Float[Array, "b t h w 3"]) -> Float[Array, " b"]:
  """Root-mean-square fast variation of the luma at static pixels; NaN if all of them move.

  The luma is split into a five-frame moving average and the rest. Where the average stays within
  `STATIC`, nothing moves, and the rest is flicker: an oscillating pixel is not mistaken for a
  moving one, because the average removes its oscillation.
  """
  y = luma(x)
  frames = y.shape[1]
  slow = sum(y[:, i : frames - 4 + i] for i in range(5)) / 5
  static = (jnp.max(slow, axis=1) - jnp.min(slow, axis=1) < STATIC).astype(x.dtype)
  fast = jnp.mean(jnp.square(y[:, 2 : frames - 2] - slow), axis=1)
  return jnp.sqrt(jnp.sum(fast * static, axis=(1, 2)) / jnp.sum(static, axis=(1, 2)))


def grey_ratio(sample: float, real: float) -> float:
  """Flicker or warp error of samples over that of real clips, one grey level added to both.

  A rendered static background does not flicker at all, so a bare ratio would divide by nothing;
  one grey level is the step of the files themselves, and invisible.
  """
  return (sample + GREY_LEVEL) / (real + GREY_LEVEL)


def luma(x: Float[Array, "*b 3"]) -> Float[Array, "*b"]:
  """Weighted sum of red, green and blue, as ITU-R BT.601 weighs them."""
  return jnp.einsum("...c,c->...", x, jnp.array(_LUMA, x.dtype))


class Reconstruction:
  """Accumulates PSNR, SSIM and LPIPS (AlexNet) of clips against their references.

  Memory does not grow with the number of clips; one program is compiled per clip shape.
  """

  def __init__(self, lpips: LPIPS | None = None):
    self.lpips = lpips or LPIPS.load("alex")
    self.means = {name: Mean() for name in ("psnr", "psnr_moving", "ssim", "lpips")}

  def update(self, reference: Clips, reconstruction: Clips) -> dict[str, np.ndarray]:
    """Adds a batch; returns its per-clip numbers."""
    if reference.shape != reconstruction.shape:
      raise ValueError(f"shapes differ: {reference.shape} and {reconstruction.shape}")
    numbers = {
      name: np.asarray(values)
      for name, values in _compare(self.lpips, reference, reconstruction).items()
    }
    for name, values in numbers.items():
      self.means[name].add(values)
    return numbers

  def summary(self) -> dict[str, dict[str, float | int]]:
    return {name: mean.summary() for name, mean in self.means.items()}


@jax.jit
def _compare(lpips: LPIPS, reference: Array, reconstruction: Array) -> dict[str, Array]:
  x, y = (clip.astype(jnp.float32) / 255 for clip in (reference, reconstruction))

  def perceptual(frames: tuple[Array, Array]) -> Array:
    first, second = frames
    return lpips(2 * first - 1, 2 * second - 1)

  # Frame by frame: the first feature maps of a whole batch of clips would be large.
  per_frame = jax.lax.map(perceptual, (jnp.moveaxis(x, 1, 0), jnp.moveaxis(y, 1, 0)))
  return {
    "psnr": psnr(x, y),
    "psnr_moving": psnr(x, y, moving(x)),
    "ssim": ssim(x, y),
    "lpips": jnp.mean(per_frame, axis=0),
  }


class Appearance:
  """Accumulates sharpness and flicker of clips that have no reference."""

  def __init__(self) -> None:
    self.means = {"sharpness": Mean(), "flicker": Mean()}

  def update(self, clips: Clips) -> None:
    for name, values in appearance(clips).items():
      self.means[name].add(np.asarray(values))

  def summary(self) -> dict[str, dict[str, float | int]]:
    return {name: mean.summary() for name, mean in self.means.items()}


@jax.jit
def appearance(clips: UInt8[Array, "b t h w 3"]) -> dict[str, Array]:
  """Sharpness and flicker of each clip; flicker needs five frames."""
  x = clips.astype(jnp.float32) / 255
  found = {"sharpness": sharpness(x)}
  return found | ({"flicker": flicker(x)} if x.shape[1] >= 5 else {})
