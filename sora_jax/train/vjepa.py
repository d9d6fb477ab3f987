"""Recipe: V-JEPA. Features of hidden patches are predicted from visible ones; no pixel ever is.

  loss = mean over kinds of mask of |P(E(visible), where) - norm(E'(all))[hidden]|

Bardes et al. 2024 (arXiv:2404.08471). Parameters: `encoder` E and `predictor` P, which learn, and
`target` E', which follows E: E' <- m E' + (1 - m) E after each update, m rising over the run. That
average is part of the method and no measure of it; the loop's own, of E and P, is what is exported
with E'. Nothing in the loss forbids features that are all alike, so their effective rank and their
spread are reported beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from ml_collections import ConfigDict

from sora_jax import config as config_lib
from sora_jax import provenance
from sora_jax.data import pipeline, registry
from sora_jax.data.masks import Mask, Masks
from sora_jax.data.shards import split
from sora_jax.data.transforms import to_float
from sora_jax.evals.features import effective_rank, spread
from sora_jax.interop import native
from sora_jax.models.vjepa import VJEPA, standardised, tubelets
from sora_jax.typing import Array, Float, Int, Params, PRNGKey, Scalar


@dataclass(frozen=True, eq=False)
class VJEPARecipe:
  """See the module's docstring. Each kind of mask has a mask token of its own."""

  config: ConfigDict
  vjepa: VJEPA
  masks: Masks
  trainable: str = "^(?!target/)"

  @property
  def kinds(self) -> int:
    """How many masks each clip has."""
    return len(self.masks.kinds)

  def init(self, key: PRNGKey) -> Params:
    values, where = jnp.zeros((1, 1, self.patch_width)), jnp.zeros((1, 1, 3))
    params = self.vjepa.init(key, values, where, where)["params"]
    params["target"] = jax.tree.map(jnp.copy, params["encoder"])
    if self.config.init_from:
      params = native.load_params(self.config.init_from, "vjepa", params)
    return params

  @property
  def patch_width(self) -> int:
    """Numbers in one patch."""
    return int(np.prod(self.vjepa.patch)) * self.vjepa.channels

  def loss(
    self, params: Params, batch: Any, key: PRNGKey, step: Array
  ) -> tuple[Scalar, dict[str, Scalar]]:
    values, positions = tubelets(to_float(batch["video"]), self.vjepa.patch)
    target = {"params": {"encoder": params["target"]}}
    features = self.vjepa.apply(target, values, positions, method="encode")
    features = jax.lax.stop_gradient(standardised(features, centred=self.vjepa.centred))
    found = {"rank": effective_rank(features), "spread": spread(features)}
    context, targets = (
      rearrange(batch[name], "b k n -> (b k) n") for name in ("context", "targets")
    )
    values, positions, features = (
      jnp.repeat(x, self.kinds, axis=0) for x in (values, positions, features)
    )
    ids, target_ids = ((x >= 0).astype(jnp.int32) for x in (context, targets))
    where, asked = pick(positions, context), pick(positions, targets)
    kind = jnp.arange(len(context)) % self.kinds
    learned = {"params": {name: params[name] for name in ("encoder", "predictor")}}
    seen = self.vjepa.apply(learned, pick(values, context), where, ids, method="encode")
    made = self.vjepa.apply(
      learned, seen, where, asked, ids, target_ids, mask=kind, method="predict"
    )
    gap = jnp.mean(jnp.abs(made.astype(jnp.float32) - pick(features, targets)), axis=-1)
    gap = jnp.sum(gap * target_ids, axis=1) / jnp.sum(target_ids, axis=1)
    errors = jnp.mean(rearrange(gap, "(b k) -> b k", k=self.kinds), axis=0)
    return jnp.mean(errors), dict(zip(sorted(self.masks.kinds), errors, strict=True)) | found

  def after(self, params: Params, updates: Array, outputs: None) -> Params:
    """The target encoder follows the encoder, ever more slowly."""
    first, last = self.config.momentum
    momentum = first + (last - first) * jnp.minimum(updates / self.config.train.steps, 1.0)
    follow = lambda t, e: t + (1.0 - momentum) * (e - t)  # noqa: E731
    return params | {"target": jax.tree.map(follow, params["target"], params["encoder"])}

  def batch(self) -> dict[str, jax.ShapeDtypeStruct]:
    rows, v = self.config.train.batch_size, self.vjepa
    shapes = {"video": jax.ShapeDtypeStruct((rows, v.frames, v.size, v.size, 3), np.uint8)}
    for part, count in zip(("context", "targets"), self.masks.counts, strict=True):
      shapes[part] = jax.ShapeDtypeStruct((rows, self.kinds, count), np.int32)
    return shapes

  def dataset(self, shard_index: int, shard_count: int) -> Iterator[Any]:
    return self._clips(self.config.data.sources, shard_index, shard_count)

  def validation(self, shard_index: int, shard_count: int) -> Iterator[Any]:
    return self._clips(self.config.data.validation, shard_index, shard_count)

  def _clips(self, sources: ConfigDict, shard_index: int, shard_count: int) -> Iterator[Any]:
    return pipeline.make(
      registry.open_sources(sources),
      split("train.batch_size", self.config.train.batch_size, shard_count),
      self.config.seed,
      self.vjepa.frames,
      (self.vjepa.size, self.vjepa.size),
      transform=self.masks,
      short="repeat",
      workers=self.config.data.workers,
      shard_index=shard_index,
      shard_count=shard_count,
    )

  def export(self, params: Params, workdir: Path) -> None:
    """Writes what `interop.native.load_vjepa` reads."""
    training = provenance.training(self.config)
    config = {"vjepa": self.config.model.to_dict(), "training": training}
    native.save(workdir / "export", {"vjepa": params}, config, dtype=np.float16)


def pick(x: Float[Array, "b n d"], index: Int[Array, "b m"]) -> Float[Array, "b m d"]:
  """Tokens by their numbers; any where the number is below 0."""
  return jnp.take_along_axis(x, jnp.maximum(index, 0)[..., None], axis=1)


def build(config: ConfigDict) -> VJEPARecipe:
  """The recipe of a config."""
  vjepa = config_lib.build(VJEPA, config.model)
  kinds = {name: config_lib.build(Mask, section) for name, section in config.masks.kinds.items()}
  settings = {name: x for name, x in config.masks.items() if name != "kinds"}
  masks = config_lib.build(Masks, settings, grid=vjepa.grid, kinds=kinds)
  return VJEPARecipe(config, vjepa, masks)
