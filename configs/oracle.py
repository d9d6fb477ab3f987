"""The oracle that judges colour, shape, motion and look (sora_jax/evals/adherence.py).

  sora-jax train --config=configs/oracle.py --workdir runs/oracle
  python -m sora_jax.evals.controls --weights runs/oracle/export     the numbers to expect
"""

from ml_collections import ConfigDict


def get_config(mode: str = "full") -> ConfigDict:
  """`mode`: "full", or "smoke" for a run of seconds."""
  smoke = mode == "smoke"
  return ConfigDict({
    "recipe": "oracle",
    "seed": 0,
    "init_from": None,
    "model": {"fine": 48, "wide": 64, "blocks": 2},
    # Rendered once, 1.8 GB.
    "data": {
      "cache": "runs/oracle-clips-smoke" if smoke else "runs/oracle-clips",
      "count": 16 if smoke else 8000,
      "seed": 77,
    },
    "optim": {
      "name": "adamw", "lr": 2e-3, "warmup": 50, "schedule": "cosine", "decay": 0.05, "clip": 1.0,
      "ema_decay": 0.995,
    },
    "train": {
      "steps": 2 if smoke else 1600,
      "batch_size": 4 if smoke else 32,
      "log_every": 1 if smoke else 20,
      "checkpoint_every": 2 if smoke else 200,
    },
  })  # fmt: skip
