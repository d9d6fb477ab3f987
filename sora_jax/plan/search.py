"""Meshes and remat policies, tried: all by estimate, the best by compiling them."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator

from ml_collections import ConfigDict
from tqdm import tqdm

from sora_jax.errors import UserError
from sora_jax.parallel import sharding
from sora_jax.plan import measure, topology
from sora_jax.plan.estimate import estimate, facts, plan
from sora_jax.plan.report import Plan
from sora_jax.plan.topology import Topology

REMAT = ("none", "attention", "full")


def search(
  config: ConfigDict, name: str, target: Topology, mode: str = "train", best: int = 2
) -> list[Plan]:
  """The `best` ways to arrange a config on a topology, the fastest that fits first.

  All meshes that divide the batch, the heads and the devices are estimated; the best are compiled,
  if what compiles for the chip is installed.

  Raises:
    UserError: the config is no text-to-video config, or no mesh can be.
  """
  config = measure.for_mode(config, mode)
  compiles = topology.installed(target.chip)
  devices = topology.devices(target) if compiles else None
  variants = [
    (one, facts(one, mode))
    for remat in (REMAT if mode == "train" else (config.model.remat,))
    for one in [measure.changed(config, model=dict(remat=remat))]
  ]
  tried = list(itertools.product(meshes(config, target.device_count), variants))
  plans, refused = [], UserError("No mesh divides the batch, the sequences and the heads.")
  for mesh, (one, known) in tqdm(tried, desc="estimating", unit="mesh", file=sys.stderr):
    one = measure.changed(one, train=dict(mesh=mesh))
    try:
      plans.append((estimate(one, name, target, mode, devices, known), one))
    except UserError as error:  # such as `model.ulysses`, which not every mesh can have
      refused = error
  if not plans:
    raise refused
  plans.sort(key=lambda pair: _rank(pair[0]))
  if not compiles:
    return [made for made, _ in plans[:best]]
  bar = tqdm(plans[:best], desc="compiling", unit="mesh", file=sys.stderr)
  return sorted((plan(one, name, target, mode) for _, one in bar), key=_rank)


def meshes(config: ConfigDict, count: int) -> Iterator[dict[str, int]]:
  """Meshes of `count` devices that divide the batch, sequences and heads evenly."""
  rows = config.train.batch_size // config.train.accumulate
  divisors = [n for n in range(1, count + 1) if count % n == 0]
  for data, fsdp, tensor in itertools.product(divisors, divisors, divisors):
    context, rest = divmod(count, data * fsdp * tensor)
    if rest or rows % (data * fsdp) or config.model.heads % tensor or tensor > 8:
      continue
    if data > 1 and fsdp > 1 and fsdp != sharding.DIVIDED:  # as `sharding.suggest` has them
      continue
    if config.packing.length % context:  # each device would compute all of it
      continue
    yield dict(data=data, fsdp=fsdp, context=context, tensor=tensor)


def _rank(made: Plan) -> tuple[bool, float]:
  return not made.fits, made.seconds
