"""V-JEPA 2: an encoder of video patches, and a predictor of the features of those it is not shown.

Bardes et al. 2024 (arXiv:2404.08471); Assran et al. 2025 (arXiv:2506.09985), whose rotary positions
these are. Both halves are pre-norm transformers over tokens that say where they are:

  x += Attention(norm1(x), positions);  x += MLP(norm2(x))

A mask is therefore no array of its own: the encoder is given the tokens that are visible, the
predictor their features and the positions that it is asked about. The order of tokens says nothing.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sora_jax.models.dit import REMAT
from sora_jax.models.layers import Attention, Dense, LayerNorm, Mlp, position_features
from sora_jax.models.patch import Patch, grid_shape, patchify
from sora_jax.parallel.attention import attend
from sora_jax.parallel.sharding import constrain
from sora_jax.typing import Array, Float, Int, Video

VARIANTS: dict[str, dict[str, Any]] = {
  "vjepa2-vitl": dict(width=1024, layers=24, heads=16, mlp_width=4096),
  "vjepa2-vith": dict(width=1280, layers=32, heads=16, mlp_width=5120),
  "vjepa2-vitg": dict(width=1408, layers=40, heads=22, mlp_width=6144),
}


def channel_angles(
  positions: Float[Array, "b n 3"], head_width: int, theta: float = 10_000.0
) -> Float[Array, "b n head"]:
  """An angle for each channel of a head, for `rotate(..., paired=False)`.

  Time, rows and columns have a third of the channels each, rounded down to an even number, and what
  is left of them is not turned. The frequencies of an axis are listed twice in a row, so the two
  channels of a pair have different ones.
  """
  width = 2 * (head_width // 6)
  freqs = np.tile(theta ** -(np.arange(0, width, 2) / width), 2).astype(np.float32)
  angles = (positions[..., None] * freqs).reshape(*positions.shape[:2], 3 * width)
  return jnp.pad(angles, [(0, 0), (0, 0), (0, head_width - 3 * width)])


class Block(nn.Module):
  """One pre-norm transformer layer; without `angles`, tokens are a set."""

  width: int
  heads: int
  mlp_width: int
  eps: float = 1e-6
  dtype: Any = None
  kernel: str = "auto"

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b n d"],
    ids: Int[Array, "b n"],
    angles: Float[Array, "b n head"] | None,
  ) -> tuple[Float[Array, "b n d"], None]:
    attention = Attention(
      self.width, self.heads, dtype=self.dtype, kernel=self.kernel, qk_norm=False, paired=False,
      name="attention",
    )  # fmt: skip
    x = x + attention(LayerNorm(self.eps, affine=True, name="norm1")(x), ids, angles=angles)
    mlp = Mlp(self.mlp_width, self.width, self.dtype, approximate=False, name="mlp")
    return constrain(x + mlp(LayerNorm(self.eps, affine=True, name="norm2")(x)), "tokens"), None


class Transformer(nn.Module, kw_only=True):  # type: ignore[call-arg]
  """What both halves are made of. `remat`: a key of `models.dit.REMAT`; `attention`: the kernel;
  `absolute`: see `VJEPA`.
  """

  width: int
  layers: int
  heads: int
  mlp_width: int
  eps: float = 1e-6
  dtype: Any = None
  remat: str = "none"
  attention: str = "auto"
  absolute: bool = False

  def placed(self, x: Array, positions: Array) -> Array:
    """Tokens with an embedding of where they are, if there is one."""
    if not self.absolute:
      return x
    place = Dense(self.width, dtype=self.dtype, name="position_in")
    return x + place(position_features(positions))

  def through(self, x: Array, ids: Array, angles: Array | None) -> Array:
    """All layers, one after the other."""
    block = Block
    if self.remat != "none":
      block = nn.remat(Block, policy=REMAT[self.remat], prevent_cse=False)
    scanned = nn.scan(
      block, variable_axes={"params": 0}, split_rngs={"params": True},
      in_axes=(nn.broadcast,) * 2, length=self.layers,
    )  # fmt: skip
    sizes = (self.width, self.heads, self.mlp_width, self.eps, self.dtype, self.attention)
    return scanned(*sizes, name="blocks")(x, ids, angles)[0]


class Encoder(Transformer, kw_only=True):  # type: ignore[call-arg]
  """Patches and their positions -> features. Tokens see each other within equal ids."""

  @nn.compact
  def __call__(
    self, values: Float[Array, "b n p"], positions: Float[Array, "b n 3"], ids: Int[Array, "b n"]
  ) -> Float[Array, "b n d"]:
    x = Dense(self.width, dtype=self.dtype, name="patch_in")(values)
    x = constrain(self.placed(x, positions), "tokens")
    x = self.through(x, ids, channel_angles(positions, self.width // self.heads))
    return LayerNorm(self.eps, affine=True, name="norm")(x)


class Predictor(Transformer, kw_only=True):  # type: ignore[call-arg]
  """Features of a context -> features, `out` wide, at the positions that are asked about.

  `masks`: how many learned tokens there are to ask with, one per kind of mask.
  """

  out: int
  masks: int

  @nn.compact
  def __call__(
    self,
    context: Float[Array, "b n e"],
    positions: Float[Array, "b n 3"],
    targets: Float[Array, "b m 3"],
    ids: Int[Array, "b n"],
    target_ids: Int[Array, "b m"],
    mask: Int[Array, " b"],
  ) -> Float[Array, "b m e"]:
    # Not zero, though published so: the first norm would multiply their gradient by a thousand.
    asks = self.param("mask_tokens", nn.initializers.normal(0.02), (self.masks, self.width))
    x = Dense(self.width, dtype=self.dtype, name="context_in")(context)
    ask = jnp.take(asks, mask % self.masks, axis=0)[:, None]
    ask = jnp.broadcast_to(ask, (*targets.shape[:2], self.width))
    positions = jnp.concatenate([positions, targets], axis=1)
    x = self.placed(jnp.concatenate([x, ask.astype(x.dtype)], axis=1), positions)
    x, angles = constrain(x, "tokens"), channel_angles(positions, self.width // self.heads)
    x = self.through(x, jnp.concatenate([ids, target_ids], axis=1), angles)
    x = LayerNorm(self.eps, affine=True, name="norm")(x[:, context.shape[1] :])
    return Dense(self.out, dtype=self.dtype, name="out")(x)


class VJEPA(nn.Module):
  """Encoder and predictor: `apply(variables, ..., method="encode")` or `"predict"`.

  The target encoder of training is the encoder with other parameters.

  Attributes:
    width, layers, heads, mlp_width: of the encoder; `predictor_...`: of the predictor.
    channels: of the pixels. patch: (frames, rows, columns) of a patch, a "tubelet".
    mask_tokens: how many kinds of mask the predictor tells apart.
    absolute: adds an embedding of its position to each token, as the first V-JEPA did: rotary ones
      tell differences only, and all the tokens that ask are alike but for them. Not in V-JEPA 2.
    centred: targets are features less their mean over the clip (`standardised`). Not published.
    frames, size: of the clips it was trained on (`size` x `size` pixels), for those who prepare
      its input; any others can be encoded.
    dtype: of the matmuls and the activations; parameters, norms and softmax stay in float32.
    remat, attention: see `DiT`.
  """

  width: int
  layers: int
  heads: int
  mlp_width: int
  predictor_width: int = 384
  predictor_layers: int = 12
  predictor_heads: int = 12
  predictor_mlp_width: int = 1536
  channels: int = 3
  patch: Patch = (2, 16, 16)
  mask_tokens: int = 10
  absolute: bool = False
  centred: bool = False
  frames: int = 64
  size: int = 256
  eps: float = 1e-6
  dtype: Any = None
  remat: str = "none"
  attention: str = "auto"

  def setup(self) -> None:
    how = dict(
      eps=self.eps, dtype=self.dtype, remat=self.remat, attention=self.attention,
      absolute=self.absolute,
    )  # fmt: skip
    self.encoder = Encoder(
      width=self.width, layers=self.layers, heads=self.heads, mlp_width=self.mlp_width, **how
    )
    self.predictor = Predictor(
      width=self.predictor_width, layers=self.predictor_layers, heads=self.predictor_heads,
      mlp_width=self.predictor_mlp_width, out=self.width, masks=self.mask_tokens, **how,
    )  # fmt: skip

  @property
  def grid(self) -> tuple[int, int, int]:
    """Tokens along time, rows and columns of a clip like those it was trained on."""
    return grid_shape((self.frames, self.size, self.size), self.patch)

  def encode(
    self,
    values: Float[Array, "b n p"],
    positions: Float[Array, "b n 3"],
    ids: Int[Array, "b n"] | None = None,
  ) -> Float[Array, "b n d"]:
    """Features of patches.

    Args:
      values: contents of the visible patches, as `tubelets` cuts them.
      positions: (time, row, column) of each, in patches.
      ids: tokens see those of the same number; 0 is padding. Default: all see all.
    """
    return self.encoder(values, positions, _ones(positions) if ids is None else ids)

  def predict(
    self,
    context: Float[Array, "b n d"],
    positions: Float[Array, "b n 3"],
    targets: Float[Array, "b m 3"],
    ids: Int[Array, "b n"] | None = None,
    target_ids: Int[Array, "b m"] | None = None,
    mask: Int[Array, " b"] | int = 1,
  ) -> Float[Array, "b m d"]:
    """The features expected at `targets`.

    Args:
      context: what `encode` returned for tokens at `positions`. ids, target_ids: see `encode`.
      mask: the kind of mask, of all rows or of each, modulo `mask_tokens`; published evaluations
        use 1.
    """
    ids = _ones(positions) if ids is None else ids
    target_ids = _ones(targets) if target_ids is None else target_ids
    mask = jnp.broadcast_to(mask, len(context))
    return self.predictor(context, positions, targets, ids, target_ids, mask)

  def __call__(
    self,
    values: Float[Array, "b n p"],
    positions: Float[Array, "b n 3"],
    targets: Float[Array, "b m 3"],
  ) -> Float[Array, "b m d"]:
    """The features expected at `targets`, of a clip of which `values` are visible."""
    return self.predict(self.encode(values, positions), positions, targets)


class AttentivePooler(Transformer, kw_only=True):  # type: ignore[call-arg]
  """Reads a set of features with learned queries: the probe of V-JEPA (section 4.1 there).

  `layers` self-attention layers, which may be none, then cross-attention, which has no output
  projection, and an MLP.
  """

  queries: int = 1

  @nn.compact
  def __call__(
    self, x: Float[Array, "b n d"], ids: Int[Array, "b n"] | None = None
  ) -> Float[Array, "b q d"]:
    ids = _ones(x) if ids is None else ids
    if self.layers:
      x = self.through(x, ids, None)
    dense = lambda name: Dense(self.width, dtype=self.dtype, name=name)  # noqa: E731
    asks = self.param("queries", nn.initializers.normal(0.02), (self.queries, self.width))
    asks = jnp.broadcast_to(asks, (len(x), *asks.shape)).astype(x.dtype)
    seen = LayerNorm(self.eps, affine=True, name="norm1")(x)
    q, k, v = dense("q")(asks), dense("k")(seen), dense("v")(seen)
    x = asks + attend(q, k, v, _ones(asks), ids, heads=self.heads, cross=True)
    mlp = Mlp(self.mlp_width, self.width, self.dtype, approximate=False, name="mlp")
    return x + mlp(LayerNorm(self.eps, affine=True, name="norm2")(x))


class VideoClassifier(nn.Module):
  """Class logits of clips: an attentive pooler and a linear map behind the encoder of `vjepa`."""

  vjepa: VJEPA
  labels: int
  pooler_layers: int = 3

  @nn.compact
  def __call__(
    self, values: Float[Array, "b n p"], positions: Float[Array, "b n 3"]
  ) -> Float[Array, "b labels"]:
    v = self.vjepa
    pooler = AttentivePooler(
      width=v.width, layers=self.pooler_layers, heads=v.heads, mlp_width=4 * v.width, eps=v.eps,
      dtype=v.dtype, remat=v.remat, attention=v.attention, name="pooler",
    )  # fmt: skip
    pooled = pooler(v.encode(values, positions))[:, 0]
    return nn.Dense(self.labels, name="head")(pooled.astype(jnp.float32))


def tubelets(video: Video, patch: Patch) -> tuple[Float[Array, "b n p"], Float[Array, "b n 3"]]:
  """All patches of a clip and their positions.

  Frames, rows and columns that fill no patch are left out; a clip shorter than a patch is repeated,
  which makes an image a still.
  """
  if video.shape[1] < patch[0]:
    video = jnp.tile(video, (1, patch[0], 1, 1, 1))
  t, h, w = (size // step for size, step in zip(video.shape[1:4], patch, strict=True))
  video = video[:, : t * patch[0], : h * patch[1], : w * patch[2]]
  values = patchify(video, patch)
  return values, jnp.broadcast_to(grid_positions((t, h, w)), (*values.shape[:2], 3))


def grid_positions(grid: tuple[int, int, int]) -> Float[np.ndarray, "n 3"]:
  """(time, row, column) of each token of a grid, in the order of `patchify`."""
  return np.stack(np.unravel_index(np.arange(np.prod(grid)), grid), -1).astype(np.float32)


def standardised(
  features: Float[Array, "b n d"], ids: Int[Array, "b n"] | None = None, centred: bool = False
) -> Float[Array, "b n d"]:
  """Zero mean and unit variance of each token's channels: what the predictor is to predict.

  Args:
    ids: tokens of id 0 are not there.
    centred: without the mean of the clip first. Light and floor are the same everywhere in a clip,
      and most of what an encoder that knows nothing yet says of a patch (80 % of the variance of
      features of `configs/vjepa_toy.py` early on): a target that is all but known without looking.
  """
  x = features.astype(jnp.float32)
  if centred:
    here = jnp.ones(x.shape[:2]) if ids is None else (ids > 0).astype(jnp.float32)
    total = jnp.einsum("bn,bnd->bd", here, x, precision="highest")
    x = x - (total / jnp.sum(here, axis=1, keepdims=True))[:, None]
  x = x - jnp.mean(x, axis=-1, keepdims=True)
  return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-5)


def _ones(tokens: Array) -> Int[Array, "b n"]:
  return jnp.ones(tokens.shape[:2], jnp.int32)
