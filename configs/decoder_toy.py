r"""The decoder of the checkpoint `toy`: it makes sharp clips of what the sampler hands over.

Needs a model that configs/toy.py made, here with the autoencoder of components. The pairs of clips
and latents are made first, in five minutes.

  sora-jax data worlds --out data/worlds --count 10000 --seed 0 --size 64x64
  sora-jax train --config=configs/decoder_toy.py --config.init_from=runs/toy/export \
      --workdir runs/decoder
  sora-jax train --config=configs/decoder_toy.py:sharp --config.init_from=runs/decoder/export \
      --workdir runs/sharp

`sharp` goes on with an adversary. Each export is the whole model.
"""

from ml_collections import ConfigDict

WORLDS = dict(path="data/worlds")
WORLDS_ANEW = dict(count=10_000, seed=0, height=64, width=64)


def get_config(arg: str = "plain") -> ConfigDict:
  """`plain` (the default), `sharp`, or `smoke`."""
  config = ConfigDict(dict(
    recipe="decoder",
    seed=0,
    init_from="toy",
    model=dict(
      z_channels=64, widths=(64, 96), res_blocks=1, patch=4, patch_time=4, time_down=(False,),
      kernel_t=(3, 3), mid_attention=False, linear=True, learned=("decoder",),
      latent_mean=None, latent_std=None,
    ),
    loss=dict(
      lpips=0.3, lpips_images=8, kl=0.0, equivariance=0.0, adversarial=0.0, latent_noise=0.0
    ),
    data=dict(
      cache="data/pairs",
      frames=17,
      size=64,
      fps=8.0,
      sources=dict(
        records=dict(WORLDS, weight=1.0),
        worlds=dict(WORLDS_ANEW, weight=0.0),
      ),
      pairs=dict(  # noise levels that latents were made clean from; 0 is as encoded
        made=dict(share=0.7, clips=4096, levels=(0.25, 0.75)),
        given=dict(
          share=0.3, clips=1536, levels=(0.0, 0.0),
          sources=dict(
            records=dict(WORLDS, weight=0.5),
            worlds=dict(WORLDS_ANEW, weight=0.0),
            photos=dict(weight=0.5, count=100_000, frames=17, height=64, width=64),
          ),
        ),
      ),
    ),
    optim=dict(
      name="muon", lr=1.5e-3, warmup=20, schedule="linear", decay=0.01, clip=1.0, ema_decay=0.99,
      muon_exclude="conv_in|conv_out|quant|shortcut|time",
    ),
    train=dict(
      steps=600, batch_size=8, accumulate=1, log_every=10, checkpoint_every=100,
      preview_every=100, keep=2, mesh=None, max_bad_steps=5,
    ),
  ))  # fmt: skip
  if arg == "sharp":
    config.loss.adversarial = 0.02
    config.optim.lr = 5e-4
  elif arg == "smoke":
    config.loss.lpips = 0.0
    config.data.update(frames=5, size=48)
    for kind in config.data.pairs.values():
      kind.clips = 16
    given = config.data.pairs.given.sources
    given.photos.weight = 0.0
    for sources in (config.data.sources, given):
      sources.records.weight = 0.0
      sources.worlds.update(weight=1.0, count=8)
    config.train.update(steps=4, batch_size=2, log_every=1, checkpoint_every=2, preview_every=4)
  elif arg != "plain":
    raise ValueError(f"configs/decoder_toy.py takes plain, sharp or smoke, not {arg!r}")
  return config
