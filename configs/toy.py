r"""The transformer of the shipped checkpoint `toy`: text to video, 48 to 160 px, 1 to 49 frames.

The shipped autoencoder is used unless `--config.vae` names another. The worlds are rendered and
encoded first, in a quarter of an hour. 4,000 steps of about 21 samples take about two hours on two
CPU cores, and up to twice that beside other work (an estimate, from the runs in docs/toy.md).

  sora-jax train --config=configs/toy.py --workdir runs/toy

With an autoencoder made anew (configs/vae_toy.py; needs the extra `train`):

  sora-jax data worlds --out data/worlds --count 10000 --seed 0 --size 64x64
  sora-jax train --config=configs/vae_toy.py:components --workdir runs/vae
  sora-jax train --config=configs/toy.py --config.vae=runs/vae/export --workdir runs/toy_own

On your own videos (mp4 files with captions in .txt files beside them):

  sora-jax train --config=configs/toy.py:square --config.data.sources.worlds.weight=0 \
      --config.data.sources.folder.weight=1 --config.data.sources.folder.path=DIR \
      --config.train.validate_every=0 --workdir runs/own

(or hold out a folder: `--config.data.validation.sources.folder.path`, and the weights alike).

To go on from what ships, on worlds it has not seen, most of them square, and at higher noise. An
hour and a half, and ten minutes for the worlds, with `--config.train.precision=BF16_BF16_F32` on
two cores that have instructions for it (1.3 s a step, 1.6 without). The last run of `toy` was this
one, but for its seed, which was 6, and began from the weights of another (docs/toy.md):

  sora-jax train --config=configs/toy.py:more --workdir runs/more

A second transformer for low noise, begun from the first one's weights, works on single latents
instead of patches of 2x2. 100 steps took 45 minutes beside other work, the last ten with a loss of
0.36, and samples were no better (docs/toy.md), so none ships:

  sora-jax train --config=configs/toy.py:low --workdir runs/low

All sizes and lengths share packed sequences (`:square` has 64x64 alone, and no loops; `:systems`
is it as experiments/systems trains it); a shape is switched off by its share, for example
`--config.data.shapes.huge.share=0`.
"""

from ml_collections import ConfigDict

WORLDS = dict(weight=1.0, count=1_000_000, seed=1)
# name: share of the samples, clips encoded, (frames, height, width), frame rate
SHAPES = {
  "square": (0.40, 10_000, (17, 64, 64), 8.0),
  "wide": (0.07, 1500, (17, 64, 96), 8.0),
  "tall": (0.07, 1500, (17, 96, 64), 8.0),
  "strip": (0.04, 1000, (17, 48, 80), 8.0),
  "column": (0.04, 1000, (17, 80, 48), 8.0),
  "small": (0.03, 800, (17, 48, 48), 8.0),
  "large": (0.06, 1500, (17, 96, 96), 8.0),
  "huge": (0.03, 800, (17, 128, 128), 8.0),
  "cinema": (0.03, 800, (17, 96, 160), 8.0),
  "portrait": (0.02, 800, (9, 160, 96), 4.0),
  "poster": (0.02, 800, (5, 160, 160), 2.0),
  "long": (0.06, 1500, (33, 64, 64), 8.0),
  "longest": (0.05, 1000, (49, 64, 64), 8.0),
  "smooth": (0.04, 1000, (33, 64, 64), 16.0),
}


