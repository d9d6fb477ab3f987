"""The levels and timesteps of published samplers, as settings of ours."""

import json
from pathlib import Path

import numpy as np
import pytest
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

from sora_jax.diffusion import sampler
from sora_jax.diffusion.time import schedule
from sora_jax.errors import UserError
from sora_jax.interop import schedulers

HERE = Path("scheduler_config.json")


def unipc(shift):
  return UniPCMultistepScheduler(
    prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift
  )


def euler(shift):
  return FlowMatchEulerDiscreteScheduler(shift=shift)


def config_of(scheduler):
  """As in the file that is saved."""
  return json.loads(scheduler.to_json_string())


@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0, 8.0])
@pytest.mark.parametrize("make", [unipc, euler])
def test_levels_and_timesteps_are_the_published_ones(make, shift):
  theirs = make(shift)
  settings = schedulers.from_config(config_of(theirs), HERE)
  for steps in (1, 2, 10, 50):
    theirs.set_timesteps(steps)
    levels = schedule(steps, settings["shift"], **settings["schedule"])
    np.testing.assert_allclose(levels, theirs.sigmas.numpy(), atol=2e-7)
    table = sampler.table(settings["sampler"], levels, settings["timesteps"])
    np.testing.assert_allclose(1000 * table[:, 1], theirs.timesteps.numpy(), atol=2e-4)


@pytest.mark.parametrize("make", [unipc, euler])
def test_settings_are_written_as_they_were_read(make):
  settings = schedulers.from_config(config_of(make(4.0)), HERE)
  config = schedulers.to_config(settings)
  assert schedulers.from_config(config, HERE) == settings
  again = make(1.0).from_config(config)
  assert type(again).__name__ == config["_class_name"]
  again.set_timesteps(7)
  theirs = make(4.0)
  theirs.set_timesteps(7)
  np.testing.assert_array_equal(again.sigmas, theirs.sigmas)


def test_what_is_not_known_is_named():
  for config, says in (
    ({"_class_name": "DDIMScheduler"}, "class DDIMScheduler, which is not known"),
    (config_of(unipc(3.0)) | {"solver_order": 3}, "solver_order = 3"),
    (config_of(unipc(3.0)) | {"prediction_type": "epsilon"}, "prediction_type = epsilon"),
    (config_of(euler(3.0)) | {"use_dynamic_shifting": True}, "use_dynamic_shifting = True"),
    (config_of(unipc(3.0)) | {"num_train_timesteps": 0}, "num_train_timesteps = 0"),
    (config_of(unipc(3.0)) | {"flow_shift": "3"}, "flow_shift = '3'"),
    (config_of(euler(3.0)) | {"shift": None}, "shift = None"),
  ):
    with pytest.raises(UserError, match=says):
      schedulers.from_config(config, HERE)
