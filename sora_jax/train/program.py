"""What a config trains, before there is any array: recipe, mesh, and the step between two states.

The loop runs it; `sora_jax.plan` compiles it for machines that are not there.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from sora_jax.config import build as build_section
from sora_jax.errors import UserError
from sora_jax.parallel import hosts, sharding
from sora_jax.train import optim
from sora_jax.train.state import TrainState
from sora_jax.train.step import train_step, validation_step
from sora_jax.typing import Array, Params, PRNGKey


@runtime_checkable
class DataIterator(Protocol):
  """What Grain's iterators are: a position that can be saved with the batches read so far."""

  def __next__(self) -> Mapping[str, Any]: ...

  def get_state(self) -> Any: ...

  def set_state(self, state: Any) -> None: ...


@runtime_checkable
class Recipe(Protocol):
  """What `sora_jax.train.<recipe>.build(config)` returns.

  It may also have `trainable` (regex of parameter paths; default: all), `sequence` (whether samples
  are sequences that the mesh axis `context` can split; default: False), `after(params, updates,
  outputs)` -> params, pure, which follows each update and changes what is not trained (`updates`:
  how many came before; `outputs`: what the loss handed on, see `step.OUTPUTS`), `validation`, which
  is like `dataset` but of samples that are not trained on, `validation_loss`, which is like `loss`
  and measured on those in its place, `preview(params, key)` -> {name: uint8
  video} and `export(params, workdir)`, which is called at each checkpoint and at the end. The last
  two are given the averaged weights, and called in process 0 only. `read(key)` is called instead of
  `init` where `config.init_from` is set, and by nobody who only asks for shapes.
  """

  def init(self, key: PRNGKey) -> Params:
    """The parameters; without `read`, those of `config.init_from` if that is set."""

  def loss(
    self, params: Params, batch: Any, key: PRNGKey, step: Array
  ) -> tuple[Array, dict[str, Array]]:
    """A mean over the batch, and metrics that are means too (and `step.OUTPUTS`). Pure."""

  def dataset(self, shard_index: int, shard_count: int) -> DataIterator:
    """Endless batches, of which this process reads a shard (`data.shards`); "id" names samples."""

  def batch(self) -> Mapping[str, jax.ShapeDtypeStruct]:
    """What the numbers of a batch look like, of all hosts together; needs no data."""


MAY_BE_0 = ("preview_every", "validate_every")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
  """The `train` section.

  Attributes:
    steps: batches to train on, in all.
    batch_size: samples per step, over all hosts, devices and micro-batches.
    accumulate: micro-batches a batch is cut into; their gradients are averaged, each counting
      the same: see `train_step`.
    preview_every: steps between sample videos; 0 = never.
    validate_every: steps between measurements of the averaged weights' loss on the first
      `validate_batches` of held-out samples; 0 = never.
    keep: checkpoints kept.
    mesh: axis sizes, see `sharding.make_mesh`; None = see `choose_mesh`.
    max_bad_steps: non-finite steps in a row before going back to the last checkpoint.
    precision: of float32 matrix products, as `jax.default_matmul_precision` has it; None = JAX's.
      "BF16_BF16_F32" is faster on processors with bfloat16 instructions, see `models.matmul`.
  """

  steps: int
  batch_size: int
  accumulate: int = 1
  log_every: int = 10
  checkpoint_every: int = 1000
  preview_every: int = 0
  validate_every: int = 0
  validate_batches: int = 8
  keep: int = 2
  mesh: Mapping[str, int] | None = None
  max_bad_steps: int = 5
  precision: str | None = None

  def __post_init__(self) -> None:
    """Raises UserError: a number is too small, or no whole number."""
    for field in dataclasses.fields(self):
      value, low = getattr(self, field.name), 0 if field.name in MAY_BE_0 else 1
      if field.type == "int" and (not isinstance(value, int) or value < low):
        raise UserError(f"train.{field.name}={value} must be at least {low}, and a whole number.")


@dataclasses.dataclass(frozen=True)
class Program:
  """The training step of a recipe on a mesh.

  Attributes:
    create: parameters -> the state before the first step.
    state: shapes, types and shardings of the state.
    step: (state, batch) -> (state, numbers), compiled when called; the state it is given is gone.
    validate: (parameters, held-out batch, its number) -> numbers, compiled when called.
  """

  recipe: Recipe
  train: TrainConfig
  mesh: Mesh
  create: Callable[[Params], TrainState]
  state: TrainState
  step: Any
  validate: Any

  @property
  def shardings(self) -> Any:
    """Where the leaves of the state live."""
    return jax.tree.map(lambda leaf: leaf.sharding, self.state)


