"""The kernels for NVIDIA GPUs, interpreted: the attention and the gradients of the reference."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.models import attention as reference
from sora_jax.models.attention import UNSEEN, Who, split
from sora_jax.parallel import flash_gpu, ring

SETTINGS = dict(heads=2, dtype=jnp.float32)
forward, backward = (
  jax.jit(functools.partial(way, interpret=True), static_argnames=("heads", "dtype"))
  for way in (flash_gpu.forward, flash_gpu.backward)
)


def _inputs(rng, n, m, heads=2, width=32, dtype=jnp.float32):
  """Packed samples with padding in between and blocks; some queries' samples have no keys."""
  draw = lambda length: rng.standard_normal((2, length, heads * width))  # noqa: E731
  arrays = tuple(jnp.asarray(draw(length), dtype) for length in (n, m, m, n))
  ids = np.sort(rng.integers(1, 4, (2, max(n, m))), axis=1)
  ids[0, 10:17] = 0
  ids[1, -7:] = 0
  block = rng.integers(0, 3, ids.shape)
  q_ids = ids[:, :n].copy()
  q_ids[0, 20:23] = 9  # nobody's keys
  whole = lambda x: jnp.asarray(x, jnp.int32)  # noqa: E731
  return arrays, Who(whole(q_ids), whole(ids[:, :m]), whole(block[:, :n]), whole(block[:, :m]))


def _assert_near(got, want, tolerance):
  for a, b in zip(got, want, strict=True):
    assert a.dtype == jnp.float32 and a.shape == b.shape
    scale = np.abs(np.asarray(b)[np.asarray(b) > UNSEEN]).max()
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * scale)


def _delta(out, dout, heads=2):
  return jnp.einsum("bnkd,bnkd->bkn", split(out, heads), split(dout.astype(jnp.float32), heads))


@pytest.mark.parametrize(
  ("n", "m", "heads", "width", "dtype", "tolerance"),
  [
    (77, 131, 3, 24, jnp.float32, 3e-6),  # neither length nor width is a block
    (300, 200, 2, 64, jnp.bfloat16, 0.02),
    (1, 40, 1, 8, jnp.float32, 3e-6),
  ],
)
def test_output_and_gradients(rng, n, m, heads, width, dtype, tolerance):
  (q, k, v, dout), who = _inputs(rng, n, m, heads, width, dtype)
  settings = dict(heads=heads, dtype=jnp.float32)
  out, lse = reference.forward(q, k, v, who, **settings)
  _assert_near(forward(q, k, v, who, **settings), (out, lse), tolerance)
  rest = who, lse, _delta(out, dout, heads), dout
  got = backward(q, k, v, *rest, **settings)
  _assert_near(got, reference.backward(q, k, v, *rest, **settings), tolerance)


def test_who_sees_nothing_gets_and_gives_nothing(rng):
  (q, k, v, dout), who = _inputs(rng, 96, 64)
  out, lse = forward(q, k, v, who, **SETTINGS)
  blind = ~np.asarray(reference.visible(*who).any(-1))
  assert blind.any() and not blind.all()
  assert not np.asarray(out)[blind].any()
  assert (np.moveaxis(np.asarray(lse), 1, 2)[blind] == np.float32(UNSEEN)).all()
  dq, dk, dv = backward(q, k, v, who, lse, lse * 0, dout, **SETTINGS)
  assert not np.asarray(dq)[blind].any()
  unseen = ~np.asarray(reference.visible(*who).any(1))
  assert unseen.any() and not np.asarray(dk)[unseen].any() and not np.asarray(dv)[unseen].any()


def test_parts_of_the_keys_make_the_whole(rng):
  """What a ring does: outputs joined by their logarithms, gradients with that of the whole."""
  (q, k, v, dout), who = _inputs(rng, 96, 128)
  out, lse = reference.forward(q, k, v, who, **SETTINGS)
  delta = _delta(out, dout)
  outs, grads = [], []
  for part in (slice(0, 64), slice(64, 128)):
    here = who._replace(kv_ids=who.kv_ids[:, part], kv_block=who.kv_block[:, part])
    outs.append(forward(q, k[:, part], v[:, part], here, **SETTINGS))
    rest = here, lse, delta, dout
    grads.append(backward(q, k[:, part], v[:, part], *rest, **SETTINGS))
  _assert_near(ring.join(*outs), (out, lse), 3e-6)
  (dq, dk, dv), (more, *others) = grads
  got = dq + more, *(jnp.concatenate(pair, 1) for pair in zip((dk, dv), others, strict=True))
  _assert_near(got, reference.backward(q, k, v, who, lse, delta, dout, **SETTINGS), 3e-6)


def test_blocks_that_see_nothing_are_not_read(rng):
  """Two samples, of a whole number of blocks each: no value of the other one is touched."""
  size = 64  # of two blocks
  (q, k, v, _), _ = _inputs(rng, 2 * size, 2 * size, heads=1, width=16)
  ids = jnp.repeat(jnp.array([[1, 2]] * 2, jnp.int32), size, axis=1)
  who = Who(ids, ids, ids * 0, ids * 0)
  poisoned = v.at[:, size:].set(jnp.nan)
  out, _ = forward(q, k, poisoned, who, heads=1, dtype=jnp.float32)
  assert np.isfinite(out[:, :size]).all() and np.isnan(out[:, size:]).all()


@pytest.mark.parametrize(("dtype", "flops"), [(jnp.float32, 96 * 128), (jnp.bfloat16, 128 * 128)])
def test_the_work_is_that_of_whole_blocks(rng, dtype, flops):
  """In the estimate and, for Triton's lowering, in the metadata; backward is 3.5 forwards."""
  (q, k, v, dout), who = _inputs(rng, 96, 128, heads=2, width=16, dtype=dtype)
  lse = jnp.zeros((2, 2, 96))

  def both(q):
    out, _ = flash_gpu.forward(q, k, v, who, 2, dtype)
    return out, flash_gpu.backward(q, k, v, who, lse, lse, dout, 2, dtype)

  calls = [e for e in jax.make_jaxpr(both)(q).eqns if e.primitive.name == "pallas_call"]
  found = [call.params["cost_estimate"].flops for call in calls]
  assert found == [2 * products * 2 * 2 * flops * 16 for products in (2, 4, 3)]
  assert [int(call.params["metadata"]["flops"]) for call in calls] == found
