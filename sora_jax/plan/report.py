"""What a program will need of each chip, in the words of someone who has to pay for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sora_jax.plan.topology import GIB, Chip

# What a kernel of attention reaches of a chip's peak, and matmuls where the compiler does not say:
# published step times of Wan 2.1 mean 25 to 53 % for attention.
ATTENTION_SHARE = 0.45
MATMUL_SHARE = 0.6
LINKS = 2  # of a chip that a collective along one axis of a torus keeps busy


@dataclass(frozen=True)
class Memory:
  """Bytes on a device: weights, what updates them, all else at its largest, and what there is."""

  params: int
  optimizer: int
  activations: int
  peak: int
  capacity: int


@dataclass(frozen=True)
class Work:
  """What a device does in a step.

  Attributes:
    model: FLOPs that the mathematics asks for. executed: with what is made anew, and padding.
    attention: those of the attention kernels, of `executed`; 0 if attention is not a kernel.
    forwards: attention of all layers in units of one forward pass; None if it is not a kernel.
    padding: what of attention's work is spent on padding, as a share of what is not.
    cycles: the compiler's estimate for all but attention and collectives; None if it has none.
    collectives: kind -> {count, bytes}: bytes that a device sends, at least; and, if there are any,
      those of them that go `between_hosts`.
    unknown_loops: whose trips the program does not tell: they count once, all else is more.
  """

  model: float
  executed: float
  attention: float
  forwards: float | None
  padding: float | None
  cycles: int | None
  collectives: Mapping[str, Mapping[str, int]]
  unknown_loops: int = 0


@dataclass(frozen=True)
class Plan:
  """All that `sora-jax plan` says of a program on a topology.

  Attributes:
    source: "compiled"; "estimated" where no compiler for the chip is installed; or "refused": the
      memory is what a compiler says that it would need, and all else is estimated.
    params: in all. tokens: of a clip, or of a sequence of packed ones; 0 if there are none.
    clips: of a step, on all devices together.
    compile_seconds: how long that took here.
  """

  config: str
  topology: str
  mode: str
  source: str
  mesh: Mapping[str, int]
  remat: str | None
  chip: Chip
  chips: int
  params: int
  tokens: int
  clips: int
  memory: Memory
  work: Work
  compile_seconds: float

  @property
  def fits(self) -> bool:
    return self.memory.peak <= self.memory.capacity

  @property
  def compute_seconds(self) -> float:
    """The compiler's cycles, or matmuls at `MATMUL_SHARE`, and attention at `ATTENTION_SHARE`."""
    peak = self.chip.flops / self.chip.devices
    if self.work.cycles and self.chip.clock:
      rest = self.work.cycles / self.chip.clock
    else:
      rest = (self.work.executed - self.work.attention) / (MATMUL_SHARE * peak)
    return rest + self.work.attention / (ATTENTION_SHARE * peak)

  @property
  def links(self) -> int:
    """How many of a chip's links are busy: `LINKS` of a torus, all of those to a switch."""
    return self.chip.links if self.chip.per_host else LINKS

  @property
  def communication_seconds(self) -> float:
    """All that is sent, over those links, or over the network what goes to other hosts.

    The devices of a chip share its links, whatever of it they send to each other.
    """
    sent = self.work.collectives.values()
    far = sum(kind.get("between_hosts", 0) for kind in sent)
    near = sum(kind["bytes"] for kind in sent) - far
    links = self.links * self.chip.link_bandwidth / self.chip.devices
    return near / links + far / self.chip.network

  @property
  def seconds(self) -> float:
    """Of a step, if all communication is hidden behind computation, or all of that behind it."""
    return max(self.compute_seconds, self.communication_seconds)

  def json(self) -> dict[str, Any]:
    """One object of plain values; bytes, FLOPs and cycles per device and step."""
    work = self.work
    return dict(
      config=self.config, topology=self.topology, mode=self.mode, source=self.source,
      mesh=dict(self.mesh), remat=self.remat, fits=self.fits, params=self.params,
      memory=dataclasses.asdict(self.memory),
      flops=dict(model=work.model, executed=work.executed),
      attention_forwards=work.forwards, cycles=work.cycles,
      collectives={kind: dict(sums) for kind, sums in work.collectives.items()},
      unknown_loops=work.unknown_loops, padding=work.padding, tokens=self.tokens, clips=self.clips,
      compile_seconds=round(self.compile_seconds, 1), seconds=self.seconds,
    )  # fmt: skip

  def text(self, steps: int) -> str:
    """For people: a line for each thing; `steps` is how long a run would be."""
    memory, work = self.memory, self.work
    mesh = " x ".join(f"{axis} {size}" for axis, size in self.mesh.items() if size > 1) or "1"
    source = self.source
    if self.source == "compiled":
      source += f" in {self.compile_seconds:.0f} s"
    elif self.source == "refused":
      source = "memory by the compiler, which refused; the rest estimated"
    verdict = "fits" if self.fits else f"DOES NOT FIT: {self.advice()}"
    lines = [
      f"{self.config} on {self.topology} ({self.chips} chips), {self.mode}: {verdict}",
      f"  {source}, mesh {mesh}, remat {self.remat or '-'}, {self.params / 1e9:.2f} B "
      f"parameters, {self.clips} clips of {self.tokens:,} tokens a step",
      f"  memory        {_gib(memory.peak)} of {_gib(memory.capacity)} GiB a device: parameters "
      f"{_gib(memory.params)}, optimizer and average {_gib(memory.optimizer)}, the rest "
      f"{_gib(memory.activations)}",
      f"  computation   {work.model / 1e12:,.1f} TFLOP, executed {work.executed / 1e12:,.1f}",
    ]
    if work.forwards is not None:
      lines.append(
        f"  attention     {work.attention / 1e12:,.1f} TFLOP in {work.forwards:.2f} forward "
        f"passes, {work.padding:.1%} of it padding"
      )
    for kind, sums in sorted(work.collectives.items(), key=lambda item: -item[1]["bytes"]):
      far = sums.get("between_hosts")
      some = f", {far / 1e9:.2f} GB of it between hosts" if far else ""
      lines.append(f"  {kind:22} {sums['bytes'] / 1e9:8.2f} GB in {sums['count']}{some}")
    used = work.model / (self.seconds * self.chip.flops / self.chip.devices)
    hours = self.seconds * steps * self.chips / 3600
    rest = (
      "the compiler's cycles for the rest" if work.cycles else f"the rest at {MATMUL_SHARE:.0%}"
    )
    network = ""
    if self.chip.per_host:
      network = f", {self.chip.network / 1e9:g} GB/s between hosts of {self.chip.per_host}"
    lines += [
      f"  a step        {self.seconds:.2f} s (estimate, {used:.0%} of the peak): computation "
      f"{self.compute_seconds:.2f} s, communication {self.communication_seconds:.2f} s hidden",
      f"                assumed: attention at {ATTENTION_SHARE:.0%} of the peak, {rest}; "
      f"{self.links} links of {self.chip.link_bandwidth / 1e9:g} GB/s{network}",
      f"  {steps:,} steps: {hours:,.0f} chip-hours (estimate)",
    ]
    if work.unknown_loops:
      lines.append(f"  at least all this: the trips of {work.unknown_loops} loops are not known")
    return "\n".join(lines)

  def advice(self) -> str:
    """What to change when it does not fit."""
    state = self.memory.params + self.memory.optimizer
    if state > self.memory.activations:
      return "the weights and their state are most of it; divide them with fsdp, or use more chips"
    if self.remat in ("none", "dots", "attention"):
      return "most of it is kept for the backward pass; set model.remat=full, or context higher"
    return (
      "most of it is activations; divide the clips with a higher context, or take fewer at once"
    )


def _gib(size: int) -> str:
  return f"{size / GIB:.2f}"
