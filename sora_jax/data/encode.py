"""Clips to latents, once: the cache a transformer is trained from.

A record holds the latents of a whole clip and of what a user could have of it: a stretch of frames
encoded alone (`diffusion.conditioning` says why), and for some clips the clip with a region greyed.
The folder is named by a hash of everything the latents depend on: the autoencoder's weights above
all, the settings, and the sources' files (which they are, their captions, when they were changed).
So a cache can never be read with another autoencoder or in the place of other clips. If the text
encoder is not trained either, a record also holds its states for each caption (`data.states`).

A loop is a clip of 4k frames whose last one is followed by its first. It is encoded behind a
warm-up of that last frame: all of its latents are of the later kind, and none is the first.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from sora_jax.data import pipeline, registry
from sora_jax.data.records import RecordSource, write_records
from sora_jax.data.states import Reader
from sora_jax.data.transforms import to_float
from sora_jax.diffusion.conditioning import MASK_EVERY
from sora_jax.errors import UserError
from sora_jax.models.text import words
from sora_jax.models.vae import ENCODER, VideoVAE, encode_video
from sora_jax.parallel import sharding
from sora_jax.typing import Bool, Float, Params

STRETCHES = (1, 5, 9)  # frames encoded alone; few, since each length is a program to compile
Opened = Sequence[tuple[pipeline.Source, float]]


def cache(
  folder: Path,
  vae: VideoVAE,
  params: Params,
  sources: Mapping[str, Any] | ConfigDict,
  *,
  clips: int,
  frames: int,
  size: tuple[int, int],
  fps: float,
  seed: int,
  loop: bool = False,
  batch_size: int = 16,
  reader: Reader | None = None,
) -> RecordSource:
  """Opens the cache of these clips under `folder`, encoding them first if it is not there.

  Its `info` holds these settings, and under `words` all words of the captions.

  Args:
    sources: as for `registry.open_sources`. clips: how many random windows to encode.
    frames, size, fps: of a clip.
    loop: whether the clips are loops; the sources must hold nothing else.
    reader: the text encoder, if it is not trained; it is loaded if there is something to encode.

  Raises:
    UserError: the sources cannot be read, or the disk is full.
  """
  settings: dict[str, Any] = dict(
    sources=sources, clips=clips, frames=frames, size=size, fps=fps, seed=seed, loop=loop
  )
  if frames % vae.time_stride != (0 if loop else 1 % vae.time_stride):
    kind = f"A loop has {vae.time_stride}k" if loop else f"A clip has {vae.time_stride}k+1"
    raise UserError(f"{kind} frames, not {frames}.")

  def parts() -> Iterator[bytes | memoryview]:
    yield repr(vae).encode()
    yield from weights({name: x for name, x in params.items() if name in ENCODER})
    yield from reader.identity() if reader else ()

  def records(opened: Opened) -> Iterator[dict[str, Any]]:
    batches, count = windows(settings, batch_size, opened), -(-clips // batch_size)
    return encode(batches, vae, params, count, _draws(settings), loop, reader)

  return stored(folder, settings, parts(), records)


def stored(
  folder: Path,
  settings: Mapping[str, Any],
  parts: Iterable[bytes | memoryview],
  records: Callable[[Opened], Iterator[dict[str, Any]]],
) -> RecordSource:
  """Opens what is stored of these settings under `folder`, making it first if it is not there.

  Its `info` holds the settings, and under `words` all words of the captions.

  Args:
    settings: as for `windows`. parts: what else the records depend on beside what the sources
      hold. records: makes them from the open sources.

  Raises:
    UserError: the sources cannot be opened (what they hold is part of the name, even if the records
      are there), the records cannot be made, or the disk is full.
  """
  opened = registry.open_sources(settings["sources"])
  key = _key(settings)
  for part in itertools.chain(registry.identity(opened), parts):
    key.update(part)
  path = Path(folder) / key.hexdigest()[:16]
  if not path.exists():
    path.parent.mkdir(parents=True, exist_ok=True)
    info = json.loads(json.dumps(settings, default=_plain)) | {"words": []}
    try:
      write_records(path, _note_words(records(opened), info["words"]), info)
    except UserError:
      if not path.exists():  # a run beside this one may have been faster
        raise
  return RecordSource(path)


def windows(
  settings: Mapping[str, Any], batch_size: int, opened: Opened | None = None
) -> Iterator[dict[str, Any]]:
  """The clips that caches of these settings encode, in their order and without an end.

  Args:
    settings: all that a cache is told of its clips: `sources`, `frames`, `size`, `fps`, `seed`...
    opened: the sources, if they are open already.

  Raises:
    UserError: the sources cannot be read.
  """
  return pipeline.make(
    opened or registry.open_sources(settings["sources"]), batch_size, _draws(settings),
    settings["frames"], settings["size"], fps=settings["fps"], keep=("captions",),
  )  # fmt: skip


def _key(settings: Mapping[str, Any]) -> Any:
  return hashlib.sha256(json.dumps(settings, sort_keys=True, default=_plain).encode())


def _draws(settings: Mapping[str, Any]) -> int:
  """The seed of the windows: clips of another shape are other clips.

  Of the settings alone: `evals.exhibit` finds the windows again that a checkpoint was trained on.
  """
  return int(_key(settings).hexdigest()[:8], 16)


def weights(params: Params) -> Iterator[bytes]:
  """All that parameters are, for a hash."""
  for name, leaf in jax.tree.leaves_with_path(params):
    yield jax.tree_util.keystr(name).encode() + np.asarray(leaf).tobytes()


def encode(
  batches: Iterator[dict[str, Any]],
  vae: VideoVAE,
  params: Params,
  count: int,
  seed: int,
  loop: bool = False,
  reader: Reader | None = None,
) -> Iterator[dict[str, Any]]:
  """Encodes `count` batches, clip by clip in their order, with a progress bar."""
  read = reader.load() if reader else None
  for number in tqdm(range(count), desc="encoding", unit="batch", file=sys.stderr):
    batch = next(batches)
    rng = np.random.default_rng((seed, number))
    video = to_float(batch["video"])
    if loop:
      latents = _encode(vae, params, np.concatenate([video[:, -1:], video], axis=1))[:, 1:]
    else:
      latents = _encode(vae, params, video)
    whole = (video.shape[1] - 1) // vae.time_stride * vae.time_stride + 1  # less than a loop
    length = min(STRETCHES[number % len(STRETCHES)], whole)
    last = video.shape[1] - length
    starts = rng.integers(min(1, last), last + 1, len(video))
    starts = np.where(rng.random(len(video)) < 0.5, last, starts)
    pieces = np.stack([clip[s : s + length] for clip, s in zip(video, starts, strict=True)])
    stretches = _encode(vae, params, pieces)
    mask, masked = None, None
    if number % MASK_EVERY == 0 and not loop and min(latents.shape[2:4]) >= 4:
      mask = known_region(rng, latents.shape[1:4])
      masked = _encode(vae, params, np.where(_pixels(mask, video.shape[1:4]), video, 0.0))
    captions = [[str(c) for c in captions] for captions in batch["captions"]]
    if reader and reader.prompts.padded:  # to such a model "" is a prompt like others
      captions = [[*each, ""] for each in captions]
    states = read(c for each in captions for c in each) if read else {}
    for i in range(len(video)):
      record = dict(
        latents=latents[i], stretch=stretches[i], stretch_frame=int(starts[i]),
        fps=float(batch["fps"][i]), captions=list(batch["captions"][i]), id=str(batch["id"][i]),
        loop=loop,
      )  # fmt: skip
      if masked is not None:
        record |= dict(masked=masked[i], mask=mask)
      if states:
        record |= dict(states={c: states[c] for c in captions[i]})
      yield record


def _note_words(records: Iterator[dict[str, Any]], seen: list[str]) -> Iterator[dict[str, Any]]:
  """Passes records through; at the end `seen` holds all words of their captions, sorted."""
  vocabulary: set[str] = set()
  for record in records:
    vocabulary |= {word for caption in record["captions"] for word in words(caption)}
    yield record
  seen.extend(sorted(vocabulary))


def known_region(
  rng: np.random.Generator, shape: tuple[int, int, int]
) -> Bool[np.ndarray, "lt lh lw"]:
  """A random rectangle of latents, known in half of the cases and the only unknown in the others.

  Its sides are even numbers of latents, so that patches of two are known or unknown as a whole.
  The grid has four rows and columns or more, or there would be no rectangle within it.
  """
  lt, lh, lw = shape
  inside = np.zeros((lh, lw), bool)
  h, w = (2 * rng.integers(1, max(2, size // 2)) for size in (lh, lw))
  top, left = (2 * rng.integers(0, (size - s) // 2 + 1) for size, s in ((lh, h), (lw, w)))
  inside[top : top + h, left : left + w] = True
  known = inside if rng.random() < 0.5 else ~inside
  return np.tile(known, (lt, 1, 1))


def _pixels(mask: Bool[np.ndarray, "lt lh lw"], shape: tuple[int, ...]) -> np.ndarray:
  """The mask of a whole clip's pixels from a region that does not change in time."""
  _, h, w = shape
  lh, lw = mask.shape[1:]
  return np.repeat(np.repeat(mask[0], h // lh, 0), w // lw, 1)[None, None, :, :, None]


def _encode(vae: VideoVAE, params: Params, video: np.ndarray) -> Float[np.ndarray, "b lt lh lw z"]:
  """Half-precision latents; the clips are split over this process' devices."""
  mesh = sharding.make_mesh(devices=jax.local_devices())
  grid = (len(video), *vae.latent_shape(*video.shape[1:4]), vae.z_channels)
  with jax.set_mesh(mesh):
    placed = sharding.place(video.astype(np.float32), "video", mesh, grid)
    return np.asarray(encode_video(vae, params, placed), np.float16)


def _plain(value: Any) -> Any:
  return value.to_dict() if hasattr(value, "to_dict") else str(value)
