"""VideoGPT's VQ-VAE: a clip becomes a grid of discrete codes, causally in time.

Yan et al. 2021 (arXiv:2104.10157), section 3.1, with vectors quantised as in van den Oord et al.
2017 (arXiv:1711.00937). An encoder of 3-D convolutions and axial attention makes a vector for each
patch, which `depth` codes stand for, each for what those before it leave (Lee et al. 2022,
arXiv:2203.01941; depth 1 is published VideoGPT):

  r_1 = E(x),  k_q = argmin_k |r_q - e_qk|,  r_q+1 = r_q - e_q,k_q,  z = sum_q e_q,k_q,  x' = D(z)

The gradient of z goes to E(x) as it is (straight through). Codebooks are no weights that learn:
they are running means of what they stand for (`update`).

Unlike the published network it is causal, as `models/vae.py` is: convolutions are padded and time
attention looks to the past only, norms are over channels and not over a batch, and the first code
frame is of one frame, so clips have 4k+1. Codes of a beginning do not change with what follows it.
Pixels come in as patches instead of by strided convolutions, which is what CPUs are fast at.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from sora_jax.models.conv import CausalConv
from sora_jax.models.layers import Attention, RMSNorm
from sora_jax.models.vae import check_frames, check_size
from sora_jax.models.vae_levels import EPS, Downsample, ResBlock, Upsample, silu
from sora_jax.parallel.sharding import constrain
from sora_jax.typing import Array, Float, Int, Latents, Params, PRNGKey, Scalar, Video

_PIXELS, _PATCHES = "b (t p) (h q) (w r) c", "b t h w (p q r c)"

Codes = Int[Array, "b lt lh lw q"]
Codebooks = Float[Array, "q k z"]


class AxialAttention(nn.Module):
  """Attention along columns, rows and the past, each on its own; their sum (Ho et al. 2019)."""

  heads: int
  dtype: Any = None

  @nn.compact
  def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t h w c"]:
    total = jnp.zeros_like(x)
    sizes = dict(zip("bthw", x.shape[:4], strict=True))
    for axis, name in (("w", "attention_columns"), ("h", "attention_rows"), ("t", "attention_time")):
      lines = f"({' '.join(a for a in 'bthw' if a != axis)}) {axis} c"
      y = rearrange(x, f"b t h w c -> {lines}")
      ids = jnp.ones(y.shape[:2], jnp.int32)
      block = jnp.broadcast_to(jnp.arange(y.shape[1]), ids.shape) if axis == "t" else None
      y = Attention(x.shape[-1], self.heads, dtype=self.dtype, name=name)(y, ids, block=block)
      total += rearrange(y, f"{lines} -> b t h w c", **sizes)
    return total


class AttentionBlock(nn.Module):
  """The published residual block: a convolution, one of kernel 1, axial attention; each normed."""

  features: int
  kernel_t: int
  heads: int
  dtype: Any = None

  @nn.compact
  def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t h w c"]:
    conv = partial(CausalConv, dtype=self.dtype)
    norm = lambda i, y: silu(RMSNorm(EPS, name=f"norm{i}")(y))  # noqa: E731
    y = conv(self.features // 2, (self.kernel_t, 3, 3), name="conv1")(norm(1, x))
    y = conv(self.features, (1, 1, 1), name="conv2")(norm(2, y))
    return x + AxialAttention(self.heads, self.dtype, name="axial")(norm(3, y))


class VQEncoder(nn.Module):
  """Patches to the vectors that are quantised; fields as of `VQVAE`."""

  fine: int
  width: int
  blocks: int
  heads: int
  kernel_t: int
  features: int
  dtype: Any = None

  @nn.compact
  def __call__(self, x: Float[Array, "b t h w p"]) -> Float[Array, "b t h2 w2 z"]:
    dense = partial(CausalConv, kernel=(1, 1, 1), dtype=self.dtype)
    x = dense(self.fine, name="patch_in")(x)
    x = ResBlock(self.fine, 1, self.dtype, name="fine")(x)
    x = Downsample(False, self.dtype, name="down")(x, first=True)
    x = dense(self.width, name="widen")(x)
    for i in range(self.blocks):
      block = AttentionBlock(self.width, self.kernel_t, self.heads, self.dtype, name=f"block_{i}")
      x = block(x)
    return dense(self.features, name="out")(x)


class VQDecoder(nn.Module):
  """Vectors to patches: the encoder backwards, with one more block of fine features."""

  fine: int
  width: int
  blocks: int
  heads: int
  kernel_t: int
  features: int
  dtype: Any = None

  @nn.compact
  def __call__(self, x: Float[Array, "b t h2 w2 z"]) -> Float[Array, "b t h w p"]:
    dense = partial(CausalConv, kernel=(1, 1, 1), dtype=self.dtype)
    x = dense(self.width, name="in")(x)
    for i in range(self.blocks):
      block = AttentionBlock(self.width, self.kernel_t, self.heads, self.dtype, name=f"block_{i}")
      x = block(x)
    x = Upsample(self.fine, False, self.dtype, name="up")(x, first=True)
    for i in range(2):
      x = ResBlock(self.fine, 1, self.dtype, name=f"fine_{i}")(x)
    return dense(self.features, kernel_init=nn.initializers.zeros, name="patch_out")(x)


class VQVAE(nn.Module):
  """The discrete autoencoder.

  Attributes:
    fine, width: features per patch, and per code, of which one is two patches high and wide.
    blocks: `AttentionBlock`s on each side, at the resolution of codes. heads: of their attention.
    kernel_t: taps in time of their convolutions.
    patch: (frames, rows, columns) of a patch.
    z_channels: of the vectors that codes stand for.
    codes: how many a codebook has. depth: how many stand for a vector; each has its own codebook.
    dtype: of the computation; parameters and what is quantised are float32.
  """

  fine: int = 64
  width: int = 128
  blocks: int = 2
  heads: int = 4
  kernel_t: int = 3
  patch: tuple[int, int, int] = (4, 4, 4)
  z_channels: int = 32
  codes: int = 512
  depth: int = 4
  channels: int = 3
  dtype: Any = None

  def setup(self) -> None:
    how = (self.fine, self.width, self.blocks, self.heads, self.kernel_t)
    self.encoder = VQEncoder(*how, self.z_channels, self.dtype)
    self.decoder = VQDecoder(*how, self.channels * math.prod(self.patch), self.dtype)
    shape = (self.depth, self.codes, self.z_channels)
    self.codebook = self.param("codebook", nn.initializers.normal(1.0), shape)

  @property
  def time_stride(self) -> int:
    """Frames of a code frame; the first one has one."""
    return self.patch[0]

  @property
  def space_stride(self) -> int:
    """Rows and columns of a code."""
    return 2 * self.patch[1]

  def grid(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
    """(lt, lh, lw) of a clip. Raises UserError: a length or size that has no grid."""
    check_frames(frames, self.time_stride)
    check_size(height, width, self.space_stride)
    side = self.space_stride
    return 1 + (frames - 1) // self.time_stride, height // side, width // side

  def encode(self, video: Video) -> Latents:
    """The vectors of a clip in [-1, 1], before they are quantised.

    Raises:
      UserError: not 4k+1 frames, or a size that cells do not divide.
    """
    grid = (len(video), *self.grid(*video.shape[1:4]), self.z_channels)
    x = constrain(video, "video", grid)
    x = jnp.concatenate([x[:, :1]] * (self.patch[0] - 1) + [x], axis=1)  # a still
    x = rearrange(x, f"{_PIXELS} -> {_PATCHES}", **self._sizes)
    return constrain(self.encoder(x), "video").astype(jnp.float32)

  def quantise(self, z: Latents) -> tuple[Codes, Latents]:
    """Codes of vectors, and the vectors that they stand for."""
    codes, made = residual_codes(self.codebook, z)
    return codes, made[-1]

  def decode(self, z: Latents) -> Video:
    """Pixels of vectors, nominally in [-1, 1] but not clipped."""
    x = self.decoder(constrain(z, "video"))
    x = rearrange(x, f"{_PATCHES} -> {_PIXELS}", **self._sizes)[:, self.patch[0] - 1 :]
    return constrain(x, "video", z.shape).astype(jnp.float32)

  def __call__(self, video: Video) -> tuple[Video, Latents, Codes, Scalar]:
    """Reconstruction, vectors, codes, and the commitment loss: how far vectors are from codes.

    The last is the mean over depths, each with all codes up to it (Lee et al. 2022, equation 9).
    """
    z = self.encode(video)
    codes, made = residual_codes(jax.lax.stop_gradient(self.codebook), z)
    commitment = jnp.mean((z - made) ** 2)
    passed = z + jax.lax.stop_gradient(made[-1] - z)
    return self.decode(passed), z, codes, commitment

  @property
  def _sizes(self) -> dict[str, int]:
    return dict(zip("pqr", self.patch, strict=True))


def nearest(book: Float[Array, "k z"], x: Float[Array, "*b z"]) -> Int[Array, "*b"]:
  """The nearest code of each vector, the first one of equals."""
  products = jnp.einsum("...z,kz->...k", x, book, precision="highest")
  return jnp.argmin(jnp.sum(book**2, axis=-1) - 2 * products, axis=-1)


def residual_codes(
  codebook: Codebooks, z: Float[Array, "*b z"]
) -> tuple[Int[Array, "*b q"], Float[Array, "q *b z"]]:
  """Codes of vectors, and the vectors that the first code, the first two... stand for."""
  codes, made, rest = [], [], z
  for book in codebook:
    code = nearest(book, rest)
    rest = rest - jnp.take(book, code, axis=0)
    codes.append(code)
    made.append(z - rest)
  return jnp.stack(codes, axis=-1), jnp.stack(made)


def vectors(codebook: Codebooks, codes: Int[Array, "*b q"]) -> Float[Array, "*b q z"]:
  """The vector of each code; what a cell stands for is their sum."""
  return jnp.stack(
    [jnp.take(book, codes[..., i], axis=0) for i, book in enumerate(codebook)], axis=-2
  )


def update(
  state: Params, z: Latents, key: PRNGKey, decay: float, restart: float
) -> Params:
  """Codebooks after a batch: running means of what each code stood for in it.

  van den Oord et al. 2017, appendix A.1; a code that hardly stands for anything begins again as a
  random vector of the batch, as in published VideoGPT (and Dhariwal et al. 2020, arXiv:2005.00341).
  Before the first batch all are such, so that codebooks begin as data. What a depth is given is what
  the depths before it leave, after their update.

  Args:
    state: `codebook` (q k z), and running means of the share of vectors that a code stood for,
      `count` (q k), and of their sum, `total` (q k z).
    z: what the encoder made of the whole batch.
    decay: of the running means. restart: a code begins again below this share of an even one.
  """
  rest = z.reshape(-1, z.shape[-1])
  fields = []
  for depth in range(len(state["codebook"])):
    book, count, total = (state[name][depth] for name in ("codebook", "count", "total"))
    chosen = jax.nn.one_hot(nearest(book, rest), len(book))
    count = decay * count + (1 - decay) * jnp.mean(chosen, axis=0)
    sums = jnp.einsum("nk,nz->kz", chosen, rest, precision="highest")
    total = decay * total + (1 - decay) * sums / len(rest)
    drawn = jax.random.randint(jax.random.fold_in(key, depth), (len(book),), 0, len(rest))
    unused = count * len(book) < restart
    count = jnp.where(unused, 1 / len(book), count)
    total = jnp.where(unused[:, None], rest[drawn] / len(book), total)
    book = total / count[:, None]
    rest = rest - jnp.take(book, nearest(book, rest), axis=0)
    fields.append((book, count, total))
  return dict(zip(("codebook", "count", "total"), map(jnp.stack, zip(*fields)), strict=True))


def usage(codes: Int[Array, "*b q"], count: int) -> tuple[Scalar, Scalar]:
  """Share of the codes that occur, and perplexity exp(entropy) of their use; means over depths."""
  shares = jax.nn.one_hot(codes.reshape(-1, codes.shape[-1]), count).mean(axis=0)
  entropy = -jnp.sum(shares * jnp.log(jnp.where(shares > 0, shares, 1.0)), axis=-1)
  return jnp.mean(shares > 0), jnp.mean(jnp.exp(entropy))
