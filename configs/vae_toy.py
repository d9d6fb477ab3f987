r"""The autoencoder of `toy`: 4 x 8 x 8, 64 channels. Its encoder is principal components.

The latents are the first 64 principal components of patches of 4 x 8 x 8 pixels, final before any
training. `components` is the autoencoder that ships, components both ways; a minute, nothing to
train, so one step at rate 0:

  sora-jax data worlds --out data/worlds --count 10000 --seed 0 --size 64x64
  sora-jax train --config=configs/vae_toy.py:components --workdir runs/vae

By default the decoder has levels that learn what the components miss, slowly: 0.1 dB in 800 steps
on thousands of clips, before Muon took their first and last convolution (docs/toy.md).
`polish` is meant to sharpen them and to forgive slightly wrong latents; it has not been run at
length:

  sora-jax train --config=configs/vae_toy.py --workdir runs/levels
  sora-jax train --config=configs/vae_toy.py:polish --config.init_from=runs/levels/export \
      --workdir runs/vae_polished

Data are rendered worlds and scikit-image's photographs under a moving camera.
"""

from ml_collections import ConfigDict


def get_config(arg: str = "levels") -> ConfigDict:
  """`levels` (the default), `components`, `polish` or `smoke`."""
  config = ConfigDict(dict(
    recipe="vae",
    seed=0,
    init_from="",
    trainable="^(?!vae/principal/)",
    model=dict(
      z_channels=64, widths=(96, 128), res_blocks=1, patch=4, patch_time=4, time_down=(False,),
      kernel_t=(1, 3), mid_attention=False, linear=True, learned=("decoder",),
      latent_mean=None, latent_std=None,
    ),
    loss=dict(
      lpips=0.1, lpips_images=2, kl=0.0, equivariance=0.0, adversarial=0.0, latent_noise=0.0
    ),
    data=dict(
      frames=9,
      size=64,
      sources=dict(
        records=dict(weight=0.8, path="data/worlds"),
        worlds=dict(weight=0.0, count=10_000, seed=0, height=64, width=64),
        photos=dict(weight=0.2, count=100_000, frames=9, height=64, width=64),
        folder=dict(weight=0.0, path="", captions=False),
      ),
    ),
    optim=dict(
      name="muon", lr=1.5e-3, warmup=20, schedule="cosine", decay=0.01, clip=1.0, ema_decay=0.99,
      muon_exclude="time",
    ),
    train=dict(
      steps=600, batch_size=16, accumulate=1, log_every=20, checkpoint_every=200,
      preview_every=200, keep=2, mesh=None, max_bad_steps=5,
    ),
  ))  # fmt: skip
  if arg == "components":
    config.model.learned = ()
    config.trainable, config.optim.lr, config.loss.lpips = ".*", 0.0, 0.0
    config.train.update(steps=1, preview_every=0)
  elif arg == "polish":
    config.loss.update(lpips=0.3, equivariance=0.0, adversarial=0.05, latent_noise=0.15)
    config.train.steps = 400
  elif arg == "smoke":
    config.model.widths = (16, 16)
    config.loss.lpips = 0.0
    config.data.update(frames=5, size=32)
    config.data.sources.records.weight = config.data.sources.photos.weight = 0.0
    config.data.sources.worlds.update(weight=1.0, count=8)
    config.train.update(steps=4, batch_size=2, log_every=1, checkpoint_every=2, preview_every=4)
  elif arg != "levels":
    raise ValueError(f"configs/vae_toy.py takes levels, components, polish or smoke, not {arg!r}")
  return config
