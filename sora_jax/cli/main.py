"""The `sora-jax` command: finds the verbs, reads the arguments, turns failures into sentences."""

from __future__ import annotations

import argparse
import contextlib
import errno
import importlib
import importlib.metadata
import importlib.util
import json
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

from sora_jax.errors import UserError

VERBS = ("sample", "train", "eval", "data", "plan", "convert")

EXAMPLES = """examples:
  sora-jax sample "a red ball rolls behind the wall" --out ball.mp4
  sora-jax train --config=configs/toy.py:smoke --workdir runs/smoke
  sora-jax data worlds --out data/worlds --count 1000 --seed 0
  sora-jax eval --suite=text --out results
  sora-jax plan --config=configs/wan_14b.py --topology=v5p:4x4x4
  sora-jax convert hf:Wan-AI/Wan2.1-T2V-1.3B-Diffusers wan --to sora_jax

Exit status: 0 done, 2 something in the arguments or files is wrong, 130 interrupted.
"""


class _Parser(argparse.ArgumentParser):
  """argparse that raises instead of printing its usage and exiting."""

  def error(self, message: str) -> NoReturn:
    raise UserError(f"{message[:1].upper()}{message[1:]}; see `{self.prog} --help`.")


class _Version(argparse.Action):
  def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
    try:
      version = importlib.metadata.version("sora_jax")
    except importlib.metadata.PackageNotFoundError:
      version = "(a checkout that is not installed)"
    print(f"sora-jax {version}")
    parser.exit()


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command line; returns its exit status."""
  argv = list(sys.argv[1:] if argv is None else argv)
  debug = "--debug" in argv
  try:
    return _run(argv)
  except UserError as e:
    return _fail(str(e), debug)
  except KeyboardInterrupt:
    print("sora-jax: interrupted", file=sys.stderr)
    return 130
  except BrokenPipeError:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 141
  except Exception as e:
    if sentence := _resource_error(e):
      return _fail(sentence, debug)
    raise


def make_parser() -> argparse.ArgumentParser:
  """The parser with all verbs; none of them imports JAX before it runs."""
  parser = _Parser(
    prog="sora-jax",
    description="Text-to-video diffusion in JAX: train, sample and judge.",
    epilog=EXAMPLES,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
  _add_common(parser, default=False)
  verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
  for verb in VERBS:
    if importlib.util.find_spec(f"sora_jax.cli.{verb}"):
      module = importlib.import_module(f"sora_jax.cli.{verb}")
      module.add_parser(verbs)
      verbs.choices[verb].set_defaults(module=module)
  for verb_parser in verbs.choices.values():
    _add_common(verb_parser, default=argparse.SUPPRESS)
  return parser


def _run(argv: list[str]) -> int:
  argv, overrides = split_overrides(argv)
  args = make_parser().parse_args(argv)
  if overrides and not hasattr(args, "config"):
    raise UserError(f"{args.verb} takes no --config.{overrides[0].partition('=')[0]}.")
  args.overrides = overrides
  # With --json stdout holds one object and nothing else; whatever a verb prints is a message.
  with contextlib.redirect_stdout(sys.stderr) if args.json else contextlib.nullcontext():
    result = args.module.run(args)
  if args.json and result is not None:  # of several processes, one has the result
    print(json.dumps(result))
  return 0


def split_overrides(argv: Sequence[str]) -> tuple[list[str], list[str]]:
  """Takes `--config.a.b=v` and `--config.a.b v` out of `argv`; returns (rest, ["a.b=v", ...])."""
  rest: list[str] = []
  overrides: list[str] = []
  words = iter(argv)
  for word in words:
    if not word.startswith("--config."):
      rest.append(word)
      continue
    word = word.removeprefix("--config.")
    value = None if "=" in word else next(words, None)
    overrides.append(word if value is None else f"{word}={value}")
  return rest, overrides


def _add_common(parser: argparse.ArgumentParser, default: Any) -> None:
  group = parser.add_argument_group("everywhere")
  group.add_argument(
    "--json", action="store_true", default=default, help="print one JSON object to stdout"
  )
  group.add_argument(
    "--debug", action="store_true", default=default, help="show the traceback of an error"
  )


def _resource_error(error: Exception) -> str | None:
  """The sentence for a machine that is too small; None for anything else."""
  if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
    where = f" with {error.filename}" if error.filename else ""
    return f"The disk{where} is full; free some space and try again."
  if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
    return "The memory is full; use a smaller batch, fewer frames or a smaller size."
  return None


def _fail(message: str, debug: bool) -> int:
  if debug:
    traceback.print_exc()
  print(f"sora-jax: error: {' '.join(message.split())}", file=sys.stderr)
  return 2


if __name__ == "__main__":
  sys.exit(main())
