"""Makes the demo: a video per prompt, a GIF and a contact sheet, with the shipped checkpoint.

python examples/demo.py --out demo
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

import sora_jax as sj
from sora_jax.data import video
from sora_jax.generate.model import enable_compilation_cache

PROMPTS = {
  "roll": "a red ball rolls to the left",
  "bounce": "a large yellow ball bounces on the floor, on a wooden floor",
  "fall": "a blue cone falls from above and lands",
  "behind_the_wall": "a green ball rolls behind the wall and comes out on the right",
  "collide": "a purple ball rolls to the right and bumps into an orange cube",
  "swing": "a cyan ball swings on a string, at night",
}


def main() -> None:
  """Samples every prompt with seed 0 and writes the files; nothing is picked by hand."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--out", type=Path, default=Path("demo"), help="folder to write to")
  parser.add_argument("--checkpoint", default="toy")
  args = parser.parse_args()
  args.out.mkdir(parents=True, exist_ok=True)

  enable_compilation_cache()
  start = time.perf_counter()
  model = sj.load(args.checkpoint)
  fps = model.request()["fps"]
  clips = model.sample(list(PROMPTS.values()), seed=0, progress=True)
  for name, clip in zip(PROMPTS, clips, strict=True):
    video.write(args.out / f"{name}.mp4", clip, fps)
  video.write(args.out / "demo.gif", np.concatenate(clips[:4], axis=2), fps)
  sheet = video.contact_sheet(list(clips), list(PROMPTS.values()))
  video.write(args.out / "contact_sheet.png", sheet[None], fps)
  print(f"{len(clips)} videos in {time.perf_counter() - start:.0f} s:")
  for path in sorted(args.out.iterdir()):
    print(f"  {path}")


if __name__ == "__main__":
  main()
