"""VideoGPT's VQ-VAE: a clip becomes a grid of discrete codes, causally in time.

Yan et al. 2021 (arXiv:2104.10157), section 3.1, with vectors quantised as in van den Oord et al.
2017 (arXiv:1711.00937). An encoder of 3-D convolutions and axial attention makes a vector for each
patch, which `depth` codes stand for, each for what those before it leave (Lee et al. 2022,
arXiv:2203.01941; depth 1 is published VideoGPT):

  r_1 = E(x),  k_q = argmin_k |r_q - e_qk|,  r_q+1 = r_q - e_q,k_q,  z = sum_q e_q,k_q,  x' = D(z)

The gradient of z goes to E(x) as it is (straight through). Codebooks are no weights that learn:
they begin as clusters of data (`begin`) and are running means of what they stand for (`update`).

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

from sora_jax.errors import UserError
from sora_jax.models.conv import CausalConv, present_tap
from sora_jax.models.layers import Attention, RMSNorm
from sora_jax.models.vae import check_frames, check_size
from sora_jax.models.vae_levels import EPS, silu
from sora_jax.models.vae_linear import PatchComponents
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
    names = {"w": "attention_columns", "h": "attention_rows", "t": "attention_time"}
    for axis, name in names.items():
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


class Levels(nn.Module):
  """One side: patches or vectors in, `blocks` residual blocks, what is missing of the other out."""

  width: int
  blocks: int
  heads: int
  kernel_t: int
  features: int
  linear: bool
  dtype: Any = None

  @nn.compact
  def __call__(self, x: Float[Array, "b t h w i"]) -> Float[Array, "b t h w o"]:
    dense = partial(CausalConv, kernel=(1, 1, 1), dtype=self.dtype)
    x = dense(self.width, name="in")(x)
    for i in range(self.blocks):
      block = AttentionBlock(self.width, self.kernel_t, self.heads, self.dtype, name=f"block_{i}")
      x = block(x)
    last = nn.initializers.zeros if self.linear else present_tap()
    return dense(self.features, kernel_init=last, name="out")(x)


class VQVAE(nn.Module):
  """The discrete autoencoder.

  Attributes:
    width: features of a patch. blocks: `AttentionBlock`s of the encoder and of the decoder. heads:
      of their attention. kernel_t: taps in time of their convolutions.
    patch: (frames, rows, columns) of a patch, a square, which becomes one cell of the code grid.
    z_channels: of the vectors that codes stand for.
    codes: how many a codebook has. depth: how many stand for a vector; each has its own codebook.
    linear: adds principal components of patches on both sides (models/vae_linear.py); what learns
      starts at zero then. Not in the paper.
    dtype: of the computation; parameters and what is quantised are float32.
  """

  width: int = 128
  blocks: tuple[int, int] = (1, 2)
  heads: int = 4
  kernel_t: int = 3
  patch: tuple[int, int, int] = (4, 8, 8)
  z_channels: int = 64
  codes: int = 512
  depth: int = 8
  linear: bool = False
  channels: int = 3
  dtype: Any = None

  def setup(self) -> None:
    if self.patch[1] != self.patch[2]:
      raise UserError(f"Patches are squares, not {self.patch}: set model.patch=(4,8,8), say.")
    side = lambda blocks, out: Levels(  # noqa: E731
      self.width, blocks, self.heads, self.kernel_t, out, self.linear, self.dtype
    )
    self.encoder = side(self.blocks[0], self.z_channels)
    self.decoder = side(self.blocks[1], self.channels * math.prod(self.patch))
    if self.linear:
      self.principal = PatchComponents(
        self.z_channels, self.time_stride, self.space_stride, self.channels
      )
    shape = (self.depth, self.codes, self.z_channels)
    self.codebook = self.param("codebook", nn.initializers.normal(1.0), shape)

  @property
  def time_stride(self) -> int:
    """Frames of a code frame; the first one has one."""
    return self.patch[0]

  @property
  def space_stride(self) -> int:
    """Rows and columns of a code."""
    return self.patch[1]

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
    x = self.encoder(rearrange(x, f"{_PIXELS} -> {_PATCHES}", **self._sizes)).astype(jnp.float32)
    return constrain(x + self.principal.encode(video, True) if self.linear else x, "video")

  def quantise(self, z: Latents) -> tuple[Codes, Latents]:
    """Codes of vectors, and the vectors that they stand for."""
    codes, made = residual_codes(self.codebook, z)
    return codes, made[-1]

  def decode(self, z: Latents) -> Video:
    """Pixels of vectors, nominally in [-1, 1] but not clipped."""
    x = self.decoder(constrain(z, "video")).astype(jnp.float32)
    x = rearrange(x, f"{_PATCHES} -> {_PIXELS}", **self._sizes)[:, self.patch[0] - 1 :]
    return constrain(x + self.principal.decode(z, True) if self.linear else x, "video", z.shape)

  def __call__(self, video: Video) -> tuple[Video, Latents, Codes, Scalar]:
    """Reconstruction, vectors, codes, and the commitment loss: how far vectors are from codes.

    The last is the mean over depths, each with all codes up to it, as in Lee et al. 2022.
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


