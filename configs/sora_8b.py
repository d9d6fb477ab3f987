r"""A transformer of 8B parameters for clips of up to a minute.

Latents are 4x16x16 with 48 channels: 4x8x8 would make four times the tokens of them, and sixteen
times the attention.

  sora-jax plan --config=configs/sora_8b.py --topology=v5p:4x4x4
  sora-jax train --multihost --config=configs/sora_8b.py --config.vae=VAE \
      --config.data.sources.folder.path=CLIPS --config.data.cache=DISK/latents --workdir DISK/run

VAE is an autoencoder of 4x16x16 with 48 channels, such as Wan 2.2's, converted. The
`data.shapes.clip.clips` windows (100,000) are encoded first.

Never run: no pod was at hand. What it needs is in docs/scaling.md.
"""

from ml_collections import ConfigDict

from sora_jax.train import pods

BATCH = {"480p5s": 256, "720p20s": 32, "1080p60s": 4}  # clips of a step: 3 million tokens


def get_config(clip: str = "720p20s") -> ConfigDict:
  """`clip`: 480p5s, 720p20s, 1080p60s, or any other, 16 clips a step; or smoke."""
  model = dict(
    width=4096, layers=30, heads=32, mlp_width=16384, text_width=2048, channels=48, cond_features=4
  )
  text = dict(width=2048, layers=6, heads=16, length=256)
  return pods.config(clip, model, text, space_stride=16, batch_size=BATCH.get(clip, 16))
