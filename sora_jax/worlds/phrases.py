"""The wordings captions are made of (wordings.toml), each table split into training and held-out.

A table is a dict of two tuples, "train" and "heldout", whose items may have places to fill:

  {main} {target}   the things of an event, with articles   {goes}   how the first of them moves
  {side} {other}    "left" or "right", and the opposite     {things} {floor} {way} {text}
"""

from __future__ import annotations

import tomllib
from importlib import resources
from typing import Any

from sora_jax.worlds.vocabulary import motion_family

Choices = dict[str, tuple[str, ...]]


def _tables(found: dict[str, Any]) -> Any:
  """The tables in a part of the file, with tuples for lists.

  Raises:
    ValueError: a wording stands on both sides.
  """
  if "train" not in found:
    return {name: _tables(part) for name, part in found.items()}
  if both := set(found["train"]) & set(found["heldout"]):
    raise ValueError(f"held-out wordings are trained on: {sorted(both)}")
  return {side: tuple(found[side]) for side in ("train", "heldout")}


def undirected(motion: str) -> str:
  """The key of EVENTS: directions are filled in, except for depth, which has its own words."""
  return motion if motion in ("toward", "away", "rest", "control") else motion_family(motion)


def plural(noun: str) -> str:
  """Of one or several words."""
  if noun.endswith("die"):
    return noun.removesuffix("die") + "dice"
  return noun + ("es" if noun.endswith(("x", "s", "ch", "sh")) else "s")


_FILE = resources.files(__package__).joinpath("wordings.toml")
_ALL = _tables(tomllib.loads(_FILE.read_text(encoding="utf-8")))

SHAPES: dict[str, Choices] = _ALL["shapes"]
SIZES: dict[str, Choices] = _ALL["sizes"]
NUMBERS: dict[int, Choices] = {int(number): table for number, table in _ALL["numbers"].items()}
TOWERS: Choices = _ALL["towers"]
ROLLS: Choices = _ALL["rolls"]
SLIDES: Choices = _ALL["slides"]
EVENTS: dict[str, Choices] = _ALL["events"]
EXTRAS: Choices = _ALL["extras"]
FLOORS: Choices = _ALL["floors"]
LIGHTS: dict[str, Choices] = _ALL["lights"]
CAMERAS: dict[str, Choices] = _ALL["cameras"]
LOOKS: dict[str, Choices] = _ALL["looks"]

COUNTS = {4: "four", 5: "five"}
