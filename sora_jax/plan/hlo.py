"""What a compiled program costs a device, read out of its final HLO.

XLA's own `cost_analysis` counts the body of a loop once, a Pallas kernel without an estimate as
nothing, and collectives not at all. Here each instruction counts as often as it runs:

  loops         Times the trip count the compiler knows (`known_trip_count`) or, as TPU programs do
                not say, that start, step and limit of the loop's counter give. A loop that shows
                neither counts as one trip and is named: all figures are then lower bounds.
  conditionals  All branches count as if each ran, which is an upper bound.
  collectives   `bytes` is the result on a device without tile padding, `wire` what a device sends
                at least, whatever the hops (Chan et al. 2007, doi:10.1002/cpe.1206). With r the
                bytes of the result and g the devices of a group:
                  all-gather, all-to-all (ragged: of a full buffer)    r (g - 1) / g
                  all-reduce                                         2 r (g - 1) / g
                  reduce-scatter                                       r (g - 1)
                  collective-permute, collective-broadcast             r
                Asynchronous ones count where they start. An all-reduce fused with slices of its
                result is how a TPU's compiler writes a reduce-scatter, and counts as one. `far` is
                the part of `wire` that goes from host to host (`groups.between_hosts`).
  cycles        The TPU compiler's `estimated_cycles`, one after the other; what it cannot tell, and
                gives 2^63 - 1, is none. Collectives, custom calls and other compilers have none.
  flops         2 per multiply-add of dots and convolutions, as XLA's HloCostAnalysis counts them:
                without those with padding or with the zeros of a dilation.
  custom calls  A Pallas kernel under its own name, others (cuDNN) under their target's. Their flops
                are those of their `cost_estimate`, which on GPUs is in their metadata, or of the
                convolution that they are, and no part of `Costs.flops`.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import astuple, dataclass, field
from typing import Any, TypeAlias

import numpy as np
from jax.stages import Compiled

from sora_jax.errors import UserError
from sora_jax.plan import groups


@dataclass(frozen=True)
class Collective:
  """All collectives of one kind: how many run, their result bytes and those a device sends."""

  count: int
  bytes: int
  wire: int
  far: int = 0


@dataclass(frozen=True)
class CustomCall:
  """All calls of one name: how many run, their flops, and how many do not say theirs."""

  count: int
  flops: int
  silent: int


@dataclass(frozen=True)
class Memory:
  """Bytes on a device. Aliased outputs live in donated arguments; `peak` is what is ever live."""

  arguments: int
  temporaries: int
  outputs: int
  aliased: int
  peak: int


@dataclass(frozen=True)
class Costs:
  """What one run of a program costs each device; what counts, and how, is said above."""

  collectives: Mapping[str, Collective]  # by kind
  custom_calls: Mapping[str, CustomCall]  # by name
  flops: int
  cycles: int
  unknown_loops: Mapping[str, int]  # by `op_name`: how often one is entered, each as one trip
  conditionals: int  # how often one is met, all branches of which count
  memory: Memory


def costs(compiled: Compiled, per_host: int | None = None) -> Costs:
  """Costs of `jax.jit(f).lower(...).compile()`, per device.

  Args:
    per_host: devices of a host, if what joins hosts is another network than what joins those.

  Raises:
    UserError: the backend does not show its programs.
  """
  text, stats = compiled.as_text(), compiled.memory_analysis()
  if text is None or stats is None:
    raise UserError("This backend hides its programs; compile for a TPU, an H100 or the CPU.")
  sizes = ("argument_size", "temp_size", "output_size", "alias_size", "peak_memory")
  return read(text, Memory(*(getattr(stats, f"{size}_in_bytes") for size in sizes)), per_host)


def read(text: str, memory: Memory, per_host: int | None = None) -> Costs:
  """Costs out of the text of an optimised HLO module, which has all but the memory.

  Raises:
    ValueError: not the text of an HLO module, or not written in a way that is known here.
  """
  program, tally = _parse(text, per_host), _Tally()
  tally.add(program, _Frame(program.computations[program.entry]), 1)
  return Costs(**vars(tally), memory=memory)


@dataclass(frozen=True)
class _Instruction:
  name: str
  shape: str
  opcode: str
  inner: str  # what is in the parentheses: operands, a constant's value, a parameter's number
  attributes: str

  @property
  def operands(self) -> list[str]:
    return re.findall(r"%([\w.\-]+)", self.inner)

  def find(self, pattern: str) -> str | None:
    """The first group of `pattern` in the attributes."""
    found = re.search(pattern, self.attributes)
    return found[1] if found else None

  def attribute(self, key: str, pattern: str) -> str:
    """The value of the attribute `key`, in the form of `pattern`."""
    if (value := self.find(rf"\b{key}=({pattern})")) is None:
      raise ValueError(f"The {self.opcode} {self.name} has no {key} of a known form.")
    return value


_Code: TypeAlias = dict[str, _Instruction]


@dataclass(frozen=True)
class _Computation:
  code: _Code
  root: str


@dataclass(frozen=True)
class _Program:
  computations: dict[str, _Computation]
  entry: str
  devices: int  # a collective without groups is among all
  per_host: int

  def called(self, op: _Instruction, key: str) -> _Computation:
    """The computation that the attribute `key` of `op` names."""
    return self.computations[op.attribute(key, r"%[\w.\-]+")[1:]]


_INSTRUCTION = re.compile(r"\s+(ROOT )?%([\w.\-]+) = (.*?) ([a-z][a-z\-]*)\(([^)]*)\)(.*)")


def _parse(text: str, per_host: int | None) -> _Program:
  computations: dict[str, _Computation] = {}
  lines: list[str] = []
  entry = name = ""
  for line in text.splitlines():
    if match := re.match(r"(ENTRY )?%([\w.\-]+) .*\{$", line):
      name, lines = match[2], []
      entry = name if match[1] else entry
    elif name and re.match(r"\}(, execution_thread=.*)?$", line):
      found = [match for match in map(_INSTRUCTION.match, lines) if match]
      roots = [match[2] for match in found if match[1]]
      if len(found) < len(lines) or len(roots) != 1:
        raise ValueError(f"The computation {name} is not written in a way that is known.")
      code = {match[2]: _Instruction(*match.groups()[1:]) for match in found}
      computations[name] = _Computation(code, roots[0])
    elif name and re.match(r"\s+(ROOT )?%[\w.\-]+ = ", line):
      lines.append(line)
    elif name:  # the attributes of a Pallas kernel may hold newlines
      lines[-1] += line
  if not entry:
    raise ValueError("This is no HLO module: it has no entry computation.")
  counts = re.findall(r"(?:num_partitions|replica_count)=(\d+)", text.split("\n", 1)[0])
  devices = math.prod(int(count) for count in counts)
  return _Program(computations, entry, devices, per_host or devices)


def _dims(shape: str) -> list[int]:
  """Sides of an array."""
  return [int(side) for side in re.findall(r"\d+", shape[shape.index("[") : shape.index("]")])]


def _bytes(shape: str) -> int:
  """Bytes of all arrays of a shape; the digits of a type are its bits (bf16, f8e4m3fn, s4)."""
  total = 0
  for array, dtype in re.findall(r"((pred|[a-z]+\d\w*)\[[\d,]*\])", shape):
    bits = 8 if dtype == "pred" else int(re.findall(r"\d+", dtype)[0])
    total += -(-math.prod(_dims(array)) * bits // 8)
  return total


@dataclass(frozen=True)
class _Frame:
  """A computation as it is called at one place; without a caller, wherever that may be."""

  computation: _Computation
  caller: _Instruction | None = None
  parent: _Frame | None = None


_Value: TypeAlias = tuple[_Instruction, _Frame, int | None]


def _source(program: _Program, name: str, frame: _Frame, index: int | None = None) -> _Value:
  """Where a scalar or an element of a tuple comes from, seen through what hands it on unchanged.

  What a loop changes comes from the parameter of its body or condition, with its index there.
  """
  op = frame.computation.code[name]
  match op.opcode:
    case "copy" | "bitcast" | "convert":
      return _source(program, op.operands[0], frame, index)
    case "get-tuple-element" if index is None:
      return _source(program, op.operands[0], frame, int(op.attribute("index", r"\d+")))
    case "tuple" if index is not None:
      return _source(program, op.operands[index], frame)
    case "fusion":
      inner = program.called(op, "calls")
      return _source(program, inner.root, _Frame(inner, op, frame), index)
    case "while" if _unchanged(program, op, index):
      return _source(program, op.operands[0], frame, index)
    case "parameter" if frame.caller and frame.parent:
      if frame.caller.opcode in ("fusion", "call"):
        return _source(program, frame.caller.operands[int(op.inner)], frame.parent, index)
      if frame.caller.opcode == "while" and _unchanged(program, frame.caller, index):
        return _source(program, frame.caller.operands[0], frame.parent, index)
  return op, frame, index


def _unchanged(program: _Program, loop: _Instruction, index: int | None) -> bool:
  """Whether the body of a loop hands on an element of its tuple as it got it."""
  body = program.called(loop, "body")
  op, frame, found = _source(program, body.root, _Frame(body), index)
  return index is not None and op.opcode == "parameter" and not frame.caller and found == index


def _constant(value: _Value) -> int | None:
  op = value[0]
  return int(op.inner) if op.opcode == "constant" and op.inner.lstrip("-").isdigit() else None


def _step(program: _Program, value: _Value, loop: _Instruction, index: int) -> int | None:
  """By how much `value` is above what the loop's tuple holds at `index` at the start of a trip."""
  op, frame, found = value
  if op.opcode == "parameter":
    return 0 if frame.caller is loop and found == index else None
  if op.opcode != "add":
    return None
  terms = [_source(program, name, frame) for name in op.operands]
  constants = [c for c in map(_constant, terms) if c is not None]
  steps = [s for s in (_step(program, term, loop, index) for term in terms) if s is not None]
  return constants[0] + steps[0] if len(constants) == len(steps) == 1 else None


