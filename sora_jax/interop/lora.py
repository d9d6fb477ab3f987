"""Files of LoRA adapters, as diffusers and peft write and read them, and our `models.lora`.

  transformer.blocks.0.attn1.to_q.lora_A.weight    (rank, in)
  transformer.blocks.0.attn1.to_q.lora_B.weight    (out, rank)

and alpha in the JSON `lora_adapter_metadata` of the file's header; without it alpha is the rank.
Also read are peft's own files, and those of trainers that use Wan's original names:
`diffusion_model.blocks.0.self_attn.q.lora_down.weight` with `.alpha` tensors, or all of it with
underscores (`lora_unet_blocks_0_self_attn_q`). The name tables are those of the models: whatever
they call a linear map can have an adapter.
"""

from __future__ import annotations

import collections
import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from sora_jax.errors import UNREADABLE, UserError
from sora_jax.interop.names import Rule, flatten, unflatten
from sora_jax.interop.shards import Weights, header
from sora_jax.models import lora
from sora_jax.typing import Params

FILE = "pytorch_lora_weights.safetensors"
METADATA = "lora_adapter_metadata"
PREFIX = "transformer."  # of the names in a pipeline's adapter

# Wan's own names, of which the published ones are a translation.
ORIGINAL = (
  ("condition_embedder.time_embedder.linear_1", "time_embedding.0"),
  ("condition_embedder.time_embedder.linear_2", "time_embedding.2"),
  ("condition_embedder.time_proj", "time_projection.1"),
  ("condition_embedder.text_embedder.linear_1", "text_embedding.0"),
  ("condition_embedder.text_embedder.linear_2", "text_embedding.2"),
  ("attn1", "self_attn"), ("attn2", "cross_attn"), ("to_out.0", "o"), ("to_", ""),
  ("ffn.net.0.proj", "ffn.0"), ("ffn.net.2", "ffn.2"), ("proj_out", "head.head"),
)  # fmt: skip
SUFFIX = re.compile(r"(.+)\.(?:(lora_A|lora_down|lora_B|lora_up)(?:\.default)?\.weight|(alpha))")
PARTS = {"lora_A": "down", "lora_down": "down", "lora_B": "up", "lora_up": "up", "alpha": "alpha"}


def read(path: str | os.PathLike[str], rules: Sequence[Rule], shapes: Params) -> Params:
  """The adapter of a file, or of a folder that holds one: what `models.lora.apply` takes.

  Layers of a stack that have none get one that is zero.

  Args:
    rules, shapes: of the model, as in `interop.names`.

  Raises:
    UserError: no such file, or damaged; a tensor that belongs to no linear map of the model or does
      not fit it, half an adapter, or halves or layers that disagree about the rank.
  """
  tensors, settings = _load(Path(path))
  kernels = flatten(shapes)
  places = {
    alias: (rule, layer)
    for rule in _linear(rules)
    for layer, name in enumerate(rule.names)
    for alias in _aliases(name.removesuffix(".weight"))
  }
  found: dict[str, dict[int, tuple[str, dict[str, np.ndarray]]]] = collections.defaultdict(dict)
  for name, tensor in tensors.items():
    match = SUFFIX.fullmatch(name)
    if match is None or match[1] not in places:
      raise UserError(f"The adapter has a tensor for no linear map of this model: {name}.")
    if not np.isfinite(tensor).all():
      raise UserError(f"The tensor {name} of the adapter holds numbers that are not finite.")
    rule, layer = places[match[1]]
    parts, part = found[rule.ours].setdefault(layer, (match[1], {}))[1], PARTS[match[2] or match[3]]
    if part in parts:
      raise UserError(f"The adapter has the tensor {name} twice, under two names.")
    parts[part] = tensor
  adapter: dict[str, np.ndarray] = {}
  for rule in _linear(rules):
    if layers := found.get(rule.ours):
      pairs = {}
      for i, (module, parts) in layers.items():
        alpha = _alpha(settings, rule.names[i].removesuffix(".weight"))
        pairs[i] = _pair(module, parts, kernels[rule.ours].shape[-2:], alpha)
      path_of = rule.ours.removesuffix("kernel")
      stacked = _stack(pairs, rule, layers)
      adapter |= {path_of + leaf: x for leaf, x in zip(lora.NAMES, stacked, strict=True)}
  return unflatten(adapter)


