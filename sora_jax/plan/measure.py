"""From a config and a topology to a plan: compiles the real program and reads what came of it."""

from __future__ import annotations

import dataclasses
import math
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.stages import Lowered
from ml_collections import ConfigDict

from sora_jax.diffusion import sampler
from sora_jax.diffusion.guidance import Guidance
from sora_jax.errors import UserError
from sora_jax.generate.denoise import read_prompts, solve
from sora_jax.models.tokens import Tokens
from sora_jax.parallel import sharding
from sora_jax.plan import flops, hlo, topology
from sora_jax.plan.report import GIB, Memory, Plan, Work
from sora_jax.plan.topology import Topology
from sora_jax.train import optim
from sora_jax.train import program as program_lib
from sora_jax.train.program import Program

# Forwards: five products instead of two (parallel/flash.py), or seven (parallel/flash_gpu.py).
BACKWARD = dict(tpu=2.5, gpu=3.5)

# What a compiler says of a program that does not fit: GiB of its temporaries, or of all there is.
NEEDED = re.compile(r"HLO temporaries \(([\d.]+)G\)|Used ([\d.]+)G of [\d.]+G hbm")


class TooLargeError(UserError):
  """The compiler refused a program for the memory that it needs.

  Attributes:
    temporaries: bytes of a device, besides its parts of the weights and their state.
  """

  def __init__(self, temporaries: int):
    super().__init__(
      f"The program needs {temporaries / GIB:.2f} GiB of a device, more than it has."
    )
    self.temporaries = temporaries


def measure(config: ConfigDict, name: str, target: Topology, mode: str = "train") -> Plan:
  """Compiles a step of a config for a topology.

  Args:
    mode: "train", a step of training; "sample", one of sampling, which makes one clip with
      guidance: two sequences at a time; "forward", the transformer alone, on a batch as it is.

  Raises:
    TooLargeError: the compiler refuses, because it would not fit.
    UserError: what the config says cannot be, or nothing that compiles for the chip is installed.
  """
  config = for_mode(config, mode)
  devices, capacity = topology.devices(target), target.chip.hbm // target.chip.devices
  program = program_lib.build(config, devices, capacity)
  check_mesh(program.mesh, target)
  lowered = {"train": train, "sample": sample, "forward": forward}[mode](program)
  params, rest = state_bytes(program, mode)
  start = time.perf_counter()
  try:
    with topology.uncached():
      costs = hlo.costs(lowered.compile(), target.chip.per_host)
  except jax.errors.JaxRuntimeError as error:
    if (found := NEEDED.search(str(error))) is None:
      raise
    temporaries = float(found[1]) * GIB if found[1] else float(found[2]) * GIB - params - rest
    raise TooLargeError(int(temporaries)) from error
  seconds = time.perf_counter() - start
  model = model_flops(config, mode)
  dit = getattr(program.recipe, "dit", None)
  batch = program.recipe.batch()
  backward = BACKWARD["gpu" if target.chip.per_host else "tpu"]
  peak = costs.memory.arguments + costs.memory.temporaries
  peak += costs.memory.outputs - costs.memory.aliased
  return Plan(
    config=name, topology=str(target), mode=mode, source="compiled",
    mesh=dict(program.mesh.shape), remat=getattr(dit, "remat", None),
    chip=target.chip, chips=target.chips,
    params=sum(leaf.size for leaf in jax.tree.leaves(program.state.weights)),
    tokens=batch["segments"].shape[1] if "segments" in batch else 0,
    clips=clips(program, mode),
    memory=Memory(params, rest, peak - params - rest, peak, capacity),
    work=work(costs, model / program.mesh.size, attention_flops(program, mode), backward),
    compile_seconds=seconds,
  )  # fmt: skip