def _trips(program: _Program, loop: _Instruction, frame: _Frame) -> int | None:
  """How often the body of a loop runs; None if the program does not say."""
  if known := loop.find(r'"known_trip_count":\{"n":"(\d+)"'):
    return int(known)
  condition, body = program.called(loop, "condition"), program.called(loop, "body")
  test, inside, _ = _source(program, condition.root, _Frame(condition, loop, frame))
  # `i < n` is what every loop of JAX with a known count has, and what XLA gives its own.
  if test.find(r"direction=(\w+)") != "LT":
    return None
  (_, where, index), limit = (_source(program, name, inside) for name in test.operands)
  if where.caller is not loop or index is None:
    return None
  start = _constant(_source(program, loop.operands[0], frame, index))
  after = _source(program, body.root, _Frame(body, loop, frame), index)
  stop, step = _constant(limit), _step(program, after, loop, index)
  if start is None or stop is None or step is None or step < 1:
    return None
  return len(range(start, stop, step))


@dataclass
class _Tally:
  """The sums of `Costs`, so far."""

  collectives: dict[str, Collective] = field(default_factory=dict)
  custom_calls: dict[str, CustomCall] = field(default_factory=dict)
  flops: int = 0
  cycles: int = 0
  unknown_loops: Counter[str] = field(default_factory=Counter)
  conditionals: int = 0

  def add(self, program: _Program, frame: _Frame, times: int, fused: bool = False) -> None:
    """Adds a computation that runs `times` times, and all that it calls."""
    code = frame.computation.code
    for op in code.values():
      kind = op.opcode.removesuffix("-start")
      inner: list[tuple[_Computation, int]] = []
      if not fused:  # a fusion's estimate is of all that is in it
        self.cycles += times * int(op.find(r'"estimated_cycles":"(\d{1,18})"') or 0)
      match kind:
        case "while":
          if (trips := _trips(program, op, frame)) is None:
            self.unknown_loops[op.find(r'op_name="([^"]*)"') or op.name] += times
          body, condition = program.called(op, "body"), program.called(op, "condition")
          inner = [(body, 1 if trips is None else trips), (condition, 1 + (trips or 0))]
        case "conditional":
          self.conditionals += times
          names = re.findall(r"%([\w.\-]+)", op.attributes.partition(", metadata=")[0])
          inner = [(program.computations[name], 1) for name in names]
        case "fusion" | "async" | "call":
          inner = [(program.called(op, "to_apply" if kind == "call" else "calls"), 1)]
        case "custom-call":
          name, flops = _custom(op, code)
          calls = CustomCall(times, times * (flops or 0), 0 if flops else times)
          _add(self.custom_calls, name, calls)
        case "dot":
          self.flops += times * _dot_flops(op, code)
        case "convolution":
          image, kernel = (code[name].shape for name in op.operands)
          self.flops += times * _convolution_flops(op, image, kernel, op.shape)
        case _ if kind in groups.SENT:
          kind, size = _result(op, kind, code, fused)
          key = "source_target_pairs" if kind == "collective-permute" else "replica_groups"
          among = groups.parse(op.attribute(key, groups.FORMS), program.devices)
          wire = times * groups.SENT[kind](size, max(map(len, among)))
          far = groups.between_hosts(kind, wire, among, program.per_host)
          _add(self.collectives, kind, Collective(times, times * size, wire, far))
      for computation, runs in inner:
        inside = _Frame(computation, op, frame)
        self.add(program, inside, times * runs, fused or kind == "fusion")