def write(path: str | os.PathLike[str], params: Params, rules: Sequence[Rule]) -> None:
  """Writes the adapter in `params` as diffusers reads it; the rest of `params` is not looked at.

  Raises:
    UserError: there is none, or one of a layer that the published model does not have.
  """
  check(params, rules)
  flat = {name: np.asarray(x) for name, x in flatten(lora.adapter_of(params)).items()}
  tensors: dict[str, np.ndarray] = {}
  scales: dict[str, tuple[int, float]] = {}
  for rule in _linear(rules):
    path_of = rule.ours.removesuffix("kernel")
    if path_of + lora.NAMES[0] not in flat:
      continue
    leaves = [flat.pop(path_of + leaf) for leaf in lora.NAMES]
    layers = zip(*leaves, strict=True) if rule.layers else [leaves]
    for name, (down, up, alpha) in zip(rule.names, layers, strict=True):
      if alpha == 0:  # a layer of the stack that has none
        continue
      module = name.removesuffix(".weight")
      tensors[f"{PREFIX}{module}.lora_A.weight"] = np.ascontiguousarray(down.T)
      tensors[f"{PREFIX}{module}.lora_B.weight"] = np.ascontiguousarray(up.T)
      scales[module] = (down.shape[-1], float(alpha))
  if not scales:
    raise UserError("There is no adapter to write.")
  (rank, alpha), _ = collections.Counter(scales.values()).most_common(1)[0]
  settings = dict(
    r=rank, lora_alpha=alpha, target_modules=sorted(scales), bias="none", peft_type="LORA",
    rank_pattern={name: r for name, (r, _) in scales.items() if r != rank},
    alpha_pattern={name: a for name, (_, a) in scales.items() if a != alpha},
  )  # fmt: skip
  header = json.dumps({PREFIX + name: value for name, value in settings.items()}, sort_keys=True)
  path = Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
  try:
    temporary.write_bytes(save(tensors, {"format": "pt", METADATA: header}))
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)


def check(params: Params, rules: Sequence[Rule]) -> None:
  """Raises UserError: a layer that the published model does not have has an adapter."""
  known = {rule.ours.removesuffix("/kernel") for rule in _linear(rules)}
  layers = {name.rpartition("/")[0] for name in flatten(lora.adapter_of(params))}
  if unknown := layers - known:
    raise UserError(
      f"The layer {min(unknown)} has no published counterpart: leave it out of the adapter "
      "(lora.targets)."
    )


def _linear(rules: Sequence[Rule]) -> list[Rule]:
  """The rules of linear maps: published kernels are (out, in), ours (in, out)."""
  return [rule for rule in rules if rule.to_ours is np.transpose]


def _aliases(module: str) -> list[str]:
  original = module
  for theirs, name in ORIGINAL:
    original = original.replace(theirs, name)
  return [
    module, PREFIX + module, f"base_model.model.{module}", f"diffusion_model.{original}",
    "lora_unet_" + original.replace(".", "_"),
  ]  # fmt: skip


def _load(path: Path) -> tuple[dict[str, np.ndarray], Mapping[str, Any]]:
  """Tensors, and peft's settings (`LoraConfig`), as far as the file has any."""
  if path.is_dir():
    names = (FILE, "adapter_model.safetensors")
    path = next((path / name for name in names if (path / name).is_file()), path / FILE)
  if path.suffix != ".safetensors":
    raise UserError(f"{path} is no .safetensors file: other formats can run code and are not read.")
  if not path.is_file():
    raise UserError(f"There is no adapter {path}.")
  try:
    tensors = {name: _wide(x) for name, x in Weights(header(path)).items()}
    with safe_open(path, "numpy") as file:
      stored = (file.metadata() or {}).get(METADATA, "{}")
    beside = path.with_name("adapter_config.json")
    settings = json.loads(stored) or (json.loads(beside.read_text()) if beside.is_file() else {})
    settings = _checked(settings)
  except (SafetensorError, OSError, ValueError, *UNREADABLE) as error:
    raise UserError(f"{path} is damaged ({error}): get it again.") from error
  if settings.get("use_dora"):
    raise UserError(f"{path} is a DoRA adapter, which this version does not read.")
  return tensors, settings


