"""The oracle that judges colour, shape, motion and look (sora_jax/evals/adherence.py).

Shipped: 1,200 steps, then 700 from their weights: 40 minutes on two CPU cores, after rendering;
97.4 % of 500 clean clips fully right. One run as below should come close; it has not been made.

sora-jax train --config=configs/oracle.py --workdir runs/oracle
python -m sora_jax.evals.controls --weights runs/oracle/export     the numbers to expect

`:stills` goes on from the shipped oracle with single frames: the judge of images of classes.

sora-jax train --config=configs/oracle.py:stills --workdir runs/stills
"""

from ml_collections import ConfigDict


def get_config(mode: str = "full") -> ConfigDict:
  """`mode`: "full", "stills", or "smoke" for a run of seconds."""
  if mode not in ("full", "stills", "smoke"):
    raise ValueError(f"configs/oracle.py takes full, stills or smoke, not {mode!r}")
  smoke = mode == "smoke"
  config = ConfigDict({
    "recipe": "oracle",
    "seed": 0,
    "init_from": None,
    "model": {"fine": 48, "wide": 96, "heads": 3, "blocks": 3},
    # Rendered once, 2.2 GB.
    "data": {
      "cache": "runs/oracle-clips-smoke" if smoke else "runs/oracle-clips",
      "count": 16 if smoke else 10_000,
      "seed": 77,
      "workers": 1 if smoke else 2,
      "still": False,  # one frame of each clip, held
    },
    "optim": {
      "name": "muon", "lr": 2e-3, "warmup": 60, "schedule": "linear", "decay": 0.05, "clip": 1.0,
      "ema_decay": 0.995,
    },
    "train": {
      "steps": 2 if smoke else 1900,
      "batch_size": 4 if smoke else 32,
      "log_every": 1 if smoke else 20,
      "checkpoint_every": 2 if smoke else 100,
    },
  })  # fmt: skip
  if mode == "stills":
    config.init_from, config.data.still = "sora_jax/evals/weights/oracle", True
    config.optim.lr, config.train.steps = 1e-3, 300
  return config
