"""Worlds as a TFDS data set, stored as ArrayRecord; TensorFlow is never imported.

builder = Worlds(config=WorldsConfig(name="tiny", count=64), data_dir=..., file_format="array_record")
builder.download_and_prepare()
builder.as_data_source(split="train")[0]["video"]
"""  # noqa: E501

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from sora_jax.worlds.source import WorldSource
from sora_jax.worlds.vocabulary import SPLITS


@dataclasses.dataclass(kw_only=True)
class WorldsConfig(tfds.core.BuilderConfig):
  """`count` clips for training, an eighth of them (at least one) in each other split."""

  count: int = 1024
  seed: int = 0
  frames: int = 17
  height: int = 64
  width: int = 64
  fps: float = 8.0


class Worlds(tfds.core.GeneratorBasedBuilder):
  """Captioned clips of simulated worlds; splits as in `WorldSource`."""

  VERSION = tfds.core.Version("1.0.0")
  BUILDER_CONFIGS = [WorldsConfig(name="64px", description="64x64, 17 frames at 8 per second")]

  def _info(self) -> tfds.core.DatasetInfo:
    config = self.builder_config
    # A Tensor, not a Video: that feature imports TensorFlow.
    video = tfds.features.Tensor(
      shape=(None, config.height, config.width, 3), dtype=np.uint8, encoding="zlib"
    )
    labels = dict.fromkeys(
      ("colour", "shape", "size", "motion", "look", "scene"), tfds.features.Text()
    )
    return tfds.core.DatasetInfo(
      builder=self,
      description="MuJoCo worlds with captions and the main object's labels.",
      features=tfds.features.FeaturesDict({
        "video": video, "caption": tfds.features.Text(), "fps": np.float32,
        "captions": tfds.features.Sequence(tfds.features.Text()), "id": tfds.features.Text(),
        "labels": {**labels, "count": np.int32},
      }),
    )  # fmt: skip

  def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
    del dl_manager  # nothing is downloaded
    return {split: self._generate_examples(split) for split in SPLITS}

  def _generate_examples(self, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
    config = self.builder_config
    count = config.count if split == "train" else max(1, config.count // 8)
    source = WorldSource(
      count, config.seed, split, config.frames, config.height, config.width, config.fps
    )
    for index in range(count):
      sample = source[index]
      sample["fps"] = np.float32(sample["fps"])
      sample["labels"] = source.spec(index).labels
      yield sample["id"], sample
