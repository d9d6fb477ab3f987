r"""V-JEPA on rendered worlds: clips of 16 frames at 64 px, tubelets of 2 x 8 x 8 pixels.

Masks are the published "short" (eight blocks of 15 % of the frame, as long as the clip) and
"future": what comes next, which surprise is measured with. The published "long" leaves too little
to see of such clips. Unlike V-JEPA 2, tokens have an embedding of where they are (`absolute`),
targets are features less their mean over the clip (`centred`), and Muon trains it: why is in
docs/vjepa.md. 1,500 steps took an hour on two CPU cores.

`--config.data.sources.records.distractor=0.25` covers a quarter of each picture with noise that
cannot be foreseen (docs/world.md).

  sora-jax data worlds --out data/worlds --count 10000 --seed 0 --size 64x64
  sora-jax train --config=configs/vjepa_toy.py --workdir runs/vjepa
"""

from ml_collections import ConfigDict


def get_config(arg: str = "full") -> ConfigDict:
  """`full` (the default) or `smoke`."""
  config = ConfigDict(dict(
    recipe="vjepa",
    seed=0,
    init_from="",
    momentum=(0.98, 0.999),
    model=dict(
      width=192, layers=6, heads=3, mlp_width=768,
      predictor_width=96, predictor_layers=4, predictor_heads=3, predictor_mlp_width=384,
      patch=(2, 8, 8), mask_tokens=2, absolute=True, centred=True, frames=16, size=64, remat="none",
    ),
    masks=dict(
      context=0.35,
      targets=0.375,
      kinds=dict(short=dict(blocks=8, space=0.15), future=dict(future=3)),
    ),
    data=dict(
      workers=0,
      sources=dict(
        records=dict(weight=1.0, path="data/worlds", distractor=0.0),
        worlds=dict(weight=0.0, count=10_000, seed=0, height=64, width=64, distractor=0.0),
      ),
      validation=dict(
        worlds=dict(
          weight=1.0, count=256, seed=0, split="validation", height=64, width=64, distractor=0.0
        )
      ),
    ),
    optim=dict(
      name="muon", lr=2e-3, warmup=50, schedule="cosine", final=0.05, decay=0.04, clip=1.0,
      ema_decay=0.99,
    ),
    train=dict(
      steps=1500, batch_size=8, accumulate=1, log_every=20, checkpoint_every=100,
      validate_every=500, validate_batches=8, keep=2, mesh=None, max_bad_steps=5,
      precision=None,  # or BF16_BF16_F32: faster on processors with bfloat16 instructions
    ),
  ))  # fmt: skip
  if arg == "smoke":
    config.model.update(
      width=48, layers=2, mlp_width=96, predictor_width=24, predictor_layers=1,
      predictor_mlp_width=48, frames=6, size=32,
    )  # fmt: skip
    config.data.sources.records.weight = 0.0
    config.data.sources.worlds.update(weight=1.0, count=8, height=32, width=32)
    config.data.validation.worlds.update(count=4, height=32, width=32)
    config.train.update(
      steps=4, batch_size=2, log_every=1, checkpoint_every=2, validate_every=4, validate_batches=1
    )
  elif arg != "full":
    raise ValueError(f"configs/vjepa_toy.py takes full or smoke, not {arg!r}")
  return config
