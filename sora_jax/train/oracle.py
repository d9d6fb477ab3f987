"""Recipe: the oracle of `sora_jax.evals.adherence`.

Cross-entropy on the labels of rendered worlds, under damage drawn anew at each visit: about a
quarter of the clips stay clean, half are slightly damaged and keep their labels, and the rest are
made invalid. Clips are rendered once, into `config.data.cache`, from all combinations of colour,
shape and motion: a judge must not share the blind spots of what it judges.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict
from tqdm import tqdm

from sora_jax import config as config_lib
from sora_jax import worlds
from sora_jax.data.shards import shard, split
from sora_jax.evals import degrade
from sora_jax.evals.adherence import ATTRIBUTES, FRAMES, PER_SLOT, SIZE, SLOTS, Oracle
from sora_jax.evals.controls import main_mask
from sora_jax.interop import folders, native
from sora_jax.typing import Array, Params, PRNGKey, Scalar

_IGNORE = -1
# Each outcome's share of the training clips; the controls share what is left.
_CLEAN, _MILD = 0.22, 0.45
_MIRROR = np.array([
  ATTRIBUTES["motion"].index(worlds.mirror_motion(name)) for name in ATTRIBUTES["motion"]
])  # fmt: skip
Sample = dict[str, Any]


@dataclass(frozen=True)
class Clips:
  """Rendered worlds in memory-mapped arrays, with the labels of their main object.

  Attributes:
    video: uint8 n 17 64 64 3.
    masks: bool n 17 64 64, packed along the last axis: where the main object is seen.
    labels: int n 4, in the order of ATTRIBUTES.
    visible: float n 17, the visible part of the main object.
  """

  video: np.ndarray
  masks: np.ndarray
  labels: np.ndarray
  visible: np.ndarray

  @classmethod
  def open(cls, folder: Path, count: int, seed: int, workers: int = 1) -> Clips:
    """Reads `folder`; renders it first if it is not there or was made differently."""
    asked = {"count": count, "seed": seed}
    if _info(folder) != asked:
      try:
        with folders.written(folder, replace=True) as temporary:
          _render(temporary, count, seed, workers)
          folders.write_json(temporary / "info.json", asked)
          if _info(folder) == asked:  # a run beside this one was faster, and may be reading it
            raise FileExistsError(folder)
      except OSError:
        if _info(folder) != asked:
          raise
    names = [field.name for field in dataclasses.fields(cls)]
    return cls(*(np.load(folder / f"{name}.npy", mmap_mode="r") for name in names))

  def __len__(self) -> int:
    return len(self.labels)

  def mask(self, index: int) -> np.ndarray:
    return np.unpackbits(self.masks[index], axis=-1).astype(bool)


def world(index: int, seed: int) -> tuple[worlds.Spec, Any]:
  """World `index` of the oracle's data: every second one of a scene in turn, a quarter held out."""
  scenes = worlds.VOCABULARY.scenes
  rng = np.random.default_rng([seed, index, 9])
  spec = worlds.sample_spec(
    rng,
    scene=scenes[index // 2 % len(scenes)] if index % 2 else None,
    split="heldout" if index % 4 > 1 and index % 8 < 4 else "train",
  )
  return spec, worlds.render(spec, FRAMES, SIZE, SIZE, truth=True)


def _labelled(index: int, seed: int) -> tuple[np.ndarray, np.ndarray, list[int], np.ndarray]:
  """One row of each array of `Clips`."""
  spec, clip = world(index, seed)
  labels = [classes.index(spec.labels[name]) for name, classes in ATTRIBUTES.items()]
  own = [i for i, thing in enumerate(spec.things) if thing.role in ("main", "block")]
  visible = clip.truth["visibility"][:, own].max(-1)
  return clip.video, np.packbits(main_mask(clip.truth), axis=-1), labels, visible


def _info(folder: Path) -> Any:
  """What the clips in a folder were made with; None if there are none, or it cannot be read."""
  try:
    return json.loads((folder / "info.json").read_text())
  except (OSError, ValueError):
    return None


def _render(folder: Path, count: int, seed: int, workers: int) -> None:
  """Writes the arrays of `Clips` into `folder`."""

  def array(name: str, dtype: Any, *shape: int) -> np.memmap:
    file = folder / f"{name}.npy"
    made = np.lib.format.open_memmap(file, mode="w+", dtype=dtype, shape=(count, *shape))
    with open(file, "r+b") as opened:  # a disk that is full must say so here, not kill who writes
      os.posix_fallocate(opened.fileno(), 0, file.stat().st_size)
    return made

  arrays = (
    array("video", np.uint8, FRAMES, SIZE, SIZE, 3),
    array("masks", np.uint8, FRAMES, SIZE, SIZE // 8),
    array("labels", np.int8, len(ATTRIBUTES)),
    array("visible", np.float32, FRAMES),
  )
  # Started afresh: a forked renderer would share its parent's display.
  context = multiprocessing.get_context("spawn")
  with ProcessPoolExecutor(workers, context) as pool:
    rows = pool.map(functools.partial(_labelled, seed=seed), range(count), chunksize=20)
    for index, row in enumerate(tqdm(rows, total=count, desc="rendering", unit="clip")):
      for part, values in zip(arrays, row, strict=True):
        part[index] = values
  for part in arrays:
    part.flush()


@dataclass(frozen=True)
class Example:
  """Index and generator -> one training example, damaged by chance; of `still` ones one frame."""

  clips: Clips
  still: bool = False

  def __call__(self, index: int, rng: np.random.Generator) -> Sample:
    video, mask = self.clips.video[index], self.clips.mask(index)
    visible = self.clips.visible[index]
    labels = self.clips.labels[index].astype(np.int32)
    if self.still:
      labels[2] = _IGNORE
      best = np.flatnonzero(visible == visible.max())
      video, mask, visible = (held(x, int(rng.choice(best))) for x in (video, mask, visible))
    chance, valid = rng.random(), True
    if chance >= _CLEAN + _MILD:
      other = self.clips.video[rng.integers(len(self.clips))]
      other = held(other, 0) if self.still else other
      moves = np.ptp(video.astype(np.int16), axis=0).max() > 40
      name = str(rng.choice([k for k in degrade.CONTROLS if moves or k not in degrade.NEED_MOTION]))
      if name == "doubled" and (mask.sum((1, 2)) > 20).sum() < 10:
        name = "ghosted"
      if name == "doubled":
        video, valid = degrade.doubled(video, mask, rng), False
      else:
        video, valid = degrade.CONTROLS[name](video, mask, other, rng), False
    if chance >= _CLEAN and (valid or rng.random() < 0.3):
      video = degrade.mild(video, rng)
    if rng.random() < 0.5:
      video, mask = shift(video, mask, rng)
    if rng.random() < 0.5:
      video, mask = video[:, :, ::-1], mask[:, :, ::-1]
      labels[2] = _IGNORE if self.still else _MIRROR[labels[2]]
    colour, shape = self._slots(labels, mask, visible)
    heat = _in_slots(mask).reshape(SLOTS, PER_SLOT, 8, 8, 8, 8).mean((1, 3, 5))
    heat = heat.reshape(SLOTS, 64)
    heat /= np.maximum(heat.sum(-1, keepdims=True), 1e-6)
    return {
      "video": np.ascontiguousarray(video),
      "labels": labels if valid else np.full_like(labels, _IGNORE),
      "slot_colour": colour if valid else np.full_like(colour, _IGNORE),
      "slot_shape": shape if valid else np.full_like(shape, _IGNORE),
      "heat": heat.astype(np.float32) * valid,
      "valid": np.float32(valid),
      "id": f"oracle-{index}",
    }

  def _slots(
    self, labels: np.ndarray, mask: np.ndarray, visible: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray]:
    """Labels per slot: the object's where it is well seen, "absent" where it is not seen at all."""
    pixels = mask.sum((1, 2))
    seen = _in_slots((pixels >= 12) & (visible >= 0.35)).mean(-1) > 0.6
    gone = _in_slots(pixels < 2).all(-1)
    out = []
    for name, label in (("colour", labels[0]), ("shape", labels[1])):
      absent = len(ATTRIBUTES[name])
      out.append(np.where(seen, label, np.where(gone, absent, _IGNORE)).astype(np.int32))
    return out[0], out[1]


def _in_slots(x: np.ndarray) -> np.ndarray:
  return np.concatenate([x[:1], x]).reshape(SLOTS, PER_SLOT, *x.shape[1:])


def held(x: np.ndarray, frame: int) -> np.ndarray:
  """One frame in the place of all."""
  return np.repeat(x[frame : frame + 1], len(x), axis=0)


def shift(video: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> tuple[Any, Any]:
  """Moves the frame by up to 5 pixels, borders repeated."""
  dy, dx = rng.integers(-5, 6, 2)
  rows = np.clip(np.arange(SIZE) + dy, 0, SIZE - 1)
  columns = np.clip(np.arange(SIZE) + dx, 0, SIZE - 1)
  return video[:, rows][:, :, columns], mask[:, rows][:, :, columns]


@dataclass(frozen=True)
class OracleRecipe:
  """See the module's docstring."""

  config: ConfigDict
  oracle: Oracle
  trainable: str = ".*"

  def init(self, key: PRNGKey) -> Params:
    clip = jnp.zeros((1, FRAMES, SIZE, SIZE, 3))
    if self.config.init_from:
      return native.load_fitting(Path(self.config.init_from), "oracle", self.oracle, clip)
    return self.oracle.init(key, clip)["params"]

  def loss(
    self, params: Params, batch: Any, key: PRNGKey, step: Array
  ) -> tuple[Scalar, dict[str, Scalar]]:
    out = self.oracle.apply({"params": params}, batch["video"].astype(jnp.float32) / 127.5 - 1)
    terms = {"valid": jnp.mean(optax.sigmoid_binary_cross_entropy(out["valid"], batch["valid"]))}
    terms["heat"] = -jnp.mean(jnp.sum(batch["heat"] * jax.nn.log_softmax(out["heat"]), axis=-1))
    right = {"valid_right": jnp.mean((out["valid"] > 0) == (batch["valid"] > 0.5))}
    for index, name in enumerate(ATTRIBUTES):
      terms[name], right[f"{name}_right"] = _read(out[name], batch["labels"][:, index])
    for name in ("slot_colour", "slot_shape"):
      terms[name], right[f"{name}_right"] = _read(out[name], batch[name])
    return sum(terms.values(), jnp.zeros(())), {**terms, **right}

  def batch(self) -> dict[str, jax.ShapeDtypeStruct]:
    shapes = {
      "video": ((FRAMES, SIZE, SIZE, 3), np.uint8),
      "labels": ((len(ATTRIBUTES),), np.int32),
      "slot_colour": ((SLOTS,), np.int32),
      "slot_shape": ((SLOTS,), np.int32),
      "heat": ((SLOTS, 64), np.float32),
      "valid": ((), np.float32),
    }
    rows = self.config.train.batch_size
    return {k: jax.ShapeDtypeStruct((rows, *shape), t) for k, (shape, t) in shapes.items()}

  def dataset(self, shard_index: int, shard_count: int) -> Iterator[Any]:
    data = self.config.data
    clips = Clips.open(Path(data.cache), data.count, data.seed, data.workers)
    dataset = grain.MapDataset.range(len(clips)).seed(self.config.seed).shuffle()
    example = Example(clips, data.still)
    dataset = dataset[:].repeat().random_map(example)  # [:] for its depth: see `pipeline.py`
    batch = split("train.batch_size", self.config.train.batch_size, shard_count)
    dataset = shard(dataset, batch, shard_index, shard_count)
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2 * batch)
    return iter(dataset.to_iter_dataset(options).batch(batch, drop_remainder=True))

  def export(self, params: Params, workdir: Path) -> None:
    """Writes what `adherence.Judge` reads."""
    made = {"model": self.config.model.to_dict(), "made_with": self.config.to_dict()}
    native.save(workdir / "export", {"oracle": params}, made, dtype=np.float16)


def _read(logits: Array, labels: Array) -> tuple[Scalar, Scalar]:
  """Mean cross-entropy and share of right answers over the labels that count."""
  counts = labels != _IGNORE
  total = jnp.maximum(counts.sum(), 1)
  entropy = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(labels, 0))
  right = jnp.argmax(logits, -1) == labels
  return jnp.sum(entropy * counts) / total, jnp.sum(right & counts) / total


def build(config: ConfigDict) -> OracleRecipe:
  """The recipe of a config."""
  return OracleRecipe(config, config_lib.build(Oracle, config.model))
