"""`sora-jax eval`: put a checkpoint before the judges."""

from __future__ import annotations

import argparse
import shlex
import sys
from typing import Any

from sora_jax.errors import UserError

SUITES = ("recon", "text", "tasks", "world")
DEFAULT_COUNT = {"recon": 64, "text": 256, "tasks": 64, "world": 64}
EXAMPLES = """examples:
  sora-jax eval --suite=recon --out results/recon
  sora-jax eval --suite=recon --videos my_clips --out results/real
  sora-jax eval --suite=text --checkpoint runs/toy/export --out results/text
  sora-jax eval --suite=text --count 32 --fvd 0 --out results/quick        a few minutes
  sora-jax eval --suite=tasks --count 16 --out results/tasks
  sora-jax eval --suite=world --count 16 --checkpoint runs/vjepa/export --out results/world

DIR gets metrics.json (every number with its spread, count, command and commit), results.jsonl (a
line per clip, or task) and, from the text suite, samples.png, from the world suite a sheet of
given, made and true frames for each test. The judges need:
pip install "sora_jax[evals]"
"""


def add_parser(verbs: Any) -> None:
  """Adds the verb to argparse's subparsers."""
  parser = verbs.add_parser(
    "eval",
    help="measure reconstructions, samples against their prompts, tasks, or knowledge of the world",
    description="Measure a checkpoint: what its autoencoder keeps (recon), whether its samples "
    "show what their prompts say (text), how well it does the tasks (tasks), or what it knows of "
    "the physical world (world).",
    epilog=EXAMPLES,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  add = parser.add_argument
  add("--suite", required=True, choices=SUITES, help="what to measure")
  add("--checkpoint", default="toy", metavar="NAME|DIR", help="what to measure it on (toy)")
  add("--videos", metavar="DIR", help="recon: a folder of real clips in place of worlds")
  add("--out", required=True, metavar="DIR", help="where the numbers go")
  add(
    "--count",
    type=int,
    metavar="N",
    help="clips per size, cases per task or test (64), prompts per set (256)",
  )
  add("--seed", type=int, default=0, metavar="N", help="of the held-out worlds and the noise (0)")
  add(
    "--fvd", type=int, metavar="N",
    help="text: samples for FVD, against 4N real clips (2 x count); 0 leaves it out",
  )  # fmt: skip
  add("--told", action="store_true", help="world: tell the captions, which say what happens")


def run(args: argparse.Namespace) -> dict[str, Any]:
  """Runs a suite, stores its numbers and prints them.

  Raises:
    UserError: arguments that do not go together, a missing checkpoint, package or folder.
  """
  count = DEFAULT_COUNT[args.suite] if args.count is None else args.count
  if count < 2 or args.seed < 0:
    raise UserError("--count must be at least 2 and --seed must not be negative.")
  if args.suite != "recon" and args.videos:
    raise UserError("--videos belongs to --suite=recon; the other suites judge samples.")
  if args.fvd is not None and (args.suite != "text" or args.fvd == 1 or args.fvd < 0):
    raise UserError("--fvd belongs to --suite=text and must be 0, or at least 2.")
  if args.told and args.suite != "world":
    raise UserError("--told belongs to --suite=world; the other suites tell all captions.")

  from sora_jax.evals import report

  folder = report.open_folder(args.out)

  from sora_jax.evals import suites, systems, tasks, world
  from sora_jax.generate import model as generate
  from sora_jax.generate.codec import Codec
  from sora_jax.provenance import commit

  if args.suite == "text":
    model = generate.load(args.checkpoint)
    results = suites.text(model, count, args.seed, args.fvd, folder / "samples.png")
  elif args.suite == "tasks":
    results = tasks.suite(generate.load(args.checkpoint), count, args.seed)
  elif args.suite == "world":
    system = systems.load(args.checkpoint)
    results = world.suite(system, count, args.seed, folder, args.told)
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
    "seed": args.seed,
    "count": count,
  }
  report.store(folder, results, origin)
  print(report.table(results.metrics))
  return {**origin, "metrics": report.clean(results.metrics)}
