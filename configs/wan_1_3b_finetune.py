r"""Wan 2.1 1.3B (Wan Team 2025), trained further from its published weights.

All of it, or with `:lora` an adapter of its attention alone. Latents are those of its own
autoencoder, prompts are read by its own umT5, which is not trained: both are computed once and
cached. The weights come from `config.init_from`, a folder in the hub's layout or `hf:ORG/NAME`.

  sora-jax train --config=configs/wan_1_3b_finetune.py:lora --workdir runs/wan \
      --config.init_from=hf:Wan-AI/Wan2.1-T2V-1.3B-Diffusers \
      --config.data.sources.folder.path=clips --config.data.shapes.clip.clips=500 \
      --config.train.batch_size=1

The defaults are for a pod: 16 clips a step, and 100,000 windows of about 5 MB encoded beforehand.

An adapter is exported as `pytorch_lora_weights.safetensors`, which diffusers reads. All of it is
exported as a transformer; `sora-jax convert WORKDIR/export DIR --to diffusers` makes of it what may
take the place of the repository's folder `transformer`.

Never run on the published weights: no accelerator was at hand. The smoke form trains an adapter of
the shipped `toy`.
"""

from ml_collections import ConfigDict

from sora_jax.models.dit import VARIANTS
from sora_jax.train import pods


def get_config(arg: str = "full") -> ConfigDict:
  """`full`, `lora`, or `smoke`; the shape of the clips is in `data.shapes.clip`."""
  if arg not in ("full", "lora", "smoke"):
    raise ValueError("it is full, lora or smoke")
  smoke = arg == "smoke"
  model = dict(channels=16, cond_features=1, absolute=False, affine=False)
  clip = "smoke" if smoke else "81x480x832@16"
  config = pods.config(
    clip, model | VARIANTS["wan2.1-1.3b"], dict(length=512), space_stride=8, batch_size=16
  )
  del config.text
  config.init_from = "toy" if smoke else "hf:Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
  for name in ("vae", "text_from"):  # the same model's, if nothing else is said
    config[name] = config.get_oneway_ref("init_from")
  config.lora = dict(rank=0 if arg == "full" else 16, alpha=16.0, targets="attention/(q|k|v|out)$")
  config.mixture.weights = dict(none=1.0, first=0.0, prefix=0.0)  # as it was trained
  config.levels.update(shift=3.0, reference_tokens=None)  # its flow shift at 480p
  config.optim.update(lr=1e-5 if arg == "full" else 1e-4, warmup=100, ema_decay=0.99)
  config.train.update(steps=4 if smoke else 5000, checkpoint_every=4 if smoke else 250)
  if smoke:
    config.model.update(VARIANTS["toy"], dtype=None, remat="none")
    config.packing.text_length = 64
  return config
