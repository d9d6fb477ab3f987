"""`sora-jax eval`: put a checkpoint before the judges."""

from __future__ import annotations

import argparse
import shlex
import sys
from typing import Any

from sora_jax.errors import UserError

SUITES = ("recon", "text", "tasks", "quality")
DEFAULT_COUNT = {"recon": 64, "text": 256, "tasks": 64, "quality": 256}
EXAMPLES = """examples:
  sora-jax eval --suite=recon --out results/recon
  sora-jax eval --suite=recon --videos my_clips --out results/real
  sora-jax eval --suite=text --checkpoint runs/toy/export --out results/text
  sora-jax eval --suite=text --count 32 --fvd 0 --out results/quick        a few minutes
  sora-jax eval --suite=tasks --count 16 --out results/tasks
  sora-jax eval --suite=quality --checkpoint runs/toy/export --count 64 --out results/quality
  sora-jax eval --suite=quality --videos samples --real my_clips --out results/others

DIR gets metrics.json (every number with its spread, count, command and commit), results.jsonl (a
line per clip, or task) and, from the text suite, samples.png. The judges need:
pip install "sora_jax[evals]"
"""


def add_parser(verbs: Any) -> None:
  """Adds the verb to argparse's subparsers."""
  parser = verbs.add_parser(
    "eval",
    help="measure reconstructions, samples against their prompts, or tasks",
    description="Measure a checkpoint: what its autoencoder keeps (recon), whether its samples "
    "show what their prompts say (text), how well it does the tasks (tasks), or how near its "
    "samples are to real clips (quality).",
    epilog=EXAMPLES,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  add = parser.add_argument
  add("--suite", required=True, choices=SUITES, help="what to measure")
  add("--checkpoint", default="toy", metavar="NAME|DIR", help="what to measure it on (toy)")
  add(
    "--videos", metavar="DIR",
    help="recon: a folder of real clips in place of worlds; quality: one of clips to judge",
  )  # fmt: skip
  add("--real", metavar="DIR", help="quality: a folder of real clips in place of worlds")
  add("--out", required=True, metavar="DIR", help="where the numbers go")
  add(
    "--count",
    type=int,
    metavar="N",
    help="clips per size, cases per task (64), prompts per set, samples (256), videos (all)",
  )
  add("--seed", type=int, default=0, metavar="N", help="of the held-out worlds and the noise (0)")
  add(
    "--fvd", type=int, metavar="N",
    help="text: samples for FVD, against 4N real clips (2 x count); 0 leaves it out",
  )  # fmt: skip


def run(args: argparse.Namespace) -> dict[str, Any]:
  """Runs a suite, stores its numbers and prints them.

  Raises:
    UserError: arguments that do not go together, a missing checkpoint, package or folder.
  """
  count = DEFAULT_COUNT[args.suite] if args.count is None else args.count
  if count < 2 or args.seed < 0:
    raise UserError("--count must be at least 2 and --seed must not be negative.")
  if args.suite not in ("recon", "quality") and args.videos:
    raise UserError("--videos belongs to --suite=recon or quality; the others judge samples.")
  if args.suite != "quality" and args.real:
    raise UserError("--real belongs to --suite=quality.")
  if args.fvd is not None and (args.suite != "text" or args.fvd == 1 or args.fvd < 0):
    raise UserError("--fvd belongs to --suite=text and must be 0, or at least 2.")

  from sora_jax.evals import report

  folder = report.open_folder(args.out)

  from sora_jax.evals import quality, suites, tasks
  from sora_jax.generate import load as loader
  from sora_jax.generate import model as generate
  from sora_jax.generate.codec import Codec
  from sora_jax.provenance import commit

  if args.suite == "text":
    model = generate.load(args.checkpoint)
    results = suites.text(model, count, args.seed, args.fvd, folder / "samples.png")
  elif args.suite == "tasks":
    results = tasks.suite(generate.load(args.checkpoint), count, args.seed)
  elif args.suite == "quality":
    load = lambda: loader.load(args.checkpoint)  # noqa: E731
    chosen = args.count if args.videos else count
    results = quality.run(load, chosen, args.seed, args.videos, args.real)
  else:
    autoencoder = Codec.load(args.checkpoint)
    if args.videos:
      results = suites.recon_files(autoencoder, args.videos)
    else:
      results = suites.recon(autoencoder, count, args.seed)
  origin = {
    "command": shlex.join(["sora-jax", *sys.argv[1:]]),
    "commit": commit(),
    "suite": args.suite,
    "checkpoint": args.checkpoint,
    "videos": args.videos,
    "seed": args.seed,
    "count": count,
  }
  report.store(folder, results, origin)
  print(report.table(results.metrics))
  return {**origin, "metrics": report.clean(results.metrics)}
