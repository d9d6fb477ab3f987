"""Where arrays live: the mesh, one table for parameters, one for activations.

A mesh has four axes, each of size 1 unless the config says otherwise:

  data     the batch is split, parameters are copied
  fsdp     the batch is split, and so are the parameters (gathered when used)
  context  the tokens of a sequence, or a video's rows, are split, and so are the parameters
  tensor   heads and hidden units are split

Both tables hold `PartitionSpec`s. A parameter's spec names its *trailing* axes, so one rule serves
a kernel `(in, out)`, the same kernel stacked by `nn.scan` `(layers, in, out)` and a convolution
`(t, h, w, in, out)`: the leading axes are never split. An axis whose size a mesh axis does not
divide is left whole. Optimiser moments and EMA have their parameter's path at the end of their own,
so they fall under the same rule; what that leaves whole of them is split over `data` too, since
each device can update its share (ZeRO stage 1, Rajbhandari et al. 2020, arXiv:1910.02054).
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.mesh_utils import create_device_mesh
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.typing import ArrayLike

from sora_jax.errors import UserError

AXES = ("data", "fsdp", "context", "tensor")
BATCH = ("data", "fsdp")
WEIGHTS = ("fsdp", "context")
SPACE = ("context", "tensor", *BATCH)
COPIED = 8  # parameters of more than such a part of a device's memory are not copied to each
DIVIDED = 32  # devices among which parameters are divided, besides those of a clip

Rules = Sequence[tuple[str, P]]

# The first pattern found in the path wins. Column-parallel kernels split their output over
# `tensor`, row-parallel ones their input, so that a pair needs one reduction.
RULES: Rules = (
  (r"(^|/)(bias|scale|modulation)$", P()),
  (r"attn\w*/.*(q|k|v|qkv)/kernel$|attention\w*/(q|k|v|qkv)/kernel$", P(WEIGHTS, "tensor")),
  (r"attn\w*/.*(o|out)/kernel$|attention\w*/(o|out)/kernel$", P("tensor", WEIGHTS)),
  (r"(mlp\w*|text_in)/(up|gate)/kernel$", P(WEIGHTS, "tensor")),
  (r"(mlp\w*|text_in)/down/kernel$", P("tensor", WEIGHTS)),
  (
    r"(^|/)(patch_in|position_in|time_in|time_out|time_modulation|table_in)/kernel$",
    P(WEIGHTS, "tensor"),
  ),
  (r"(^|/)patch_out/kernel$", P("tensor", WEIGHTS)),
  (r"(^|/)(pieces|position)$", P("tensor", WEIGHTS)),
  # An adapter's matrices are split where their kernel's are; its rank is not.
  (r"(^|/)(o|out|down|patch_out)/lora_down$", P("tensor", None)),
  (r"(^|/)(o|out|down|patch_out)/lora_up$", P(None, WEIGHTS)),
  (r"/lora_down$", P(WEIGHTS, None)),
  (r"/lora_up$", P(None, "tensor")),
  (r"(^|/)relative$", P(None, "tensor")),
  (r"(^|/)(encoder|decoder|discriminator)/.*kernel$", P(None, WEIGHTS)),
)

# The parts of a training state that only its update reads.
UPDATED = re.compile(r"(opt_state|ema)/")

# Batch axes first; what is not named is not split. An axis that is named more than once splits the
# first that it divides: what a video's batch is not split over, its rows are, or else its columns.
ACTIVATIONS: dict[str, P] = {
  "tokens": P(BATCH, "context", None),  # b n d
  "hidden": P(BATCH, "context", "tensor"),  # b n f, inside attention or a feed-forward layer
  "rows": P(None, None, None),  # b k d, of cond rows
  "video": P(BATCH, None, SPACE, SPACE, None),  # b t h w c, of pixels, features or latents
}


def make_mesh(
  sizes: Mapping[str, int] | None = None, devices: Sequence[jax.Device] | None = None
) -> Mesh:
  """A mesh over the first devices; one size may be -1: all devices that are left.

  Args:
    sizes: axis name -> size; axes not named have size 1. None is `{"data": -1}`.
    devices: default `jax.devices()`.

  Raises:
    UserError: an unknown axis, or more devices asked for than there are.
  """
  devices = list(jax.devices() if devices is None else devices)
  sizes = {"data": -1} if sizes is None else dict(sizes)
  if unknown := sorted(set(sizes) - set(AXES)):
    raise UserError(f"There is no mesh axis {unknown[0]!r}; the axes are {', '.join(AXES)}.")
  shape = [int(sizes.get(axis, 1)) for axis in AXES]
  if shape.count(-1) > 1 or any(size < 1 and size != -1 for size in shape):
    raise UserError(f"Mesh sizes must be positive, at most one of them -1; got {dict(sizes)}.")
  known = math.prod(size for size in shape if size != -1)
  shape = [max(1, len(devices) // known) if size == -1 else size for size in shape]
  count = math.prod(shape)
  if count > len(devices):
    raise UserError(f"The mesh {dict(sizes)} needs {count} devices and there are {len(devices)}.")
  # Auto on purpose: since JAX 0.9 the default is Explicit, which Linen layers cannot express.
  types = (AxisType.Auto,) * len(AXES)
  # Unlike `jax.make_mesh`, also with axes that share one of the torus, such as 32 x 8 on v6e:16x16.
  grid = create_device_mesh(shape, devices[:count], allow_split_physical_axes=True)
  return Mesh(grid, AXES, axis_types=types)


def suggest(
  rows: int,
  devices: Sequence[jax.Device],
  state: int,
  memory: int | None = None,
  sequence: bool = True,
) -> dict[str, int]:
  """Axis sizes for a batch of `rows`: as many devices as divide it, sequences over the others.

  Parameters are copied if they are few, and else divided over at most `DIVIDED` of the former, or
  as many as it takes: over more, each would keep hardly less, and XLA gathers over all chips of a
  slice at once by adding up zeros.

  Args:
    state: bytes of all parameters.
    memory: bytes that a device has; default: what it says.
    sequence: whether there are sequences to divide; if not, some devices may be left.
  """
  if memory is None:
    memory = (devices[0].memory_stats() or {}).get("bytes_limit")
  count = len(devices)
  if sequence:
    ways = math.gcd(rows, count)
    context = count // ways
  else:
    ways = max(n for n in range(1, count + 1) if rows % n == 0)
    context = 1
  fsdp = 1
  if memory and state > memory / COPIED:
    enough = max(DIVIDED, math.ceil(COPIED * state / (memory * context)))
    fsdp = min((n for n in range(enough, ways) if ways % n == 0), default=ways)
  return {"data": ways // fsdp, "fsdp": fsdp, "context": context}


def path_string(path: tuple[Any, ...]) -> str:
  """A pytree key path as `params/blocks/attn/q/kernel`."""
  return jax.tree_util.keystr(path, simple=True, separator="/")


def find_rule(path: str, rules: Rules = RULES) -> tuple[str, P] | None:
  """The first rule whose pattern occurs in `path`; None means replicated by default."""
  return next(((pattern, spec) for pattern, spec in rules if re.search(pattern, path)), None)


def fit_spec(spec: P, shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> P:
  """`spec` cut to `shape`: trailing axes, and only mesh axes that are automatic and divide."""
  if len(spec) > len(shape):
    return P()
  auto = {n for n, t in zip(mesh.axis_names, mesh.axis_types, strict=True) if t == AxisType.Auto}
  entries: list[Any] = []
  used: set[str] = set()
  names_of = (None,) * (len(shape) - len(spec)) + tuple(spec)
  for size, names in zip(shape, names_of, strict=True):
    kept: list[str] = []
    for name in (names,) if isinstance(names, str) else names or ():
      divides = size % math.prod(mesh.shape[k] for k in (*kept, name)) == 0
      if divides and name in auto - used and mesh.shape[name] > 1:
        kept.append(name)
    used.update(kept)
    entries.append(tuple(kept) if len(kept) > 1 else kept[0] if kept else None)
  return P(*entries)


def param_shardings(tree: Any, mesh: Mesh, rules: Rules = RULES) -> Any:
  """A `NamedSharding` for each leaf of a training state or of parameters (arrays or structs)."""

  def place(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
    name = path_string(path)
    rule = find_rule(name, rules)
    spec = fit_spec(rule[1] if rule else P(), leaf.shape, mesh)
    return NamedSharding(mesh, spread(spec, leaf.shape, mesh) if UPDATED.match(name) else spec)

  return jax.tree_util.tree_map_with_path(place, tree)


def spread(spec: P, shape: tuple[int, ...], mesh: Mesh) -> P:
  """`spec` with the first axis it leaves whole split over `data`, if `data` divides one.

  The first: for a stacked kernel that is the layers, which Muon updates one by one anyway.
  """
  entries = [*spec, *[None] * (len(shape) - len(spec))]
  count = mesh.shape["data"]
  whole = [i for i, size in enumerate(shape) if entries[i] is None and size % count == 0]
  if count > 1 and len(shape) > 1 and whole:
    entries[whole[0]] = "data"
  return P(*entries)


def gather(path: str, kernel: ArrayLike, dtype: Any, rules: Rules = RULES) -> jax.Array:
  """A parameter as a layer uses it: whole but for `tensor`, and in `dtype` (None: its own).

  It travels in that type, and so does its gradient, to the devices that keep its parts: one mesh
  axis after the other, since XLA gathers over all chips of a slice at once by adding up zeros. The
  barrier keeps XLA from dividing the product that follows into one for each part, which on some
  slices it does to pass the parts round a ring; so many small products take twice the cycles.
  """
  mesh = jax.sharding.get_abstract_mesh()
  kernel = jnp.asarray(kernel)
  to = kernel.dtype if dtype is None else dtype
  if mesh.empty or mesh.size == 1:
    return kernel.astype(to)
  rule = find_rule(path, rules)
  split = fit_spec(rule[1] if rule else P(), kernel.shape, mesh)
  return _gather(kernel, kernel.dtype, to, split)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _gather(x: jax.Array, kept: Any, used: Any, split: P) -> jax.Array:
  x = x.astype(used)
  for spec in (_without(split, "context"), _without(split, *WEIGHTS)):
    x = jax.lax.with_sharding_constraint(x, spec)
  return jax.lax.optimization_barrier(x)


def _gather_forward(x: jax.Array, kept: Any, used: Any, split: P) -> tuple[jax.Array, None]:
  return _gather(x, kept, used, split), None


def _gather_backward(kept: Any, used: Any, split: P, _: None, grad: jax.Array) -> tuple[jax.Array]:
  for spec in (_without(split, "context"), split):
    grad = jax.lax.with_sharding_constraint(grad, spec)
  return (grad.astype(kept),)


_gather.defvjp(_gather_forward, _gather_backward)


def _without(spec: P, *axes: str) -> P:
  """`spec`, not split over `axes`."""
  entries = [(x,) if isinstance(x, str) else x or () for x in spec]
  return P(*(tuple(name for name in names if name not in axes) for names in entries))


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """The leading axis of every array of a batch, split over all data-parallel devices."""
  return NamedSharding(mesh, P(BATCH))


def batch_ways(mesh: Mesh) -> int:
  """How many ways a mesh splits a batch that it divides."""
  return math.prod(mesh.shape[axis] for axis in BATCH)


def batch_shards(rows: int) -> int:
  """How many devices a batch of `rows` is split over; 1 outside `jit` with a mesh."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return 1
  names = fit_spec(P(BATCH), (rows,), mesh)[0]
  return math.prod(mesh.shape[n] for n in ((names,) if isinstance(names, str) else names or ()))


