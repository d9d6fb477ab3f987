"""Our own checkpoint folder: what ships, what `--checkpoint` reads and what training exports.

  config.json            the fields of every component, and where the weights come from
  vae.safetensors        one file of weights per component
  transformer.safetensors
  training.jsonl         the log of the run that made it

A folder may hold some of the components only (an autoencoder has no transformer).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from safetensors.numpy import save as to_bytes

from sora_jax.errors import UserError
from sora_jax.interop import published
from sora_jax.interop.folders import read_json, write_json, written
from sora_jax.interop.names import flatten, unflatten
from sora_jax.interop.shards import Weights, header
from sora_jax.models.vae import VideoVAE
from sora_jax.models.vjepa import VJEPA
from sora_jax.models.vqvae import VQVAE
from sora_jax.typing import Params


def find(name: str | os.PathLike[str]) -> Path:
  """The folder of a checkpoint: a path, or the name of one that ships with the package.

  Raises:
    UserError: there is no such checkpoint.
  """
  if not str(name):
    raise UserError("No checkpoint is named: give a folder, or the name of a shipped one.")
  path = Path(name)
  if (path / "config.json").is_file() or (path / "model_index.json").is_file():
    return path
  shipped = Path(str(resources.files("sora_jax"))) / "checkpoints"
  if (shipped / str(name) / "config.json").is_file():
    return shipped / str(name)
  if path.is_dir():
    raise UserError(f"{path} holds no config.json: give a folder that training exported.")
  names = sorted(p.name for p in shipped.iterdir()) if shipped.is_dir() else []
  raise UserError(
    f"There is no checkpoint '{name}': give a folder, or a shipped one ({', '.join(names)})."
  )


def read_config(folder: Path) -> dict[str, Any]:
  """The content of `config.json`.

  Raises:
    UserError: it is damaged.
  """
  return read_json(folder / "config.json")


def read_component(folder: Path, component: str) -> Params:
  """Float32 weights of one component, as nested dicts.

  Raises:
    UserError: the file is missing or damaged.
  """
  tensors = open_weights(folder, component)
  return unflatten({name: np.array(x, np.float32) for name, x in tensors.items()})


def open_weights(folder: Path, component: str) -> Weights:
  """The weights of one component by their paths, as stored; each is read when it is asked for.

  Raises:
    UserError: the file is missing or damaged.
  """
  file = folder / f"{component}.safetensors"
  if not file.is_file():
    raise UserError(f"The checkpoint {folder} has no {component}: give one that does.")
  return Weights(header(file))


def files(folder: Path, *components: str) -> dict[str, Path]:
  """The files of components, for `save` to copy as they are.

  Raises:
    UserError: one is missing or damaged.
  """
  for component in components:
    open_weights(folder, component)
  return {f"{name}.safetensors": folder / f"{name}.safetensors" for name in components}


def load_vae(name: str | os.PathLike[str]) -> tuple[VideoVAE, Params]:
  """The autoencoder of a checkpoint, which need not hold anything else.

  Raises:
    UserError: there is no such checkpoint, or it has no autoencoder, or one without statistics.
  """
  folder = find(name)
  config = read_config(folder)
  if "vae" not in config:
    raise UserError(f"The checkpoint {folder} has no autoencoder; give one that has.")
  vae = published.built(VideoVAE, config["vae"])
  if vae.latent_mean is None:
    raise UserError(f"The autoencoder of {folder} has no latent statistics: export it again.")
  return vae, load_fitting(folder, "vae", vae, jnp.zeros((1, 1, 64, 64, 3)), jax.random.key(0))


def load_vjepa(name: str | os.PathLike[str]) -> tuple[VJEPA, Params]:
  """The V-JEPA of a checkpoint: `encoder`, `predictor` and `target`, the encoder of the targets.

  A published one, converted, has one encoder, which is both.

  Raises:
    UserError: there is no such checkpoint, or it holds no V-JEPA.
  """
  folder = find(name)
  config = read_config(folder)
  if "vjepa" not in config:
    raise UserError(f"The checkpoint {folder} has no V-JEPA; give one that recipe vjepa exported.")
  model = published.built(VJEPA, config["vjepa"])
  values = jnp.zeros((1, 1, int(np.prod(model.patch)) * model.channels))
  like = shapes(model, values, *2 * (jnp.zeros((1, 1, 3)),))
  if any(name.startswith("target/") for name in open_weights(folder, "vjepa")):
    like["target"] = like["encoder"]
  params = jax.tree.map(jnp.asarray, load_params(folder, "vjepa", like))
  return model, {"target": params["encoder"]} | params


def load_vqvae(name: str | os.PathLike[str]) -> tuple[VQVAE, Params]:
  """The discrete autoencoder of a checkpoint, which need not hold anything else.

  Raises:
    UserError: there is no such checkpoint, or it has no discrete autoencoder.
  """
  folder = find(name)
  config = read_config(folder)
  if "vqvae" not in config:
    raise UserError(
      f"The checkpoint {folder} has no discrete autoencoder; give one that recipe vqvae exported."
    )
  model = published.built(VQVAE, config["vqvae"])
  return model, load_fitting(folder, "vqvae", model, jnp.zeros((1, 1, 64, 64, 3)))


def shapes(module: Any, *inputs: Any) -> Params:
  """Of a module's parameters, as `jax.ShapeDtypeStruct`s; `inputs` are what it is called with."""
  return dict(jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"])


def load_fitting(folder: Path, component: str, module: Any, *inputs: Any) -> Params:
  """The weights of a component, which are those of `module`. See `load_params` and `shapes`."""
  return jax.tree.map(jnp.asarray, load_params(folder, component, shapes(module, *inputs)))


def load_params(name: str | os.PathLike[str], component: str, like: Params) -> Params:
  """Weights of one component, checked against the shapes of `like`.

  Raises:
    UserError: the checkpoint is of another model.
  """
  folder = find(name)
  params = read_component(folder, component)
  found = {path: tuple(x.shape) for path, x in flatten(params).items()}
  wanted = {path: tuple(x.shape) for path, x in flatten(like).items()}
  if found != wanted:
    path = min(p for p in found.keys() | wanted.keys() if found.get(p) != wanted.get(p))
    raise UserError(
      f"The {component} of {folder} does not fit the config: {path} is {found.get(path)} there "
      f"and {wanted.get(path)} here."
    )
  return params


def save(
  folder: str | os.PathLike[str],
  components: Mapping[str, Params],
  config: Mapping[str, Any],
  files: Mapping[str, Path] | None = None,
  dtype: Any = ml_dtypes.bfloat16,
) -> None:
  """Writes a checkpoint folder, replacing an older one only when everything is on disk.

  Args:
    components: weights by component. config: goes to config.json.
    files: further files to copy, by the name they get.
    dtype: of the stored weights.
  """
  with written(folder, replace=True) as temporary:
    for name, params in components.items():
      flat = flatten(jax.device_get(params))
      arrays = {path: np.ascontiguousarray(np.asarray(x).astype(dtype)) for path, x in flat.items()}
      (temporary / f"{name}.safetensors").write_bytes(to_bytes(arrays))
    write_json(temporary / "config.json", dict(config))
    for name, source in (files or {}).items():
      shutil.copyfile(source, temporary / name)
