"""Surprise: how wrong expected features are, and whether the impossible surprises more.

Garrido et al. 2025 (arXiv:2502.11831), on our worlds. A scorer maps clips to a number per moment;
V-JEPA's is the error of its predictor, which any model's own loss can stand in for.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from sora_jax.data.masks import Masks
from sora_jax.data.transforms import to_float
from sora_jax.errors import UserError
from sora_jax.evals.features import PIECE, in_pieces
from sora_jax.evals.report import Number, Results, proportion
from sora_jax.interop import native
from sora_jax.models.vjepa import VJEPA, standardised, tubelets
from sora_jax.typing import Float, Params, UInt8, Video
from sora_jax.worlds.impossible import Pair

Scorer = Callable[[UInt8[np.ndarray, "b t h w 3"]], Float[np.ndarray, "b s"]]
ALIKE = 1e-4  # of surprise, relative: what rounding makes of two moments that are the same
FUTURE = "future"  # the kind of mask that training asks for the future with


def surprise(
  vjepa: VJEPA, params: Params, video: Video, mask: int, context: int | None
) -> Float[jax.Array, "b s"]:
  """Mean absolute error of the features predicted for each frame of the grid but the first.

  The context is what comes before it, and the truth is what the target encoder makes of it and
  everything before: what comes later changes nothing. Targets that are `centred` lose the mean of
  what is seen up to then; in training it is that of the whole clip.

  Args:
    params: `encoder`, `predictor` and `target`.
    mask: the kind of mask to ask with.
    context: how many tokens the encoder sees at most, as in training (`Masks.counts`): random ones,
      the same in all clips. None: all that come before.
  """
  values, positions = tubelets(video, vjepa.patch)
  chance = jnp.asarray(np.random.default_rng(0).permutation(values.shape[1]))
  times = positions[..., 0].astype(jnp.int32)
  frames = video.shape[1] // vjepa.patch[0]
  size = values.shape[1] // frames
  target = {"params": {"encoder": params["target"]}}
  learned = {"params": {name: params[name] for name in ("encoder", "predictor")}}

  def at(moment: jax.Array) -> jax.Array:
    part = lambda x: jax.lax.dynamic_slice_in_dim(x, moment * size, size, axis=1)  # noqa: E731
    past, present = (times < m for m in (moment, moment + 1))
    if context is not None:
      chances = jnp.where(past[0], chance, chance.size)
      past &= chances <= jnp.sort(chances)[min(context, chance.size) - 1]
    past, present = past.astype(jnp.int32), present.astype(jnp.int32)
    seen = vjepa.apply(learned, values, positions, past, method="encode")
    expected = vjepa.apply(
      learned, seen, positions, part(positions), past, mask=mask, method="predict"
    )
    found = vjepa.apply(target, values, positions, present, method="encode")
    truth = part(standardised(found, present, vjepa.centred))
    return jnp.mean(jnp.abs(expected.astype(jnp.float32) - truth), axis=(1, 2))

  return jax.lax.map(at, jnp.arange(1, frames)).T


_surprise = jax.jit(surprise, static_argnums=(0, 3, 4))


@dataclass(frozen=True, eq=False)
class Surprise:
  """A V-JEPA that is asked what comes next. Attributes: see the function `surprise`."""

  vjepa: VJEPA
  params: Params
  mask: int = 1
  context: int | None = None

  @classmethod
  def load(cls, name: str | os.PathLike[str]) -> Surprise:
    """That of a checkpoint of recipe `vjepa`.

    Raises:
      UserError: there is no such checkpoint, or it was never asked for the future.
    """
    vjepa, params = native.load_vjepa(name)
    training = native.read_config(native.find(name)).get("training", {})  # none if it was converted
    masks = training.get("masks", {})
    kinds = sorted(masks.get("kinds", {}))
    if FUTURE not in kinds:
      known = ", ".join(kinds) or "none"
      raise UserError(
        f"The V-JEPA {name} was never asked for what comes next: its kinds of mask must include "
        f"{FUTURE!r}, and are {known}. Train one with configs/vjepa_toy.py."
      )
    context, _ = Masks(
      grid=vjepa.grid, context=masks["context"], targets=masks["targets"], kinds={}
    ).counts
    return cls(vjepa, params, kinds.index(FUTURE), context)

  def surprise(self, clips: UInt8[np.ndarray, "b t h w 3"]) -> Float[np.ndarray, "b s"]:
    """Of each frame of the grid but the first; last frames that fill no patch are left out."""
    frames = clips.shape[1] // self.vjepa.patch[0] * self.vjepa.patch[0]
    ask = lambda x: _surprise(self.vjepa, self.params, to_float(x), self.mask, self.context)  # noqa: E731
    return in_pieces(ask, clips[:, :frames])


def expectation(scorer: Scorer, pairs: Iterable[Pair]) -> Results:
  """Share of pairs whose impossible clip surprises more, by its largest and by its mean surprise.

  Of moments that the clips of a pair have in common, which surprise alike, neither is taken: the
  largest one would often be such. A pair of which nothing else is left is a tie and counts half, so
  that chance is one half whatever the scorer. Metrics are "max" and "mean", of all pairs, of each
  setting ("hidden", "open") and of each kind; rows hold both numbers of a pair.
  """
  rows: list[dict[str, Any]] = []
  remaining = iter(pairs)
  while some := list(islice(remaining, PIECE // 2)):
    clips = np.stack([clip for pair in some for clip in (pair.possible, pair.impossible)])
    for pair, scores in zip(
      some, rearrange(scorer(clips), "(b two) s -> b two s", two=2), strict=True
    ):
      row: dict[str, Any] = {"id": pair.id, "kind": pair.kind, "event": pair.event}
      own = ~np.isclose(scores[0], scores[1], rtol=ALIKE, atol=0)
      for name, reduce in (("max", np.max), ("mean", np.mean)):
        possible, impossible = (float(reduce(x[own])) if own.any() else 0.0 for x in scores)
        row[name] = {"possible": possible, "impossible": impossible}
      rows.append(row)
  return Results(told_apart(rows), rows)


def told_apart(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Number]]:
  """The metrics of `expectation`, of some of its rows."""
  kinds = {row["kind"] for row in rows}
  groups = ["all", *sorted({kind.partition("_")[0] for kind in kinds} | kinds)]
  return {
    name: {
      group: proportion(
        float(np.heaviside(row[name]["impossible"] - row[name]["possible"], 0.5))
        for row in rows
        if group in ("all", row["kind"], row["kind"].partition("_")[0])
      )
      for group in groups
    }
    for name in ("max", "mean")
  }
