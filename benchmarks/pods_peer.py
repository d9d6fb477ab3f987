"""What MaxDiffusion's Wan 2.1 needs of TPU pods, read out of its programs as `pods.py` reads ours.

python benchmarks/pods_peer.py --source CHECKOUT --out benchmarks/pods_peer.jsonl

Each row is compiled in a process of its own, and appended; rows that are in the file already are
not made again. MaxDiffusion asks for Python 3.12. Install it, with the versions of JAX and libtpu
that compile our rows and without PyTorch, of which it needs only the name:

  git clone https://github.com/AI-Hypercomputer/maxdiffusion CHECKOUT
  git -C CHECKOUT checkout 7cfb8801
  pip install jax==0.10.2 libtpu==0.0.42.1 flax==0.12.8 optax==0.2.8 orbax-checkpoint==0.12.8
  pip install packaging huggingface_hub pillow requests einops tensorboardX google-cloud-storage
  pip install aqtp chex safetensors ml_collections
  pip install --no-deps -e .

The model, its sharding rules, block sizes and remat policy are MaxDiffusion's own, from its yml
files and `pyconfig`. So are the dtypes: weights and both moments in bfloat16, but for norms, the
condition embedder and the scale-shift tables. The training step is ours, as its trainer cannot be
imported without TensorFlow: flow matching, mean squared error, `optax.adamw`, donated state; no
loss weights, no norms of gradients, no dropout. A forward pass is the transformer alone.

The commands of its README say the rest. Training: remat FULL, the yml's attention blocks of 512 (it
refuses larger ones), `TRAIN_FLAGS`. Forward: blocks of 3,024 queries x 2,048 keys, unless a row
says `blocks=512`, and `FORWARD_FLAGS`, to which the limit of VMEM is added: 3,024 x 2,048 does not
fit v5p without. libtpu refuses the README's `..._fuse_all_gather` and `..._fuse_all_reduce` for
these chips, so both are left out.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import math
import os
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.stages import Lowered
from pods_page import COLUMNS, cells
from timing import ROOT

from sora_jax.plan import hlo, topology

# Model, topology, step, what else.
ROWS = (
  ("14b", "v5p:4x4x4", "train", "fsdp=16 context=4 batch=16"),
  ("14b", "v6e:16x16", "train", "fsdp=32 context=8 batch=32"),
  ("1.3b", "v5p:4x4x4", "train", "fsdp=16 context=4 batch=16"),
  ("1.3b", "v5p:2x2x1", "forward", "context=4 batch=1"),
  ("1.3b", "v6e:2x4", "forward", "context=8 batch=1"),
  ("1.3b", "v6e:4x4", "forward", "data=2 context=8 batch=2"),
  ("1.3b", "tpu7x:2x2x1", "forward", "data=2 context=4 batch=2"),
  ("14b", "v5p:2x2x1", "forward", "context=4 batch=1"),
  ("14b", "v6e:2x4", "forward", "context=8 batch=1"),
  ("14b", "v6e:4x4", "forward", "data=2 context=8 batch=2"),
  ("14b", "tpu7x:2x2x1", "forward", "data=2 context=4 batch=2"),
  ("14b", "v6e:2x4", "forward", "context=8 batch=1 attention=ulysses"),
  # With and without the prompt at once, as our sampling step has them.
  ("1.3b", "v5p:2x2x1", "forward", "context=4 batch=2"),
  ("1.3b", "v6e:2x4", "forward", "context=8 batch=2"),
  ("14b", "v5p:2x2x1", "forward", "context=4 batch=2"),
  ("14b", "v6e:2x4", "forward", "context=8 batch=2"),
  # Blocks of its yml, which leave less padding than those of its README.
  ("1.3b", "v6e:2x4", "forward", "context=8 batch=1 blocks=512"),
  ("14b", "v6e:2x4", "forward", "context=8 batch=1 blocks=512"),
)

# What is published of Wan 2.1 (arXiv:2503.20314): layers, heads of 128, feed-forward width, latents
# of 81 frames, 480 x 832 and 720 x 1280; all have 16 channels, patches of 1x2x2, 512 text tokens.
MODELS = {"1.3b": (30, 12, 8960, (21, 60, 104)), "14b": (40, 40, 13824, (21, 90, 160))}
CHANNELS, TEXT, TEXT_WIDTH = 16, 512, 4096
YML = {"1.3b": "base_wan_1_3b.yml", "14b": "base_wan_14b.yml"}
AXES = ("data", "fsdp", "context", "tensor")
FLOAT32 = ("norm", "condition_embedder", "scale_shift_table")  # parameters it does not cast

TRAIN_FLAGS = (
  "xla_tpu_megacore_fusion_allow_ags=false", "xla_enable_async_collective_permute=true",
  "xla_tpu_enable_ag_backward_pipelining=true", "xla_tpu_enable_data_parallel_all_reduce_opt=true",
  "xla_tpu_data_parallel_opt_different_sized_ops=true",
  "xla_tpu_enable_async_collective_fusion=true",
  "xla_tpu_enable_async_collective_fusion_multiple_steps=true",
  "xla_tpu_overlap_compute_collective_tc=true", "xla_enable_async_all_gather=true",
  "xla_tpu_scoped_vmem_limit_kib=65536", "xla_tpu_enable_async_all_to_all=true",
  "xla_tpu_enable_all_experimental_scheduler_features=true",
  "xla_tpu_enable_scheduler_memory_pressure_tracking=true",
  "xla_tpu_host_transfer_overlap_limit=24", "xla_tpu_aggressive_opt_barrier_removal=ENABLED",
  "xla_lhs_prioritize_async_depth_over_stall=ENABLED",
  "xla_should_allow_loop_variant_parameter_in_chain=ENABLED",
  "xla_should_add_loop_invariant_op_in_chain=ENABLED", "xla_max_concurrent_host_send_recv=100",
  "xla_tpu_scheduler_percent_shared_memory_limit=100", "xla_latency_hiding_scheduler_rerun=2",
  "xla_tpu_use_minor_sharding_for_major_trivial_input=true",
  "xla_tpu_relayout_group_size_threshold_for_reduce_scatter=1",
  "xla_tpu_assign_all_reduce_scatter_layout=true",
)  # fmt: skip
FORWARD_FLAGS = (
  "xla_tpu_enable_async_collective_fusion=true",
  "xla_tpu_enable_async_collective_fusion_multiple_steps=true",
  "xla_tpu_overlap_compute_collective_tc=true", "xla_enable_async_all_reduce=true",
  "xla_tpu_scoped_vmem_limit_kib=65536",
)  # fmt: skip

# Matrix products of an attention kernel over the two of a forward pass: splash's backward pass
# makes the scores and their gradient in both of its kernels.
FORWARDS = {"fwd": 2 / 2, "dq": 3 / 2, "dkv": 4 / 2}


class Peer:
  """A row's model as MaxDiffusion configures it, on devices that cannot run anything."""

  def __init__(self, source: Path, row: tuple[str, str, str, str]):
    name, where, self.mode, changes = row
    options = {"attention": "flash", "blocks": "3024" if self.mode == "forward" else "512"}
    options |= dict(change.split("=") for change in changes.split())
    self.layers, self.heads, self.ffn, latent = MODELS[name]
    self.batch, self.block = int(options["batch"]), int(options["blocks"])
    self.latents = (self.batch, CHANNELS, *latent)
    self.tokens = math.prod(latent) // 4
    self.ulysses = options["attention"] == "ulysses"
    self.target = topology.parse(where)
    self.mesh = mesh(self.target, [int(options.get(axis, 1)) for axis in AXES])
    self.config = configure(
      source, YML[name], attention=options["attention"], flash_min_seq_length=0,
      remat_policy="FULL" if self.mode == "train" else "NONE",
      flash_block_sizes=json.dumps(blocks(self.block)),
    )  # fmt: skip

  def context(self) -> contextlib.ExitStack:
    """Mesh and rules that its modules look up while they are traced."""
    from flax.linen import partitioning

    stack = contextlib.ExitStack()
    stack.enter_context(self.mesh)
    stack.enter_context(partitioning.axis_rules(self.config.logical_axis_rules))
    return stack

  def model(self) -> tuple[Any, Any, Any]:
    """Its graph, its parameters as they are stored and divided, and the rest of its state."""
    from flax import linen, nnx
    from maxdiffusion import max_utils
    from maxdiffusion.models.wan.transformers.transformer_wan import WanModel

    def make() -> Any:
      config = self.config
      return WanModel(
        rngs=nnx.Rngs(0), num_layers=self.layers, num_attention_heads=self.heads,
        ffn_dim=self.ffn, mesh=self.mesh, dtype=config.activations_dtype,
        weights_dtype=config.weights_dtype, precision=max_utils.get_precision(config),
        attention=config.attention, flash_min_seq_length=config.flash_min_seq_length,
        flash_block_sizes=max_utils.get_flash_block_sizes(config),
        remat_policy=config.remat_policy, mask_padding_tokens=config.mask_padding_tokens,
        scan_layers=config.scan_layers,
      )  # fmt: skip

    graph, params, rest = nnx.split(nnx.eval_shape(make), nnx.Param, ...)
    rules = self.config.logical_axis_rules
    placed = linen.logical_to_mesh_sharding(nnx.get_partition_spec(params), self.mesh, rules)

    def stored(path: Any, leaf: Any, sharding: Any) -> jax.ShapeDtypeStruct:
      kept = any(name in jax.tree_util.keystr(path).lower() for name in FLOAT32)
      dtype = jnp.float32 if kept else self.config.weights_dtype
      return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=sharding)

    return graph, jax.tree_util.tree_map_with_path(stored, params, placed), rest

  def inputs(self) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    """Latents and text, a clip on each group of devices that has one."""
    placed = NamedSharding(self.mesh, P(("data", "fsdp")))
    shapes = (self.latents, (self.batch, TEXT, TEXT_WIDTH))
    latents, text = (jax.ShapeDtypeStruct(s, jnp.bfloat16, sharding=placed) for s in shapes)
    return latents, text

  def padding(self) -> tuple[float, float]:
    """Pairs of a query and a key, of one layer: those there are and those that are computed."""
    queries = self.tokens if self.ulysses else -(-self.tokens // self.mesh.shape["context"])
    sizes = blocks(self.block)
    keys = padded(self.tokens, max(sizes["block_kv"], sizes["block_kv_dkv"]))
    return queries * (self.tokens + TEXT), padded(queries, self.block) * (keys + TEXT)


def mesh(target: topology.Topology, sizes: list[int]) -> Mesh:
  """As MaxDiffusion makes it, which has to be told to split an axis of the torus."""
  devices = topology.devices(target)
  try:
    placed = mesh_utils.create_device_mesh(sizes, devices)
  except NotImplementedError:
    placed = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
  return Mesh(placed, AXES)


def blocks(size: int) -> dict[str, int | bool]:
  """Attention's block sizes: 512 for all, or those of the README around blocks of 3,024 queries."""
  keys, compute = (2048, 1024) if size == 3024 else (size, size)
  return dict(
    block_q=size, block_kv=keys, block_kv_compute=compute,
    block_q_dkv=size, block_kv_dkv=keys, block_kv_dkv_compute=keys,
    block_q_dq=size, block_kv_dq=keys, use_fused_bwd_kernel=False,
  )  # fmt: skip


def padded(length: int, block: int) -> int:
  """The next multiple of a block."""
  return -(-length // block) * block


def configure(source: Path, yml: str, **changes: Any) -> Any:
  """MaxDiffusion's config. It can be imported from here on."""
  logging.disable()
  sys.path.insert(0, str(source / "src"))
  import maxdiffusion.utils  # noqa: F401, looks for PyTorch and uses it if it is there

  stub: Any = types.ModuleType("torch")
  stub.Tensor = type("Tensor", (), {})
  sys.modules["torch"] = stub
  from maxdiffusion import pyconfig

  path = source / "src" / "maxdiffusion" / "configs" / yml
  arguments = ["", str(path), *(f"{key}={value}" for key, value in changes.items())]
  pyconfig.initialize(arguments, unittest=True)
  return pyconfig.config


def forward(peer: Peer, graph: Any, params: Any, rest: Any) -> Lowered:
  """One pass of the transformer."""
  from flax import nnx

  def f(params: Any, rest: Any, latents: Any, text: Any) -> Any:
    times = jnp.ones(peer.batch, jnp.float32)
    return nnx.merge(graph, params, rest)(latents, times, text)

  return jax.jit(f).lower(params, rest, *peer.inputs())


def train(peer: Peer, graph: Any, params: Any, rest: Any) -> tuple[Lowered, Any]:
  """A training step; the optimizer's state, too."""
  from flax import nnx

  everywhere = NamedSharding(peer.mesh, P())
  optimizer = optax.adamw(1e-5, weight_decay=0.0)
  state = optax.tree.map_params(
    optimizer, lambda x, p: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=p.sharding),
    jax.eval_shape(optimizer.init, params), params,
    transform_non_params=lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere),
  )  # fmt: skip

  def loss(params: Any, rest: Any, latents: Any, text: Any, key: jax.Array) -> jax.Array:
    first, second = jax.random.split(key)
    level = jax.random.uniform(first, (peer.batch, 1, 1, 1, 1), latents.dtype)
    noise = jax.random.normal(second, latents.shape, latents.dtype)
    noisy, times = (1 - level) * latents + level * noise, 1000 * level.ravel()
    found = nnx.merge(graph, params, rest)(noisy, times, text, deterministic=False)
    return jnp.mean((noise - latents - found) ** 2)

  def step(params: Any, state: Any, rest: Any, latents: Any, text: Any, key: jax.Array) -> Any:
    value, grads = jax.value_and_grad(loss)(params, rest, latents, text, key)
    updates, state = optimizer.update(grads, state, params)
    return optax.apply_updates(params, updates), state, value

  made = jax.jit(
    step, donate_argnums=(0, 1),
    out_shardings=(*(jax.tree.map(lambda x: x.sharding, x) for x in (params, state)), everywhere),
  )  # fmt: skip
  key = jax.eval_shape(lambda: jax.random.key(0))
  return made.lower(params, state, rest, *peer.inputs(), key), state


