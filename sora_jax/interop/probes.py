"""Our modules beside the reference implementations, on the same random inputs, in float32.

Each of our blocks gets the input that the reference's block got, so an error is shown where it is
made. This is the only file that runs torch, and `sora-jax convert --check` the only one to use it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sora_jax.interop import (
  dit_xl,
  published,
  sd_vae,
  t5,
  vjepa2,
  vjepa2_classifier,
  wan_dit,
  wan_vae,
)
from sora_jax.interop.folders import read_json
from sora_jax.models import dit_class
from sora_jax.models.dit import Block, DiT, blank_tokens
from sora_jax.models.dit_class import ClassDiT
from sora_jax.models.image_vae import ImageVAE
from sora_jax.models.patch import grid_shape, patchify, rope_angles, unpatchify
from sora_jax.models.t5 import T5Encoder
from sora_jax.models.tokens import Tokens
from sora_jax.models.vae import VideoVAE
from sora_jax.models.vjepa import VJEPA, VideoClassifier, tubelets
from sora_jax.typing import Params

Errors = Iterator[tuple[str, float]]  # layer, relative error of its output
Probe = Callable[[Path, Any, Params, np.random.Generator], Errors]


def error_of(got: Any, expected: Any) -> float:
  """Relative error in the Euclidean norm."""
  got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
  return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


def _reference(folder: Path) -> Any:
  """The reference implementation of a component, with its weights."""
  import diffusers
  import torch
  import transformers

  config = read_json(folder / "config.json")
  library: ModuleType = diffusers
  key = "torch_dtype"
  if "architectures" in config:
    library, key = transformers, "dtype"
  kind = getattr(library, str(published.class_of(config)))
  return kind.from_pretrained(folder, **{key: torch.float32}).eval()


def _wan_transformer(folder: Path, dit: DiT, params: Params, rng: np.random.Generator) -> Errors:
  """Each block, then the whole transformer."""
  import torch

  reference = _reference(folder)
  grid = (3 * dit.patch[0], 2 * dit.patch[1], 3 * dit.patch[2])
  latents = rng.normal(size=(1, *grid, dit.channels)).astype(np.float32)
  text = rng.normal(size=(1, 7, dit.text_width)).astype(np.float32)
  seen: list[tuple[Any, Any]] = []
  for block in reference.blocks:
    block.register_forward_hook(lambda _, given, made: seen.append((given, made)))
  with torch.no_grad():
    expected = reference(_moved(latents), torch.tensor([731.0]), torch.tensor(text)).sample
  tokens = _tokens(dit, latents, text, 0.731)
  block = Block(dit.width, dit.heads, dit.mlp_width, dit.eps)
  angles = rope_angles(tokens.positions, tokens.period, dit.width // dit.heads)
  run = jax.jit(lambda layer, *inputs: block.apply({"params": layer}, *inputs, angles)[0])
  for i, ((x, states, modulation, *_), made) in enumerate(seen):
    layer = _layer(params, i)
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


def _class_transformer(
  folder: Path, dit: ClassDiT, params: Params, rng: np.random.Generator
) -> Errors:
  """Each block, then the whole transformer."""
  import torch

  reference = _reference(folder)
  x = rng.normal(size=(1, dit.size, dit.size, dit.channels)).astype(np.float32)
  time, label = np.array([731]), np.array([dit.classes // 2])
  seen: list[tuple[Any, Any]] = []
  embedded: list[Any] = []
  for block in reference.transformer_blocks:
    block.register_forward_hook(lambda _, given, made: seen.append((given[0], made)))
    block.norm1.emb.register_forward_hook(lambda _, given, made: embedded.append(made))
  with torch.no_grad():
    expected = reference(_moved(x), torch.tensor(time), torch.tensor(label)).sample
  hidden = int(dit.width * dit.mlp_ratio)
  block = dit_class.Block(dit.width, dit.heads, hidden, dit.eps, dit.mlp_eps)
  run = jax.jit(lambda layer, x, c: block.apply({"params": layer}, x, jax.nn.silu(c))[0])
  for i, (given, made) in enumerate(seen):
    got = run(_layer(params, i), given.numpy(), embedded[i].numpy())
    yield f"blocks.{i}", error_of(got, made.numpy())
  got = jax.jit(dit.apply)({"params": params}, x, time.astype(np.float32), label)
  yield "whole", error_of(got, _channels_last(expected))


def _autoencoder(
  folder: Path, vae: VideoVAE | ImageVAE, params: Params, rng: np.random.Generator
) -> Errors:
  """The encoder, and the decoder of what the reference's encoder made."""
  import torch

  reference = _reference(folder)
  frames = (vae.time_stride + 1,) if isinstance(vae, VideoVAE) else ()
  size = (1, *frames, *[2 * vae.space_stride] * 2, vae.channels)
  pixels = rng.uniform(-1, 1, size).astype(np.float32)
  with torch.no_grad():
    latents = reference.encode(_moved(pixels)).latent_dist.mean
    expected = reference.decode(latents).sample
  run = lambda method, x: jax.jit(  # noqa: E731
    lambda params, x: vae.apply({"params": params}, x, method=method)
  )(params, x)
  yield "encoder", error_of(run(vae.encode, pixels)[0], _channels_last(latents))
  decoded = run(vae.decode, _channels_last(latents))
  if isinstance(vae, VideoVAE):  # the reference of these clips
    decoded = jnp.clip(decoded, -1, 1)
  yield "decoder", error_of(decoded, _channels_last(expected))