def _add(sums: dict[str, Any], key: str, more: Collective | CustomCall) -> None:
  """Adds up, field by field."""
  old = (astuple(sums[key]),) if key in sums else ()
  sums[key] = type(more)(*map(sum, zip(astuple(more), *old, strict=True)))


def _result(op: _Instruction, kind: str, code: _Code, fused: bool) -> tuple[str, int]:
  """What kind of collective it really is, and the bytes of its result."""
  if kind == "all-reduce" and fused:
    slices = [user for user in code.values() if user.opcode == "dynamic-slice"]
    shares = [_bytes(user.shape) for user in slices if _read(code, user) == op.name]
    return "reduce-scatter" if shares else kind, sum(shares) or _bytes(op.shape)
  if op.opcode.endswith("-start"):  # its own shape holds the operands, too, but for an all-reduce
    op = next(u for u in code.values() if u.opcode.endswith("-done") and op.name in u.operands)
  return kind, _bytes(op.shape)


def _read(code: _Code, op: _Instruction) -> str:
  """What the first operand is, through elements of tuples and bitcasts."""
  below = code[op.operands[0]]
  return _read(code, below) if below.opcode in ("bitcast", "get-tuple-element") else below.name


# Where cuDNN's convolutions have image, kernel and result: among two operands and what they make.
_CUDNN = {"Forward": (0, 1, 2), "BackwardInput": (2, 1, 0), "BackwardFilter": (0, 2, 1)}


