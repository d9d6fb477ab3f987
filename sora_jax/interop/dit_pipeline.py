"""What a published DiT folder says beside its networks: scheduler settings and names of classes.

The folder is diffusers' `DiTPipeline`: model_index.json, transformer/, vae/ and scheduler/. That
pipeline guides all latent channels and never uses the learned variance; DiT's own code guides the
first three and does use it (`generate.classes.Sampling` can be told either).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sora_jax.errors import UserError

NAME = "DiTPipeline"
SCHEDULERS = {"DDIMScheduler": "ddim", "DDPMScheduler": "ddpm"}
STEPS, GUIDANCE = 50, 4.0  # of a request that says nothing, there

# What a scheduler can be told and we do not compute otherwise.
_FIXED = dict(
  beta_schedule="linear", prediction_type="epsilon", thresholding=False, clip_sample=False,
  trained_betas=None, rescale_betas_zero_snr=False, set_alpha_to_one=True, steps_offset=0,
)  # fmt: skip
# DDPM's variances that are one number a step, the same by either way; a learned one there needs
# all of the network's outputs, of which the pipeline drops half.
_VARIANCES = ("fixed_small", "fixed_small_log")
# What diffusers takes where a config.json says nothing.
_DEFAULTS = dict(clip_sample=True)


def class_names(index: Mapping[str, Any], count: int) -> tuple[str, ...]:
  """The `count` names of model_index.json's `id2label`, or numbers where it has none."""
  labels = index.get("id2label") or {}
  return tuple(str(labels.get(str(i), i)) for i in range(count))


def process(scheduler: Mapping[str, Any]) -> dict[str, Any]:
  """Arguments of `Chain.linear`, from scheduler_config.json."""
  return dict(
    steps=scheduler.get("num_train_timesteps", 1000),
    low=scheduler.get("beta_start", 1e-4),
    high=scheduler.get("beta_end", 0.02),
  )


def sampling(scheduler: Mapping[str, Any]) -> dict[str, Any]:
  """Fields of `generate.classes.Sampling` with which it samples as the pipeline does.

  Raises:
    UserError: a scheduler that cannot be computed, with the setting that it is about.
  """
  name = str(scheduler.get("_class_name"))
  if name not in SCHEDULERS:
    raise UserError(f"The scheduler {name} is not known for DiT: use {' or '.join(SCHEDULERS)}.")
  for key, value in _FIXED.items():
    found = scheduler.get(key, _DEFAULTS.get(key, value))
    if found != value:
      raise UserError(f"This {name} has {key}={found!r}; only {value!r} can be computed for DiT.")
  variance = scheduler.get("variance_type", _VARIANCES[0])
  if name == "DDPMScheduler" and variance not in _VARIANCES:
    raise UserError(
      f"This {name} has variance_type={variance!r}; use {' or '.join(map(repr, _VARIANCES))}."
    )
  spacing = scheduler.get("timestep_spacing", "leading")
  if name == "DDIMScheduler" and spacing == "linspace":
    # There the last step of a stride is not the one before: steps would not meet.
    raise UserError(f"This {name} has timestep_spacing='linspace'; use 'leading' or 'trailing'.")
  return dict(
    sampler=SCHEDULERS[name], steps=STEPS, guidance=GUIDANCE, spacing=spacing, variance="small"
  )


def scheduler_of(process: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
  """The scheduler_config.json with which the pipeline samples so: undoes `process` and `sampling`.

  Steps and guidance are in no file there: each request has its own.

  Args:
    process: arguments of `Chain.linear`. asked: all fields of `generate.classes.Sampling`.

  Raises:
    UserError: the pipeline cannot be told a setting.
  """
  names = {ours: theirs for theirs, ours in SCHEDULERS.items()}
  if asked["sampler"] not in names:
    raise UserError(f"A {NAME} samples by {' or '.join(names)}, not by {asked['sampler']}.")
  ranges = dict(num_train_timesteps="steps", beta_start="low", beta_end="high")
  config = _FIXED | {theirs: process[ours] for theirs, ours in ranges.items() if ours in process}
  config |= dict(_class_name=names[asked["sampler"]], timestep_spacing=asked["spacing"])
  made = dict(channels=None, clip=None, shift=1.0) | sampling(config)
  for key, value in asked.items():
    if key not in ("steps", "guidance") and made[key] != value:
      raise UserError(f"A {NAME} cannot have {key}={value!r}, only {made[key]!r}.")
  if config["_class_name"] == "DDPMScheduler":
    del config["set_alpha_to_one"]  # has no such setting
  return config