def _wide(x: np.ndarray) -> np.ndarray:
  """A copy, of float8 in float32, which numpy computes with."""
  return np.array(x, np.float32 if x.dtype.itemsize == 1 else x.dtype)


def _checked(settings: Any) -> dict[str, Any]:
  """peft's settings without the prefix of their names. Raises ValueError: they make no sense."""
  if not isinstance(settings, dict):
    raise ValueError("its settings are no object")
  settings = {name.removeprefix(PREFIX): value for name, value in settings.items()}
  patterns = settings.setdefault("alpha_pattern", {})
  if not isinstance(patterns, dict):
    raise ValueError("its alpha_pattern is no object")
  for name, alpha in {"lora_alpha": settings.get("lora_alpha", 1), **patterns}.items():
    if not isinstance(alpha, int | float) or not math.isfinite(alpha):
      raise ValueError(f"the alpha of {name} is {alpha!r}, no finite number")
  for pattern in patterns:
    try:
      re.compile(pattern)
    except re.error as error:
      raise ValueError(f"{pattern!r} in its alpha_pattern is no regular expression") from error
  return settings


def _alpha(settings: Mapping[str, Any], module: str) -> Callable[[int], float]:
  """Rank -> alpha of a module, by peft's settings."""

  def alpha(rank: int) -> float:
    patterns = settings["alpha_pattern"].items()
    own = (a for pattern, a in patterns if re.match(rf"(.*\.)?({pattern})$", module))
    value = next(own, settings.get("lora_alpha", rank))
    return value * rank**0.5 if settings.get("use_rslora") else value

  return alpha


def _pair(
  module: str, parts: Mapping[str, np.ndarray], kernel: Sequence[int],
  alpha: Callable[[int], float],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
  """Our leaves of one layer, checked."""
  for part, name in (("down", "lora_A"), ("up", "lora_B")):
    if part not in parts:
      raise UserError(f"The adapter lacks the tensor {module}.{name}.weight.")
  down, up = parts["down"], parts["up"]
  wide = " x ".join(map(str, kernel))
  if down.ndim != 2 or up.ndim != 2 or down.shape[0] != up.shape[1]:
    raise UserError(
      f"The two halves of the adapter of {module} disagree about its rank: {down.shape} and "
      f"{up.shape}."
    )
  if not down.shape[0]:
    raise UserError(f"The adapter of {module} has rank 0: leave it out.")
  if (down.shape[1], up.shape[0]) != tuple(kernel):
    raise UserError(
      f"The adapter of {module} is of another model: its map is {down.shape[1]} x {up.shape[0]} "
      f"where this model's is {wide}."
    )
  value = parts["alpha"] if "alpha" in parts else alpha(down.shape[0])
  with np.errstate(over="ignore"):
    value = np.asarray(value, np.float32)
  if value.size != 1 or not np.isfinite(value).all():
    raise UserError(f"The alpha of the adapter of {module} is no one finite number: get it again.")
  return down.T, up.T, value.reshape(())


def _stack(
  pairs: Mapping[int, tuple[np.ndarray, ...]], rule: Rule, layers: Mapping[int, tuple[str, Any]]
) -> list[np.ndarray]:
  """One layer's leaves, or those of a stack, with zeros for the layers that have none."""
  if not rule.layers:
    return [np.ascontiguousarray(x) for x in pairs[0]]
  first = min(pairs)
  for i, pair in pairs.items():
    if pair[0].shape != pairs[first][0].shape:
      raise UserError(
        f"The adapter of {layers[i][0]} has rank {pair[0].shape[1]} and that of "
        f"{layers[first][0]} {pairs[first][0].shape[1]}: layers must have one rank."
      )
  nothing = [np.zeros_like(x) for x in pairs[first]]
  every = [pairs.get(i, nothing) for i in range(rule.layers)]
  return [np.stack(x) for x in zip(*every, strict=True)]
