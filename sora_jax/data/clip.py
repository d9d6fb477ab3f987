"""How long and how large: clips as people write them, and the tokens they become."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from sora_jax.errors import UserError
from sora_jax.models.patch import Patch

# Rows -> columns of the usual formats. 832 is Wan's: 853 is no multiple of anything.
SIZES = {360: 640, 480: 832, 720: 1280, 1080: 1920, 2160: 3840}
EXAMPLES = "480p5s, 1080p60s@30 (rows, seconds, frames per second) or 81x720x1280@16"


@dataclass(frozen=True)
class Clip:
  """A video's shape: 4k+1 frames, rows, columns, frames per second."""

  frames: int
  height: int
  width: int
  fps: float = 24.0

  @classmethod
  def parse(cls, text: str) -> Clip:
    """`720p20s`, `1080p60s@30`, `60s@1080p24`, `81x720x1280` or `81x720x1280@16`.

    Raises:
      UserError: not of these forms, no such number of rows, or nothing of something.
    """
    rate, seconds = (rf"(?P<{name}>\d+(?:\.\d+)?)" for name in ("fps", "seconds"))
    if match := re.fullmatch(rf"(\d+)x(\d+)x(\d+)(?:@{rate})?", text):
      frames, height, width = (int(x) for x in match.groups()[:3])
      fps = float(match["fps"] or 24)
    elif match := (
      re.fullmatch(rf"(?P<rows>\d+)p{seconds}s(?:@{rate})?", text)
      or re.fullmatch(rf"{seconds}s@(?P<rows>\d+)p{rate}?", text)
    ):
      height, fps = int(match["rows"]), float(match["fps"] or 24)
      if height not in SIZES:
        raise UserError(f"There is no {height}p here; there are {', '.join(map(str, SIZES))}.")
      frames, width = round(float(match["seconds"]) * fps), SIZES[height]
    else:
      raise UserError(f"{text!r} is no clip; write it like {EXAMPLES}.")
    if min(frames, height, width) < 1 or not fps > 0:
      raise UserError(f"There is nothing in the clip {text!r}; write it like {EXAMPLES}.")
    return cls(4 * math.ceil((frames - 1) / 4) + 1, height, width, fps)

  def tokens(self, stride: tuple[int, int], patch: Patch) -> int:
    """How many tokens its grid has.

    Args:
      stride: frames of a latent (after the first), and pixels of its side. patch: in latents.
    """
    sizes = (1 + (self.frames - 1) / stride[0], self.height / stride[1], self.width / stride[1])
    return math.prod(math.ceil(math.ceil(x) / p) for x, p in zip(sizes, patch, strict=True))
