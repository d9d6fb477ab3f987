r"""Images by class: DiT on frames of rendered worlds; the classes are 8 colours x 5 shapes.

  sora-jax data worlds --out data/stills --count 60000 --seed 0 --frames 1 --workers 2
  sora-jax train --config=configs/dit_toy.py --workdir runs/dit

The latents are those of the shipped autoencoder, 8x8 of 64 channels at 64 px. Sampling:

  from sora_jax.generate import classes
  classes.load("runs/dit/export").sample(["red ball", "blue cube"], guidance=3.0)

`:sit` is the same network trained as SiT, on velocities. Neither has been run at length: 860 steps
at batch size 64, what experiments/systems gives each system, should take an hour on two CPU cores.
900 at batch size 32, of frames of the clips in data/worlds (`--config.data.sources.records.path`),
40 minutes beside other work, end at a held-out loss of 0.073 with floors and skies, and no things.
"""

from ml_collections import ConfigDict


def get_config(arg: str = "dit") -> ConfigDict:
  """`dit` (the default), `sit`, or `smoke`: seconds on a CPU, rendering what it needs."""
  config = ConfigDict(dict(
    recipe="dit",
    seed=0,
    init_from="",
    vae="toy",
    model=dict(
      width=256, layers=10, heads=4, channels=64, size=8, patch=1, learned_sigma=True,
      predicts="noise", remat="none", dtype=None,
    ),
    process=dict(steps=1000, low=1e-4, high=0.02),
    label_dropout=0.1,
    data=dict(
      size=64,
      sources=dict(
        records=dict(weight=1.0, path="data/stills"),
        worlds=dict(weight=0.0, count=1_000_000, seed=0, frames=1, truth=True),
      ),
      validation=dict(
        worlds=dict(weight=1.0, count=1024, seed=0, frames=1, truth=True, split="validation"),
      ),
    ),
    optim=dict(
      name="muon", lr=2e-3, warmup=40, schedule="linear", decay=0.01, clip=1.0, ema_decay=0.998
    ),
    train=dict(
      steps=860, batch_size=64, accumulate=1, log_every=20, checkpoint_every=200,
      preview_every=200, validate_every=200, validate_batches=4, keep=2, mesh=None,
      max_bad_steps=5,
      precision=None,  # or BF16_BF16_F32: faster on processors with bfloat16 instructions
    ),
    sampling=dict(
      sampler="ddpm", steps=250, guidance=3.0, channels=None, spacing="linspace",
      variance="learned", clip=None, shift=1.0,
    ),
    preview=("red ball", "blue cube", "green cone", "yellow cylinder", "pink capsule"),
  ))  # fmt: skip
  if arg == "smoke":
    config.model.update(width=32, layers=2, heads=2)
    config.data.sources.records.weight = 0.0
    config.data.sources.worlds.update(weight=1.0, count=64)
    config.data.validation.worlds.count = 16
    config.train.update(
      steps=4, batch_size=2, log_every=1, checkpoint_every=2, preview_every=4, validate_every=4,
      validate_batches=1,
    )  # fmt: skip
    config.sampling.steps = 3
  elif arg == "sit":
    config.model.update(learned_sigma=False, predicts="velocity")
    config.sampling.update(sampler="heun", steps=50)
  elif arg != "dit":
    raise ValueError(f"configs/dit_toy.py takes dit, sit or smoke, not {arg!r}")
  return config
