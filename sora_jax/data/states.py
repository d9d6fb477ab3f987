"""States of a text encoder that is not trained: computed once, and kept beside the latents."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax.sharding import Mesh

from sora_jax.models.text import NOTHING, Encoder, Prompts
from sora_jax.parallel import sharding
from sora_jax.typing import Float, Params

ROWS = 16  # prompts at a time
Read = Callable[[Iterable[str]], dict[str, Float[np.ndarray, "s e"]]]


@dataclass(frozen=True)
class Reader:
  """A text encoder whose weights are not in memory yet.

  Attributes:
    encoder, prompts: the module and its tokenizer.
    tensors: its weights, which tell it from others.
    place: puts its parameters on a mesh.
  """

  encoder: Encoder
  prompts: Prompts
  tensors: Mapping[str, np.ndarray]
  place: Callable[[Mesh], Params]

  def identity(self) -> Iterator[bytes | memoryview]:
    """All that the states depend on."""
    prompts = self.prompts
    yield repr(self.encoder).encode()
    yield f"{prompts.tokenizer.to_str()} {prompts.length} {prompts.padded}".encode()
    for name in sorted(self.tensors):
      yield name.encode()
      yield np.ascontiguousarray(self.tensors[name]).reshape(-1).view(np.uint8).data

  def load(self) -> Read:
    """The encoder in memory: texts -> the states of each, in bfloat16.

    What pads prompts has no states (the transformer reads zeros there).
    """
    mesh = sharding.make_mesh({"fsdp": -1}, jax.local_devices())
    params = self.place(mesh)

    @jax.jit
    def apply(params: Params, pieces: Any, ids: Any) -> Any:
      return self.encoder.apply({"params": params}, pieces, ids).astype(jnp.bfloat16)

    def read(texts: Iterable[str]) -> dict[str, np.ndarray]:
      unique = list(dict.fromkeys(texts))
      words = [[p for p in text if p != NOTHING] for text in self.prompts(unique)]
      found: dict[str, Float[np.ndarray, "s e"]] = {}
      for first in range(0, len(unique), ROWS):
        part = words[first : first + ROWS]
        length = 1 << (max(map(len, part)) - 1).bit_length()  # few lengths: few programs
        pieces, ids = np.zeros((2, ROWS, length), np.int32)
        for row, here in enumerate(part):
          pieces[row, : len(here)], ids[row, : len(here)] = here, 1
        with jax.set_mesh(mesh):
          states = np.asarray(apply(params, pieces, ids))
        for text, here, each in zip(unique[first:], part, states, strict=False):
          found[text] = each[: len(here)].astype(ml_dtypes.bfloat16)
      return found

    return read