def build(
  config: ConfigDict, devices: Sequence[jax.Device] | None = None, memory: int | None = None
) -> Program:
  """The program of a config.

  Args:
    devices: default `jax.devices()`.
    memory: bytes each of them has; default: what they say.

  Raises:
    UserError: what the config says cannot be.
  """
  train = build_section(TrainConfig, config.train)
  recipe = build_recipe(config)
  if train.validate_every and not hasattr(recipe, "validation"):
    raise UserError(f"The recipe {config.recipe} holds no samples out: set train.validate_every=0.")
  params = jax.eval_shape(recipe.init, jax.random.key(0))
  trainable = getattr(recipe, "trainable", ".*")
  optimizer = optim.build(config.optim, params, train.steps, trainable)
  after = getattr(recipe, "after", None)
  create = functools.partial(TrainState.create, optimizer=optimizer, follow=after is not None)
  state = jax.eval_shape(create, params)
  size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
  mesh = choose_mesh(train, devices, memory, size, getattr(recipe, "sequence", False))
  if getattr(recipe, "sequence", False):
    _check_length(recipe.batch()["segments"].shape[1], mesh)
  shardings = sharding.param_shardings(state, mesh)
  step = functools.partial(
    train_step, loss=recipe.loss, optimizer=optimizer, seed=int(config.seed),
    accumulate=train.accumulate, after=after,
  )  # fmt: skip
  judged = getattr(recipe, "validation_loss", recipe.loss)
  validate = functools.partial(validation_step, loss=judged, seed=int(config.seed))
  precise = functools.partial(_with_precision, train.precision)
  return Program(
    recipe=recipe,
    train=train,
    mesh=mesh,
    create=create,
    state=jax.tree.map(
      lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), state, shardings
    ),
    step=jax.jit(precise(step), donate_argnums=0, out_shardings=(shardings, None)),
    validate=jax.jit(precise(validate)),
  )


def build_recipe(config: ConfigDict) -> Recipe:
  """The recipe `config.recipe` names, built from the config."""
  name = f"sora_jax.train.{config.recipe}"
  try:
    module = importlib.import_module(name)
  except ModuleNotFoundError as e:
    if e.name != name:
      raise
    known = "vae, t2v, dit, vjepa, vqvae, videogpt and oracle"
    raise UserError(f"There is no recipe {config.recipe!r}; there are {known}.") from None
  return module.build(config)


def choose_mesh(
  train: TrainConfig,
  devices: Sequence[jax.Device] | None = None,
  memory: int | None = None,
  state: int = 0,
  sequence: bool = False,
) -> Mesh:
  """The mesh of the config or, if it has none, one that uses as many devices as there is use for.

  The (micro-)batch is divided over as many as divide it, and sequences over those that are left.
  Parameters are copied if the state is small beside a device's memory, else divided.

  Args:
    devices, memory: see `build`. state: bytes of the training state.
    sequence: whether there are sequences to divide.

  Raises:
    UserError: the batch cannot be cut into `accumulate` parts, or not divided over the mesh, which
      holds all devices if there are several processes.
  """
  rows, rest = divmod(train.batch_size, train.accumulate)
  if rest:
    raise UserError(
      f"train.batch_size={train.batch_size} is no multiple of train.accumulate={train.accumulate}."
    )
  devices = list(jax.devices() if devices is None else devices)
  if train.mesh is None and (sequence or jax.process_count() == 1):
    sizes = sharding.suggest(rows, devices, state, memory, sequence)
    if (ways := math.prod(sizes.values())) < len(devices):
      hosts.say(
        f"{rows} samples are divided over {ways} of {len(devices)} devices; "
        f"make them a multiple of {len(devices)} to use all."
      )
    return sharding.make_mesh(sizes, devices)
  mesh = sharding.make_mesh(train.mesh, devices)
  ways = sharding.batch_ways(mesh)
  if rows % ways:
    near = max(1, round(rows / ways)) * ways * train.accumulate
    raise UserError(
      f"{rows} samples at a time (train.batch_size / train.accumulate) cannot be divided over "
      f"{ways} devices (data x fsdp); the nearest batch size that can be is {near}."
    )
  return mesh


def _with_precision(precision: str | None, step: Callable[..., Any]) -> Callable[..., Any]:
  """`step`, its float32 matrix products computed so, those of the backward pass as well.

  Raises:
    UserError: there is no such precision.
  """
  if precision is None:
    return step
  try:
    with jax.default_matmul_precision(precision):
      pass
  except ValueError:
    raise UserError(
      f"train.precision={precision!r} is none that JAX knows, such as BF16_BF16_F32 or float32."
    ) from None

  def precise(*args: Any) -> Any:
    with jax.default_matmul_precision(precision):
      return step(*args)

  return precise


def _check_length(length: int, mesh: Mesh) -> None:
  """Says so if sequences stay whole, and each device computes all of them."""
  ways = mesh.shape["context"]
  if length % ways:
    hosts.say(
      f"warning: sequences of {length} tokens are not divided over {ways} devices (context), so "
      f"each computes all of them; set packing.length={-(-length // ways) * ways}."
    )
