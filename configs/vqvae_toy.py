r"""VideoGPT's VQ-VAE on rendered worlds: 17 frames of 64x64 become 5x8x8 cells of eight codes.

  sora-jax data worlds --out data/worlds --count 10000 --seed 0 --size 64x64
  sora-jax train --config=configs/vqvae_toy.py --workdir runs/vqvae

480 steps (`--config.train.steps=480`) took 8 minutes on two CPU cores and gave 29.0 dB on 64
held-out worlds after 400, with 85 % of the codes used by a batch (one seed; 28.5 dB after 200). All
960, a quarter of what experiments/systems gives each system, have not been run.
"""

from ml_collections import ConfigDict


def get_config(arg: str = "full") -> ConfigDict:
  """`full` (the default) or `smoke`."""
  config = ConfigDict(dict(
    recipe="vqvae",
    seed=0,
    init_from="",
    model=dict(
      width=128, blocks=(1, 2), heads=4, kernel_t=3, patch=(4, 8, 8), z_channels=64, codes=512,
      depth=8, linear=True, dtype=None,
    ),
    quantising=dict(variance=0.25, commitment=0.25, decay=0.98, restart=0.05),
    data=dict(
      frames=17,
      size=64,
      sources=dict(
        records=dict(weight=1.0, path="data/worlds"),
        worlds=dict(weight=0.0, count=10_000, seed=0, height=64, width=64),
        folder=dict(weight=0.0, path="", captions=False),
      ),
      validation=dict(
        worlds=dict(weight=1.0, count=256, seed=0, split="validation", height=64, width=64),
        folder=dict(weight=0.0, path="", captions=False),
      ),
    ),
    optim=dict(
      name="muon", lr=2e-3, warmup=20, schedule="linear", decay=0.01, clip=1.0, ema_decay=0.99,
      muon_exclude="^vqvae/decoder/out|^vqvae/encoder/(in|out)",
    ),
    train=dict(
      steps=960, batch_size=16, accumulate=1, log_every=20, checkpoint_every=200,
      preview_every=200, validate_every=200, validate_batches=4, keep=2, mesh=None,
      max_bad_steps=5,
      precision=None,  # or BF16_BF16_F32: faster on processors with bfloat16 instructions
    ),
  ))  # fmt: skip
  if arg == "smoke":
    config.model.update(width=16, blocks=(1, 1), heads=2, z_channels=8, codes=16, depth=2)
    config.data.update(frames=5, size=32)
    config.data.sources.records.weight = 0.0
    config.data.sources.worlds.update(weight=1.0, count=8, height=32, width=32)
    config.data.validation.worlds.update(count=4, height=32, width=32)
    config.train.update(
      steps=4, batch_size=2, log_every=1, checkpoint_every=2, preview_every=4, validate_every=4,
      validate_batches=1,
    )  # fmt: skip
  elif arg != "full":
    raise ValueError(f"configs/vqvae_toy.py takes full or smoke, not {arg!r}")
  return config