def get_config(arg: str = "mixed") -> ConfigDict:
  """`mixed` (the default), `square`, `systems`, `more`, `low`, or `smoke`: seconds."""
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
    text=dict(width=256, layers=2, heads=4, length=64, noise=1.0, dtype=None),
    mixture=dict(
      weights=dict(none=0.70, first=0.10, prefix=0.05, stretch=0.05, spatial=0.03, noise=0.07),
      images=0.3,
      text_dropout=0.1,
    ),
    levels=dict(mean=0.0, std=1.0, shift=2.0, reference_tokens=80, uniform=0.1, highest=1.0),
    packing=dict(length=512, cond_rows=32, text_length=160, short=2),
    # From level 0.5 straight to 0 (before the shift it is 1/3): finer steps leave grain. The shift
    # is that of sampling, whatever `levels` has for training.
    # Guidance above level 0.8 alone: below, it damages what the model makes (docs/toy.md).
    sampling=dict(
      steps=20, shift=2.0, schedule=dict(lowest=1 / 3), guidance=6.0, guidance_interval=(0.8, 1.0)
    ),
    data=dict(
      cache="data/latents",
      batching="pack",  # or bucket, or pad: sora_jax/data/batches.py
      samples=26,  # drawn per step; about 21 fit into train.batch_size sequences
      shapes={
        name: dict(share=share, clips=clips, frames=frames, size=size, fps=fps, loop=False)
        for name, (share, clips, (frames, *size), fps) in SHAPES.items()
      },
      sources=dict(
        worlds=dict(WORLDS),
        records=dict(weight=0.0, path=""),
        folder=dict(weight=0.0, path=""),
        manifest=dict(weight=0.0, path=""),
        tfds=dict(weight=0.0, source=""),
      ),
      validation=dict(  # held out: never trained on
        clips=256,
        sources=dict(
          worlds=dict(WORLDS, split="validation"),
          folder=dict(weight=0.0, path=""),
          manifest=dict(weight=0.0, path=""),
        ),
      ),
    ),
    optim=dict(
      name="muon", lr=2e-3, warmup=40, schedule="linear", decay=0.01, clip=1.0, ema_decay=0.998
    ),
    train=dict(
      steps=4000, batch_size=4, accumulate=1, log_every=20, checkpoint_every=200,
      preview_every=400, validate_every=200, validate_batches=8, keep=2, mesh=None, max_bad_steps=5,
      precision=None,  # or BF16_BF16_F32: faster on processors with bfloat16 instructions
    ),
    preview=(
      "a red ball rolls from left to right",
      "a blue cube falls to the floor",
      "a green cone slides behind the wall and comes out on the right",
      "a yellow cylinder swings back and forth",
    ),
  ))  # fmt: skip
  loops = dict(share=0.04, clips=1000, frames=16, size=(64, 64), fps=8.0, loop=True)
  loops["sources"] = dict(worlds=dict(WORLDS, scenes=("pendulum", "orbit")))
  config.data.shapes.loops = loops
  if arg == "smoke":
    config.model.update(width=64, layers=2, heads=2, mlp_width=128, text_width=64)
    config.text.update(width=64, layers=1, heads=2)
    config.data.samples = 6
    for name, shape in config.data.shapes.items():
      shape.clips, shape.share = 16, shape.share * (name in ("square", "wide", "loops"))
    config.data.validation.clips = 16
    config.train.update(
      steps=4, batch_size=2, log_every=1, checkpoint_every=2, preview_every=4, validate_every=4,
      validate_batches=2,
    )  # fmt: skip
  elif arg in ("square", "systems"):
    for name, shape in config.data.shapes.items():
      shape.share = float(name == "square")
    config.packing.update(length=160, cond_rows=16, text_length=80, short=1)
    config.data.samples, config.train.batch_size = 38, 14
    if arg == "systems":  # what comes next is asked of half of the clips
      config.mixture.weights = dict(none=0.5, prefix=0.25, next=0.25)
      config.mixture.text_dropout, config.data.samples = 0.25, 40
      config.data.sources.worlds.weight, config.data.sources.records.weight = 0.0, 1.0
      config.data.sources.records.path = "data/worlds"
      config.train.steps = 1260  # as much work as each of the other systems
  elif arg == "more":
    config.init_from, config.seed = "toy", 7
    config.data.sources.worlds.seed = config.seed
    config.data.shapes.loops.sources.worlds.seed = config.seed
    for name, shape in config.data.shapes.items():
      shape.clips = 12_000 if name == "square" else 256
    config.data.shapes.square.share = 1.2
    config.data.samples, config.levels.shift, config.packing.text_length = 30, 3.0, 176
    config.optim.lr, config.train.steps = 1.3e-3, 4200
  elif arg == "low":
    del config.text  # read by the first transformer's encoder, which stays as it is
    config.text_from = config.init_from = "toy"
    config.model.split = True
    config.levels.update(shift=1.0, highest=0.65)
    del config.sampling.shift  # the first transformer's stays
    config.sampling.update(steps=30, schedule=dict(lowest=0.0))  # the levels that the first skips
    small = dict(square=0.5, wide=0.13, tall=0.13, strip=0.07, column=0.07, small=0.06)
    for name, shape in config.data.shapes.items():
      shape.share = small.get(name, 0.0)
    config.packing.update(length=192, cond_rows=20, text_length=100, short=1)
    config.data.samples, config.train.batch_size = 26, 10
    config.optim.update(lr=1.2e-3, warmup=20, ema_decay=0.98)
    config.train.update(steps=100, checkpoint_every=50, preview_every=0, validate_every=0)
  elif arg != "mixed":
    raise ValueError(
      f"configs/toy.py takes mixed, square, systems, more, low or smoke, not {arg!r}"
    )
  return config
