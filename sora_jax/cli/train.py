"""`sora-jax train`: train a model as a config says."""

from __future__ import annotations

import argparse
from typing import Any

EXAMPLES = """examples:
  sora-jax train --config=configs/vae_toy.py --workdir runs/vae
  sora-jax train --config=configs/toy.py:smoke --workdir runs/smoke      seconds, on a CPU
  sora-jax train --config=configs/toy.py --config.optim.lr=1e-3 --config.train.steps=200 \\
    --workdir runs/fast

The same command with the same --workdir resumes where the last checkpoint is. SIGTERM and Ctrl-C
save one first. The workdir holds config.json, checkpoints/, metrics.jsonl and previews/.
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


def run(args: argparse.Namespace) -> dict[str, Any]:
  """Trains; returns the summary of `sora_jax.train.loop.fit`.

  Raises:
    UserError: see `config.load` and `loop.fit`.
    KeyboardInterrupt, SystemExit: Ctrl-C or SIGTERM, after a checkpoint was saved.
  """
  from sora_jax import config as config_lib

  config = config_lib.load(args.config, args.overrides)

  from sora_jax.generate.model import enable_compilation_cache
  from sora_jax.train import loop

  enable_compilation_cache()  # a resumed run does not compile again
  summary = loop.fit(config, args.workdir)
  if summary["stopped"] == "SIGINT":
    raise KeyboardInterrupt
  if summary["stopped"]:
    raise SystemExit(143)
  print(
    f"step {summary['step']}, loss {summary['loss']}, {summary['skipped']} skipped, "
    f"{summary['compilations']} compilations: {summary['workdir']}"
  )
  return summary
