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
    # Rendered once, 0.6 GB.
    "data": {
      "cache": "runs/oracle-clips-smoke" if smoke else "runs/oracle-clips",
      "count": 16 if smoke else 2600,
      "seed": 77,
      "workers": 1 if smoke else 2,
    },
    "optim": {
      "name": "adamw", "lr": 1.5e-3, "warmup": 60, "schedule": "cosine", "decay": 0.05, "clip": 1.0,
      "ema_decay": 0.995,
    },
    "train": {
      "steps": 2 if smoke else 1300,
      "batch_size": 4 if smoke else 16,
      "log_every": 1 if smoke else 20,
      "checkpoint_every": 2 if smoke else 100,
    },
  })  # fmt: skip
