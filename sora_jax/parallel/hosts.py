"""Several processes, one run: how they find each other, agree, and who writes.

Every host of a TPU slice or of a cluster runs the same command; JAX calls each a process, and the
programs they run together see the devices of all. What is said to people, and what is written once,
is process 0's. For a single process nothing in here costs or does anything.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from sora_jax.errors import UserError
from sora_jax.parallel import sharding
from sora_jax.typing import Params

# How long a process that ends waits for the others to end too: those of `fit` do so together.
_SHUTDOWN_SECONDS = 60
_LATE_SECONDS = 3  # that processes which come after something went wrong are waited for


def start(
  coordinator: str | None = None,
  count: int | None = None,
  index: int | None = None,
  timeout: int = 300,
) -> None:
  """Joins the processes of a run; before anything else asks JAX for its devices.

  Args:
    coordinator, count, index: "host:port" of process 0, the number of processes and this one's.
      None of them: JAX finds them on Cloud TPU, GKE, Slurm and under Open MPI.
    timeout: seconds to wait for all processes.

  Raises:
    UserError: some of the three are missing or impossible, nothing was found, or (with the three
      given) a process did not come, or does not fit the others.
  """
  given = (coordinator, count, index)
  if coordinator is not None and count is not None and index is not None:
    _roll_call(coordinator, count, index, timeout)
  elif any(x is not None for x in given):
    raise UserError("--coordinator, --process-count and --process-id go together: give all three.")
  # JAX aborts where it gives up, without an exception: this comes before it.
  late = threading.Timer(timeout, _give_up, [timeout])
  late.daemon = True
  late.start()
  try:
    jax.distributed.initialize(
      *given, initialization_timeout=timeout + 60, shutdown_timeout_seconds=_SHUTDOWN_SECONDS
    )
  except ValueError as e:
    raise UserError(
      "JAX found neither Cloud TPU nor GKE, Slurm or Open MPI around this process: give "
      "--coordinator HOST:PORT, --process-count and --process-id instead of --multihost."
    ) from e
  finally:
    late.cancel()


def _give_up(timeout: int) -> None:
  print(
    f"sora-jax: error: Not all processes came within {timeout} s: start the same command on every "
    "host, or give them longer (--multihost-timeout).",
    file=sys.stderr,
    flush=True,
  )
  os._exit(2)  # the main thread is inside JAX and cannot be interrupted


def _roll_call(coordinator: str, count: int, index: int, timeout: int) -> None:
  """Returns when processes 0 ... count-1 are all there, else raises the same UserError in each.

  They tell process 0 their numbers over the port that JAX will use next. JAX itself would abort
  them all, not saying which one is missing or comes twice.
  """
  host, _, port = coordinator.rpartition(":")
  if not (host and port.isdigit()):
    raise UserError(f"--coordinator={coordinator} is not HOST:PORT; take e.g. {coordinator}:1234.")
  if not 0 <= index < count:
    raise UserError(
      f"--process-id={index} does not exist: the {count} processes are 0 to {count - 1}."
    )
  deadline = time.monotonic() + timeout
  if index > 0:
    verdict = _report(host, int(port), f"{count} {index}", deadline)
  else:
    verdict = _count_off(int(port), count, deadline)
  if verdict != "complete":
    raise UserError(
      verdict
      or f"Process 0 did not answer at {coordinator} within {timeout} s: start it there, "
      "and see that this host reaches that port."
    )


def _report(host: str, port: int, numbers: str, deadline: float) -> str:
  """Process 0's verdict; empty if it does not answer."""
  while time.monotonic() < deadline:
    try:
      with socket.create_connection((host, port), timeout=deadline - time.monotonic()) as line:
        line.settimeout(deadline - time.monotonic() + 10)  # process 0 may have begun later
        line.sendall(f"{numbers}\n".encode())
        if verdict := line.makefile().read():
          return verdict
    except OSError:
      time.sleep(0.1)
  return ""