def _text_encoder(
  folder: Path, encoder: T5Encoder, params: Params, rng: np.random.Generator
) -> Errors:
  """The whole encoder, on a prompt with padding after it."""
  import torch

  reference = _reference(folder)
  pieces = rng.integers(1, encoder.vocabulary, (1, 24)).astype(np.int32)
  ids = (np.arange(24) < 17).astype(np.int32)[None]
  with torch.no_grad():
    expected = reference(torch.tensor(pieces), torch.tensor(ids)).last_hidden_state.numpy()
  got = jax.jit(encoder.apply)({"params": params}, pieces, ids)
  yield "whole", error_of(got[:, :17], expected[:, :17])


def _vjepa(folder: Path, model: VJEPA, params: Params, rng: np.random.Generator) -> Errors:
  """The encoder of a clip; the predictor, of the reference's features of half of its patches."""
  import torch

  video, (values, positions) = _clip(model, rng)
  order = rng.permutation(values.shape[1])[None]
  shown, hidden = np.array_split(order, 2, axis=1)
  with torch.no_grad():
    made = _reference(folder)(torch.tensor(video), [torch.tensor(shown)], [torch.tensor(hidden)])
  features, expected = made.last_hidden_state, made.predictor_output.last_hidden_state
  run = lambda method, *inputs: jax.jit(  # noqa: E731
    lambda params, *inputs: model.apply({"params": params}, *inputs, method=method)
  )(params, *inputs)
  yield "encoder", error_of(run("encode", values, positions), features.numpy())
  context = features.numpy()[:, shown[0]]
  got = run("predict", context, positions[:, shown[0]], positions[:, hidden[0]])
  yield "predictor", error_of(got, expected.numpy())


def _video_classifier(
  folder: Path, model: VideoClassifier, params: Params, rng: np.random.Generator
) -> Errors:
  """The logits of a clip."""
  import torch

  video, tokens = _clip(model.vjepa, rng)
  with torch.no_grad():
    expected = _reference(folder)(torch.tensor(video)).logits.numpy()
  yield "whole", error_of(jax.jit(model.apply)({"params": params}, *tokens), expected)


def _clip(model: VJEPA, rng: np.random.Generator) -> tuple[np.ndarray, tuple[Any, Any]]:
  """A short clip, as the reference reads it and as patches with their positions."""
  size = (1, 2 * model.patch[0], model.size, model.size, model.channels)
  video = rng.normal(size=size).astype(np.float32)
  return np.moveaxis(video, -1, 2), tubelets(jnp.asarray(video), model.patch)


def _layer(params: Params, i: int) -> Params:
  return jax.tree.map(lambda leaf: leaf[i], params["blocks"])


def _moved(x: np.ndarray) -> Any:
  """A tensor of torch, channels first."""
  import torch

  return torch.tensor(np.moveaxis(x, -1, 1))


def _channels_last(x: Any) -> np.ndarray:
  return np.moveaxis(x.numpy(), 1, -1)


PROBES: dict[str, Probe] = {
  name: probe
  for contract, probe in (
    (wan_dit, _wan_transformer),
    (wan_vae, _autoencoder),
    (t5, _text_encoder),
    (dit_xl, _class_transformer),
    (sd_vae, _autoencoder),
    (vjepa2, _vjepa),
    (vjepa2_classifier, _video_classifier),
  )
  for name in published.classes(contract)
}
