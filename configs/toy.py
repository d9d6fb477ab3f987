r"""The transformer of the shipped checkpoint `toy`: text to video at 64 px, 17 frames.

Needs the autoencoder of configs/vae_toy.py. The worlds it was made from are encoded first, in half
a minute. 4,000 steps of 38 samples take three hours on two CPU cores (15 samples a second). Expect
a loss of about 0.33, as at the end of the six runs that made `toy` (README.md).

  sora-jax data worlds --out data/worlds --count 10000 --seed 0 --size 64x64
  sora-jax train --config=configs/vae_toy.py:components --workdir runs/vae
  sora-jax train --config=configs/toy.py --config.vae=runs/vae/export --workdir runs/toy

On your own videos (mp4 files with captions in .txt files beside them):

  sora-jax train --config=configs/toy.py --config.vae=toy --config.data.sources.records.weight=0 \
      --config.data.sources.folder.weight=1 --config.data.sources.folder.path=DIR --workdir runs/own
"""

from ml_collections import ConfigDict


def get_config(arg: str = "video") -> ConfigDict:
  """`video` (the default), or `smoke`: seconds on a CPU, with the shipped autoencoder."""
  config = ConfigDict(dict(
    recipe="t2v",
    seed=0,
    init_from="",
    vae="toy",
    model=dict(
      width=256, layers=8, heads=4, mlp_width=1024, text_width=256, channels=64, patch=(1, 2, 2),
      cond_features=4, absolute=True, affine=True,
      dtype=None,  # float32: most CPUs are slower in bfloat16; for TPUs, switch
    ),
    text=dict(width=256, layers=2, heads=4, length=64, dtype=None),
    mixture=dict(
      weights=dict(none=0.70, first=0.10, prefix=0.05, stretch=0.05, spatial=0.03, noise=0.07),
      images=0.3,
      text_dropout=0.1,
    ),
    levels=dict(mean=0.0, std=1.0, shift=2.0, reference_tokens=80, uniform=0.1),
    packing=dict(length=160, cond_rows=16, text_length=80),
    data=dict(
      cache="data/latents",
      clips=10_000,
      frames=17,
      size=(64, 64),
      fps=8.0,
      samples=38,  # drawn per step; train.batch_size sequences hold them
      sources=dict(
        records=dict(weight=1.0, path="data/worlds"),
        worlds=dict(weight=0.0, count=1_000_000, seed=1),
        folder=dict(weight=0.0, path=""),
        manifest=dict(weight=0.0, path=""),
        tfds=dict(weight=0.0, source=""),
      ),
    ),
    optim=dict(
      name="muon", lr=2e-3, warmup=40, schedule="linear", decay=0.01, clip=1.0, ema_decay=0.998
    ),
    train=dict(
      steps=4000, batch_size=14, accumulate=1, log_every=20, checkpoint_every=200,
      preview_every=400, keep=2, mesh=None, max_bad_steps=5,
    ),
    preview=(
      "a red ball rolls from left to right",
      "a blue cube falls to the floor",
      "a green cone slides behind the wall and comes out on the right",
      "a yellow cylinder swings back and forth",
    ),
  ))  # fmt: skip
  if arg == "smoke":
    config.model.update(width=64, layers=2, heads=2, mlp_width=128, text_width=64)
    config.text.update(width=64, layers=1, heads=2)
    config.data.update(clips=16, samples=6)
    config.data.sources.records.weight, config.data.sources.worlds.weight = 0.0, 1.0
    config.train.update(steps=4, batch_size=2, log_every=1, checkpoint_every=2, preview_every=4)
  elif arg != "video":
    raise ValueError(f"configs/toy.py takes video or smoke, not {arg!r}")
  return config