def _count_off(port: int, count: int, deadline: float) -> str:
  """Waits for the other processes and tells them all the verdict, which it returns."""
  both = socket.has_dualstack_ipv6()
  family = socket.AF_INET6 if both else socket.AF_INET
  lines: list[socket.socket] = []
  came: set[int] = set()
  verdict, until = "", deadline
  try:
    server = socket.create_server(("", port), family=family, dualstack_ipv6=both)
  except OSError as e:
    raise UserError(
      f"Process 0 cannot listen on port {port} ({e.strerror}): choose another in --coordinator, "
      "or give this process a --process-id above 0."
    ) from e
  with server, contextlib.ExitStack() as stack:
    while len(came) < count - 1:
      server.settimeout(max(0.01, until - time.monotonic()))
      try:
        line = stack.enter_context(server.accept()[0])
      except TimeoutError:
        missing = ", ".join(str(i) for i in range(1, count) if i not in came)
        verdict = verdict or (
          f"Of {count} processes these did not come in time: {missing}; start them, or give "
          "--process-count the number there are."
        )
        break
      try:
        line.settimeout(10)
        theirs, index = map(int, line.makefile().readline().split())
      except (OSError, ValueError):
        continue  # no process of ours: they speak at once
      wrong = ""
      if theirs != count:
        wrong = f"Process 0 was given --process-count={count} and process {index} {theirs}."
      elif index in came:
        wrong = f"Two processes have --process-id={index}: give them 0 to {count - 1}, each once."
      if wrong and not verdict:  # those that come a little later are told, too
        verdict, until = wrong, min(deadline, time.monotonic() + _LATE_SECONDS)
      came.add(index)
      lines.append(line)
    verdict = verdict or "complete"
    for line in lines:
      with contextlib.suppress(OSError):
        line.sendall(verdict.encode())
  return verdict


def say(message: str) -> None:
  """Prints to stderr, once for all processes."""
  if jax.process_index() == 0:
    print(message, file=sys.stderr)


@contextlib.contextmanager
def together() -> Iterator[None]:
  """Waits for all processes at the end of the block, which fails in all if it fails in one.

  The others would otherwise wait for it in their next collective. The block must not run a program
  on devices of several processes, nor another block like this.

  Raises:
    UserError: the block failed in another process.
  """
  if jax.process_count() == 1:
    yield
    return
  error: Exception | None = None
  try:
    yield
  except Exception as e:
    error = e
  failed = np.flatnonzero(multihost_utils.process_allgather(np.array(error is not None)))
  if error is not None:
    raise error
  if failed.size:
    raise UserError(f"Process {failed[0]} failed; what it printed says why.")


class Vote:
  """The largest of the numbers that all processes give, one call late.

  Late, because a number that is read at once would stall the devices: it is an all-reduce behind
  the step that has just begun. A single process gets its own number at once.
  """

  def __init__(self) -> None:
    self._pending: jax.Array | None = None
    if jax.process_count() > 1:
      devices = np.array(jax.devices()).reshape(jax.process_count(), -1)
      mesh = Mesh(devices, ("process", "local"))
      self._place = NamedSharding(mesh, P("process"))
      self._max = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, P()))

  def __call__(self, number: int) -> int:
    if jax.process_count() == 1:
      return number
    before = self._pending
    mine = np.array([number], np.int32)
    self._pending = self._max(jax.make_array_from_process_local_data(self._place, mine))
    return 0 if before is None else int(before)


@contextlib.contextmanager
def on_first(params: Params) -> Iterator[Params | None]:
  """Lends process 0 a copy of `params` on its own devices, under their mesh; the others get None.

  They wait until the block is over. The copy is made leaf by leaf: one whole leaf at a time is on
  every device, and all of them on those of process 0, split as by `fsdp`. A single process gets
  `params` as they are.
  """
  if jax.process_count() == 1:
    yield params
    return
  first = jax.process_index() == 0
  mesh = sharding.make_mesh({"fsdp": -1}, jax.local_devices())

  def copy(leaf: jax.Array, place: NamedSharding) -> jax.Array | None:
    whole = multihost_utils.process_allgather(leaf, tiled=True)
    return jax.device_put(whole, place) if first else None

  copies = jax.tree.map(copy, params, sharding.param_shardings(params, mesh))
  with together(), jax.set_mesh(mesh):
    yield copies if first else None


def batch_shard(mesh: Mesh) -> tuple[int, int]:
  """Which rows of each batch this process reads, as (index, count) of equal blocks.

  Processes whose devices split sequences or weights among them hold, and read, the same rows.

  Raises:
    UserError: a process has no device in the mesh, or the processes cannot share rows evenly.
  """
  ways = sharding.batch_ways(mesh)
  rows: dict[int, set[int]] = {i: set() for i in range(jax.process_count())}
  places = sharding.batch_sharding(mesh).devices_indices_map((ways,))
  for device in mesh.devices.flat:
    rows[device.process_index].add(places[device][0].start or 0)
  blocks = sorted({tuple(sorted(held)) for held in rows.values()})
  if sum(map(len, blocks)) != ways or len(set(map(len, blocks))) > 1:
    sizes = {axis: size for axis, size in mesh.shape.items() if size > 1}
    raise UserError(
      f"The mesh {sizes} does not divide among {jax.process_count()} processes: use all "
      f"{jax.device_count()} devices, e.g. train.mesh={{'fsdp': {jax.device_count()}}}."
    )
  return blocks.index(tuple(sorted(rows[jax.process_index()]))), len(blocks)
