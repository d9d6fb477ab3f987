"""Choosing frames by their times: how a clip at any rate, steady or not, becomes one at another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from sora_jax.errors import UserError

LONGEST_HOLD = 600.0  # seconds between frames; more means damaged timestamps


def resample(
  frames: Iterable[tuple[float, Any]],
  start: float,
  fps: float,
  count: int | None,
  native: float,
  end: float = 0.0,
) -> Iterator[Any]:
  """Yields the frame for each time start + k / fps, k = 0, 1, ...

  That is the frame shown then, or the next one if that comes within half a frame of the `native`
  rate: the nearest where the rate is steady, the held one where a frame stays long. The last
  frame stays until `end` seconds, and for 1 / `native` seconds if that is later. Stops after
  `count` frames.

  Args:
    frames: (seconds, frame), in order of time.

  Raises:
    UserError: the times jump by more than `LONGEST_HOLD`.
  """
  k = 0
  previous: tuple[float, Any] | None = None
  for time, frame in frames:
    if previous is not None:
      if time - previous[0] > LONGEST_HOLD:
        raise UserError(f"A frame stays for {time - previous[0]:.0f} s: its times are damaged.")
      switch = time - 0.5 * min(time - previous[0], 1 / native)
      while start + k / fps < switch:
        if k == count:
          return
        yield previous[1]
        k += 1
    previous = (time, frame)
    if k == count:
      return
  if previous is not None:
    end = max(end, previous[0] + 1 / native) - 0.25 / max(native, fps)
    while k != count and start + k / fps < end:
      yield previous[1]
      k += 1
