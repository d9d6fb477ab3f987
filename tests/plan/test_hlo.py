"""What programs cost: small ones with known answers, and texts that no compiler gives on a CPU."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from sora_jax.plan import groups as groups_lib
from sora_jax.plan import hlo
from sora_jax.plan.hlo import Collective, CustomCall, Memory

N = 8
RING = [(i, (i + 1) % N) for i in range(N)]
NOTHING = Memory(0, 0, 0, 0, 0)


def costs(f, *shapes, specs, out=None, **options):
  """Costs of a function of what each of 8 devices has."""
  mesh = Mesh(np.array(jax.devices()[:N]), ("x",))
  out = P() if out is None else out
  placed = [
    jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))
    for (shape, dtype), spec in zip(shapes, specs, strict=True)
  ]
  f = jax.shard_map(f, mesh=mesh, in_specs=tuple(specs), out_specs=out, check_vma=False)
  return hlo.costs(jax.jit(f, **options).lower(*placed).compile())


@pytest.mark.parametrize(
  ("f", "kind", "size", "wire"),  # of a result on a device, 4 bytes a number
  [
    (lambda x: lax.psum(x, "x"), "all-reduce", 64 * 128, 2 * 7 / 8),
    (lambda x: lax.all_gather(x, "x", tiled=True), "all-gather", N * 64 * 128, 7 / 8),
    (lambda x: lax.psum_scatter(x, "x", tiled=True), "reduce-scatter", 8 * 128, 7),
    (lambda x: lax.all_to_all(x, "x", 0, 0, tiled=True), "all-to-all", 64 * 128, 7 / 8),
    (lambda x: lax.ppermute(x, "x", RING), "collective-permute", 64 * 128, 1),
  ],
)
def test_one_collective(f, kind, size, wire):
  found = costs(f, ((N * 64, 128), jnp.float32), specs=[P("x")], out=P("x"))
  assert found.collectives == {kind: Collective(1, 4 * size, int(4 * size * wire))}
  assert (found.unknown_loops, found.conditionals, found.cycles) == ({}, 0, 0)


def test_a_group_is_a_part_of_the_devices():
  groups = [[0, 1, 2, 3], [4, 5, 6, 7]]
  halves = lambda x: lax.psum(x, "x", axis_index_groups=groups)  # noqa: E731
  found = costs(halves, ((64, 128), jnp.bfloat16), specs=[P()], out=P("x"))
  # The CPU promotes bfloat16 sums to float32, which the bytes show.
  assert found.collectives == {"all-reduce": Collective(1, 4 * 64 * 128, 4 * 64 * 128 * 2 * 3 // 4)}


def test_a_scan_gathers_as_often_as_it_is_long():
  def f(w, x):
    body = lambda x, w: (x + jnp.tanh(lax.all_gather(w, "x", tiled=True)), None)  # noqa: E731
    return lax.scan(body, x, w)[0]

  shapes = ((5, N * 16, 256), jnp.float32), ((N * 16, 256), jnp.float32)
  found = costs(f, *shapes, specs=[P(None, "x"), P()])
  size = N * 16 * 256 * 4
  assert found.collectives == {"all-gather": Collective(5, 5 * size, 5 * size * 7 // 8)}


def test_nested_scans_multiply():
  def f(x):
    inner = lambda x, _: (lax.ppermute(jnp.tanh(x), "x", RING), None)  # noqa: E731
    outer = lambda x, _: (lax.psum(lax.scan(inner, x, None, 3)[0], "x"), None)  # noqa: E731
    return lax.scan(outer, x, None, 4)[0]

  found = costs(f, ((8, 128), jnp.float32), specs=[P()])
  assert found.collectives["collective-permute"].count == 12
  assert found.collectives["all-reduce"].count == 4


def test_a_loop_of_unknown_length_counts_once_and_is_named():
  def f(x, n):
    inner = lambda _, x: lax.psum(jnp.tanh(x), "x")  # noqa: E731
    return lax.scan(lambda x, _: (lax.fori_loop(0, n, inner, x), None), x, None, 3)[0]

  found = costs(f, ((8, 128), jnp.float32), ((), jnp.int32), specs=[P(), P()])
  assert found.collectives["all-reduce"].count == 3
  (name,) = found.unknown_loops
  assert name.endswith("while") and found.unknown_loops[name] == 3


def test_all_branches_count():
  f = lambda p, x: lax.cond(p, lambda x: lax.psum(x, "x"), lambda x: x @ x, x)  # noqa: E731
  found = costs(f, ((), jnp.bool_), ((64, 64), jnp.float32), specs=[P(), P()])
  assert found.conditionals == 1
  assert found.collectives["all-reduce"].count == 1 and found.flops == 2 * 64**3


def test_flops_of_a_scanned_chain_of_matmuls_and_its_gradient():
  def f(w, x):
    return jnp.sum(lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0])

  shapes = ((7, 64, 64), jnp.float32), ((32, 64), jnp.float32)
  one = 7 * 2 * 32 * 64 * 64
  assert costs(f, *shapes, specs=[P(), P()]).flops == one
  assert costs(jax.grad(f, (0, 1)), *shapes, specs=[P(), P()], out=(P(), P())).flops == 3 * one


@pytest.mark.parametrize(
  ("strides", "padding", "dilation"),
  [
    ((1, 1, 1), "SAME", {}),
    ((1, 2, 2), "VALID", {}),
    ((1, 2, 1), ((2, 0), (1, 1), (0, 3)), {"rhs_dilation": (1, 2, 1)}),
    ((2, 1, 1), ((2, 0), (1, 1), (0, 3)), {"lhs_dilation": (2, 1, 2)}),
  ],
)
def test_flops_of_a_convolution_are_xlas(strides, padding, dilation):
  f = lambda x, w: lax.conv_general_dilated(  # noqa: E731
    x, w, strides, padding, dimension_numbers=("NDHWC", "DHWIO", "NDHWC"), **dilation
  )
  shapes = jax.ShapeDtypeStruct((2, 5, 7, 6, 3), "f4"), jax.ShapeDtypeStruct((3, 3, 3, 3, 4), "f4")
  compiled = jax.jit(f).lower(*shapes).compile()
  assert hlo.costs(compiled).flops == compiled.cost_analysis()["flops"] > 0


def test_flops_of_a_batched_and_a_grouped_product_are_xlas():
  def compiled(f, *shapes):
    return jax.jit(f).lower(*(jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes)).compile()

  scores = lambda q, k: jnp.einsum("bnhd,bmhd->bhnm", q, k)  # noqa: E731
  program = compiled(scores, (2, 16, 3, 8), (2, 32, 3, 8))
  assert hlo.costs(program).flops == 2 * 2 * 3 * 16 * 32 * 8
  depthwise = lambda x, w: lax.conv_general_dilated(  # noqa: E731
    x, w, (1,), "VALID", feature_group_count=6, dimension_numbers=("NWC", "WIO", "NWC")
  )
  assert hlo.costs(compiled(depthwise, (2, 9, 6), (3, 1, 6))).flops == 2 * 2 * 7 * 6 * 3


def test_memory_is_that_of_a_device():
  f = lambda w, x: (w - 1, jnp.sum(jnp.tanh(x @ w)))  # noqa: E731
  shapes = ((256, 256), jnp.float32), ((N * 16, 256), jnp.float32)
  memory = costs(f, *shapes, specs=[P(), P("x")], out=(P(), P()), donate_argnums=0).memory
  assert memory.arguments == 4 * (256 * 256 + 16 * 256)
  assert memory.aliased == 4 * 256 * 256 <= memory.outputs
  assert memory.temporaries > 0 and memory.peak > 0


TEXT = """HloModule snippet, num_partitions=8, replica_count=1

