"""`sora-jax data`: make data sets."""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING, Any

from sora_jax.errors import UserError

if TYPE_CHECKING:
  from sora_jax.worlds import WorldSource

EXAMPLES = """examples:
  sora-jax data worlds --out data/worlds --count 1000 --seed 0
  sora-jax data worlds --out data/wide --count 200 --seed 1 --size 96x160 --frames 33 --fps 16
  sora-jax data worlds --out data/heldout --count 512 --seed 2 --split heldout --truth

DIR holds ArrayRecord shards and an info.json; train on it with a `records` source.
"""


_CHUNK = 8  # samples a process renders before it says so


def add_parser(verbs: Any) -> None:
  """Adds the verb to argparse's subparsers."""
  parser = verbs.add_parser(
    "data",
    help="render captioned clips of simulated worlds",
    description="Make data sets.",
    epilog=EXAMPLES,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True)
  worlds = kinds.add_parser(
    "worlds",
    help="MuJoCo worlds with captions and ground truth, as ArrayRecord",
    epilog=EXAMPLES,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  add = worlds.add_argument
  add("--out", required=True, metavar="DIR", help="folder to make; must not exist or be empty")
  add("--count", required=True, type=int, metavar="N", help="clips")
  add("--seed", required=True, type=int, metavar="N", help="same seed and settings: same clips")
  add("--size", default="64x64", metavar="HxW", help="height x width in pixels (64x64)")
  add("--frames", default=17, type=int, metavar="N", help="frames per clip (17)")
  add("--fps", default=8.0, type=float, metavar="X", help="frames per second (8)")
  add(
    "--split", default="train", choices=("train", "validation", "heldout"),
    help="validation: other worlds; heldout: combinations of colour, shape and motion that the "
    "others never show (train)",
  )  # fmt: skip
  add(
    "--wording", default="train", choices=("train", "heldout"),
    help="captions in wordings for training, or in those kept for evaluation",
  )  # fmt: skip
  add("--scenes", metavar="A,B", help="only these scenes, e.g. roll,occlusion")
  add("--truth", action="store_true", help="store all ground truth, not only labels and specs")
  add("--workers", default=1, type=int, metavar="N", help="processes that render (1)")
  # `main` shows these on every verb; a second level of verbs has to repeat them.
  add("--json", action="store_true", default=argparse.SUPPRESS, help="print one JSON object")
  add("--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback")


def parse_size(text: str) -> tuple[int, int]:
  """Reads "HxW". Raises UserError for anything else."""
  height, x, width = text.lower().partition("x")
  if not (x and height.isdecimal() and width.isdecimal()):
    raise UserError(f"--size {text} is not a size: write height x width, such as 64x96.")
  return int(height), int(width)


def run(args: argparse.Namespace) -> dict[str, Any]:
  """Renders; returns what the folder's info.json holds, and the time it took.

  Raises:
    UserError: settings that cannot be rendered, or a folder that cannot be written.
  """
  height, width = parse_size(args.size)
  for name in ("count", "workers"):
    if getattr(args, name) < 1:
      raise UserError(f"--{name} must be at least 1.")

  from sora_jax.data.records import write_records
  from sora_jax.worlds import WorldSource

  settings = {
    "count": args.count, "seed": args.seed, "split": args.split, "frames": args.frames,
    "height": height, "width": width, "fps": args.fps, "wording": args.wording,
    "scenes": args.scenes.split(",") if args.scenes else None, "truth": args.truth,
  }  # fmt: skip
  source = WorldSource(**settings)
  start = time.perf_counter()
  info = write_records(args.out, _progress(_samples(source, args.workers), args.count),
                       {"source": "worlds", "settings": settings})  # fmt: skip
  seconds = time.perf_counter() - start
  rate = args.count * args.frames / seconds
  print(
    f"{args.count} clips of {args.frames} frames at {height}x{width} in {args.out} "
    f"({seconds:.1f} s, {rate:.0f} frames/s)"
  )
  return {"out": str(args.out), "seconds": seconds, "frames_per_second": rate, **info}


def _samples(source: WorldSource, workers: int) -> Iterator[dict[str, Any]]:
  """The samples in order; without full truth, `truth` still has the labels and the spec.

  Raises:
    UserError: a sample cannot be rendered, or a process that renders was killed.
  """
  if workers == 1:
    yield from (_render(source, i) for i in range(len(source)))
    return
  # A rendering context does not survive a fork, and neither do JAX's threads.
  context = multiprocessing.get_context("spawn")
  pool = ProcessPoolExecutor(min(workers, len(source)), context, _start, (source,))
  pending: deque[Future[list[dict[str, Any]]]] = deque()
  try:
    for start in range(0, len(source), _CHUNK):
      pending.append(pool.submit(_work, range(start, min(start + _CHUNK, len(source)))))
      if len(pending) > 2 * workers:  # what is rendered and not yet asked for is in memory
        yield from pending.popleft().result()
    while pending:
      yield from pending.popleft().result()
  except BrokenProcessPool:
    raise UserError(
      "A process that renders was killed, perhaps because the memory is full: use fewer --workers "
      "or a smaller --size."
    ) from None
  finally:
    pool.shutdown(cancel_futures=True)


def _render(source: WorldSource, index: int) -> dict[str, Any]:
  sample = source[index]
  if "truth" not in sample:
    spec = source.spec(index)
    sample["truth"] = {"labels": spec.labels, "spec": spec.to_json()}
  return sample


_source: WorldSource


def _start(source: WorldSource) -> None:
  global _source
  _source = source


def _work(indices: range) -> list[dict[str, Any]]:
  return [_render(_source, index) for index in indices]


def _progress(samples: Iterator[dict[str, Any]], count: int) -> Iterator[dict[str, Any]]:
  from tqdm import tqdm

  # On stderr, with an ETA; begins only when the first clip is asked for.
  yield from tqdm(samples, total=count, unit="clip", desc="rendering", mininterval=0.5)
