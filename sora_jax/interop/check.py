"""Whether published weights are what their config says, and compute what their reference computes.

The structural half reads headers only. The other one runs the reference implementation in torch,
which nothing else here does, and gives each of our blocks the input that the reference's got.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sora_jax.errors import UserError
from sora_jax.interop import convert, published, t5, wan_dit, wan_vae
from sora_jax.interop.folders import read_json
from sora_jax.interop.published import Component
from sora_jax.models.dit import Block, DiT, blank_tokens
from sora_jax.models.patch import grid_shape, patchify, rope_angles, unpatchify
from sora_jax.models.t5 import T5Encoder
from sora_jax.models.tokens import Tokens
from sora_jax.models.vae import VideoVAE
from sora_jax.parallel import sharding
from sora_jax.typing import Params

REFERENCES = ("torch", "diffusers", "transformers")
TOLERANCE = 1e-4  # relative error of a layer in float32
Errors = Iterator[tuple[str, float]]  # layer, relative error of its output


@dataclass(frozen=True)
class Structure:
  """What a component's files hold; all of it was found to fit the model.

  Attributes:
    component: its name. kind: its published class. tensors, parameters, bytes: how many.
    dtypes: tensors of each type.
  """

  component: str
  kind: str
  tensors: int
  parameters: int
  bytes: int
  dtypes: dict[str, int]


def structure(source: Path) -> list[Structure]:
  """Checks names, shapes and sizes of all tensors of a model or a component, in either layout.

  Raises:
    UserError: a file is damaged, or a tensor is missing, left over or of another shape.
  """
  if convert.is_published(source):
    found = [
      (place.section, kind_of(folder), published.read_component(folder))
      for place, folder in convert.published_components(source).items()
    ]
  else:
    found = [
      (place.section, contract_kind(theirs), component)
      for place, (_, theirs, component) in convert.own_components(source).items()
    ]
  return [_structure(*entry) for entry in found]


def _structure(name: str, kind: str, component: Component) -> Structure:
  tensors = list(component.tensors.values())
  return Structure(
    component=name,
    kind=kind,
    tensors=len(tensors),
    parameters=sum(x.size for x in jax.tree.leaves(component.shapes)),
    bytes=sum(x.nbytes for x in tensors),
    dtypes=dict(Counter(str(x.dtype) for x in tensors)),
  )


def kind_of(folder: Path) -> str:
  """The class a component's config.json names."""
  return contract_kind(read_json(folder / "config.json"))


def contract_kind(config: dict[str, Any]) -> str:
  """The class of a config.json."""
  return config.get("_class_name") or config["architectures"][0]


def missing_references() -> list[str]:
  """The packages that comparing needs and that are not installed."""
  return [name for name in REFERENCES if importlib.util.find_spec(name) is None]


def parity(folder: Path, seed: int = 0) -> Errors:
  """Runs a component in the hub's layout beside its reference, both in float32, layer by layer.

  Raises:
    UserError: there is no comparison for its class.
  """
  kind, component = kind_of(folder), published.read_component(folder)
  if kind not in PROBES:
    raise UserError(f"{folder} is a {kind}, for which no comparison with the reference exists.")
  params = component.place(sharding.make_mesh({}, jax.local_devices()))
  yield from PROBES[kind](folder, component.module, params, np.random.default_rng(seed))


def error_of(got: Any, expected: Any) -> float:
  """Relative error in the Euclidean norm."""
  got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
  return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


