"""Captions of worlds read back: the colour, shape and motion that one states."""

from __future__ import annotations

import functools
import re

from sora_jax.worlds import phrases
from sora_jax.worlds.vocabulary import COLOURS, SHAPES


def _either(words) -> str:
  return "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))


def _all(table: phrases.Choices) -> tuple[str, ...]:
  return (*table["train"], *table["heldout"])


def _shapes() -> dict[str, str]:
  """The shape that each noun means, singular or plural."""
  nouns = {word: name for name in SHAPES for word in (name, *_all(phrases.SHAPES[name]))}
  return nouns | {phrases.plural(word): name for word, name in nouns.items()}


def _noun(prefix: str) -> str:
  """Any thing, e.g. "a small red ball" or "a tower of three red balls", with named groups."""
  lead = [f"{x} of" for x in _all(phrases.TOWERS)]
  extra = [x for table in (*phrases.SIZES.values(), *phrases.NUMBERS.values()) for x in _all(table)]
  return (
    rf"(?:{_either(['a', 'an', *lead])}) (?:(?:{_either(extra)}) )?"
    rf"(?P<{prefix}colour>{_either(COLOURS)}) (?P<{prefix}shape>{_either(_shapes())})"
  )


@functools.cache
def _patterns() -> list[tuple[str, re.Pattern]]:
  """(key of EVENTS, pattern) of every wording of every event."""
  goes = _either({*_all(phrases.ROLLS), *_all(phrases.SLIDES)})
  found = []
  for key, table in phrases.EVENTS.items():
    for wording in _all(table):
      text = re.escape(wording).replace(r"\{", "{").replace(r"\}", "}")
      for name, pattern in {
        "main": _noun(""), "target": _noun("target_"), "goes": f"(?:{goes})",
        "side": "(?P<side>left|right)", "other": "(?P<other>left|right)",
      }.items():  # fmt: skip
        text = text.replace(f"{{{name}}}", pattern, 1)
        again = f"(?P={name})" if name in ("side", "other") else pattern
        text = text.replace(f"{{{name}}}", again)
      found.append((key, re.compile(rf"\b{text}\b")))
  return found


def read(caption: str) -> dict[str, str] | None:
  """Colour, shape and motion of a caption that `captions.describe` may have written, else None.

  Names are those of `VOCABULARY`. Of several events that it could state the longest one counts, as
  "a red ball rolls left" is also the beginning of "a red ball rolls left and hits a blue cube".
  """
  best: tuple[str, re.Match] | None = None
  for key, pattern in _patterns():
    match = pattern.search(caption)
    if match and (best is None or len(match[0]) > len(best[1][0])):
      best = key, match
  if best is None:
    return None
  key, match = best
  motion = {"rest": "stays", "control": "stays", "across": ""}.get(key, key)
  if side := match.groupdict().get("side"):
    motion = f"{motion}_{side}".strip("_")
  return {"colour": match["colour"], "shape": _shapes()[match["shape"]], "motion": motion}
