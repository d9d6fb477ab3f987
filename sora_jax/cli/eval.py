"""`sora-jax eval`: put a checkpoint before the judges."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sora_jax.errors import UserError

if TYPE_CHECKING:
  from sora_jax.evals.report import Results

# name -> what --count is where it is not given.
SUITES = {"recon": 64, "text": 256, "tasks": 64, "quality": 256, "world": 64, "probe": 500}
EXAMPLES = """examples:
  sora-jax eval --suite=recon --out results/recon
  sora-jax eval --suite=recon --videos my_clips --out results/real
  sora-jax eval --suite=text --checkpoint runs/toy/export --out results/text
  sora-jax eval --suite=text --count 32 --fvd 0 --out results/quick        a few minutes
  sora-jax eval --suite=tasks --count 16 --out results/tasks
  sora-jax eval --suite=quality --checkpoint runs/toy/export --count 64 --out results/quality
  sora-jax eval --suite=quality --videos samples --real my_clips --out results/others
  sora-jax eval --suite=world --count 16 --checkpoint runs/vjepa/export --out results/world
  sora-jax eval --suite=probe --checkpoint runs/vjepa/export --out results/probe

DIR gets metrics.json (every number with its spread, count, command and commit), results.jsonl (a
line per clip, or task) and, from the text suite, samples.png, from the world suite a sheet of
given, made and true frames for each test. The judges need:
pip install -e ".[evals]"
"""


def add_parser(verbs: Any) -> None:
  """Adds the verb to argparse's subparsers."""
  parser = verbs.add_parser(
    "eval",
    help="measure reconstructions, samples, tasks, or knowledge of the world",
    description="Measure a checkpoint: what its autoencoder keeps (recon), whether its samples "
    "show what their prompts say (text), how near they are to real clips (quality), how well it "
    "does the tasks (tasks), what it knows of the physical world (world), or what can be read off "
    "its features (probe).",
    epilog=EXAMPLES,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  add = parser.add_argument
  add("--suite", required=True, choices=SUITES, help="what to measure")
  add("--checkpoint", default="toy", metavar="NAME|DIR", help="what to measure it on (toy)")
  add(
    "--videos", metavar="DIR",
    help="recon: a folder of real clips in place of worlds; quality: samples of any model",
  )  # fmt: skip
  add("--real", metavar="DIR", help="quality: a folder of real clips in place of worlds")
  add("--out", required=True, metavar="DIR", help="where the numbers go")
  add(
    "--count", type=int, metavar="N",
    help="clips per size, cases per task or test (64), prompts per set, samples (256), clips "
    "probed (500), videos (all)",
  )  # fmt: skip
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
  # None: all the videos of a folder.
  count = SUITES[args.suite] if args.count is None and not args.videos else args.count
  if (count is not None and count < 2) or args.seed < 0:
    raise UserError("--count must be at least 2 and --seed must not be negative.")
  if args.suite not in ("recon", "quality") and args.videos:
    raise UserError("--videos belongs to --suite=recon or quality; the others judge samples.")
  if args.suite != "quality" and args.real:
    raise UserError("--real belongs to --suite=quality.")
  if args.fvd is not None and (args.suite != "text" or args.fvd == 1 or args.fvd < 0):
    raise UserError("--fvd belongs to --suite=text and must be 0, or at least 2.")
  if args.told and args.suite != "world":
    raise UserError("--told belongs to --suite=world; the other suites tell all captions.")

  from sora_jax.evals import report
  from sora_jax.provenance import commit

  folder = report.open_folder(args.out)
  measured_by = commit()  # the checkout may change while it measures
  results = _measured(args, count, folder)
  origin = {
    "command": shlex.join(["sora-jax", *sys.argv[1:]]),
    "commit": measured_by,
    "suite": args.suite,
    "checkpoint": args.checkpoint,
    "seed": args.seed,
    "count": "all" if count is None else count,
  }
  print(report.table(results.metrics))
  report.store(folder, results, origin)
  return {**origin, "metrics": report.clean(results.metrics)}


def _measured(args: argparse.Namespace, count: int | None, folder: Path) -> Results:
  """What the suite finds."""
  from sora_jax.evals import probe, quality, suites, systems, tasks, world
  from sora_jax.generate import load as loader
  from sora_jax.generate import model as generate
  from sora_jax.generate.codec import Codec

  name, seed = args.checkpoint, args.seed
  if args.suite == "quality":
    return quality.run(lambda: loader.load(name), count, seed, args.videos, args.real)
  if args.videos:
    return suites.recon_files(Codec.load(name), args.videos, count)
  assert count is not None  # only of videos it may be all
  match args.suite:
    case "text":
      model = loader.load(name)
      if not isinstance(model, suites.Model):
        raise UserError(f"{name} makes images of classes: --suite=text needs videos of prompts.")
      return suites.text(model, count, seed, args.fvd, folder / "samples.png")
    case "tasks":
      return tasks.suite(generate.load(name), count, seed)
    case "world":
      return world.suite(systems.load(name), count, seed, folder, args.told)
    case "probe":
      return probe.suite(name, count, seed)
  return suites.recon(Codec.load(name), count, seed)