def compile_row(source: Path, row: tuple[str, str, str, str]) -> dict[str, Any]:
  """A row: what `sora-jax plan --json` says of our programs."""
  peer, state = Peer(source, row), ()
  with peer.context():
    graph, params, rest = peer.model()
    if peer.mode == "train":
      lowered, state = train(peer, graph, params, rest)
    else:
      lowered = forward(peer, graph, params, rest)
    start, busy = time.perf_counter(), time.process_time()
    with topology.uncached():
      costs = hlo.costs(lowered.compile())
  seconds, busy = time.perf_counter() - start, time.process_time() - busy
  weights, moments = (local_bytes(tree) for tree in (params, state))
  memory, chip = costs.memory, peer.target.chip
  peak = memory.arguments + memory.temporaries + memory.outputs - memory.aliased
  capacity = chip.hbm // chip.devices
  true, computed = peer.padding()
  return dict(
    mesh=dict(peer.mesh.shape), remat=peer.config.remat_policy, fits=peak <= capacity,
    params=sum(leaf.size for leaf in jax.tree.leaves(params)),
    memory=dict(
      params=weights, optimizer=moments, activations=peak - weights - moments, peak=peak,
      capacity=capacity,
    ),
    attention_forwards=forwards(costs, peer.layers), cycles=costs.cycles,
    collectives={
      kind: dict(count=c.count, bytes=c.wire) for kind, c in costs.collectives.items() if c.wire
    },
    unknown_loops=len(costs.unknown_loops), padding=computed / true - 1,
    tokens=peer.tokens, clips=peer.batch, compile_seconds=round(seconds, 1),
    cpu_seconds=round(busy, 1),
  )  # fmt: skip


