"""`sora-jax sample`: a prompt becomes a video, around what is given of it; a class an image."""

from __future__ import annotations

import argparse
import math
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sora_jax.cli.data import parse_size
from sora_jax.errors import UserError

if TYPE_CHECKING:
  from sora_jax.generate.inputs import Inputs
  from sora_jax.generate.story import Story

EXAMPLES = """examples:
  sora-jax sample "a red ball rolls behind the wall and comes out on the right" --out ball.mp4
  sora-jax sample "a blue cube falls" --size 96x64 --frames 33 --seed 3 --out cube.gif
  sora-jax sample "a green cone on a grassy floor" --frames 1 --out cone.png
  sora-jax sample "a green cone slides to the left" --task animate --image cone.png --out cone.mp4
  sora-jax sample --task extend --video cone.mp4 --direction both --frames 8 --out longer.mp4
  sora-jax sample "a yellow cone swings on a string" --task loop --out swing.gif
  sora-jax sample --task storyboard --storyboard story.json --out story.mp4
  sora-jax sample --task fill --video ball.mp4 --missing 5-11 --out filled.mp4
  sora-jax sample --task connect --video ball.mp4 --video cone.mp4 --out passage.mp4
  sora-jax sample --task inpaint --video ball.mp4 --mask mask.png --out clean.mp4
  sora-jax sample --task outpaint --video ball.mp4 --size 64x96 --out wide.mp4
  sora-jax sample "a red ball at dusk" --task edit --video ball.mp4 --strength 0.6 --out dusk.mp4
  sora-jax sample "a red ball rolls to the left" --mesh data=2,context=4 --out ball.mp4
  sora-jax sample "a cat and a dog bake a cake" --checkpoint hf:Wan-AI/Wan2.1-T2V-1.3B-Diffusers \\
      --dtype bfloat16 --out cake.mp4
  sora-jax sample "a red ball rolls to the left" --cache 0.1 --curve toy.json --out ball.mp4
  sora-jax sample "a cat and a dog bake a cake" --checkpoint hf:Wan-AI/Wan2.1-T2V-1.3B-Diffusers \\
      --lora runs/wan/export:0.8 --out cake.mp4
  sora-jax sample "golden retriever; tabby; 207" --checkpoint path/to/DiT-XL-2-256 \\
      --out animals.png
  sora-jax sample "a red ball rolls to the left" --checkpoint runs/videogpt/export \\
      --temperature 0.9 --out ball.mp4

With a model of images of classes, PROMPT is the name or the number of a class, or several,
separated by semicolons.
"""

# What only a model of videos can use, and what it is where it is not given.
VIDEO_ONLY: dict[str, Any] = dict(
  task="generate", image=None, video=[], mask=None, missing=None, storyboard=None, direction=None,
  strength=None, fit=None, paste=False, negative="", size=None, frames=None, fps=None, mesh=None,
  lora=[], cache=None, curve=None,
)  # fmt: skip

# What only a VideoGPT can use, which draws codes; and what it cannot use.
CODES_ONLY: dict[str, Any] = dict(temperature=None, top_k=None, top_p=None)
NOT_CODES = {name: x for name, x in VIDEO_ONLY.items() if name not in ("size", "frames")} | dict(
  steps=None, sampler=None, shift=None
)


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
  parser.add_argument("prompt", metavar="PROMPT", nargs="?", default="", help="what to show")
  parser.add_argument("--out", required=True, metavar="FILE.{mp4,gif,png}")
  parser.add_argument(
    "--checkpoint",
    default="toy",
    metavar="NAME|DIR|hf:ID",
    help="a shipped name, a folder of ours or in the hub's layout, or a model of the hub [toy]",
  )
  _add_given(parser)
  _add_solver(parser)


def _add_given(parser: argparse.ArgumentParser) -> None:
  given = parser.add_argument_group("what is given")
  given.add_argument(
    "--task",
    default="generate",
    metavar="NAME",
    help="animate, extend, loop, storyboard, fill, connect, blend, inpaint, outpaint, edit or "
    "variations",
  )
  given.add_argument("--image", metavar="FILE")
  given.add_argument(
    "--video", metavar="FILE", action="append", default=[], help="connect, blend: twice"
  )
  given.add_argument("--mask", metavar="FILE", help="an image, white where something is made")
  given.add_argument(
    "--missing", metavar="A-B,C", help="frames to make, counted from 0 [those that look damaged]"
  )
  given.add_argument(
    "--storyboard", metavar="FILE.json", help='[{"start": SECONDS, "prompt": "..."}, ...]'
  )
  given.add_argument("--direction", metavar="forward|backward|both")
  given.add_argument(
    "--strength",
    type=float,
    metavar="X",
    help="edit, variations, blend: noise level to start from, between 0 and 1 [0.6]",
  )
  given.add_argument(
    "--fit",
    metavar="crop|pad|stretch",
    help="how inputs of other shapes are brought to a size [crop]",
  )
  given.add_argument("--paste", action="store_true", help="put the given pixels back at the end")


