r"""VideoGPT on rendered worlds: captions to the codes of configs/vqvae_toy.py.

  sora-jax data worlds --out data/worlds --count 10000 --seed 0 --size 64x64
  sora-jax train --config=configs/vqvae_toy.py --workdir runs/vqvae
  sora-jax train --config=configs/videogpt_toy.py --workdir runs/videogpt
  sora-jax sample "a red ball rolls to the left" --checkpoint runs/videogpt/export --out ball.mp4

Clips are encoded first, in a minute or two. 1,000 steps (`--config.train.steps=1000`) took 20
minutes on two CPU cores and end at 4.65 bits a code on held-out worlds (one seed; 5.89 after 200
steps, 4.96 after 600): floors, skies and walls are sharp, things are blobs, half of them of the
colour that is asked for. Sampled at temperature 1 (`--temperature 1 --top-p 1 --guidance 1`) clips
are patchwork: 2,560 codes leave room for many mistakes.
"""

from ml_collections import ConfigDict


def get_config(arg: str = "full") -> ConfigDict:
  """`full` (the default) or `smoke`, which is told its autoencoder: `--config.vqvae=DIR`."""
  config = ConfigDict(dict(
    recipe="videogpt",
    seed=0,
    init_from="",
    vqvae="runs/vqvae/export",
    model=dict(
      width=256, layers=6, heads=4, mlp_width=1024, patch=(2, 2), remat="none", dtype=None,
    ),
    text=dict(width=256, layers=2, heads=4, length=64, dtype=None),
    text_dropout=0.1,
    data=dict(
      cache="data/codes",
      clips=10_000,
      frames=17,
      size=(64, 64),
      fps=8.0,
      sources=dict(
        records=dict(weight=1.0, path="data/worlds"),
        worlds=dict(weight=0.0, count=10_000, seed=0, height=64, width=64),
        folder=dict(weight=0.0, path=""),
        manifest=dict(weight=0.0, path=""),
      ),
      validation=dict(
        clips=256,
        sources=dict(
          worlds=dict(weight=1.0, count=256, seed=0, split="validation", height=64, width=64),
          folder=dict(weight=0.0, path=""),
          manifest=dict(weight=0.0, path=""),
        ),
      ),
    ),
    sampling=dict(temperature=0.8, top_k=None, top_p=0.9, guidance=3.0),
    optim=dict(
      name="muon", lr=2e-3, warmup=40, schedule="linear", decay=0.01, clip=1.0, ema_decay=0.99,
      muon_exclude="embed|norm|patch_in|position|head|cell_in|depth_in|table_in",
    ),
    train=dict(
      steps=1870, batch_size=8, accumulate=1, log_every=20, checkpoint_every=200,
      preview_every=500, validate_every=200, validate_batches=8, keep=2, mesh=None,
      max_bad_steps=5,
      precision=None,  # or BF16_BF16_F32: faster on processors with bfloat16 instructions
    ),
    preview=(
      "a red ball rolls from left to right",
      "a blue cube falls to the floor",
      "a green cone slides behind the wall and comes out on the right",
      "a yellow cylinder swings back and forth",
    ),
  ))  # fmt: skip
  if arg == "smoke":
    config.model.update(width=24, layers=1, heads=2, mlp_width=32)
    config.text.update(width=24, layers=1, heads=2)
    config.data.update(clips=8, frames=5, size=(32, 32))
    config.data.sources.records.weight = 0.0
    config.data.sources.worlds.update(weight=1.0, count=8, height=32, width=32)
    config.data.validation.clips = 4
    config.data.validation.sources.worlds.update(count=4, height=32, width=32)
    config.train.update(
      steps=4, batch_size=2, log_every=1, checkpoint_every=2, preview_every=4, validate_every=4,
      validate_batches=1,
    )  # fmt: skip
  elif arg != "full":
    raise ValueError(f"configs/videogpt_toy.py takes full or smoke, not {arg!r}")
  return config
