"""Attentive probes: what can be read off frozen features. Colour, shape, and where the object is.

The probe of V-JEPA (arXiv:2404.08471, section 4.1): cross-attention with a learned query, an MLP
and a linear head; one for what the main object of a clip is, and one, used at each frame of the
grid, for where. Unlike the published one it first maps features to a width of its own and is told
the place of each token, so that raw pixels and random encoders are read on equal terms.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from einops import rearrange

from sora_jax.errors import UserError
from sora_jax.evals.controls import main_mask
from sora_jax.evals.features import (
  PIECE,
  Clips,
  Encode,
  effective_rank,
  frozen,
  pixels,
  spread,
)
from sora_jax.evals.report import Number, Results, proportion
from sora_jax.interop import native
from sora_jax.models.layers import Dense, position_features
from sora_jax.models.vjepa import VJEPA, AttentivePooler, grid_positions
from sora_jax.typing import Array, Bool, Float, Int, Params, Scalar
from sora_jax.worlds import VOCABULARY, WorldSource
from sora_jax.worlds.distract import distracted

CLASSES = {"colour": VOCABULARY.colours, "shape": VOCABULARY.shapes}
SEED = 1_300_000  # of worlds: the clips that a model was trained on have smaller ones
FEW = 12  # pixels: of an object of which fewer are seen nobody can say where it is
Grid = tuple[int, int, int]


@dataclass(frozen=True)
class Labelled:
  """Clips and what there is to read off them: of the main object, per clip and frame of the grid.

  Attributes:
    classes: index into each of `CLASSES`, n.
    place: row and column of the middle of what is seen of it, as a share of the frame.
    seen: whether enough is seen of it.
  """

  video: Clips
  classes: Mapping[str, Int[np.ndarray, " n"]]
  place: Float[np.ndarray, "n s 2"]
  seen: Bool[np.ndarray, "n s"]

  @classmethod
  def draw(
    cls, count: int, seed: int, split: str, vjepa: VJEPA, distractor: float = 0.0
  ) -> Labelled:
    """Worlds of a split, as long and as large as the clips that a model was trained on.

    Args:
      distractor: share of the picture that is covered with noise (`worlds.distract`).
    """
    source = WorldSource(count, seed, split, vjepa.frames, vjepa.size, vjepa.size, truth=True)
    videos, labels, places, seen = [], [], [], []
    for sample in (source[i] for i in range(count)):
      mask = main_mask(sample["truth"])
      mask = rearrange(mask, "(s p) h w -> s p h w", p=vjepa.patch[0])
      pixels_of = mask.sum((1, 2, 3))
      heights, widths = (np.arange(size) / (size - 1) for size in mask.shape[2:])
      rows = (mask.sum((1, 3)) * heights).sum(1)
      columns = (mask.sum((1, 2)) * widths).sum(1)
      places.append(np.stack([rows, columns], -1) / np.maximum(pixels_of, 1)[:, None])
      seen.append(pixels_of >= FEW)
      videos.append(sample["video"])
      if distractor:
        noise = np.random.default_rng([seed, len(videos)])
        videos[-1] = distracted(videos[-1], distractor, noise)
      labels.append(sample["truth"]["labels"])
    classes = {
      name: np.array([known.index(label[name]) for label in labels], np.int32)
      for name, known in CLASSES.items()
    }
    place = np.stack(places).astype(np.float32)
    return cls(np.stack(videos), classes, place, np.stack(seen))


class Probe(nn.Module):
  """Features of a grid -> logits `colour` and `shape`, b classes, and `place`, b s 2."""

  grid: Grid
  width: int = 128
  heads: int = 4

  @nn.compact
  def __call__(self, features: Float[Array, "b n d"]) -> dict[str, Array]:
    place = position_features(jnp.asarray(grid_positions(self.grid)), 32)[None]
    x = Dense(self.width, name="features_in")(features.astype(jnp.float32))
    x = x + Dense(self.width, name="position_in")(place)
    pooler = functools.partial(
      AttentivePooler, width=self.width, layers=0, heads=self.heads, mlp_width=4 * self.width
    )
    what = pooler(name="what")(x)[:, 0]
    frames = rearrange(x, "b (s n) d -> (b s) n d", s=self.grid[0])
    where = rearrange(pooler(name="where")(frames), "(b s) 1 d -> b s d", s=self.grid[0])
    found = {name: nn.Dense(len(known), name=name)(what) for name, known in CLASSES.items()}
    return found | {"place": 0.5 + nn.Dense(2, name="place")(where)}


def loss(probe: Probe, params: Params, batch: Mapping[str, Array]) -> Scalar:
  """Cross-entropy of both classes, and four times the mean distance where the object is seen."""
  out = probe.apply({"params": params}, batch["features"])
  entropy = optax.softmax_cross_entropy_with_integer_labels
  total = sum((jnp.mean(entropy(out[name], batch[name])) for name in CLASSES), jnp.zeros(()))
  gap = jnp.mean(jnp.abs(out["place"] - batch["place"]), axis=-1) * batch["seen"]
  return total + 4 * jnp.sum(gap) / jnp.maximum(jnp.sum(batch["seen"]), 1)


def train(
  probe: Probe,
  features: Float[np.ndarray, "n m d"],
  labels: Labelled,
  steps: int = 1500,
  batch: int = 32,
  rate: float = 1e-3,
  seed: int = 0,
) -> Params:
  """A probe of frozen features: AdamW, a linear warm-up over a tenth of the steps, a cosine."""
  params = jax.jit(probe.init)(jax.random.key(seed), jnp.asarray(features[:1]))["params"]
  schedule = optax.warmup_cosine_decay_schedule(0.0, rate, max(1, steps // 10), steps)
  optimizer = optax.adamw(schedule, weight_decay=0.01)

  @jax.jit
  def step(params: Params, state: Any, rows: Mapping[str, Array]) -> tuple[Params, Any]:
    grads = jax.grad(functools.partial(loss, probe))(params, rows)
    updates, state = optimizer.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  state, rng = optimizer.init(params), np.random.default_rng(seed)
  for _ in range(steps):
    chosen = rng.integers(len(features), size=batch)
    rows = {name: known[chosen] for name, known in labels.classes.items()}
    rows |= {"place": labels.place[chosen], "seen": labels.seen[chosen]}
    params, state = step(params, state, rows | {"features": features[chosen]})
  return params


def score(
  probe: Probe, params: Params, features: Float[np.ndarray, "n m d"], labels: Labelled
) -> dict[str, Number]:
  """Shares of right answers, and the distance in pixels from where the object is seen."""
  apply = jax.jit(lambda params, x: probe.apply({"params": params}, x))
  parts = [jax.device_get(apply(params, x[None])) for x in features]
  out = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
  found = {
    name: proportion((out[name].argmax(-1) == known).tolist())
    for name, known in labels.classes.items()
  }
  size = np.array(labels.video.shape[2:4]) - 1
  gap = np.linalg.norm((out["place"] - labels.place) * size, axis=-1)[labels.seen]
  distance = {"mean": float(gap.mean()), "std": float(gap.std()), "n": len(gap)}
  return found | {"place_pixels": distance}


def compare(
  encoders: Mapping[str, Encode], grid: Grid, known: Labelled, held_out: Labelled, **settings: Any
) -> Results:
  """One probe for each encoder, trained on `known` and scored on `held_out`; `settings` of `train`.

  Each channel is scaled to zero mean and unit variance over `known`, or a probe of few steps would
  read what is large before what is telling. Features are kept as float16: those of 2,000 clips of
  512 tokens of 192 channels take 400 MB.
  """
  results = Results()
  for name, encode in encoders.items():
    probe = Probe(grid)
    features, other = (encode(x.video).astype(np.float16) for x in (known, held_out))
    mean, std = (f(features, axis=(0, 1), dtype=np.float32) for f in (np.mean, np.std))
    for x in (features, other):
      for clip in x:
        clip[:] = (clip - mean) / (std + 1e-6)
    params = train(probe, features, known, **settings)
    results.metrics[name] = score(probe, params, other, held_out)
  return results


def baselines(vjepa: VJEPA, seed: int = 0) -> dict[str, Encode]:
  """What a trained encoder has to beat: the same with random weights, and raw patches."""
  values = jnp.zeros((1, 1, int(np.prod(vjepa.patch)) * vjepa.channels))
  where = jnp.zeros((1, 1, 3))
  random = jax.jit(vjepa.init)(jax.random.key(seed), values, where, where)["params"]["encoder"]
  return {"random": frozen(vjepa, random), "pixels": pixels(vjepa.patch)}


def suite(name: str | os.PathLike[str], count: int, seed: int) -> Results:
  """What can be read off a V-JEPA's features, of `count` held-out worlds, beside the baselines.

  Probes see four times as many worlds of the training split. Of the features themselves there are
  effective rank and spread.

  Raises:
    UserError: there is no such checkpoint, it is no V-JEPA, or it was trained elsewhere.
  """
  vjepa, params = native.load_vjepa(name)
  if "training" not in native.read_config(native.find(name)):
    raise UserError(
      f"The V-JEPA {name} was trained elsewhere, on pixels normalised otherwise than those of the "
      "suite: probe its features with evals.probe.compare."
    )
  known = Labelled.draw(4 * count, SEED + seed, "train", vjepa)
  held_out = Labelled.draw(count, SEED + seed, "validation", vjepa)
  encoders = {"vjepa": frozen(vjepa, params["target"]), **baselines(vjepa)}
  results = compare(encoders, vjepa.grid, known, held_out, seed=seed)
  for encoder in ("vjepa", "random"):
    features = jnp.asarray(encoders[encoder](held_out.video[:PIECE]))
    results.metrics[encoder] |= {"rank": float(effective_rank(features))}
    results.metrics[encoder] |= {"spread": float(spread(features))}
  return results
