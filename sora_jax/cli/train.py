"""`sora-jax train`: train a model as a config says."""

from __future__ import annotations

import argparse
from typing import Any

EXAMPLES = """examples:
  sora-jax train --config=configs/toy.py --workdir runs/toy              renders its clips first
  sora-jax train --config=configs/toy.py:smoke --workdir runs/smoke      seconds, on a CPU
  sora-jax train --config=configs/toy.py --config.optim.lr=1e-3 --config.train.steps=200 \\
    --workdir runs/fast

The same command with the same --workdir resumes where the last checkpoint is. SIGTERM and Ctrl-C
save one first. The workdir holds config.json, checkpoints/, metrics.jsonl, previews/ and export/,
the trained model.

On several hosts, the same command on each, with a --workdir on a disk that all of them see:
  sora-jax train --multihost --config=...        Cloud TPU, GKE, Slurm, Open MPI
  sora-jax train --coordinator 10.0.0.2:1234 --process-count 4 --process-id 0 --config=...
"""


def add_parser(verbs: Any) -> None:
  """Adds the verb to argparse's subparsers."""
  parser = verbs.add_parser(
    "train",
    help="train a model from a config; the same workdir again resumes",
    description="Train a model. Any value of the config is changed by --config.path.to.it=VALUE.",
    epilog=EXAMPLES,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument(
    "--config", required=True, metavar="FILE.py[:ARG]", help="e.g. configs/toy.py:smoke"
  )
  parser.add_argument("--workdir", required=True, metavar="DIR", help="made if it is not there")
  hosts = parser.add_argument_group("several hosts, one process on each")
  hosts.add_argument(
    "--multihost", action="store_true", help="find the others: Cloud TPU, GKE, Slurm, Open MPI"
  )
  hosts.add_argument("--coordinator", metavar="HOST:PORT", help="process 0, where nothing finds it")
  hosts.add_argument("--process-count", type=int, metavar="N", help="with --coordinator")
  hosts.add_argument("--process-id", type=int, metavar="I", help="with --coordinator: 0 to N-1")
  hosts.add_argument(
    "--multihost-timeout", type=int, default=300, metavar="SECONDS", help="to wait for the others"
  )


def run(args: argparse.Namespace) -> dict[str, Any] | None:
  """Trains; returns the summary of `sora_jax.train.loop.fit`, in process 0.

  Raises:
    UserError: see `config.load`, `hosts.start` and `loop.fit`.
    KeyboardInterrupt, SystemExit: Ctrl-C or SIGTERM, after a checkpoint was saved.
  """
  from sora_jax import config as config_lib

  config = config_lib.load(args.config, args.overrides)

  import jax

  from sora_jax.generate.model import enable_compilation_cache
  from sora_jax.parallel import hosts
  from sora_jax.train import loop

  given = (args.coordinator, args.process_count, args.process_id)
  if args.multihost or any(x is not None for x in given):
    hosts.start(*given, args.multihost_timeout)
  enable_compilation_cache()  # a resumed run does not compile again
  summary = loop.fit(config, args.workdir)
  if summary["stopped"] == "SIGINT":
    raise KeyboardInterrupt
  if summary["stopped"]:
    raise SystemExit(143)
  if jax.process_index() > 0:
    return None
  print(
    f"step {summary['step']}, loss {summary['loss']}, {summary['skipped']} skipped, "
    f"{summary['compilations']} compilations: {summary['workdir']}"
  )
  return summary
