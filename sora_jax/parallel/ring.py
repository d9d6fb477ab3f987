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

from sora_jax.models.attention import SAVED, Who, split
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


@dataclasses.dataclass(frozen=True)
class Trade:
  """Tokens for heads, among `group` neighbours of the `size` devices of the mesh axis `axis`."""

  axis: str
  size: int
  group: int

  def heads(self, x: Array) -> Array:
    """Some heads of the tokens of all neighbours, from all heads of some: b n kd -> b (g n) kd/g"""
    parts = self._exchange(jnp.stack(jnp.split(x, self.group, axis=2)))
    return jnp.concatenate(parts, axis=1)

  def tokens(self, x: Array) -> Array:
    """The way back: b (g n) kd/g -> b n kd"""
    parts = self._exchange(jnp.stack(jnp.split(x, self.group, axis=1)))
    return jnp.concatenate(parts, axis=2)

  def gather(self, x: Array) -> Array:
    """What all neighbours have, along the tokens."""
    return jax.lax.all_gather(x, self.axis, axis=1, axis_index_groups=self._groups, tiled=True)

  def _exchange(self, parts: Array) -> Array:
    """One part to each neighbour, one from each: whole slabs, which needs no transposition."""
    return jax.lax.all_to_all(parts, self.axis, 0, 0, axis_index_groups=self._groups, tiled=True)

  @property
  def _groups(self) -> list[list[int]]:
    starts = range(0, self.size, self.group)
    return [list(range(start, start + self.group)) for start in starts]


@dataclasses.dataclass(frozen=True)
class Way:
  """How attention is computed: by which kernel, and how split sequences are brought together.

  Attributes:
    heads: of the arrays on a device. ring, trade: None where there is none.
  """

  kernel: Kernel
  heads: int
  ring: Ring | None = None
  trade: Trade | None = None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def attention(
  way: Way,
  q: Float[Array, "b n kd"],
  k: Float[Array, "b m kd"],
  v: Float[Array, "b m kd"],
  who: Who,
) -> Float[Array, "b n kd"]:
  """Attention of this device's queries to the keys and values of all devices it works with.

  Within `shard_map`; without ring and trade, to its own. A query that sees no key gets 0.
  """
  return _save(way, q, k, v, who)[0]


def _save(way: Way, q: Array, k: Array, v: Array, who: Who) -> Any:
  trade, heads = way.trade, way.heads
  if trade is not None:
    q, k, v = (trade.heads(x) for x in (q, k, v))
    who, heads = Who(*map(trade.gather, who)), heads // trade.group
  out, lse = _forward(way.kernel, heads, way.ring, q, k, v, who)
  out = out if trade is None else trade.tokens(out)
  # Named behind the trade: kept, the output serves the layer that reads it too.
  out, lse = checkpoint_name(out, SAVED), checkpoint_name(lse, SAVED)
  return out, (q, k, v, who, out, lse)


def _backward(way: Way, saved: Any, dout: Array) -> Any:
  q, k, v, who, out, lse = saved
  trade, heads = way.trade, way.heads
  both = out.astype(jnp.float32) * dout.astype(jnp.float32)
  delta = split(both, heads).sum(-1)
  if trade is not None:
    dout, delta, heads = trade.heads(dout), trade.heads(delta), heads // trade.group
  delta = jnp.swapaxes(delta, 1, 2)
  grads = _gradients(way.kernel, heads, way.ring, q, k, v, who, lse, delta, dout)
  home = trade.tokens if trade else lambda x: x
  return *(home(grad.astype(q.dtype)) for grad in grads), None


attention.defvjp(_save, _backward)


def _forward(
  kernel: Kernel, heads: int, ring: Ring | None, q: Array, k: Array, v: Array, who: Who
) -> tuple[Array, Array]:
  if ring is None:
    return kernel.forward(q, k, v, who, heads, q.dtype)

  def step(carry: Any, _: Any) -> tuple[Any, None]:
    streams, joined = carry
    arriving = travel(ring, streams)  # needs nothing of what follows: the two overlap
    return (arriving, join(joined, part(streams))), None

  def part(streams: Any) -> tuple[Array, Array]:
    k, v, *ids = whole(streams)
    return kernel.forward(q, k, v, against(who, ids), heads, jnp.float32)

  streams = halves((k, v, who.kv_ids, who.kv_block))
  carry = (travel(ring, streams), part(streams))
  (streams, joined), _ = jax.lax.scan(step, carry, None, length=ring.size - 2)
  out, lse = join(joined, part(streams))
  return out.astype(q.dtype), lse


def _gradients(
  kernel: Kernel, heads: int, ring: Ring | None, q: Array, k: Array, v: Array, who: Who,
  lse: Array, delta: Array, dout: Array,
) -> tuple[Array, Array, Array]:  # fmt: skip
  if ring is None:
    return kernel.backward(q, k, v, who, lse, delta, dout, heads, q.dtype)

  def part(streams: Any) -> tuple[Array, Any]:
    k, v, *ids = whole(streams)
    rest = (against(who, ids), lse, delta, dout, heads, jnp.float32)
    dq, dk, dv = kernel.backward(q, k, v, *rest)
    return dq, halves((dk, dv))

  def step(carry: Any, _: Any) -> tuple[Any, None]:
    streams, dq, grads = carry
    arriving, followed = travel(ring, streams), travel(ring, grads)
    more, here = part(streams)
    return (arriving, dq + more, jax.tree.map(jnp.add, followed, here)), None

  streams = halves((k, v, who.kv_ids, who.kv_block))
  carry = (travel(ring, streams), *part(streams))
  (streams, dq, grads), _ = jax.lax.scan(step, carry, None, length=ring.size - 2)
  more, here = part(streams)
  dq, grads = dq + more, jax.tree.map(jnp.add, travel(ring, grads), here)
  dk, dv = whole(travel(ring, grads))
  return dq, dk, dv


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

  def weighed(out: Array, part: Array) -> Array:
    share = jnp.swapaxes(jnp.exp(part - lse), 1, 2)[..., None]
    return (split(out, part.shape[1]) * share).reshape(out.shape)

  return weighed(x, p) + weighed(y, q), lse
