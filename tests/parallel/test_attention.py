"""Every kernel on every mesh gives the same attention, and the same gradients."""

import functools
from importlib import util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.errors import UserError
from sora_jax.models import attention as reference
from sora_jax.models.attention import Who
from sora_jax.parallel import attention, flash
from sora_jax.parallel.sharding import make_mesh
from sora_jax.plan import hlo, topology

NAMES = ("q", "k", "v")


def _inputs(rng, b=2, n=96, m=None, heads=8, width=16):
  """Packed samples of several lengths with padding, and blocks that grow along each sample."""
  m = m or n
  draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)  # noqa: E731
  q, k, v = (draw(b, length, heads * width) for length in (n, m, m))
  ids = np.sort(rng.integers(1, 4, (b, max(n, m))), axis=1)
  ids[:, -7:] = 0
  block = rng.integers(0, 3, (b, max(n, m)))
  at = lambda x, size: jnp.asarray(x[:, :size], jnp.int32)  # noqa: E731
  return (q, k, v), Who(at(ids, n), at(ids, m), at(block, n), at(block, m))


def _whole(heads):
  return functools.partial(reference.attend, heads=heads)


def _run(function, arrays, who, mesh=None):
  """Output and gradients of a random projection of it."""
  weights = jnp.asarray(np.random.default_rng(1).standard_normal(arrays[0].shape), jnp.float32)

  def scalar(arrays):
    out = function(*arrays, *who)
    return jnp.sum(out * weights), out

  run = jax.jit(jax.value_and_grad(scalar, has_aux=True))
  if mesh is None:
    (_, out), grads = run(arrays)
  else:
    with jax.set_mesh(mesh):
      (_, out), grads = run(arrays)
  return {"out": out, **dict(zip(NAMES, grads, strict=True))}


def _assert_same(got, want, tolerance=2e-5):
  for name, values in want.items():
    np.testing.assert_allclose(got[name], values, atol=tolerance, rtol=tolerance, err_msg=name)


@pytest.mark.parametrize(
  "sizes, ulysses, length",
  [
    ({"context": 8}, 1, 77),  # a ring of 8, and a length they do not divide
    ({"context": 8}, 4, 96),  # four neighbours, four times two in a ring
    ({"context": 8}, 0, 77),  # tokens for heads alone
    ({"data": 2, "context": 2, "tensor": 2}, 1, 96),
    ({"fsdp": 2, "context": 4}, 2, 96),
  ],
  ids=str,
)
def test_a_split_sequence_is_attended_as_a_whole(rng, sizes, ulysses, length):
  arrays, who = _inputs(rng, n=length)
  split = lambda *a: attention.attend(*a, heads=8, ulysses=ulysses)  # noqa: E731
  _assert_same(_run(split, arrays, who, make_mesh(sizes)), _run(_whole(8), arrays, who))


def test_attention_to_a_prompt_needs_no_ring(rng):
  arrays, who = _inputs(rng, n=96, m=40)
  cross = lambda *a: attention.attend(*a, heads=8, kernel="pallas_interpret", cross=True)  # noqa: E731
  mesh = make_mesh({"context": 4, "tensor": 2})
  _assert_same(_run(cross, arrays, who, mesh), _run(_whole(8), arrays, who))


@pytest.mark.parametrize("length", [16, 53])  # one piece, and four of which one is not full
def test_queries_in_pieces(rng, monkeypatch, length):
  monkeypatch.setattr(reference, "PIECE", 16)
  arrays, who = _inputs(rng, n=length, m=40)
  pieces = lambda *a: attention.attend(*a, heads=8, kernel="xla")  # noqa: E731
  _assert_same(_run(pieces, arrays, who), _run(_whole(8), arrays, who))


def test_pallas_kernels(rng, monkeypatch):
  monkeypatch.setattr(flash, "BLOCKS", (128,))
  arrays, who = _inputs(rng, b=2, n=200, m=300, heads=2, width=32)
  kernel = lambda *a: attention.attend(*a, heads=2, kernel="pallas_interpret")  # noqa: E731
  _assert_same(_run(kernel, arrays, who), _run(_whole(2), arrays, who))


def test_pallas_kernels_in_a_ring(rng):
  arrays, who = _inputs(rng, n=96, heads=2, width=32)
  ring = lambda *a: attention.attend(*a, heads=2, kernel="pallas_interpret", ulysses=2)  # noqa: E731
  got = _run(ring, arrays, who, make_mesh({"context": 4}))
  _assert_same(got, _run(_whole(2), arrays, who))


