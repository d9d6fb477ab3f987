"""`sora-jax plan`: what a config will need of a pod, before it is paid for."""

from __future__ import annotations

import argparse
from typing import Any

from sora_jax.errors import UserError

MODES = ("train", "sample", "forward")
EXAMPLES = """examples:
  sora-jax plan --config=configs/wan_14b.py --topology=v5p:4x4x4
  sora-jax plan --config=configs/sora_8b.py --clip=60s@1080p24 --topology=v5p:4x8x8
  sora-jax plan --config=configs/wan_1_3b.py --topology=v6e:2x4 --mode=sample --json
  sora-jax plan --config=configs/wan_14b.py --topology=v5p:2x2x4 --search

Topologies are chips and their arrangement: v4, v5p, tpu7x as AxBxC, v5e, v6e as AxB, h100 as hosts
x GPUs. What compiles for them is optional: pip install -e ".[tpu]" or ".[cuda]".
"""


def add_parser(verbs: Any) -> None:
  """Adds the verb to argparse's subparsers."""
  parser = verbs.add_parser(
    "plan",
    help="what a config needs of a TPU pod or GPUs that are not here",
    description="Compile the real program for chips that are not here, and read it: memory, "
    "FLOPs, what is sent, an estimate of the time.",
    epilog=EXAMPLES,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  add = parser.add_argument
  add("--config", required=True, metavar="FILE.py[:ARG]", help="e.g. configs/wan_14b.py")
  add("--topology", required=True, metavar="CHIP:SHAPE", help="e.g. v5p:4x4x4, v6e:16x16, h100:2x8")
  add("--clip", metavar="CLIP", help="for configs that take one: 720p20s, 60s@1080p24, 81x720x1280")
  add("--mode", default="train", choices=MODES, help="which step (train); forward: no sampler")
  add("--steps", type=int, metavar="N", help="of the run, for its chip-hours (the config's)")
  add("--search", action="store_true", help="also try other meshes and remat policies")
  add("--compile", type=int, default=2, metavar="N", help="with --search: the best N are compiled")


def run(args: argparse.Namespace) -> dict[str, Any]:
  """Prints and returns the plan, with --search the plans, the best first.

  Raises:
    UserError: see `config.load`, `topology.parse` and `plan.measure`.
  """
  from sora_jax import config as config_lib
  from sora_jax.plan import topology

  if args.steps is not None and args.steps < 1:
    raise UserError(f"--steps is {args.steps} but must be at least 1.")
  if args.compile < 1:
    raise UserError(f"--compile is {args.compile} but must be at least 1.")
  name = args.config
  if args.clip:
    if ":" in name:
      raise UserError(f"{name} has an argument already; leave out --clip={args.clip}.")
    name = f"{name}:{args.clip}"
  config = config_lib.load(name, args.overrides)
  target = topology.parse(args.topology)

  from sora_jax.plan import estimate, search

  steps = int(config.train.steps) if args.steps is None else args.steps
  if args.search:
    plans = search.search(config, name, target, args.mode, args.compile)
    for plan in plans:
      print(plan.text(steps))
    return {"plans": [plan.json() for plan in plans]}
  plan = estimate.plan(config, name, target, args.mode)
  print(plan.text(steps))
  return plan.json()