%sum (a: f32[], b: f32[]) -> f32[] {{
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %ab = f32[] add(%a, %b)
}}
{computations}
ENTRY %main (x: f32[64,128]) -> f32[64,128] {{
  %x = f32[64,128]{{1,0:T(8,128)}} parameter(0)
  %zero = s32[] constant(0)
  {body}
}}
"""
SIZE = 64 * 128 * 4


def read(body, computations=""):
  return hlo.read(TEXT.format(body=body, computations=computations), NOTHING)


@pytest.mark.parametrize(
  ("groups", "size"),
  [
    ("{{0,1,2,3},{4,5,6,7}}", 4),
    ("{{0},{1},{2},{3},{4},{5},{6},{7}}", 1),
    ("{}", 8),
    ("[2,4]<=[4,2]T(1,0)", 4),
    ("[4,2]<=[8]", 2),
    ("mesh['a'=4,'b'=1,'c'=2] {'a','b'}", 4),
    ("mesh['a'=8] {'a':(2)4}", 4),
  ],
)
def test_groups_as_they_are_written(groups, size):
  line = f"ROOT %r = f32[64,128] all-reduce(%x), replica_groups={groups}, to_apply=%sum"
  assert read(line).collectives["all-reduce"].wire == 2 * SIZE * (size - 1) // size


def test_an_asynchronous_pair_counts_once_with_its_result():
  found = read("""%s = (f32[8,128], f32[64,128]) all-gather-start(%x), replica_groups=[1,8]<=[8]
  %d = f32[64,128]{1,0} all-gather-done(%s)
  %p = (f32[64,128], f32[64,128], u32[], u32[]) collective-permute-start(%d), source_target_pairs={}
  ROOT %q = f32[64,128]{1,0} collective-permute-done(%p)""")
  assert found.collectives["all-gather"] == Collective(1, SIZE, SIZE * 7 // 8)
  assert found.collectives["collective-permute"] == Collective(1, SIZE, SIZE)


@pytest.mark.parametrize(
  ("groups", "found"),
  [
    ("{{0,5},{2,7}}", [[0, 5], [2, 7]]),
    ("{}", [[0, 1, 2, 3]]),
    ("[2,2]<=[4]", [[0, 1], [2, 3]]),
    ("[2,4]<=[2,2,2]T(1,0,2)", [[0, 1, 4, 5], [2, 3, 6, 7]]),
    ("mesh['a'=2,'b'=3] {'a'}", [[0, 3], [1, 4], [2, 5]]),
    ("mesh['a'=8] {'a':(2)2}", [[0, 2], [1, 3], [4, 6], [5, 7]]),
    ("mesh['a'=8] {'a':(1)2,'a':(4)2}", [[0, 1, 4, 5], [2, 3, 6, 7]]),
  ],
)
def test_who_is_in_a_group(groups, found):
  assert groups_lib.parse(groups, 4) == found


@pytest.mark.parametrize(
  ("kind", "groups", "far"),  # of 420 bytes, hosts of 4
  [
    ("all-gather", [[0, 1, 2, 3]], 0),
    ("all-gather", [[0, 4]], 420),
    ("all-gather", [[0, 1, 2, 3, 4, 5, 6, 7]], 60),  # what comes once to a host, by its 4 devices
    ("all-to-all", [[0, 1, 2, 3, 4, 5, 6, 7]], 240),  # 4 of the 7 others
    ("collective-permute", [[0, 1], [3, 4]], 420),  # the slowest counts
  ],
)
def test_what_goes_from_host_to_host(kind, groups, far):
  assert groups_lib.between_hosts(kind, 420, groups, 4) == far


def test_a_program_of_gpus():
  """Lines of what XLA made for 2 x 8 H100s, less what is not read."""
  found = hlo.read(
    TEXT.format(
      computations="",
      body=r"""%s = (f32[4,128], f32[64,128]) all-gather-start(%x), channel_id=1, replica_groups=[1,16]<=[16], dimensions={0}, use_global_device_ids=true, metadata={op_name="jit(f)/while/body/dot_general"}, backend_config={"collective_backend_config":{"is_sync":false}}
  %d = f32[64,128] all-gather-done(%s), metadata={op_name="jit(f)/while/body/dot_general"}
  %a = ((f32[64,128]), f32[64,128]) all-to-all-start(%d), channel_id=2, replica_groups=mesh['axis_0'=2,'axis_1'=8] {'axis_1'}, dimensions={0}
  %b = f32[64,128] all-to-all-done(%a)
  %c = (bf16[8,64,9,32,32]{4,3,2,1,0}, u8[0]{0}) custom-call(%i, %k), window={size=3x3x3 pad=1_1x1_1x1_1}, dim_labels=bf012_oi012->bf012, custom_call_target="__cudnn$convForward"
  %i = bf16[8,64,9,32,32] constant({...})
  %k = bf16[64,64,3,3,3] constant({...})
  ROOT %p = (f32[64,128], f32[1,2,64]) custom-call(%b, %x, /*index=2*/%b), custom_call_target="__gpu$xla.gpu.triton", metadata={op_name="jit(f)/attention_forward/pallas_call"}, backend_config={debug = false, grid_x = 2 : i32, ir = "ML\EFR\0DMLIR", name = "attention_forward", num_warps = 8 : i32, serialized_metadata = "{\22flops\22: \22123\22}"}""",  # noqa: E501
    ).replace("num_partitions=8", "num_partitions=16"),
    NOTHING,
    per_host=8,
  )
  assert found.collectives == {
    "all-gather": Collective(1, SIZE, SIZE * 15 // 16, SIZE // 16),
    "all-to-all": Collective(1, SIZE, SIZE * 7 // 8),
  }
  inside = (3 * 9 - 2) * (3 * 32 - 2) ** 2  # of a window's places, without the padding
  assert found.custom_calls == {
    "__cudnn$convForward": CustomCall(1, 2 * 8 * 64 * 64 * inside, 0),
    "attention_forward": CustomCall(1, 123, 0),
  }


def test_a_collective_on_a_thread_of_its_own_counts_once():
  found = read(
    """%s = ((f32[64,128], token[]), f32[64,128]) call-start(%x), to_apply=%aside
  ROOT %d = f32[64,128] call-done(%s)""",
    """%aside (y: f32[64,128]) -> f32[64,128] {
  %y = f32[64,128] parameter(0)
  ROOT %r = f32[64,128] all-reduce(%y), replica_groups={}, to_apply=%sum
}, execution_thread="sparsecore"
""",
  )
  assert found.collectives == {"all-reduce": Collective(1, SIZE, SIZE * 2 * 7 // 8)}


def test_an_all_reduce_fused_with_a_slice_is_a_reduce_scatter():
  found = read(
    "ROOT %f = f32[8,128] fusion(%x, %zero), kind=kCustom, calls=%scatter",
    """%scatter (y: f32[64,128], i: s32[]) -> f32[8,128] {
  %y = f32[64,128] parameter(0)
  %i = s32[] parameter(1)
  %r = f32[64,128] all-reduce(%y), replica_groups=[1,8]<=[8], to_apply=%sum
  %b = f32[64,128] bitcast(%r)
  ROOT %s = f32[8,128] dynamic-slice(%b, %i, %i), dynamic_slice_sizes={8,128}
}
""",
  )
  assert found.collectives == {"reduce-scatter": Collective(1, SIZE // 8, SIZE // 8 * 7)}


LOOP = """%test (t: (s32[], f32[64,128], s32[])) -> pred[] {
  %t = (s32[], f32[64,128], s32[]) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %n = s32[] get-tuple-element(%t), index=2
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

%step (u: (s32[], f32[64,128], s32[])) -> (s32[], f32[64,128], s32[]) {
  %u = (s32[], f32[64,128], s32[]) parameter(0)
  %j = s32[] get-tuple-element(%u), index=0
  %y = f32[64,128] get-tuple-element(%u), index=1
  %m = s32[] get-tuple-element(%u), index=2
  %one = s32[] constant(1)
  %k = s32[] add(%j, %one)
  %l = s32[] add(%one, %k)
  %z = f32[64,128] copy(%y), backend_config={"estimated_cycles":"10"}
  ROOT %v = (s32[], f32[64,128], s32[]) tuple(%l, %z, NEXT)
}
"""


@pytest.mark.parametrize(
  ("limit", "following", "unit", "trips"),
  [
    (9, "%m", 1, 5),
    (0, "%m", 1, 0),
    (9, "%l", 1, None),  # the limit changes,
    (9, "%j", 1, None),  # or is another element's value,
    (9, "%m", 0, None),  # or is never reached
  ],
)
def test_trips_follow_from_start_step_and_limit(limit, following, unit, trips):
  """A loop that XLA unrolled twice, counts by 2, and holds its limit in the tuple."""
  body = f"""%limit = s32[] constant({limit})
  %t0 = (s32[], f32[64,128], s32[]) tuple(%zero, %x, %limit)
  %w = (s32[], f32[64,128], s32[]) while(%t0), condition=%test, body=%step
  ROOT %o = f32[64,128] get-tuple-element(%w), index=1"""
  found = read(body, LOOP.replace("NEXT", following).replace("constant(1)", f"constant({unit})"))
  assert found.unknown_loops == ({"w": 1} if trips is None else {})
  assert found.cycles == 10 * (1 if trips is None else trips)


def test_cycles_that_the_compiler_cannot_tell_are_none():
  found = read(
    'ROOT %f = f32[64,128] copy(%x), backend_config={"estimated_cycles":"9223372036854775807"}'
  )
  assert found.cycles == 0


def test_cycles_of_a_fusion_are_not_counted_again_within():
  found = read(
    'ROOT %f = f32[64,128] fusion(%x), calls=%in, backend_config={"estimated_cycles":"100"}',
    """%in (y: f32[64,128]) -> f32[64,128] {
  %y = f32[64,128] parameter(0)
  ROOT %c = f32[64,128] copy(%y), backend_config={"estimated_cycles":"7"}
}
""",
  )
  assert found.cycles == 100


def test_custom_calls_by_name_and_what_they_say_of_themselves():
  found = read("""%k.1 = f32[64,128] custom-call(%x), custom_call_target="tpu_custom_call", kernel={
}, backend_config={"custom_call_config":{"cost_estimate":{"flops":"5","bytes_accessed":"1"}}}
  %k.2.clone = f32[64,128] custom-call(%k.1), custom_call_target="tpu_custom_call"
  %k.3 = f32[64,128] custom-call(%k.1), custom_call_target="tpu_custom_call", backend_config={
  "custom_call_config": {
    "cost_estimate": {
      "bytes_accessed":3,
      "flops":7
    }
  }}
  ROOT %g = f32[64,128] custom-call(%k.2.clone), custom_call_target="__cublas$gemm" """)
  assert found.custom_calls == {"k": CustomCall(3, 12, 1), "__cublas$gemm": CustomCall(1, 0, 1)}
  assert found.flops == 0


@pytest.mark.parametrize(
  ("text", "says"),
  [
    ("module @jit_f {\n}\n", "no HLO module"),
    (TEXT.format(computations="", body="%y = no instruction"), "not written in a way"),
    (
      TEXT.format(computations="", body="ROOT %r = f32[8] all-reduce(%x), replica_groups=?"),
      "no replica_groups of a known form",
    ),
  ],
)
def test_what_is_not_known_is_said(text, says):
  with pytest.raises(ValueError, match=says):
    hlo.read(text, NOTHING)