def _add_solver(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--negative", default="", metavar="TEXT", help="negative prompt")
  parser.add_argument("--seed", type=int, default=0, metavar="N", help="[0]")
  parser.add_argument("--size", type=parse_size, metavar="HxW", help="height x width in pixels")
  parser.add_argument(
    "--frames",
    type=int,
    metavar="N",
    help="4k+1, 1 is an image; loop: 4k; extend, connect, loop of a video: any number of new ones",
  )
  parser.add_argument("--fps", type=float, metavar="N", help="frames per second")
  parser.add_argument("--steps", type=int, metavar="N", help="solver steps")
  parser.add_argument(
    "--guidance", type=float, metavar="X", help="classifier-free guidance; 1 = none"
  )
  parser.add_argument(
    "--temperature", type=float, metavar="X", help="VideoGPT: of sampling, 0 is greedy"
  )
  parser.add_argument(
    "--top-k", type=int, metavar="N", help="VideoGPT: sample among the N likeliest"
  )
  parser.add_argument("--top-p", type=float, metavar="X", help="VideoGPT: nucleus sampling")
  parser.add_argument("--sampler", metavar="NAME", help="euler, heun, dpm++ or unipc; ddpm or ddim")
  parser.add_argument("--shift", type=float, metavar="X", help="larger: more steps at high noise")
  parser.add_argument(
    "--cache",
    type=float,
    metavar="X",
    help="step caching: larger is faster and less exact, 0 is none",
  )
  parser.add_argument(
    "--curve",
    metavar="FILE",
    help="the model's curve for --cache; measured and written to FILE if that does not exist",
  )
  parser.add_argument(
    "--lora",
    type=parse_adapter,
    metavar="FILE[:WEIGHT]",
    action="append",
    default=[],
    help="a LoRA adapter and its weight [1]; may be given several times",
  )
  parser.add_argument(
    "--dtype", choices=("float32", "bfloat16"), help="compute dtype [the checkpoint's]"
  )
  parser.add_argument(
    "--mesh",
    type=parse_mesh,
    metavar="AXIS=N,...",
    help="device mesh over data, fsdp, context and tensor; one N may be -1, the remaining devices "
    "[all devices; data=1 is one]",
  )


def parse_mesh(text: str) -> dict[str, int]:
  """Reads "context=4,data=2". Raises UserError for anything else."""
  sizes: dict[str, int] = {}
  for word in text.split(","):
    axis, _, size = word.partition("=")
    if not re.fullmatch(r"-?\d+", size) or axis in sizes:
      raise UserError(f"--mesh {text} is not a mesh: write each axis once, as in context=4,data=2.")
    sizes[axis] = int(size)
  return sizes


def parse_adapter(text: str) -> tuple[str, float]:
  """Reads "FILE" or "FILE:WEIGHT"."""
  file, _, weight = text.rpartition(":")
  try:
    number = float(weight)
  except ValueError:  # the colon is part of the name
    return text, 1.0
  if not math.isfinite(number):
    raise UserError(f"--lora {text}: the weight must be finite.")
  return (file, number) if file else (text, 1.0)


def _check(args: argparse.Namespace) -> tuple[Inputs, Story]:
  """What was asked for, checked before any weights are loaded: the files given, and the words.

  Raises:
    UserError: arguments that contradict each other, or files that are not there.
  """
  from sora_jax.data import video
  from sora_jax.diffusion.sampler import check_draw
  from sora_jax.generate.inputs import Inputs
  from sora_jax.generate.story import Story

  video.check_output(args.out)
  inputs = Inputs(
    image=args.image, videos=args.video, mask=args.mask, missing=args.missing,
    storyboard=args.storyboard, direction=args.direction, strength=args.strength,
    frames=args.frames, size=args.size, fps=args.fps, fit=args.fit,
  )  # fmt: skip
  inputs.check(args.task)
  given = args.image is not None or args.video
  if args.paste and not given:
    raise UserError(f"The task {args.task} cannot use --paste: nothing is given.")
  if args.storyboard and args.prompt:
    raise UserError("The prompts are those of the storyboard: leave PROMPT out.")
  told = Story.read(args.storyboard) if args.storyboard else Story.of(args.prompt)
  if not told.prompts[0] and (not given or args.task == "edit"):
    raise UserError("The prompt is empty: describe the video in a few words.")
  if args.curve and not (args.cache and args.cache > 0):
    raise UserError("--curve serves step caching: give --cache too, or leave it out.")
  check_draw(args.seed, 1)
  for file, _ in args.lora:
    if not Path(file).exists():
      raise UserError(f"There is no adapter {file}: give a file, or a folder that holds one.")
  return inputs, told


def run(args: argparse.Namespace) -> dict[str, Any]:
  """Makes the video and writes it.

  Raises:
    UserError: everything is checked before any weights are loaded, except what only they know.
  """
  inputs, told = _check(args)

  from sora_jax.diffusion.conditioning import TIME_STRIDE
  from sora_jax.generate import classes, videogpt
  from sora_jax.generate import model as generate
  from sora_jax.generate.calibrate import with_curve

  generate.enable_compilation_cache()
  if classes.holds(args.checkpoint):
    return _images(args)
  if videogpt.holds(args.checkpoint):
    return _from_codes(args)
  _refuse(args, CODES_ONLY, "draws no codes")
  model = generate.load(args.checkpoint, args.mesh, args.dtype)
  for file, weight in args.lora:
    model = model.adapted(file, weight)
  asked = dict(sampler=args.sampler, steps=args.steps, guidance=args.guidance, shift=args.shift)
  # Mistakes first, as reading and measuring take a while: two transformers need no curve to refuse.
  cache = args.cache if model.low or not args.curve else None
  size = None if args.task == "outpaint" else args.size  # it is to be larger, if it is wrong
  defaults = model.request(size=size, fps=args.fps, cache=cache, **asked)
  canvas, fps = inputs.canvas(
    args.task, step=model.step, frames=defaults["frames"], size=tuple(defaults["size"]),
    fps=defaults["fps"],
  )  # fmt: skip
  if args.paste and canvas is not None and not canvas.known.any():
    raise UserError(f"The task {args.task} cannot use --paste: no pixel stays as it was given.")
  if args.curve:
    model = with_curve(model, args.curve)
  alone, count = canvas is None, args.frames
  if args.task == "storyboard" and count is None:  # the last prompt has the length of a clip
    count = math.ceil(told.starts[-1] * fps / TIME_STRIDE) * TIME_STRIDE + defaults["frames"]
  frames = model.sample(
    told, canvas=canvas, negative=args.negative, seed=args.seed, progress=True, fps=fps,
    frames=count if alone else None, size=args.size if alone else None,
    cache=args.cache, **asked,
  )  # fmt: skip
  if args.paste and canvas is not None:
    frames = canvas.paste(frames[None])[0]
  return _written(args.out, frames, fps)


def _refuse(args: argparse.Namespace, options: dict[str, Any], why: str) -> None:
  """Raises UserError: an option was given that this model cannot use."""
  for name, default in options.items():
    if getattr(args, name) != default:
      option = name.replace("_", "-")
      raise UserError(f"{args.checkpoint} {why}: it cannot use --{option}.")


def _from_codes(args: argparse.Namespace) -> dict[str, Any]:
  """Makes a video by VideoGPT and writes it.

  Raises:
    UserError: an argument that it cannot use, or no prompt.
  """
  from sora_jax.generate import videogpt

  _refuse(args, NOT_CODES, "is a VideoGPT")
  model = videogpt.load(args.checkpoint, args.dtype)
  frames = model.sample(
    args.prompt, seed=args.seed, frames=args.frames, size=args.size, progress=True,
    guidance=args.guidance, **{name: getattr(args, name) for name in CODES_ONLY},
  )  # fmt: skip
  return _written(args.out, frames, model.config["sampling"]["fps"])


def _written(out: str, frames: Any, fps: float) -> dict[str, Any]:
  """Writes a video and says so."""
  from sora_jax.data import video

  video.write(out, frames, fps)
  print(f"{out}: {len(frames)} frames of {frames.shape[1]}x{frames.shape[2]}", file=sys.stderr)
  return {"out": out, "frames": len(frames), "size": list(frames.shape[1:3])}


def _images(args: argparse.Namespace) -> dict[str, Any]:
  """Makes images of classes and writes them side by side.

  Raises:
    UserError: an argument that only a model of videos can use, FILE is no .png, or there is no such
      class.
  """
  from sora_jax.data import images, video
  from sora_jax.generate import classes

  _refuse(args, VIDEO_ONLY | CODES_ONLY, "makes images of classes")
  if Path(args.out).suffix.lower() != ".png":
    raise UserError(f"{args.checkpoint} makes images of classes: --out must be a .png file.")
  words = [word.strip() for word in args.prompt.split(";")]
  made = classes.load(args.checkpoint, args.dtype).sample(
    [int(word) if word.isdecimal() else word for word in words], seed=args.seed, progress=True,
    sampler=args.sampler, steps=args.steps, guidance=args.guidance, shift=args.shift,
  )  # fmt: skip
  video.write(args.out, images.strip(made, len(made))[None])
  size = list(made.shape[1:3])
  print(f"{args.out}: {len(made)} images of {size[0]}x{size[1]}", file=sys.stderr)
  return {"out": args.out, "images": len(made), "size": size}