def mesh_of(params: Any) -> Mesh:
  """The mesh that parameters were placed on; of one device if they were not."""
  placed = [x.sharding for x in jax.tree.leaves(params) if isinstance(x, jax.Array)]
  meshes = (s.mesh for s in placed if isinstance(s, NamedSharding) and isinstance(s.mesh, Mesh))
  return next(meshes, None) or make_mesh({}, jax.local_devices())


def place(x: Any, name: str, mesh: Mesh, shape: tuple[int, ...] | None = None) -> jax.Array:
  """Puts an array where `constrain` wants it: each device gets its own part only."""
  return jax.device_put(x, NamedSharding(mesh, fit_spec(ACTIVATIONS[name], shape or x.shape, mesh)))


def constrain(x: jax.Array, name: str, shape: tuple[int, ...] | None = None) -> jax.Array:
  """`x`, placed as `ACTIVATIONS[name]` says; unchanged outside `jit` and where no mesh is set.

  Args:
    shape: what the mesh must divide, if that is not the shape of `x`: of several levels of one
      pyramid, the coarsest, so that all of them are split alike.
  """
  spec = ACTIVATIONS[name]
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1 or not isinstance(x, jax.core.Tracer):
    return x
  return jax.lax.with_sharding_constraint(x, fit_spec(spec, shape or x.shape, mesh))