def train(program: Program) -> Lowered:
  """The training step."""
  placed = sharding.batch_sharding(program.mesh)
  batch = {
    name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed)
    for name, x in program.recipe.batch().items()
  }
  with jax.set_mesh(program.mesh):
    return program.step.lower(program.state, batch)


def sample(program: Program) -> Lowered:
  """One call of the sampler: the transformer with and without the prompt, and a step along it.

  Raises:
    UserError: the config trains nothing that samples.
  """
  recipe = text_to_video(program)
  packer = recipe.packer
  batch = packer.fields(1, recipe.dit.patch_width, recipe.dit.cond_features)
  carry = jax.eval_shape(sampler.start, batch["values"])
  table = sampler.table("euler", np.array([1.0, 0.0]))

  def call(params: Any, batches: Any, carry: Any, table: Any) -> Any:
    tokens = [read_prompts(recipe.text, params.get("text"), batch) for batch in batches]
    return solve(recipe.dit, Guidance(scale=3.0), params["dit"], tokens, carry, table)

  with jax.set_mesh(program.mesh):
    return jax.jit(call).lower(stored(program), [batch, batch], carry, table)


def forward(program: Program) -> Lowered:
  """One call of the transformer alone, its prompts read already, with the weights of sampling.

  Raises:
    UserError: the config trains nothing that samples.
  """
  recipe = text_to_video(program)
  placed = sharding.batch_sharding(program.mesh)
  given = {
    name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed)
    for name, x in given_batch(recipe, program.state.weights).items()
  }
  with jax.set_mesh(program.mesh):
    return jax.jit(transformer(recipe)).lower(stored(program)["dit"], given)


def transformer(recipe: Any) -> Callable[[Any, Any], Any]:
  """The transformer as a function of its parameters and the fields of `Tokens`."""
  return lambda params, fields: recipe.dit.apply({"params": params}, Tokens(**fields))


def given_batch(recipe: Any, params: Any) -> dict[str, jax.ShapeDtypeStruct]:
  """A batch as the transformer gets it: states of the prompts instead of word pieces."""
  batch = recipe.batch()
  if "text" in batch:
    return batch
  states = lambda params, batch: read_prompts(recipe.text, params, batch).text  # noqa: E731
  text = jax.eval_shape(states, params["text"], batch)
  return {name: x for name, x in batch.items() if name != "pieces"} | {"text": text}


def text_to_video(program: Program) -> Any:
  """The recipe. Raises UserError: it has no transformer that could be run alone."""
  if not hasattr(program.recipe, "packer"):
    raise UserError("Only text-to-video configs sample; plan this one with --mode=train.")
  return program.recipe


def clips(program: Program, mode: str) -> int:
  """Of a step, on all devices together."""
  return 1 if mode == "sample" else program.train.batch_size


def stored(program: Program) -> Any:
  """The parameters as sampling keeps them."""
  recipe: Any = program.recipe
  params = program.state.weights
  kept = {"dit": jax.eval_shape(recipe.dit.stored, params["dit"])}
  return jax.tree.map(
    lambda x, like: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=like.sharding),
    {**params, **kept}, params,
  )  # fmt: skip


def state_bytes(program: Program, mode: str) -> tuple[int, int]:
  """Bytes on a device of the weights, and of what updates and averages them."""
  state = program.state
  trees: tuple[Any, Any] = (state.weights, (state.ema, state.opt_state))
  if mode != "train":
    kept = stored(program)
    trees = (kept["dit"] if mode == "forward" else kept, ())
  weights, rest = (sum(map(_local_bytes, jax.tree.leaves(tree))) for tree in trees)
  return weights, rest


