"""A plan without a compiler: what can be counted is counted, the rest follows from formulas.

Exact: parameters, their state and its division, the FLOPs that are asked for. Estimated: what is
kept for the backward pass (all residuals, divided evenly), what a layer needs while it runs, what
is sent. Good enough to rank meshes, and to see that something does not fit by far.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from sora_jax.errors import UserError
from sora_jax.models.dit import DiT
from sora_jax.parallel.attention import neighbours
from sora_jax.parallel.sharding import WEIGHTS
from sora_jax.plan import groups, measure, topology
from sora_jax.plan.report import Memory, Plan, Work
from sora_jax.plan.topology import Topology
from sora_jax.train import program as program_lib


@dataclass(frozen=True)
class Facts:
  """What a config asks for whatever the mesh, on all devices together: FLOPs, and bytes kept."""

  flops: int
  residuals: int


def facts(config: ConfigDict, mode: str) -> Facts:
  """Of a config of text to video."""
  return Facts(measure.model_flops(config, mode), _residual_bytes(config) if mode == "train" else 0)


def plan(
  config: ConfigDict, name: str, target: Topology, mode: str = "train", known: Facts | None = None
) -> Plan:
  """As `measure.measure` if that can be; else estimated, with its memory if the compiler says it.

  Raises:
    UserError: see `measure.measure` and `estimate`.
  """
  if not topology.installed(target.chip):
    return estimate(config, name, target, mode, known=known)
  try:
    return measure.measure(config, name, target, mode)
  except measure.TooLargeError as error:
    made = estimate(config, name, target, mode, topology.devices(target), known)
    memory = made.memory
    peak = memory.params + memory.optimizer + error.temporaries
    memory = replace(memory, activations=error.temporaries, peak=peak)
    return replace(made, source="refused", memory=memory)


def estimate(
  config: ConfigDict,
  name: str,
  target: Topology,
  mode: str = "train",
  devices: Sequence[jax.Device] | None = None,
  known: Facts | None = None,
) -> Plan:
  """As `measure.measure`, with `source` "estimated".

  Args:
    devices: to make meshes of, as many as the topology has; default: CPU devices in their place.
    known: `facts(config, mode)`, if they are.

  Raises:
    UserError: what the config says cannot be, or it is no text-to-video config.
  """
  config = measure.for_mode(config, mode)
  capacity = target.chip.hbm // target.chip.devices
  program = program_lib.build(config, devices or _stand_ins(target), capacity)
  measure.check_mesh(program.mesh, target)
  if not hasattr(program.recipe, "packer"):
    raise UserError(
      "Without a compiler only text-to-video configs can be estimated; install what compiles for "
      f"{target.chip.name}."
    )
  dit = measure.text_to_video(program).dit
  train, count, rows = mode == "train", program.mesh.size, program.train.batch_size
  batch = program.recipe.batch()
  n = batch["segments"].shape[1]
  known = known or facts(config, mode)
  model = known.flops / count
  attention = measure.attention_flops(program, mode)
  again = train and dit.remat == "full"  # attention, too, is run once more
  linear_again = train and dit.remat not in ("none", "dots")
  backward = measure.BACKWARD["gpu" if target.chip.per_host else "tpu"]
  forwards = (1 + backward + again) if train else 1.0
  linear = (model - attention * (3 if train else 1)) * (4 / 3 if linear_again else 1)

  params, rest = measure.state_bytes(program, mode)
  tokens = rows * n * dit.pieces / count  # of a device
  parts = program.train.accumulate if train else 1
  layer = 2 * tokens / parts * (12 * dit.width + 2 * dit.mlp_width)
  activations = layer + (params + known.residuals / count / parts if train else 0)
  if parts > 1:  # the sum of gradients
    activations += params
  if train and dit.remat == "none":  # the backward pass is left the kernels as they were gathered
    size = jnp.dtype(dit.dtype or jnp.float32).itemsize
    blocks = sum(leaf.size for leaf in jax.tree.leaves(program.state.weights["dit"]["blocks"]))
    activations += size * blocks / program.mesh.shape["tensor"]
  peak = int(params + rest + activations)
  return Plan(
    config=name, topology=str(target), mode=mode, source="estimated",
    mesh=dict(program.mesh.shape), remat=dit.remat, chip=target.chip, chips=target.chips,
    params=sum(leaf.size for leaf in jax.tree.leaves(program.state.weights)), tokens=n,
    clips=measure.clips(program, mode),
    memory=Memory(params, rest, peak - params - rest, peak, capacity),
    work=Work(
      model=model, executed=linear + forwards * attention, attention=forwards * attention,
      forwards=forwards, padding=0.0, cycles=None,
      collectives=_collectives(
        dit, program.state.weights, program.mesh, target.chip.per_host, tokens, train, parts
      ),
    ),
    compile_seconds=0.0,
  )  # fmt: skip


def _stand_ins(target: Topology) -> Sequence[jax.Device]:
  try:
    jax.config.update("jax_num_cpu_devices", target.device_count)
  except RuntimeError:  # JAX has started already
    pass
  devices = jax.devices("cpu")
  if len(devices) < target.device_count:
    raise UserError(f"Estimating for {target} needs a process that has not used JAX yet.")
  return devices[: target.device_count]


def _residual_bytes(config: ConfigDict) -> int:
  """What the backward pass is left by the forward pass, on all devices together."""
  if config.model.attention == "auto":
    config = measure.changed(config, model=dict(attention="pallas"))
  if config.model.remat == "offload":  # what "attention" would keep goes to the host's memory
    config = measure.changed(config, model=dict(remat="full"))
  recipe = program_lib.build_recipe(config)
  key = jax.random.key(0)
  params = jax.eval_shape(recipe.init, key)

  def residuals(params: Any, batch: Any) -> Any:
    return jax.vjp(lambda p: recipe.loss(p, batch, key, jnp.zeros((), jnp.int32))[0], params)[1]

  kept = jax.eval_shape(residuals, params, recipe.batch())
  size = lambda tree: sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))  # noqa: E731
  return max(0, size(kept) - size(params))  # the weights are among them


def _collectives(
  dit: DiT, params: Any, mesh: Mesh, per_host: int | None, tokens: float, train: bool, parts: int
) -> Mapping[str, Mapping[str, int]]:
  """Of the blocks: weights gathered and gradients scattered, what attention and `tensor` send.

  Args:
    tokens: of a device, in the `parts` that a step takes of its batch together.
  """
  size, shape = jnp.dtype(dit.dtype or jnp.float32).itemsize, mesh.shape
  again = train and dit.remat != "none"
  sums: dict[str, list[float]] = {}
  ids = np.arange(mesh.size).reshape(mesh.devices.shape)

  def along(*names: str) -> np.ndarray:
    places = [mesh.axis_names.index(name) for name in names]
    return np.moveaxis(ids, places, range(-len(names), 0)).reshape(
      -1, math.prod(shape[name] for name in names)
    )

  def send(kind: str, count: float, each: float, among: np.ndarray) -> None:
    if count * each > 0:
      far = groups.between_hosts(kind, int(count * each), among.tolist(), per_host or mesh.size)
      old = sums.get(kind, [0.0, 0.0, 0.0])
      sums[kind] = [old[0] + count, old[1] + count * each, old[2] + far]

  for leaf in jax.tree.leaves(params["dit"]["blocks"]):
    axes = [name for names in leaf.sharding.spec for name in (names or ()) if name in WEIGHTS]
    axes += [names for names in leaf.sharding.spec if names in WEIGHTS]
    among = along(*set(axes))
    ways = among.shape[1]
    share = leaf.size / dit.layers * size / shape["tensor"] * (ways - 1) / ways
    send("all-gather", parts * dit.layers * (1 + again), share, among)
    send("reduce-scatter", parts * dit.layers * train, share, among)
    copies = shape["data"]
    if train and copies > 1:
      local = leaf.size / ways / shape["tensor"] * size
      send("all-reduce", 1, 2 * local * (copies - 1) / copies, along("data"))
  activation = tokens * dit.width * size  # of one array of the tokens
  heads = dit.heads // shape["tensor"] if dit.heads % shape["tensor"] == 0 else dit.heads
  group = 1 if shape["context"] == 1 else neighbours(heads, shape["context"], dit.ulysses)
  ring, whole = shape["context"] // group, along("context")
  traded = dit.layers * (4 + (4 + 4 * again if train else 0))
  send("all-to-all", traded, activation * (group - 1) / group, whole.reshape(-1, group))
  passed = dit.layers * 2 * (ring - 1) * (3 if train else 1)
  neighbour = np.stack([whole, np.roll(whole, -group, axis=1)], -1).reshape(-1, 2)
  send("collective-permute", passed, activation, neighbour)
  summed = dit.layers * 3 * (1 + train + again)
  share = (shape["tensor"] - 1) / shape["tensor"]
  send("all-reduce", summed, 2 * activation * share, along("tensor"))
  return {
    kind: dict(count=int(n), bytes=int(b)) | (dict(between_hosts=int(far)) if far else {})
    for kind, (n, b, far) in sums.items()
  }
