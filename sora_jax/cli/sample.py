"""`sora-jax sample`: a prompt becomes a video."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from sora_jax.cli.data import parse_size
from sora_jax.errors import UserError

EXAMPLES = """examples:
  sora-jax sample "a red ball rolls behind the wall and comes out on the right" --out ball.mp4
  sora-jax sample "a blue cube falls" --size 96x64 --frames 33 --seed 3 --out cube.gif
  sora-jax sample "a green cone on a grassy floor" --frames 1 --out cone.png
"""


def add_parser(verbs: Any) -> None:
  """Adds the verb to argparse's subparsers."""
  parser = verbs.add_parser(
    "sample",
    help="make a video from a prompt",
    description="Make a video (mp4, gif) or an image (png, or --frames 1) from a prompt.",
    epilog=EXAMPLES,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument("prompt", metavar="PROMPT", help="what to show")
  parser.add_argument("--out", required=True, metavar="FILE.{mp4,gif,png}")
  parser.add_argument(
    "--checkpoint", default="toy", metavar="NAME|DIR", help="a shipped name or a folder [toy]"
  )
  parser.add_argument("--negative", default="", metavar="TEXT", help="what to lead away from")
  parser.add_argument("--seed", type=int, default=0, metavar="N", help="[0]")
  parser.add_argument("--size", type=parse_size, metavar="HxW", help="height x width in pixels")
  parser.add_argument("--frames", type=int, metavar="N", help="4k+1; 1 is an image")
  parser.add_argument("--fps", type=float, metavar="N", help="frames per second")
  parser.add_argument("--steps", type=int, metavar="N", help="solver steps")
  parser.add_argument("--guidance", type=float, metavar="X", help="pull of the prompt, 1 = none")
  parser.add_argument("--sampler", metavar="NAME", help="euler, heun, dpm++ or unipc")
  parser.add_argument("--shift", type=float, metavar="X", help="more of the steps at high noise")


def run(args: argparse.Namespace) -> dict[str, Any]:
  """Makes the video and writes it.

  Raises:
    UserError: everything is checked before any weights are loaded, except what only they know.
  """
  from sora_jax.data import video

  video.check_output(args.out)
  if not args.prompt.strip():
    raise UserError("The prompt is empty: describe the video in a few words.")
  if args.seed < 0:
    raise UserError(f"The seed is {args.seed} but must not be negative.")

  from sora_jax.generate import model as generate

  generate.enable_compilation_cache()
  model = generate.load(args.checkpoint)
  settings = dict(
    frames=args.frames, size=args.size, fps=args.fps, sampler=args.sampler, steps=args.steps,
    guidance=args.guidance, shift=args.shift,
  )  # fmt: skip
  request = model.request(**settings)
  frames = model.sample(
    args.prompt, negative=args.negative, seed=args.seed, progress=True, **settings
  )
  video.write(args.out, frames, request["fps"])
  print(f"{args.out}: {len(frames)} frames of {frames.shape[1]}x{frames.shape[2]}", file=sys.stderr)
  return {"out": args.out, "frames": len(frames), "size": list(frames.shape[1:3])}
