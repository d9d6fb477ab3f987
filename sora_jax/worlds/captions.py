"""Captions for worlds, at three levels of detail, in varied wording.

Every caption states colour, shape and motion of the main object. Level 0 adds nothing, level 1
the size, the other objects or the floor, level 2 also light, sky and camera; a look other than
plain is always named, and what it hides is not: floor and light of a line drawing, and colours of
bystanders in monochrome. Each table has wordings for training and wordings (templates and synonyms)
that only `wording="heldout"` uses, to measure understanding of free text.
"""

from __future__ import annotations

import numpy as np

from sora_jax.worlds import phrases
from sora_jax.worlds.spec import Spec, Thing

WORDINGS = ("train", "heldout")
MOST_WORDS = 42  # of a held-out caption, or it is one of less detail: `toy` reads 64 word pieces


class _Writer:
  def __init__(self, spec: Spec, rng: np.random.Generator, wording: str):
    self.spec, self.rng, self.wording = spec, rng, wording

  def pick(self, table: phrases.Choices) -> str:
    options = table[self.wording]
    return options[int(self.rng.integers(len(options)))]

  def noun(self, thing: Thing, size: bool = False, colour: bool = True) -> str:
    """E.g. "small red ball": no article."""
    names = phrases.SHAPES[thing.shape]
    # A third of training, so that most of it is about synonyms; never in the held-out wordings.
    plain = self.wording == "train" and self.rng.uniform() < 1 / 3
    shape = thing.shape if plain else self.pick(names)
    words = [thing.colour, shape] if colour else [shape]
    if size and thing.size != "medium":
      words.insert(0, self.pick(phrases.SIZES[thing.size]))
    return " ".join(words)

  def main(self, size: bool) -> str:
    name = with_article(self.noun(self.spec.main, size))
    if self.spec.scene == "topple":
      count = sum(x.role in ("main", "block") for x in self.spec.things)
      noun = phrases.plural(self.noun(self.spec.main))
      number = self.pick(phrases.NUMBERS[count]) + " " if size else ""
      return f"{self.pick(phrases.TOWERS)} of {number}{noun}"
    return name

  def event(self, size: bool) -> str:
    spec = self.spec
    key = "rest" if spec.scene == "still_life" else spec.motion
    if spec.motion == "stays" and spec.scene == "occlusion":
      key = "control"
    text = self.pick(phrases.EVENTS[phrases.undirected(key)])
    side = "left" if spec.motion.endswith("left") else "right"
    other = "right" if side == "left" else "left"
    target = next((x for x in spec.things if x.role == "target"), None)
    goes = phrases.ROLLS if _rolls(spec) else phrases.SLIDES
    return text.format(
      main=self.main(size),
      target=with_article(self.noun(target)) if target else "",
      goes=self.pick(goes), side=side, other=other,
    )  # fmt: skip

  def extras(self) -> str:
    extras = [x for x in self.spec.things if x.role == "extra"]
    if not extras:
      return ""
    if len(extras) > 3:
      named = f"{phrases.COUNTS[len(extras)]} other objects"
    else:
      coloured = self.spec.look != "mono"
      named = listing([with_article(self.noun(x, colour=coloured)) for x in extras])
    return self.pick(phrases.EXTRAS).format(things=named)


def _rolls(spec: Spec) -> bool:
  sideways = spec.motion.endswith(("left", "right")) or spec.motion == "hides"
  return spec.main.shape == "ball" or (spec.main.shape == "capsule" and not sideways)


def with_article(noun: str) -> str:
  """`noun` with "a" or "an" before it."""
  return ("an " if noun[0] in "aeiou" else "a ") + noun


def listing(items: list[str]) -> str:
  """'a, b and c'."""
  if len(items) == 1:
    return items[0]
  return ", ".join(items[:-1]) + " and " + items[-1]


def describe(spec: Spec, level: int, rng: np.random.Generator | int, wording: str = "train") -> str:
  """Puts a world into words.

  Args:
    level: 0 (main object and motion), 1 (and size, other objects, floor), 2 (and light, camera).
    rng: chooses among the wordings; the same state gives the same caption.
    wording: "train", or "heldout" for wordings never used in training.

  Raises:
    ValueError: unknown level or wording.
  """
  if level not in (0, 1, 2) or wording not in WORDINGS:
    raise ValueError(f"no captions of level {level}, wording {wording!r}")
  writer = _Writer(spec, np.random.default_rng(rng), wording)
  text = writer.event(size=level > 0)
  if level > 0:
    parts = [writer.extras()]
    drawn = spec.look == "line"
    if not drawn and (level == 2 or writer.rng.uniform() < 0.5):
      parts.append(writer.pick(phrases.FLOORS).format(floor=spec.floor))
    text += "".join(parts)
  if level == 2 and spec.look != "line":
    text += writer.pick(phrases.LIGHTS[spec.light])
  moves = spec.camera.kind.split("_")[0]
  if spec.scene == "still_life" or (level == 2 and spec.camera.kind != "static"):
    side = "left" if spec.camera.kind.endswith("left") else "right"
    way = spec.camera.kind.rpartition("_")[2]
    text += writer.pick(phrases.CAMERAS[moves]).format(side=side, way=way)
  elif level == 2 and writer.rng.uniform() < 0.3:
    text += writer.pick(phrases.CAMERAS["static"])
  if spec.look != "plain":
    text = writer.pick(phrases.LOOKS[spec.look]).format(text=text)
  if wording == "heldout" and level > 0 and len(text.split()) > MOST_WORDS:
    return describe(spec, level - 1, writer.rng, wording)
  return text
