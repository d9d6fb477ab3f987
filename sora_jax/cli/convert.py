"""`sora-jax convert`: published weights to our layout and back, or a check of them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from sora_jax.errors import UserError

EXAMPLES = """examples:
  sora-jax convert hf:Wan-AI/Wan2.1-T2V-1.3B-Diffusers wan --to sora_jax
  sora-jax convert runs/finetune/export wan-finetuned --to diffusers
  sora-jax convert wan-diffusers/vae vae --to sora_jax
  sora-jax convert --check wan-diffusers

SRC is a whole model or one component of it. The weights stay as they are, bit for bit. A check
reads no weights but where torch, diffusers and transformers are installed: with them it also runs
the reference implementation and compares layer by layer.
"""


def add_parser(verbs: Any) -> None:
  """Adds the verb to argparse's subparsers."""
  parser = verbs.add_parser(
    "convert",
    help="published weights to our layout and back",
    description="Write a model, or one component of it, in the other layout; or check it.",
    epilog=EXAMPLES,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  add = parser.add_argument
  add("source", metavar="SRC", help="a folder of ours or in the hub's layout, or hf:ORG/NAME")
  add("target", metavar="DST", nargs="?", help="the folder to make")
  add("--to", choices=("diffusers", "sora_jax"), help="the layout to write")
  add("--check", action="store_true", help="write nothing, check SRC")


def run(args: argparse.Namespace) -> dict[str, Any]:
  """Converts or checks.

  Raises:
    UserError: the arguments make no sense, which is found before anything is read; or SRC is
      damaged, cannot be converted, or does not compute what its reference does.
  """
  from sora_jax.interop.folders import check_new

  if args.check and (args.target or args.to):
    raise UserError("A check writes nothing: leave out DST and --to, or --check.")
  if not args.check and not (args.target and args.to):
    raise UserError("Say what to write: sora-jax convert SRC DST --to diffusers|sora_jax.")
  if args.target:
    check_new(Path(args.target))

  from sora_jax.interop import convert, hub

  source = hub.find(args.source)
  if args.check:
    return _check(source)
  components = convert.convert(source, Path(args.target), args.to)
  print(f"{args.target}: {', '.join(components)} in the layout of {args.to}")
  return {"out": args.target, "layout": args.to, "components": components}


def _check(source: Path) -> dict[str, Any]:
  import dataclasses

  from sora_jax.interop import check, convert

  found = check.structure(source)
  for s in found:
    kinds = ", ".join(f"{count} {dtype}" for dtype, count in s.dtypes.items())
    print(
      f"{s.component}: {s.kind}, {s.parameters:,} parameters in {s.tensors} tensors ({kinds}), "
      f"{s.bytes / 1e9:.2f} GB: all consumed once, nothing left over"
    )
  report: dict[str, Any] = {"structure": [dataclasses.asdict(s) for s in found], "parity": None}
  if missing := check.missing_references():
    print(f"not compared with the reference: {', '.join(missing)} not installed")
  elif not convert.is_published(source):
    print("not compared with the reference: that needs the hub's layout (convert --to diffusers)")
  else:
    report["parity"] = {}
    for place, folder in convert.published_components(source).items():
      errors = report["parity"][place.section] = {}
      for layer, error in check.parity(folder):
        errors[layer] = error
        print(f"{place.section} {layer}: relative error {error:.1e}")
      worst = max(errors, key=lambda k: (errors[k] != errors[k], errors[k]))  # NaN is worst
      if not errors[worst] <= check.TOLERANCE:
        raise UserError(
          f"{worst} of the {place.section} differs from the reference by {errors[worst]:.1e}."
        )
  return report