def _wan_transformer(folder: Path, dit: DiT, params: Params, rng: np.random.Generator) -> Errors:
  """Each block on the reference's own input, then the whole transformer."""
  import torch
  from diffusers import WanTransformer3DModel

  reference = WanTransformer3DModel.from_pretrained(folder, torch_dtype=torch.float32).eval()
  grid = (3 * dit.patch[0], 2 * dit.patch[1], 3 * dit.patch[2])
  latents = rng.normal(size=(1, *grid, dit.channels)).astype(np.float32)
  text = rng.normal(size=(1, 7, dit.text_width)).astype(np.float32)
  seen: list[tuple[Any, Any]] = []
  for block in reference.blocks:
    block.register_forward_hook(lambda _, given, made: seen.append((given, made)))
  with torch.no_grad():
    moved = torch.tensor(np.moveaxis(latents, -1, 1))
    expected = reference(moved, torch.tensor([731.0]), torch.tensor(text)).sample
  tokens = _tokens(dit, latents, text, 0.731)
  block = Block(dit.width, dit.heads, dit.mlp_width, dit.eps)
  angles = rope_angles(tokens.positions, tokens.period, dit.width // dit.heads)
  run = jax.jit(lambda layer, *inputs: block.apply({"params": layer}, *inputs, angles)[0])
  for i, ((x, states, modulation, *_), made) in enumerate(seen):
    layer = jax.tree.map(lambda leaf, i=i: leaf[i], params["blocks"])
    got = run(layer, x.numpy(), modulation.numpy()[:, None], tokens, states.numpy())
    yield f"blocks.{i}", error_of(got, made.numpy())
  velocity = jax.jit(dit.apply)({"params": params}, tokens)
  yield "whole", error_of(unpatchify(velocity, grid, dit.patch), _channels_last(expected))


def _tokens(dit: DiT, latents: np.ndarray, text: np.ndarray, level: float) -> Tokens:
  t, h, w = grid_shape(latents.shape[1:4], dit.patch)
  places = np.stack(np.meshgrid(*map(np.arange, (t, h, w)), indexing="ij"), -1).reshape(1, -1, 3)
  ones = jnp.ones((1, t * h * w), jnp.int32)
  return dataclasses.replace(
    blank_tokens(dit), values=patchify(jnp.asarray(latents), dit.patch),
    positions=jnp.asarray(places, jnp.float32), period=0.0 * ones, segments=ones, block=0 * ones,
    cond=jnp.full((1, 1, 1), level), cond_index=0 * ones, text=jnp.asarray(text),
    text_ids=jnp.ones(text.shape[:2], jnp.int32), prompt=ones,
  )  # fmt: skip


def _wan_vae(folder: Path, vae: VideoVAE, params: Params, rng: np.random.Generator) -> Errors:
  """The encoder, and the decoder of what the reference's encoder made."""
  import torch
  from diffusers import AutoencoderKLWan

  reference = AutoencoderKLWan.from_pretrained(folder, torch_dtype=torch.float32).eval()
  size = (vae.time_stride + 1, *[2 * vae.space_stride] * 2, vae.channels)
  video = rng.uniform(-1, 1, (1, *size)).astype(np.float32)
  with torch.no_grad():
    latents = reference.encode(torch.tensor(np.moveaxis(video, -1, 1))).latent_dist.mean
    pixels = reference.decode(latents).sample
  run = lambda method, x: jax.jit(  # noqa: E731
    lambda params, x: vae.apply({"params": params}, x, method=method)
  )(params, x)
  yield "encoder", error_of(run(vae.encode, video)[0], _channels_last(latents))
  decoded = jnp.clip(run(vae.decode, _channels_last(latents)), -1, 1)  # as the reference does
  yield "decoder", error_of(decoded, _channels_last(pixels))


def _text_encoder(
  folder: Path, encoder: T5Encoder, params: Params, rng: np.random.Generator
) -> Errors:
  """The whole encoder, on a prompt with padding after it."""
  import torch
  import transformers

  kind = getattr(transformers, kind_of(folder))
  reference = kind.from_pretrained(folder, dtype=torch.float32).eval()
  pieces = rng.integers(1, encoder.vocabulary, (1, 24)).astype(np.int32)
  ids = (np.arange(24) < 17).astype(np.int32)[None]
  with torch.no_grad():
    expected = reference(torch.tensor(pieces), torch.tensor(ids)).last_hidden_state.numpy()
  got = jax.jit(encoder.apply)({"params": params}, pieces, ids)
  yield "whole", error_of(got[:, :17], expected[:, :17])


def _channels_last(x: Any) -> np.ndarray:
  return np.moveaxis(x.numpy(), 1, -1)


PROBES: dict[str, Callable[[Path, Any, Params, np.random.Generator], Errors]] = {
  wan_dit.NAME: _wan_transformer,
  wan_vae.NAME: _wan_vae,
  **dict.fromkeys(t5.NAMES, _text_encoder),
}
