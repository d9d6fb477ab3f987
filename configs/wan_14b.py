r"""Wan 2.1 14B (Wan Team 2025) in its published dimensions, trained from scratch.

Latents are 4x8x8 with 16 channels. The text encoder is ours, of the published width and length.

  sora-jax plan --config=configs/wan_14b.py --topology=v5p:4x4x4
  sora-jax convert hf:Wan-AI/Wan2.1-T2V-1.3B-Diffusers DISK/wan --to sora_jax
  sora-jax train --multihost --config=configs/wan_14b.py --config.vae=DISK/wan \
      --config.data.sources.folder.path=CLIPS --config.data.cache=DISK/latents --workdir DISK/run

`data.shapes.clip.clips` windows (100,000) are encoded first.

Never run: no pod was at hand. What it needs is in docs/scaling.md.
"""

from ml_collections import ConfigDict

from sora_jax.models.dit import VARIANTS
from sora_jax.train import pods


def get_config(clip: str = "81x720x1280@16") -> ConfigDict:
  """`clip`: its shape, such as 81x720x1280@16 or 480p5s; or smoke."""
  model = dict(VARIANTS["wan2.1-14b"], channels=16)
  text = dict(width=4096, layers=2, heads=32, length=512)
  return pods.config(clip, model, text, space_stride=8, batch_size=16)
