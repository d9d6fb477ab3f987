"""VideoGPT's prior: a transformer says which code comes next.

Yan et al. 2021 (arXiv:2104.10157), section 3.2. Codes (models/vqvae.py) are put into an order, and

  p(codes | text) = product over codes of p(code | codes before it, text)

The order: a token is a patch of cells of one code frame, and holds `depth` codes of each; tokens go
by time, row and column, so do the cells of a token, then the codes of a cell. With patches of one
cell and depth 1 this is the published model. The transformer runs over tokens: pre-norm layers of
causal self-attention with 3-axis rotary positions, cross-attention to the text, and an MLP. What
is left, the codes of one token, is for a head of two MLPs, one for each cell and one for each code,
which is told the codes of its cell so far. (A depth transformer, as in Lee et al. 2022,
arXiv:2203.01941, costs too much on CPUs.)

A token is told what the last one holds, the one above it and the one a frame before: copying what
stands still then takes no attention. A cell is told the same of its neighbours, and what its token
holds so far. Codes are read as their vectors, which are the autoencoder's and not learned here.

With the collection `cache` mutable, tokens may come one by one: keys and values of those before are
kept there.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from sora_jax.errors import UserError
from sora_jax.models.dit import REMAT
from sora_jax.models.layers import Attention, Dense, LayerNorm, Mlp, position_features
from sora_jax.models.patch import rope_angles
from sora_jax.models.vqvae import Codes, vectors
from sora_jax.parallel.sharding import constrain
from sora_jax.typing import Array, Float, Int

Grid = tuple[int, int, int]


class Block(nn.Module):
  """One layer. `length`: tokens whose keys and values fit into the cache."""

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
    grid: (time, rows, columns) of the longest code grids, in cells.
    patch: (rows, columns) of cells in a token.
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
  patch: tuple[int, int] = (1, 1)
  codes: int = 512
  depth: int = 4
  z_channels: int = 32
  eps: float = 1e-6
  dtype: Any = None
  remat: str = "none"
  attention: str = "auto"

  @property
  def cells(self) -> int:
    """Cells of a token."""
    return self.patch[0] * self.patch[1]

  def tokens(self, grid: Grid) -> Grid:
    """Time, rows and columns of a grid of cells, in tokens.

    Raises:
      UserError: patches do not divide it.
    """
    t, h, w = grid
    if h % self.patch[0] or w % self.patch[1]:
      raise UserError(
        f"Patches of {self.patch[0]}x{self.patch[1]} do not divide grids of {h}x{w} cells: set "
        "model.patch=(1,1), or another size of clips."
      )
    return t, h // self.patch[0], w // self.patch[1]

  def setup(self) -> None:
    dense = lambda **how: Dense(self.width, dtype=self.dtype, **how)  # noqa: E731
    table = lambda *shape: (nn.initializers.normal(0.02), (*shape, self.width))  # noqa: E731
    shape = (self.depth, self.codes, self.z_channels)
    self.codebook = self.param("codebook", nn.initializers.normal(1.0), shape)
    self.patch_in, self.position_in = dense(), dense()
    self.text_in = Mlp(self.width, self.width, self.dtype)
    block = Block
    if self.remat != "none":
      block = nn.remat(Block, policy=REMAT[self.remat], prevent_cse=False)
    blocks = nn.scan(
      block, variable_axes={"params": 0, "cache": 0}, split_rngs={"params": True},
      in_axes=(nn.broadcast,) * 4, length=self.layers,
    )  # fmt: skip
    self.blocks = blocks(
      self.width, self.heads, self.mlp_width, int(np.prod(self.tokens(self.grid))), self.eps,
      self.dtype, self.attention,
    )  # fmt: skip
    norm = lambda: LayerNorm(self.eps, affine=True)  # noqa: E731
    self.cell_embedding = self.param("cell_embedding", *table(self.cells))
    self.cell_in, self.cell_norm = dense(use_bias=False), norm()
    self.cell_mlp = Mlp(2 * self.width, self.width, self.dtype)
    self.depth_embedding = self.param("depth_embedding", *table(self.depth))
    self.depth_in, self.depth_norm = dense(use_bias=False), norm()
    self.depth_mlp = Mlp(self.width, self.width, self.dtype)
    self.norm = norm()
    kernel = (self.depth, self.width, self.codes)
    self.head = self.param("head", nn.initializers.normal(0.02), kernel)
    self.head_bias = self.param("head_bias", nn.initializers.zeros, kernel[::2])

  def __call__(
    self, codes: Codes, text: Float[Array, "b s e"], text_ids: Int[Array, "b s"]
  ) -> Float[Array, "b lt lh lw q k"]:
    """Logits of each code of a clip, given those before it.

    Args:
      codes: of a beginning of the longest clips, in time; rows and columns as in `grid`.
      text: states of the prompt. text_ids: 1 where there are any, 0 for padding; no 1 is no prompt.
    """
    grid: Grid = (codes.shape[1], *self.grid[1:])
    each = self.vectors(in_order(codes, self.patch))
    z, tokens = jnp.sum(each, axis=2), jnp.arange(int(np.prod(self.tokens(grid))))
    hidden = self.hidden(self.told_tokens(z, tokens, grid), tokens, text, text_ids)
    hidden = jnp.repeat(hidden, self.cells, axis=1)
    cells = self.cell(hidden, self.told_cells(z, jnp.arange(z.shape[1]), grid))
    logits = self.logits(cells, jnp.cumsum(each, axis=2) - each, tuple(range(self.depth)))
    return on_grid(logits, grid, self.patch)

  def vectors(self, codes: Int[Array, "*b q"]) -> Float[Array, "*b q z"]:
    """The vectors of codes. A cell's are summed for what it stands for."""
    return vectors(self.codebook, codes)

  def told_tokens(
    self, z: Float[Array, "b n z"], tokens: Int[Array, " m"], grid: Grid
  ) -> Float[Array, "b m y"]:
    """What the transformer is told at some tokens of a grid; `z`: what its cells stand for."""
    contents = rearrange(z, "b (n p) z -> b n (p z)", p=self.cells)
    table = links(self.tokens(grid))
    table[:, 0] = np.arange(len(table)) - 1  # in a row's first column the last one of the row above
    return linked(contents, tokens, table)

  def told_cells(
    self, z: Float[Array, "b n z"], cells: Int[Array, " m"], grid: Grid
  ) -> Float[Array, "b m y"]:
    """What the head is told at some cells of a grid."""
    return linked(z, cells, links(grid, self.patch))

  def hidden(
    self,
    told: Float[Array, "b m y"],
    tokens: Int[Array, " m"],
    text: Float[Array, "b s e"],
    text_ids: Int[Array, "b s"],
  ) -> Float[Array, "b m d"]:
    """The transformer at some tokens, in a row, given what each is `told`.

    Without a cache the first must be token 0; with one, the tokens before have been.
    """
    place = jnp.stack(jnp.unravel_index(tokens, self.tokens(self.grid)), axis=-1)
    place = jnp.broadcast_to(place.astype(jnp.float32), (len(told), *place.shape))
    x = constrain(self.patch_in(told) + self.position_in(position_features(place)), "tokens")
    angles = rope_angles(place, jnp.zeros(x.shape[:2]), self.width // self.heads)
    index = jnp.broadcast_to(tokens, x.shape[:2])
    text = constrain(self.text_in(text), "tokens")
    return self.blocks(x, index, angles, text, text_ids)[0]

  def cell(
    self, hidden: Float[Array, "b m d"], told: Float[Array, "b m y"], first: int | Array = 0
  ) -> Float[Array, "b m d"]:
    """Cells in a row, given their tokens' `hidden` and what each is `told`; `first`: its number."""
    place = (first + jnp.arange(told.shape[1])) % self.cells
    x = hidden + self.cell_in(told) + self.cell_embedding[place].astype(hidden.dtype)
    return constrain(x + self.cell_mlp(self.cell_norm(x)), "tokens")

  def logits(
    self, cells: Float[Array, "b m d"], before: Float[Array, "b m j z"], depths: tuple[int, ...]
  ) -> Float[Array, "b m j k"]:
    """Of cells' codes at these depths; `before`: what the codes of a cell before each stand for."""
    # Depths come first: XLA's products are fast in that order.
    at = jnp.asarray(depths)
    u = self.depth_in(rearrange(before, "b m j z -> j b m z")) + cells
    u = u + self.depth_embedding[at, None, None].astype(u.dtype)
    u = u + self.depth_mlp(self.depth_norm(u))
    u = self.norm(u).astype(jnp.float32)
    logits = jnp.einsum("jbmd,jdk->jbmk", u, self.head[at]) + self.head_bias[at, None, None]
    return rearrange(logits, "j b m k -> b m j k")


def in_order(codes: Array | np.ndarray, patch: tuple[int, int]) -> Any:
  """The cells of `b t h w q` in the prior's order, `b n q`: those of a token side by side."""
  return rearrange(codes, "b t (h p) (w r) q -> b (t h w p r) q", p=patch[0], r=patch[1])


def on_grid(x: Array | np.ndarray, grid: Grid, patch: tuple[int, int]) -> Any:
  """The way back, of anything that cells have."""
  t, h, w = grid
  return rearrange(
    x, "b (t h w p r) ... -> b t (h p) (w r) ...",
    t=t, h=h // patch[0], w=w // patch[1], p=patch[0], r=patch[1],
  )  # fmt: skip


def links(grid: Grid, patch: tuple[int, int] = (1, 1)) -> Int[np.ndarray, "n links"]:
  """For each cell, in the prior's order, which ones it is told of; -1 is none.

  They are the one on its left, the one above it, the one a frame before, and all cells of its token
  but the last, as far as they come before it.
  """
  cells = patch[0] * patch[1]
  number = np.arange(np.prod(grid), dtype=np.int32)
  where = on_grid(number[None], grid, patch)[0]
  padded = np.pad(where, [(1, 0)] * 3, constant_values=-1)
  near = [padded[1:, 1:, :-1], padded[1:, :-1, 1:], padded[:-1, 1:, 1:]]
  table = np.empty((number.size, 3), np.int32)
  table[where] = np.stack(near, axis=-1)
  own = (number - number % cells)[:, None] + np.arange(cells - 1)
  return np.concatenate([table, np.where(own < number[:, None], own, -1)], axis=1)


def linked(
  x: Float[Array, "b n f"], at: Int[Array, " m"], table: Int[np.ndarray, "n links"]
) -> Float[Array, "b m y"]:
  """The features of what some are linked to, side by side; 0 for none."""
  where = jnp.asarray(table)[at]
  found = jnp.take(x, jnp.maximum(where, 0), axis=1) * (where >= 0)[..., None]
  return rearrange(found, "b m links f -> b m (links f)")


def surprisal(logits: Float[Array, "*b k"], codes: Int[Array, "*b"]) -> Float[Array, "*b"]:
  """-log p of each code, in nats."""
  return -jnp.take_along_axis(jax.nn.log_softmax(logits), codes[..., None], axis=-1)[..., 0]