def forwards(costs: hlo.Costs, layers: int) -> float:
  """Attention in forward passes: each layer calls a kernel for itself and for the text."""
  calls = {name: c.count for name, c in costs.custom_calls.items() if "splash" in name}
  if not calls:
    raise ValueError(f"No attention kernel among {set(costs.custom_calls)}.")
  total = sum(FORWARDS[next(key for key in FORWARDS if key in n)] * k for n, k in calls.items())
  return total / (2 * layers)


def local_bytes(tree: Any) -> int:
  """Bytes on a device."""
  leaves = jax.tree.leaves(tree)
  return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves)


def run(source: Path, row: tuple[str, str, str, str]) -> dict[str, Any]:
  """`compile_row` in a process of its own, as libtpu reads its flags once."""
  flags = " ".join(f"--{flag}" for flag in (TRAIN_FLAGS if row[2] == "train" else FORWARD_FLAGS))
  environment = os.environ | {"LIBTPU_INIT_ARGS": flags, "JAX_PLATFORMS": "cpu"}
  command = [sys.executable, __file__, "--source", str(source), "--row", json.dumps(row)]
  done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
  if done.returncode:
    return {"row": row, "error": f"exit status {done.returncode}"}
  return {"row": row} | json.loads(done.stdout)


def versions(source: Path) -> dict[str, str]:
  """Of the peer, and of what compiles it."""
  from importlib import metadata

  git = ["git", "-C", str(source), "rev-parse", "HEAD"]
  commit = subprocess.run(git, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
  return {"peer": commit} | {name: metadata.version(name) for name in ("jax", "libtpu", "flax")}


def main() -> None:
  """Makes the rows that are missing, and prints the table."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--source", type=Path, required=True, help="a checkout of MaxDiffusion")
  parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "pods_peer.jsonl")
  parser.add_argument("--only", default="", help="rows that contain this")
  parser.add_argument("--row", type=json.loads, help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.row:
    with contextlib.redirect_stdout(io.StringIO()):  # the peer prints, too
      made = compile_row(args.source, tuple(args.row))
    print(json.dumps(made))
    return
  lines = args.out.read_text().splitlines() if args.out.exists() else []
  rows = {tuple(line["row"]): line for line in map(json.loads, lines)}
  for row in ROWS:
    if row not in rows and args.only in " ".join(row):
      rows[row] = run(args.source, row) | versions(args.source)
      with args.out.open("a") as file:
        file.write(json.dumps(rows[row]) + "\n")
  print("| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|", sep="\n")
  for row in ROWS:
    if row in rows:
      print("| " + " | ".join(cells(rows[row])) + " |")


if __name__ == "__main__":
  main()
