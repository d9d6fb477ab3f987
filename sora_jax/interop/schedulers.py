"""The samplers that models are published with (scheduler_config.json), as our settings and back.

Both of Wan's step along the same levels s(t; shift), over t from 1 down to the lowest of
`num_train_timesteps` levels:

  UniPCMultistepScheduler           t = linspace(1, 1/1000, steps + 1) without its end, then 0;
                                    never quite 1; the model is told whole timesteps, rounded down
  FlowMatchEulerDiscreteScheduler   t = linspace(1, s(1/1000; shift), steps), then 0: the shift acts
                                    on the lowest level twice
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sora_jax.diffusion.process import shift_levels
from sora_jax.errors import UserError

UNIPC, EULER = "UniPCMultistepScheduler", "FlowMatchEulerDiscreteScheduler"
TIMESTEPS = 1000
HIGHEST = float(np.float32(1 - 1e-6))  # UniPC's first level, where the log-SNR is finite

# What our solver computes: each option, its default in diffusers, and the one value it may have.
PLAIN: dict[str, tuple[Any, Any]] = {
  name: (False, False)
  for name in (
    "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_dynamic_shifting"
  )
} | {"shift_terminal": (None, None)}  # fmt: skip
OPTIONS: dict[str, dict[str, tuple[Any, Any]]] = {
  UNIPC: PLAIN | {
    "prediction_type": ("epsilon", "flow_prediction"), "use_flow_sigmas": (False, True),
    "solver_order": (2, 2), "solver_type": ("bh2", "bh2"), "predict_x0": (True, True),
    "lower_order_final": (True, True), "disable_corrector": ([], []), "solver_p": (None, None),
    "thresholding": (False, False), "final_sigmas_type": ("zero", "zero"),
  },
  EULER: PLAIN | {"invert_sigmas": (False, False), "stochastic_sampling": (False, False)},
}  # fmt: skip
SHIFT = {UNIPC: "flow_shift", EULER: "shift"}  # what they call it


def from_config(config: Mapping[str, Any], where: Path) -> dict[str, Any]:
  """Settings of sampling (keys of `generate.denoise.SAMPLING`) that do what a scheduler does.

  Args:
    where: its file, for messages.

  Raises:
    UserError: a scheduler, or an option of one, that is not known here.
  """
  kind = config.get("_class_name")
  if kind not in OPTIONS:
    raise UserError(
      f"{where} is of class {kind}, which is not known here: put one of {', '.join(OPTIONS)} there."
    )
  for name, (default, needed) in OPTIONS[kind].items():
    if (value := config.get(name, default)) != needed:
      raise UserError(f"{where} has {name} = {value}, which is not known here: only {needed} is.")
  numbers = []
  for name, usual in (("num_train_timesteps", TIMESTEPS), (SHIFT[kind], 1.0)):
    value = config.get(name, usual)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
      raise UserError(f"{where} has {name} = {value!r}, which is no positive number: get it again.")
    numbers.append(value)
  timesteps, shift = numbers
  lowest = 1 / timesteps
  if kind == UNIPC:
    return _settings("unipc", shift, dict(highest=HIGHEST, lowest=lowest), int(timesteps))
  return _settings("euler", shift, dict(lowest=shift_levels(lowest, shift), reached=True), 0)


def to_config(sampling: Mapping[str, Any]) -> dict[str, Any]:
  """The scheduler_config.json of settings: its solver if diffusers has it for flows, else UniPC."""
  kind = EULER if sampling.get("sampler") == "euler" else UNIPC
  options = {name: needed for name, (_, needed) in OPTIONS[kind].items()}
  return {
    "_class_name": kind, "num_train_timesteps": sampling.get("timesteps") or TIMESTEPS,
    SHIFT[kind]: sampling["shift"], **options,
  }  # fmt: skip


def _settings(
  solver: str, shift: float, schedule: dict[str, Any], timesteps: int
) -> dict[str, Any]:
  return dict(
    sampler=solver, shift=shift, reference_tokens=None, schedule=schedule, timesteps=timesteps
  )