def test_queries_beyond_what_stays_on_the_chip_are_cut(rng, monkeypatch):
  arrays, who = _inputs(rng, n=300, heads=1, width=32)
  kernel = lambda *a: attention.attend(*a, heads=1, kernel="pallas_interpret")  # noqa: E731
  monkeypatch.setattr(flash, "_vmem", lambda: 4 * 4 * 128 * 128)
  _assert_same(_run(kernel, arrays, who), _run(_whole(1), arrays, who))


def test_blocks_that_see_nothing_are_skipped_and_whole_ones_not_masked():
  ids = jnp.repeat(jnp.array([[1, 2, 2, 0]], jnp.int32), 4, axis=1)
  zeros = jnp.zeros_like(ids)
  state = flash.block_states(Who(ids, ids, zeros, zeros), (4, 4))[0]
  np.testing.assert_array_equal(state, [[2, 0, 0, 0], [0, 2, 2, 0], [0, 2, 2, 0], [0, 0, 0, 0]])
  later = jnp.repeat(jnp.array([[0, 0, 1, 0]], jnp.int32), 4, axis=1)
  state = flash.block_states(Who(ids, ids, later, later), (4, 4))[0]
  np.testing.assert_array_equal(state[1:3, 1:3], [[2, 0], [2, 2]])
  mixed = jnp.asarray(np.arange(16)[None] % 2, jnp.int32)
  assert flash.block_states(Who(ids, ids, mixed, mixed), (4, 4))[0, 1, 1] == 1


@pytest.mark.parametrize("length", [75_600, 37_800, 18_900, 9450, 8190, 4095, 32_760, 2877])
def test_padding_is_at_most_three_percent(length):
  size = flash.block_size(length)
  assert -(-length // size) * size <= 1.03 * length or size == 128
  assert size >= 384 or length < 4096


def test_no_chunk_is_gathered_whole(rng):
  """A ring never holds the keys of all devices: that is what it is for."""
  arrays, who = _inputs(rng, b=1, n=1024)
  split = lambda *a: attention.attend(*a, heads=8, ulysses=1)  # noqa: E731
  with jax.set_mesh(make_mesh({"context": 8})):
    sharding = jax.NamedSharding(make_mesh({"context": 8}), jax.P(None, "context"))
    arrays, who = jax.device_put((arrays, who), sharding)
    loss = lambda arrays: jnp.sum(split(*arrays, *who) ** 2)  # noqa: E731
    text = jax.jit(jax.grad(loss)).lower(arrays).compile().as_text()
  assert "collective-permute" in text and "all-gather" not in text


def test_bad_requests(rng):
  arrays, who = _inputs(rng)
  with pytest.raises(UserError, match="no attention 'flsh'"):
    attention.attend(*arrays, *who, heads=8, kernel="flsh")
  with pytest.raises(UserError, match="8 heads .* 6 devices .* 2 can"):
    attention.neighbours(8, 6, 3)
  found = [attention.neighbours(heads, 8) for heads in (12, 40, 5)]
  assert found == [4, 8, 1]


@pytest.mark.skipif(util.find_spec("libtpu") is None, reason="libtpu is for Linux on x86 only")
def test_kernels_and_rings_compile_for_a_tpu():
  """Two neighbours, twice two in a ring, one kernel forward and one backward for each part."""
  mesh = make_mesh({"context": 4}, topology.devices(topology.parse("v5p:2x2x1")))
  split = lambda *dims: jax.NamedSharding(mesh, jax.P(None, "context", *dims))  # noqa: E731
  x = jax.ShapeDtypeStruct((1, 1000, 256), jnp.bfloat16, sharding=split(None))
  ids = jax.ShapeDtypeStruct((1, 1000), jnp.int32, sharding=split())

  def loss(q, k, v, ids):
    out = attention.attend(q, k, v, ids, ids, heads=2, kernel="pallas")
    return jnp.sum(out.astype(jnp.float32))

  with jax.set_mesh(mesh), topology.uncached():
    costs = hlo.costs(jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(x, x, x, ids).compile())
  forward, backward = (costs.custom_calls[f"attention_{way}"] for way in ("forward", "backward"))
  assert forward.count == backward.count == 2
  assert backward.flops == 2.5 * forward.flops
  assert costs.collectives["all-to-all"].count > 0
  assert costs.collectives["collective-permute"].count > 0
