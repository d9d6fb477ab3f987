"""Attention over a sequence that is split among devices: keys and values travel, queries stay.

Ring attention (Liu et al. 2023, arXiv:2310.01889). Half of each device's keys and values goes round
one way and half the other, so both directions of a link carry bytes; while a device works on what
it holds, the next arrives. The results of the parts are joined by their logarithmic sums. In the
backward pass the gradients of keys and values travel with them, one step behind, and come home.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from sora_jax.models.attention import SAVED, Who
from sora_jax.typing import Array, Float


@dataclasses.dataclass(frozen=True)
class Kernel:
  """Attention on one device: `forward` and `backward` as in `models.attention`."""

  name: str
  forward: Callable[..., Any]
  backward: Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class Ring:
  """Devices of the mesh axis `axis` in rings of `size`; a ring takes every `stride`-th device."""

  axis: str
  size: int
  stride: int = 1

  def pass_on(self, tree: Any, direction: int) -> Any:
    """Everything in `tree` to the next device (`direction` 1) or the one before (-1)."""
    count = self.size * self.stride
    pairs = [(i, (i + direction * self.stride) % count) for i in range(count)]
    return jax.tree.map(lambda x: jax.lax.ppermute(x, self.axis, pairs), tree)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def attention(
  kernel: Kernel,
  ring: Ring | None,
  q: Float[Array, "b n k dk"],
  k: Float[Array, "b m k dk"],
  v: Float[Array, "b m k dk"],
  who: Who,
) -> Float[Array, "b n k dk"]:
  """Attention of this device's queries to the keys and values of all devices of its ring.

  Within `shard_map`; without a ring, to its own. A query that sees no key gets 0.
  """
  return _forward(kernel, ring, q, k, v, who)[0]


def _forward(
  kernel: Kernel, ring: Ring | None, q: Array, k: Array, v: Array, who: Who
) -> tuple[Array, Array]:
  if ring is None:
    out, lse = kernel.forward(q, k, v, who)
    return out.astype(q.dtype), lse

  def step(carry: Any, _: Any) -> tuple[Any, None]:
    streams, joined = carry
    arriving = travel(ring, streams)  # needs nothing of what follows: the two overlap
    return (arriving, join(joined, part(streams))), None

  def part(streams: Any) -> tuple[Array, Array]:
    k, v, *ids = whole(streams)
    return kernel.forward(q, k, v, against(who, ids))

  streams = halves((k, v, who.kv_ids, who.kv_block))
  carry = (travel(ring, streams), part(streams))
  (streams, joined), _ = jax.lax.scan(step, carry, None, length=ring.size - 2)
  out, lse = join(joined, part(streams))
  return out.astype(q.dtype), lse


def _save(kernel: Kernel, ring: Ring | None, q: Array, k: Array, v: Array, who: Who) -> Any:
  out, lse = (checkpoint_name(x, SAVED) for x in _forward(kernel, ring, q, k, v, who))
  return out, (q, k, v, who, out, lse)


def _backward(kernel: Kernel, ring: Ring | None, saved: Any, dout: Array) -> Any:
  q, k, v, who, out, lse = saved
  delta = jnp.einsum("bnkd,bnkd->bkn", out.astype(jnp.float32), dout.astype(jnp.float32))

  def part(streams: Any) -> tuple[Array, Any]:
    k, v, *ids = whole(streams)
    dq, dk, dv = kernel.backward(q, k, v, against(who, ids), lse, delta, dout)
    return dq, halves((dk, dv))

  streams = halves((k, v, who.kv_ids, who.kv_block))
  dq, grads = part(streams)
  if ring is not None:

    def step(carry: Any, _: Any) -> tuple[Any, None]:
      streams, dq, grads = carry
      arriving, followed = travel(ring, streams), travel(ring, grads)
      more, here = part(streams)
      return (arriving, dq + more, jax.tree.map(jnp.add, followed, here)), None

    carry = (travel(ring, streams), dq, grads)
    (streams, dq, grads), _ = jax.lax.scan(step, carry, None, length=ring.size - 2)
    more, here = part(streams)
    dq, grads = dq + more, jax.tree.map(jnp.add, travel(ring, grads), here)
    grads = travel(ring, grads)
  dk, dv = whole(grads)
  return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None


attention.defvjp(_save, _backward)


def halves(arrays: tuple[Array, ...]) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
  """What travels forward and what travels backward: the halves along the tokens."""
  cut = arrays[0].shape[1] // 2
  return tuple(x[:, :cut] for x in arrays), tuple(x[:, cut:] for x in arrays)


def whole(streams: tuple[tuple[Array, ...], tuple[Array, ...]]) -> tuple[Array, ...]:
  """What is here now, of both."""
  return tuple(jnp.concatenate(pair, axis=1) for pair in zip(*streams, strict=True))


def travel(ring: Ring, streams: Any) -> Any:
  """Both streams, one device on."""
  forward, backward = streams
  return ring.pass_on(forward, 1), ring.pass_on(backward, -1)


def against(who: Who, ids: list[Array]) -> Who:
  """The queries of `who` against other keys."""
  return who._replace(kv_ids=ids[0], kv_block=ids[1])


def join(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
  """Attention to two sets of keys from attention to each; nothing and nothing make nothing."""
  (x, p), (y, q) = a, b
  lse = jnp.logaddexp(p, q)
  share = lambda part: jnp.moveaxis(jnp.exp(part - lse), 1, 2)[..., None]  # noqa: E731
  return x * share(p) + y * share(q), lse
