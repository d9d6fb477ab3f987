"""Chips and topologies to compile for with no chip at hand (ahead-of-time compilation).

`devices(parse("v5p:4x4x4"))` are devices that a mesh can be made of and, `uncached`, a program
compiled for, never run: what it will need of each is then read out of it (`hlo.py`). libtpu and the
CUDA plugin are optional; nothing but `devices` looks for them.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import util
from typing import Any

import jax
from jax.experimental import topologies
from jax.experimental.compilation_cache import compilation_cache

from sora_jax.config import nearest
from sora_jax.errors import UserError

GIB = 2**30


@dataclass(frozen=True)
class Chip:
  """What one chip can do. JAX may see it as several devices, each with its share.

  Attributes:
    name: as in `v5p:4x4x4`.
    flops: peak dense bfloat16 FLOP/s.
    hbm: bytes of memory that a program may use.
    link_bandwidth: bytes/s of one link in one direction.
    links: links to other chips: two per axis of a TPU's torus, an H100's NVLinks.
    clock: cycles/s of the compiler's `estimated_cycles`; None where it estimates none.
    axes: of a topology.
    largest: chips of the largest topology.
    devices: JAX devices per chip.
    per_host: devices of a host, where links join those and a network the hosts; else None.
    network: bytes/s of each device's part of that network, in one direction.
    options: what `get_topology_desc` needs besides the name.
  """

  name: str
  flops: float
  hbm: int
  link_bandwidth: float
  links: int
  clock: float | None
  axes: int
  largest: int
  devices: int = 1
  per_host: int | None = None
  network: float = math.inf
  options: tuple[tuple[str, Any], ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class Topology:
  """A slice of a TPU pod in chips (`4x4x4`), or H100s as hosts x GPUs per host (`2x8`)."""

  chip: Chip
  shape: tuple[int, ...]

  @property
  def chips(self) -> int:
    """How many chips there are."""
    return math.prod(self.shape)

  @property
  def device_count(self) -> int:
    """How many devices JAX sees."""
    return self.chips * self.chip.devices

  def __str__(self) -> str:
    return f"{self.chip.name}:{_text(self.shape)}"


# XLA's description of an H100 SXM (its `h100_sxm.txtpb`); built-in names are not accepted.
_H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32
  shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84942979072 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA" dnn_version_info { major: 9 minor: 8 } runtime_version { major: 13 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""

# TPUs: FLOP/s, bandwidths and sizes from docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x},
# which give the links of a chip together and in both directions (v4: Jouppi et al. 2023,
# arXiv:2304.01433). Memory is what libtpu 0.0.42 lets a program use, a little less than there is.
# The clock is the peak over the FLOPs of a cycle: v5e has 4 matrix units of 128 x 128, v4 and v5p
# have 8. For v6e and a tpu7x core 4 of 256 x 256 are inferred, since libtpu's estimate for a matmul
# of 8,192 x 8,192 x 8,192 is 70% and 81% of that (v4 93%, v5e 88%, v5p 90%). NVIDIA: H100 SXM5
# datasheet; DGX H100 has 400 Gb/s of InfiniBand for each GPU, and 1,024 GPUs make a SuperPOD of
# four scalable units.
CHIPS = {
  chip.name: chip
  for chip in (
    # v4 with both cores as one device, as Cloud TPU has it; libtpu's default is two.
    Chip("v4", 275e12, int(30.75 * GIB), 50e9, 6, 1.05e9, 3, 4096,
         options=(("chip_config_name", "megacore"),)),
    Chip("v5e", 197e12, int(15.75 * GIB), 50e9, 4, 1.5e9, 2, 256),
    Chip("v5p", 459e12, int(95.74 * GIB), 100e9, 6, 1.75e9, 3, 6144),
    Chip("v6e", 918e12, int(31.25 * GIB), 100e9, 4, 1.75e9, 2, 256),
    Chip("tpu7x", 2307e12, 2 * int(94.75 * GIB), 100e9, 6, 2.2e9, 3, 9216, devices=2),
    Chip("h100", 989.4e12, 84_942_979_072, 25e9, 18, None, 2, 1024,
         per_host=8, network=50e9, options=(("target_config", _H100),)),
  )
}  # fmt: skip

# libtpu takes a lock file of the machine unless told not to: a second planner would die. The other
# two only keep it from complaining that this is no TPU host; the topology does not depend on them.
_LIBTPU = {
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
  "TPU_ACCELERATOR_TYPE": "v5p-8",
  "TPU_WORKER_HOSTNAMES": "localhost",
}


def shapes(chip: Chip) -> list[tuple[int, ...]]:
  """All topologies of a chip, the smallest first.

  TPU v5e and v6e are offered as halves and squares of a torus; the others as parts of a cube of
  4x4x4 chips, and as cubes side by side, the shortest side first (docs.cloud.google.com/tpu/docs).
  """
  found: list[tuple[int, ...]]
  if chip.name == "h100":  # several hosts are whole hosts
    found = [(1, 1), (1, 2), (1, 4), *((hosts, 8) for hosts in range(1, chip.largest // 8 + 1))]
  elif chip.axes == 2:
    found = [(1, 1), *((side, k * side) for side in (2, 4, 8) for k in (1, 2)), (16, 16)]
  else:
    sides = range(4, chip.largest // 16 + 1, 4)
    cubes = itertools.takewhile(lambda side: side**3 <= chip.largest, sides)
    found = [(2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4)]
    found += [
      (a, b, c)
      for a in cubes
      for b in range(a, math.isqrt(chip.largest // a) + 1, 4)
      for c in range(b, chip.largest // (a * b) + 1, 4)
    ]
  return sorted(found, key=lambda shape: (math.prod(shape), shape))


def parse(text: str) -> Topology:
  """`v5p:4x4x4`, `v6e:16x16`, `tpu7x:4x4x4` or `h100:2x8` (hosts x GPUs).

  Raises:
    UserError: not of that form, an unknown chip (names the nearest), or a topology that does not
      exist (names those nearest in size).
  """
  match = re.fullmatch(r"([^:]+):(\d+(?:x\d+)*)", text.strip().lower())
  if not match:
    raise UserError(f"{text!r} is no topology; give a chip and its shape, such as v5p:4x4x4.")
  name, sides = match.groups()
  if name not in CHIPS:
    raise UserError(f"There is no chip {name!r}{nearest(name, CHIPS)}.")
  topology = Topology(CHIPS[name], tuple(int(side) for side in sides.split("x")))
  known = shapes(topology.chip)
  if topology.shape not in known:
    near = sorted(known, key=lambda shape: _distance(shape, topology.shape))[:3]
    raise UserError(
      f"There is no {topology}; near ones are {', '.join(f'{name}:{_text(s)}' for s in near)}."
    )
  return topology


def installed(chip: Chip) -> bool:
  """Whether what compiles for a chip is installed."""
  cuda = ("jax_cuda13_plugin", "jax_cuda12_plugin")
  return any(util.find_spec(name) for name in (cuda if chip.name == "h100" else ("libtpu",)))


def devices(topology: Topology) -> list[jax.Device]:
  """`topology.device_count` devices to compile for; they cannot run anything.

  Raises:
    UserError: what compiles for the chip is not installed (names the command that installs it), or
      refuses the topology.
  """
  chip, options = topology.chip, dict(topology.chip.options)
  if not installed(chip):
    what, extra = ("the CUDA plugin of JAX", "cuda") if chip.name == "h100" else ("libtpu", "tpu")
    raise UserError(
      f"Compiling for {chip.name} needs {what}, which is not installed: "
      f'pip install -e ".[{extra}]" in the checkout.'
    )
  if chip.name == "h100":
    # Partitions (groups of hosts that NVLink joins) x hosts x GPUs.
    options["topology"] = "1 x {} x {}".format(*topology.shape)
    name, platform = chip.name, "cuda"
  else:
    for key, value in _LIBTPU.items():
      os.environ.setdefault(key, value)
    if topology.chips == 1:  # libtpu takes a host to have 2x2 chips
      options["chips_per_host_bounds"] = (1, 1, 1)
    name, platform = str(topology), "tpu"
  try:
    found = list(topologies.get_topology_desc(name, platform=platform, **options).devices)
  except jax.errors.JaxRuntimeError as error:
    raise UserError(f"{topology} is refused ({error}); update what compiles for it.") from error
  if len(found) != topology.device_count:
    raise UserError(
      f"{topology} should have {topology.device_count} devices and the installed compiler says "
      f"{len(found)}; install the version that JAX {jax.__version__} asks for."
    )
  return found


@contextlib.contextmanager
def uncached() -> Iterator[None]:
  """Without JAX's persistent compilation cache, which fails on programs for `devices`.

  It writes them, but reading one back needs a client that could run it.
  """
  folder = jax.config.values["jax_compilation_cache_dir"]
  try:
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()  # it would keep the folder it has opened
    yield
  finally:
    jax.config.update("jax_compilation_cache_dir", folder)
    compilation_cache.reset_cache()


def _distance(shape: tuple[int, ...], wanted: tuple[int, ...]) -> tuple[float, bool]:
  """Near in the number of chips; of equal ones those with the same sides first."""
  size = abs(math.log(math.prod(shape) / max(1, math.prod(wanted))))
  return size, sorted(shape) != sorted(wanted)


def _text(shape: tuple[int, ...]) -> str:
  return "x".join(str(side) for side in shape)