def _custom(op: _Instruction, code: _Code) -> tuple[str, int | None]:
  """The name of a custom call and, if they can be told, its flops."""
  name = op.attribute("custom_call_target", r'"[^"]*"')[1:-1]
  if roles := _CUDNN.get(name.removeprefix("__cudnn$conv").replace("BiasActivation", "")):
    shapes = [code[operand].shape for operand in op.operands[:2]] + [op.shape]
    return name, _convolution_flops(op, *(shapes[role] for role in roles))
  if name == "tpu_custom_call":
    name, found = op.name.split(".")[0], op.find(r'"cost_estimate": ?\{[^}]*"flops":"?(\d+)')
  else:  # Triton's dialect of Pallas has a name and metadata, in which quotes are escaped
    name, found = op.find(r'\bname = "(\w+)"') or name, op.find(r"\\22flops\\22: \\22(\d+)")
  return name, int(found) if found else None


def _dot_flops(op: _Instruction, code: _Code) -> int:
  left = _dims(code[op.operands[0]].shape)
  summed = re.findall(r"\d+", op.attribute("lhs_contracting_dims", r"\{[\d,]*\}"))
  return 2 * math.prod(_dims(op.shape)) * math.prod(left[int(axis)] for axis in summed)


def _convolution_flops(op: _Instruction, *shapes: str) -> int:
  """Of an image, a kernel and the result."""
  image, kernel, out = map(_dims, shapes)
  i, k, o = re.split("_|->", op.attribute("dim_labels", r"\w+->\w+"))
  flops = 2 * out[o.index("b")] * out[o.index("f")] * kernel[k.index("i")]
  window = dict(re.findall(r"(\w+)=(\S+)", op.find(r"window=\{(.*?)\}") or ""))
  fields = {key: value.split("x") for key, value in window.items()}
  # A TPU's batched matmul is a convolution, too: its batch is an axis of an image with zeros
  # between the elements, arranged so that each output position meets one element.
  for axis, size in enumerate(fields.get("size", ())):
    get = {key: value[axis] for key, value in fields.items()}
    spread, low = int(get.get("lhs_dilate", 1)), int(get.get("pad", "0_0").split("_")[0])
    start = np.arange(out[o.index(str(axis))]) * int(get.get("stride", 1)) - low
    at = start[:, None] + np.arange(int(size)) * int(get.get("rhs_dilate", 1))
    last = (image[i.index(str(axis))] - 1) * spread
    flops *= int(np.sum((at >= 0) & (at <= last) & (at % spread == 0)))
  return flops
