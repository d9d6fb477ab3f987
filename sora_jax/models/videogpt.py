"""VideoGPT's prior: a transformer says which code comes next.

Yan et al. 2021 (arXiv:2104.10157), section 3.2. The cells of a code grid are ordered by time, row
and column, and a cell's `depth` codes (models/vqvae.py) one after the other:

  p(codes | text) = product over cells i and depths q of p(k_iq | cells before i, k_i1..k_i,q-1)

The transformer runs over cells: pre-norm layers of causal self-attention with 3-axis rotary
positions, cross-attention to the text, and an MLP. What it is told at cell i is not the last code
only but also those above it and one frame before it: copying what stands still then takes no
attention. A head runs over depths, told the codes that the cell has already (in the place of the
depth transformer of Lee et al. 2022, arXiv:2203.01941). Codes are read as their vectors, which are
the autoencoder's and not learned here.

With the collection `cache` mutable, cells may come one by one: keys and values of those before are
kept there.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from sora_jax.models.dit import REMAT
from sora_jax.models.layers import Attention, Dense, LayerNorm, Mlp, sinusoid
from sora_jax.models.patch import rope_angles
from sora_jax.models.vqvae import Codes, vectors
from sora_jax.parallel.sharding import constrain
from sora_jax.typing import Array, Float, Int

Grid = tuple[int, int, int]
LINKS = 3  # cells that a cell is told of: the last one, the one above, the one a frame before


class Block(nn.Module):
  """One layer. `length`: cells whose keys and values fit into the cache."""

  width: int
  heads: int
  mlp_width: int
  length: int
  eps: float = 1e-6
  dtype: Any = None
  kernel: str = "auto"

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b n d"],
    index: Int[Array, "b n"],
    angles: Float[Array, "b n half"],
    text: Float[Array, "b s d"],
    text_ids: Int[Array, "b s"],
  ) -> tuple[Float[Array, "b n d"], None]:
    ids = jnp.ones_like(index)
    how = dict(dtype=self.dtype, kernel=self.kernel)
    norm = lambda name: LayerNorm(self.eps, affine=True, name=name)  # noqa: E731
    own = Attention(self.width, self.heads, kept=self.length, name="attention", **how)
    x = x + own(norm("norm1")(x), ids, block=index, angles=angles)
    cross = Attention(self.width, self.heads, kept=text.shape[1], name="text_attention", **how)
    x = x + cross(norm("text_norm")(x), ids, text, text_ids)
    x = x + Mlp(self.mlp_width, self.width, self.dtype, name="mlp")(norm("norm2")(x))
    return constrain(x, "tokens"), None


class Prior(nn.Module):
  """The distribution of a clip's codes: `apply(variables, codes, text, text_ids)` -> logits.

  Attributes:
    width, layers, heads, mlp_width: of the transformer. text_width: of the text encoder's states.
    grid: (time, rows, columns) of the longest code grids.
    codes, depth, z_channels: of the autoencoder (`VQVAE`).
    dtype: of the matmuls and the activations; parameters, norms, softmax and logits stay in
      float32.
    remat, attention: see `DiT`.
  """

  width: int
  layers: int
  heads: int
  mlp_width: int
  text_width: int
  grid: Grid
  codes: int = 512
  depth: int = 4
  z_channels: int = 32
  eps: float = 1e-6
  dtype: Any = None
  remat: str = "none"
  attention: str = "auto"

  def setup(self) -> None:
    dense = lambda **how: Dense(self.width, dtype=self.dtype, **how)  # noqa: E731
    shape = (self.depth, self.codes, self.z_channels)
    self.codebook = self.param("codebook", nn.initializers.normal(1.0), shape)
    self.patch_in, self.position_in, self.prefix_in = dense(), dense(), dense(use_bias=False)
    self.text_in = Mlp(self.width, self.width, self.dtype)
    block = Block
    if self.remat != "none":
      block = nn.remat(Block, policy=REMAT[self.remat], prevent_cse=False)
    blocks = nn.scan(
      block, variable_axes={"params": 0, "cache": 0}, split_rngs={"params": True},
      in_axes=(nn.broadcast,) * 4, length=self.layers,
    )  # fmt: skip
    self.blocks = blocks(
      self.width, self.heads, self.mlp_width, int(np.prod(self.grid)), self.eps, self.dtype,
      self.attention,
    )  # fmt: skip
    self.depth_embedding = self.param(
      "depth_embedding", nn.initializers.normal(0.02), (self.depth, self.width)
    )
    self.depth_norm, self.norm = (LayerNorm(self.eps, affine=True) for _ in range(2))
    self.depth_mlp = Mlp(2 * self.width, self.width, self.dtype)
    kernel = (self.depth, self.width, self.codes)
    self.head = self.param("head", nn.initializers.normal(0.02), kernel)
    self.head_bias = self.param("head_bias", nn.initializers.zeros, kernel[::2])

  def __call__(
    self, codes: Codes, text: Float[Array, "b s e"], text_ids: Int[Array, "b s"]
  ) -> Float[Array, "b n q k"]:
    """Logits of each code of a clip, given those before it.

    Args:
      codes: of a beginning of the longest clips, in time; rows and columns as in `grid`.
      text: states of the prompt. text_ids: 1 where there are any, 0 for padding; no 1 is no prompt.
    """
    lt = codes.shape[1]
    each = self.vectors(rearrange(codes, "b t h w q -> b (t h w) q"))
    cells = jnp.arange(each.shape[1])
    told = self.told(jnp.sum(each, axis=2), cells, links((lt, *self.grid[1:])))
    hidden = self.hidden(told, cells, text, text_ids)
    return self.logits(hidden, jnp.cumsum(each, axis=2) - each, tuple(range(self.depth)))

  def vectors(self, codes: Int[Array, "*b q"]) -> Float[Array, "*b q z"]:
    """The vectors of codes. A cell's are summed for what it stands for."""
    return vectors(self.codebook, codes)

  def told(
    self, z: Float[Array, "b n z"], cells: Int[Array, " m"], table: Int[np.ndarray, "n links"]
  ) -> Float[Array, "b m y"]:
    """What the transformer is told at cells: the vectors of the cells they are linked to."""
    linked = jnp.asarray(table)[cells]
    found = jnp.take(z, jnp.maximum(linked, 0), axis=1) * (linked >= 0)[..., None]
    return rearrange(found, "b m l z -> b m (l z)")

  def hidden(
    self,
    told: Float[Array, "b m y"],
    cells: Int[Array, " m"],
    text: Float[Array, "b s e"],
    text_ids: Int[Array, "b s"],
  ) -> Float[Array, "b m d"]:
    """The transformer at some cells, in a row, given what each is `told`.

    Without a cache the first must be cell 0; with one, the cells before are in it or have been.
    """
    place = jnp.stack(jnp.unravel_index(cells, self.grid), axis=-1).astype(jnp.float32)
    place = jnp.broadcast_to(place, (len(told), *place.shape))
    features = rearrange(sinusoid(8.0 * place, 64), "b m three f -> b m (three f)")
    x = constrain(self.patch_in(told) + self.position_in(features), "tokens")
    angles = rope_angles(place, jnp.zeros(x.shape[:2]), self.width // self.heads)
    index = jnp.broadcast_to(cells, x.shape[:2])
    text = constrain(self.text_in(text), "tokens")
    return self.blocks(x, index, angles, text, text_ids)[0]

  def logits(
    self,
    hidden: Float[Array, "b m d"],
    before: Float[Array, "b m j z"],
    depths: tuple[int, ...],
  ) -> Float[Array, "b m j k"]:
    """Of a cell's codes at these depths; `before`: what the codes before each stand for."""
    at = jnp.asarray(depths)
    u = hidden[:, :, None] + self.prefix_in(before) + self.depth_embedding[at].astype(hidden.dtype)
    u = u + self.depth_mlp(self.depth_norm(u))
    u = self.norm(u).astype(jnp.float32)
    return jnp.einsum("bmjd,jdk->bmjk", u, self.head[at]) + self.head_bias[at]


def links(grid: Grid) -> Int[np.ndarray, "n links"]:
  """For each cell of a grid the number of the last one, the one above and the one a frame before.

  -1 is none.
  """
  _, rows, columns = grid
  n = np.arange(np.prod(grid))
  above = np.where(n // columns % rows > 0, n - columns, -1)
  return np.stack([n - 1, above, np.maximum(n - rows * columns, -1)], axis=-1)


def surprisal(logits: Float[Array, "b n q k"], codes: Codes) -> Float[Array, "b n q"]:
  """-log p of each code, in nats."""
  chosen = rearrange(codes, "b t h w q -> b (t h w) q 1")
  return -jnp.take_along_axis(jax.nn.log_softmax(logits), chosen, axis=-1)[..., 0]
