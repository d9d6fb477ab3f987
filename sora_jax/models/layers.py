"""Small layers shared by the transformers. Norms and embeddings compute in float32."""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from sora_jax.models import lora
from sora_jax.models.conv import streaming
from sora_jax.models.matmul import linear
from sora_jax.models.patch import rotate
from sora_jax.parallel.attention import attend
from sora_jax.parallel.sharding import constrain, gather
from sora_jax.typing import Array, Float, Int, Params


def sinusoid(
  x: Float[Array, "*b"], width: int, max_period: float = 10_000.0, shift: int = 0
) -> Array:
  """Sinusoidal features of scalars, cosines first (Ho et al. 2020; Wan's order).

  With `shift` 1 the last frequency is 1 / max_period; with 0 the one after the last would be.
  """
  steps = jnp.arange(width // 2, dtype=jnp.float32) / (width // 2 - shift)
  freqs = jnp.exp(-math.log(max_period) * steps)
  angles = x[..., None].astype(jnp.float32) * freqs
  return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def position_features(positions: Float[Array, "*b 3"], width: int = 64) -> Float[Array, "*b f"]:
  """Sinusoids of time, row and column, `width` of each, one after the other."""
  features = sinusoid(8.0 * positions, width)  # neighbours differ in many features
  return features.reshape(*positions.shape[:-1], -1)


class RMSNorm(nn.Module):
  """x / rms(x) * scale over the last axis."""

  eps: float = 1e-6

  @nn.compact
  def __call__(self, x: Array) -> Array:
    scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
    x32 = x.astype(jnp.float32)
    rms = jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.eps)
    return (x32 * rms * scale).astype(x.dtype)


class LayerNorm(nn.Module):
  """Layer normalisation over the last axis, with an optional affine map."""

  eps: float = 1e-6
  affine: bool = False

  @nn.compact
  def __call__(self, x: Array) -> Array:
    norm = nn.LayerNorm(self.eps, jnp.float32, use_bias=self.affine, use_scale=self.affine)
    return norm(x.astype(jnp.float32)).astype(x.dtype)


class Dense(nn.Module):
  """A linear map of the last axis, and the adapter of `models.lora` if its parameters hold one.

  On a mesh its matrices are gathered where they are used, unless `gathered` is False.
  """

  features: int
  dtype: Any = None
  kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
  gathered: bool = True
  use_bias: bool = True

  @nn.compact
  def __call__(self, x: Array) -> Array:
    kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
    bias = self.param("bias", nn.initializers.zeros, (self.features,)) if self.use_bias else None
    kernel = self._used("kernel", kernel)
    x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
    y = linear(x, kernel)
    y = y if bias is None else y + bias
    if not self.has_variable("params", "lora_down"):
      return y
    down, up, alpha = (self.get_variable("params", name) for name in lora.NAMES)
    down, up = self._used("lora_down", down), self._used("lora_up", up)
    x, down, up = nn.dtypes.promote_dtype(x, down, up, dtype=y.dtype)
    return y + lora.low_rank(x, down, up, alpha)

  def _used(self, name: str, matrix: ArrayLike) -> ArrayLike:
    return gather("/".join((*self.path, name)), matrix, self.dtype) if self.gathered else matrix


class Mlp(nn.Module):
  """Two linear maps around a GELU, approximated by a tanh or exact."""

  hidden: int
  out: int
  dtype: Any = None
  approximate: bool = True

  @nn.compact
  def __call__(self, x: Array) -> Array:
    x = Dense(self.hidden, dtype=self.dtype, name="up")(x)
    return Dense(self.out, dtype=self.dtype, name="down")(nn.gelu(x, self.approximate))


class Attention(nn.Module):
  """Multi-head attention, by default with RMS-normalised queries and keys (over the full width, as
  in Wan).

  `source` and its ids make it cross-attention; `angles` switch on rotary embeddings, `paired` as in
  `rotate`; `kernel` is one of `parallel.attention.KERNELS`, or "auto", and `ulysses` as in its
  `attend`.

  With `kept` and the collection `cache` mutable, tokens may come piece by piece: keys and values of
  so many are kept there, each at the place that its `block` says, which must grow by one from token
  to token and be alike in all rows. Those of a `source` are kept as they first are.
  """

  width: int
  heads: int
  eps: float = 1e-6
  dtype: Any = None
  kernel: str = "auto"
  ulysses: int = 0
  qk_norm: bool = True
  paired: bool = True
  kept: int = 0

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b n d"],
    ids: Int[Array, "b n"],
    source: Float[Array, "b s e"] | None = None,
    source_ids: Int[Array, "b s"] | None = None,
    block: Int[Array, "b n"] | None = None,
    angles: Float[Array, "b n half"] | None = None,
  ) -> Float[Array, "b n d"]:
    cross = source is not None
    source = x if source is None else source
    source_ids, kv_block = ids if source_ids is None else source_ids, block
    dense = lambda name: Dense(self.width, dtype=self.dtype, name=name)  # noqa: E731
    norm = lambda name, y: RMSNorm(self.eps, name=name)(y) if self.qk_norm else y  # noqa: E731
    turn = lambda y: y if angles is None else rotate(y, angles, self.paired)  # noqa: E731
    cached = self.kept and streaming(self)
    q = turn(norm("q_norm", dense("q")(x)))
    if cached and cross and self.has_variable("cache", "past"):
      k, v = self.get_variable("cache", "past")
    else:
      k, v = turn(norm("k_norm", dense("k")(source))), dense("v")(source)
      if cached:
        k, v = self._keep(k, v, 0 if cross or block is None else block[0, 0])
    if cached and not cross:
      source_ids, kv_block = (jnp.broadcast_to(y, k.shape[:2]) for y in (1, jnp.arange(self.kept)))
    q, k, v = (constrain(y, "hidden") for y in (q, k, v))
    out = attend(
      q, k, v, ids, source_ids, block, kv_block,
      heads=self.heads, kernel=self.kernel, ulysses=self.ulysses, cross=cross,
    )  # fmt: skip
    return dense("out")(out)

  def _keep(self, k: Array, v: Array, at: ArrayLike) -> tuple[Array, Array]:
    """All keys and values so far, and zeros in the place of later ones."""
    past = (jnp.zeros((len(k), self.kept, k.shape[-1]), k.dtype),) * 2
    if self.has_variable("cache", "past"):
      past = self.get_variable("cache", "past")
    put = lambda kept, new: jax.lax.dynamic_update_slice_in_dim(kept, new, at, axis=1)  # noqa: E731
    past = put(past[0], k), put(past[1], v)
    self.put_variable("cache", "past", past)
    return past


def kernels_in(dtype: Any, params: Params) -> Params:
  """Parameters with kernels, which such layers compute with in `dtype` (None: float32), in that."""

  def store(path: tuple[Any, ...], leaf: Any) -> Any:
    return leaf.astype(dtype) if path[-1].key == "kernel" else leaf

  return params if dtype is None else jax.tree_util.tree_map_with_path(store, params)