def model_flops(config: ConfigDict, mode: str) -> int:
  """What a step asks for, on all devices together, whatever computes it."""
  recipe: Any = counted(program_lib.build_recipe(config))
  key = jax.random.key(0)
  params = jax.eval_shape(recipe.init, key)
  if mode == "forward":
    return flops.count(transformer(recipe), params["dit"], given_batch(recipe, params))

  trained, frozen = optim.split(params, getattr(recipe, "trainable", ".*"))

  def loss(trained: Any, frozen: Any, batch: Any) -> Any:
    return recipe.loss(optim.merge(trained, frozen), batch, key, jnp.zeros((), jnp.int32))[0]

  return flops.count(jax.grad(loss) if mode == "train" else loss, trained, frozen, recipe.batch())


def counted(recipe: Any) -> Any:
  """A recipe whose networks compute nothing twice and nothing in kernels, which go uncounted."""
  plain = dict(remat="none", attention="xla")
  networks = {field.name: getattr(recipe, field.name) for field in dataclasses.fields(recipe)}
  return dataclasses.replace(recipe, **{
    name: network.clone(**{k: x for k, x in plain.items() if hasattr(network, k)})
    for name, network in networks.items() if hasattr(network, "clone")
  })  # fmt: skip


def attention_flops(program: Program, mode: str) -> float:
  """One forward pass of all attention there is, on each device; 0 without packed sequences."""
  recipe: Any = program.recipe
  if not hasattr(recipe, "packer"):
    return 0.0
  dit, text, batch = recipe.dit, recipe.text, recipe.batch()
  (rows, n), s = batch["segments"].shape, batch["text_ids"].shape[1]
  n *= dit.pieces
  pairs = dit.layers * dit.width * n * (n + s)
  if mode != "forward" and text is not None:
    pairs += text.layers * text.width * s * s
  return 4.0 * rows * pairs / program.mesh.size


def work(costs: hlo.Costs, model: float, attention: float, backward: float) -> Work:
  """What a compiled program does, beside what it is for.

  Args:
    model: FLOPs asked for, on a device. attention: of one forward pass of attention alone.
    backward: how many forward passes the kernels' backward pass is worth.
  """
  passes = {
    way: sum(c.flops for name, c in costs.custom_calls.items() if f"attention_{way}" in name)
    for way in ("forward", "backward")
  }
  total = sum(passes.values())
  forwards = padding = None
  if total and attention:
    computed = passes["backward"] / backward or passes["forward"]  # forward may run again
    padding = computed / attention - 1
    forwards = total / computed
  kernels = sum(c.flops for c in costs.custom_calls.values())
  return Work(
    model=model,
    executed=float(costs.flops + kernels),
    attention=float(total),
    forwards=forwards,
    padding=padding,
    cycles=costs.cycles or None,
    collectives={
      kind: dict(count=c.count, bytes=c.wire) | (dict(between_hosts=c.far) if c.far else {})
      for kind, c in costs.collectives.items()
      if c.wire
    },
    unknown_loops=len(costs.unknown_loops),
  )


def _local_bytes(leaf: jax.ShapeDtypeStruct) -> int:
  shape = leaf.sharding.shard_shape(leaf.shape)
  return math.prod(shape) * leaf.dtype.itemsize


def for_mode(config: ConfigDict, mode: str) -> ConfigDict:
  """Sampling makes one clip; with and without the prompt that is a batch of two."""
  rows = {} if mode == "forward" else dict(batch_size=2)
  return config if mode == "train" else changed(config, train=dict(rows, accumulate=1))


def changed(config: ConfigDict, **sections: Mapping[str, Any]) -> ConfigDict:
  """A copy of a config with other values in some sections."""
  config = config.copy_and_resolve_references()
  with config.unlocked():
    for name, values in sections.items():
      config[name] = ConfigDict(config[name].to_dict() | dict(values))
  return config


def check_mesh(mesh: Mesh, target: Topology) -> None:
  """Raises UserError: the mesh does not use all devices of the topology."""
  if mesh.size != target.device_count:
    raise UserError(
      f"The mesh {dict(mesh.shape)} has {mesh.size} devices and {target} has "
      f"{target.device_count}: set one of train.mesh's sizes to -1, or change train.batch_size."
    )
