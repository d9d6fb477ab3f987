"""Makes the demo: a video per prompt, a GIF and a contact sheet, with the shipped checkpoint.

python examples/demo.py --out demo
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

import sora_jax as sj
from sora_jax.data import video

PROMPTS = {
  "roll": "a red ball rolls to the left",
  "bounce": "a large yellow ball bounces on a wooden floor",
  "fall": "a small blue cube falls down",
  "behind_the_wall": "a green cylinder passes behind the wall and comes out on the right",
  "collide": "a purple ball hits an orange cube",
  "swing": "a cyan ball swings from a string at night",
}


def main() -> None:
  """Samples every prompt with seed 0 and writes the files; nothing is picked by hand."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--out", type=Path, default=Path("demo"), help="folder to write to")
  parser.add_argument("--checkpoint", default="toy")
  args = parser.parse_args()
  args.out.mkdir(parents=True, exist_ok=True)

  start = time.perf_counter()
  model = sj.load(args.checkpoint)
  fps = model.config["sampling"]["fps"]
  clips = {}
  for name, prompt in tqdm(PROMPTS.items(), desc="sampling", unit="video", file=sys.stderr):
    clips[name] = model.sample(prompt, seed=0)
    video.write(args.out / f"{name}.mp4", clips[name], fps)
  video.write(args.out / "demo.gif", np.concatenate(list(clips.values())[:4], axis=2), fps)
  sheet = video.contact_sheet(list(clips.values()), list(PROMPTS.values()))
  video.write(args.out / "contact_sheet.png", sheet[None], fps)
  print(f"{len(clips)} videos in {time.perf_counter() - start:.0f} s:")
  for path in sorted(args.out.iterdir()):
    print(f"  {path}")


if __name__ == "__main__":
  main()
