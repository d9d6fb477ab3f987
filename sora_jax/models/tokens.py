"""The one interface of the transformer: a sequence of spacetime tokens.

Everything the model knows about videos, images, sizes, given or missing frames, loops, storyboards
and streaming is said through these fields, so no task has a code path of its own.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from sora_jax.typing import Array, Float, Int


@struct.dataclass
class Tokens:
  """A batch of token sequences. Several samples may be packed into one sequence.

  Attributes:
    values: patch contents; noisy, or clean where they are known.
    positions: (time, row, column). Time is in latent frames at `REFERENCE_FPS`, so the frame rate
      is only the spacing; rows and columns are in patches.
    period: length of the circle of time, in the unit of time; 0 means time is a line.
    segments: the sample a token belongs to, from 1; 0 is padding. Segments never see each other.
    block: a token attends to tokens of its segment whose block is not later than its own. All 0 is
      full attention; growing with time is block-causal attention.
    cond: conditioning rows. Feature 0 is the noise level in [0, 1] (0 = clean, so *known*); the
      others are whatever the model was built for (see `diffusion.conditioning`).
    cond_index: the conditioning row each token uses.
    text: text encoder states of all prompts of the sequence, one after the other.
    text_ids: the prompt a text state belongs to, from 1; 0 is padding.
    prompt: the prompt a token reads; 0 reads none (the unconditional model).
  """

  values: Float[Array, "b n p"]
  positions: Float[Array, "b n 3"]
  period: Float[Array, "b n"]
  segments: Int[Array, "b n"]
  block: Int[Array, "b n"]
  cond: Float[Array, "b k c"]
  cond_index: Int[Array, "b n"]
  text: Float[Array, "b s e"]
  text_ids: Int[Array, "b s"]
  prompt: Int[Array, "b n"]

  def noise_level(self) -> Float[Array, "b n"]:
    """The noise level of every token, looked up in the conditioning table."""
    return select_rows(self.cond[..., :1], self.cond_index)[..., 0]


FEW = 4  # rows


def select_rows(table: Float[Array, "b k m"], index: Int[Array, "b n"]) -> Float[Array, "b n m"]:
  """Looks up each token's row.

  Of a few rows each is asked for in turn, which XLA makes part of whatever the result goes into;
  of more it is a one-hot product, which is written out. The backward of neither is a scatter.
  """
  rows = table.shape[1]
  if rows > FEW:
    one_hot = jax.nn.one_hot(index, rows, dtype=table.dtype)
    return jnp.einsum("bnk,bkm->bnm", one_hot, table, precision="highest")
  out = jnp.broadcast_to(table[:, :1], (*index.shape, table.shape[2]))
  for row in range(1, rows):
    out = jnp.where((index == row)[..., None], table[:, row : row + 1], out)
  return out