LLOYD = 5  # iterations of k-means that codebooks begin with


def begin(codebook: Codebooks, z: Float[Array, "*b z"], key: PRNGKey) -> Codebooks:
  """Codebooks of this shape from the vectors of a batch, by k-means from random ones of them.

  Depth after depth: each is made for what those before it leave.
  """
  rest, books = z.reshape(-1, z.shape[-1]), []
  for depth, old in enumerate(codebook):
    start = jax.random.randint(jax.random.fold_in(key, depth), (len(old),), 0, len(rest))

    def better(_: Any, book: Array, rest: Array = rest) -> Array:
      count, total = tallies(nearest(book, rest), rest, len(book))
      return jnp.where(count[:, None] > 0, total / jnp.maximum(count, 1e-9)[:, None], book)

    book = jax.lax.fori_loop(0, LLOYD, better, rest[start])
    rest = rest - jnp.take(book, nearest(book, rest), axis=0)
    books.append(book)
  return jnp.stack(books)


def update(
  state: Params,
  z: Float[Array, "*b z"],
  codes: Int[Array, "*b q"],
  key: PRNGKey,
  decay: float,
  restart: float,
) -> Params:
  """Codebooks after a batch: running means of what each code stood for in it.

  van den Oord et al. 2017, appendix A.1; a code that hardly stands for anything begins again as a
  random vector of the batch, as in published VideoGPT (and Dhariwal et al. 2020, arXiv:2005.00341).

  Args:
    state: `codebook` (q k z), and running means of the share of vectors that a code stood for,
      `count` (q k), and of their sum, `total` (q k z).
    z, codes: vectors and codes of the whole batch.
    decay: of the running means. restart: a code begins again below this share of an even use.
  """
  rest, codes = z.reshape(-1, z.shape[-1]), codes.reshape(-1, codes.shape[-1])
  made: dict[str, list[Array]] = {name: [] for name in state}
  for depth, book in enumerate(state["codebook"]):
    size = len(book)
    shares, sums = tallies(codes[:, depth], rest, size)
    count = decay * state["count"][depth] + (1 - decay) * shares
    total = decay * state["total"][depth] + (1 - decay) * sums
    drawn = jax.random.randint(jax.random.fold_in(key, depth), (size,), 0, len(rest))
    unused = count * size < restart
    count = jnp.where(unused, 1 / size, count)
    total = jnp.where(unused[:, None], rest[drawn] / size, total)
    # Without restarts the mean use of a code that nothing is like comes to be 0.
    means = jnp.where(count[:, None] > 0, total / count[:, None], book)
    for name, x in (("codebook", means), ("count", count), ("total", total)):
      made[name].append(x)
    rest = rest - jnp.take(book, codes[:, depth], axis=0)
  return {name: jnp.stack(x) for name, x in made.items()}


def tallies(
  codes: Int[Array, " n"], x: Float[Array, "n z"], size: int
) -> tuple[Float[Array, " k"], Float[Array, "k z"]]:
  """The share of vectors that each code stands for, and their sum over the number of all."""
  count = jnp.zeros(size).at[codes].add(1.0)
  total = jnp.zeros((size, x.shape[-1])).at[codes].add(x)
  return count / len(x), total / len(x)


def usage(codes: Int[Array, "*b q"], size: int) -> tuple[Scalar, Scalar]:
  """Share of the codes that occur, and perplexity exp(entropy) of their use; means over depths."""
  codes = codes.reshape(-1, codes.shape[-1])
  shares = jax.vmap(lambda c: jnp.zeros(size).at[c].add(1 / len(codes)), in_axes=1)(codes)
  entropy = -jnp.sum(shares * jnp.log(jnp.where(shares > 0, shares, 1.0)), axis=-1)
  return jnp.mean(shares > 0), jnp.mean(jnp.exp(entropy))


@partial(jax.jit, static_argnums=0)
def encode_codes(vqvae: VQVAE, params: Params, video: Video) -> Codes:
  """The codes of a clip of 4k+1 frames in [-1, 1]."""
  z = vqvae.apply({"params": params}, video, method="encode")
  return vqvae.apply({"params": params}, z, method="quantise")[0]


@partial(jax.jit, static_argnums=0)
def decode_codes(vqvae: VQVAE, params: Params, codes: Codes) -> Video:
  """The clip of codes, clipped to [-1, 1]."""
  z = jnp.sum(vectors(params["codebook"], codes), axis=-2)
  return jnp.clip(vqvae.apply({"params": params}, z, method="decode"), -1.0, 1.0)
