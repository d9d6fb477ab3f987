"""Matrix products whose inputs are rounded to bfloat16, where JAX is asked for that.

`jax.default_matmul_precision("BF16_BF16_F32")` asks for it: float32 arrays are multiplied as
bfloat16, and summed and kept in float32. On TPUs and GPUs the compiler sees to it; XLA for CPUs
goes on in float32 (jax 0.10), though processors with bfloat16 instructions (avx512_bf16, amx_bf16)
multiply twice as fast. So here the rounding is written out.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from sora_jax.typing import Array, Float

ROUNDED = "BF16_BF16_F32"  # JAX's name: type of either input, and of the sums


def product(spec: str, x: Array, y: Array) -> Array:
  """`einsum` of two arrays, summed and returned in float32. Not for JAX to differentiate."""
  if _rounds(x, y):
    x, y = x.astype(jnp.bfloat16), y.astype(jnp.bfloat16)
  return jnp.einsum(spec, x, y, preferred_element_type=jnp.float32)


def linear(x: Float[Array, "*b i"], kernel: ArrayLike) -> Float[Array, "*b o"]:
  """x @ kernel, in the type of both."""
  kernel = jnp.asarray(kernel)
  return _rounded(x, kernel) if _rounds(x, kernel) else x @ kernel


def _rounds(x: Array, y: Array) -> bool:
  asked = jax.config.values["jax_default_matmul_precision"] == ROUNDED
  return asked and x.dtype == y.dtype == jnp.float32


@jax.custom_vjp
def _rounded(x: Float[Array, "*b i"], kernel: Float[Array, "i o"]) -> Float[Array, "*b o"]:
  return product("...i,io->...o", x, kernel)


def _forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
  return _rounded(x, kernel), (x, kernel)


def _backward(inputs: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
  x, kernel = inputs
  # XLA's product over the long axis of both is no faster in bfloat16: the better one is kept.
  dkernel = jnp.einsum("...i,...o->io", x, dy)
  return product("...o,io->...i", dy, kernel), dkernel


_rounded.defvjp(_forward, _backward)
