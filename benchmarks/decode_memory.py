"""Peak memory of decoding a video into a file as it comes: after a second against after a minute.

python benchmarks/decode_memory.py --out benchmarks/decode_memory.md

One video is decoded latent frame by latent frame and written as H.264; the number is the most
memory the process ever had (`ru_maxrss`) until then, with Python, JAX and compilation.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from timing import report

from sora_jax.data import video
from sora_jax.generate.codec import Codec
from sora_jax.models.vae import VARIANTS, VideoVAE

FPS = 24
# Wan 2.1's autoencoder at a third of its width, and one that a test has time for.
FULL = dict(VARIANTS["wan2.1"], widths=(32, 64, 128, 128))
QUICK = dict(VARIANTS["wan2.1"], widths=(4, 4), time_down=(True,), kernel_t=(1, 1),
             res_blocks=1, mid_attention=False)  # fmt: skip


def decode(
  fields: dict[str, Any], size: tuple[int, int], seconds: Sequence[int]
) -> list[dict[str, float]]:
  """Decodes random latents with random weights into a file that is thrown away.

  Returns: a row for each of `seconds`, in order, as it was when so much had been written; the last
    is as it was when the file was complete.
  """
  vae = VideoVAE(**fields)
  key = jax.random.key(0)
  params = jax.jit(vae.init)(key, np.zeros((1, 1, *size, 3), np.float32), key)["params"]
  count, lh, lw = vae.latent_shape(FPS * seconds[-1] + 1, *size)
  rng = np.random.default_rng(0)
  rows = []
  start = time.perf_counter()

  def latents() -> Iterator[np.ndarray]:
    for _ in range(count):
      yield rng.normal(size=(1, 1, lh, lw, vae.z_channels)).astype(np.float32)

  def note(mark: int) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    rows.append({"seconds": mark, "peak MB": peak, "time": time.perf_counter() - start})

  def frames() -> Iterator[np.ndarray]:
    written = 0
    for piece in Codec(vae, params).stream(latents()):
      if len(rows) < len(seconds) - 1 and written >= FPS * seconds[len(rows)]:
        note(seconds[len(rows)])
      written += piece.shape[1]
      yield piece[0]

  with tempfile.TemporaryDirectory() as folder:
    video.write(Path(folder) / "video.mp4", frames(), FPS)
  note(seconds[-1])
  return rows


def main() -> None:
  """Measures, and prints."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--seconds", nargs="+", type=int, default=[1, 60], help="in ascending order")
  parser.add_argument("--quick", action="store_true", help="a tiny autoencoder")
  parser.add_argument("--json", action="store_true", help="print one JSON object for each length")
  parser.add_argument("--out", help="also write the table there")
  args = parser.parse_args()
  fields, size = (QUICK, (96, 160)) if args.quick else (FULL, (128, 224))
  rows = decode(fields, size, args.seconds)
  if args.json:
    print(*map(json.dumps, rows), sep="\n")
    return
  lines = ["| written | peak memory, MB | against the first | time, s |", "|---|---|---|---|"]
  for row in rows:
    ratio = row["peak MB"] / rows[0]["peak MB"]
    lines.append(f"| {row['seconds']} s | {row['peak MB']:.0f} | {ratio:.3f} | {row['time']:.1f} |")
  how = f"{size[0]} x {size[1]} pixels, {FPS} fps, latent frame by latent frame into an mp4"
  report("Memory of decoding", "\n".join(lines), args.out, how)


if __name__ == "__main__":
  main()
