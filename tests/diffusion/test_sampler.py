"""Laws of the solvers: exact where they must be, converging at their order, in step with peers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler

from sora_jax.diffusion import sampler
from sora_jax.diffusion.time import schedule
from sora_jax.errors import UserError

MADE = jnp.ones((2, 3), bool)


def gaussian_velocity(mean, std):
  """The exact velocity field of data ~ N(mean, std^2): E[e - x | x_t]."""

  def velocity(x_t, t):
    variance = (1 - t) ** 2 * std**2 + t**2
    centred = x_t - (1 - t) * mean
    return (t - (1 - t) * std**2) / variance * centred - mean

  return velocity


def gaussian_flow(noise, mean, std):
  """Where the exact flow carries pure noise: quantiles go to quantiles."""
  return mean + std * noise


def run(solver, steps, velocity, x, made=MADE, shift=1.0):
  table = jnp.asarray(sampler.table(solver, schedule(steps, shift)))
  return sampler.solve(forgetful(velocity), sampler.start(x), table, made).y


def forgetful(velocity):
  """A model that remembers nothing."""
  return lambda x_t, t, reuse, memory: (velocity(x_t, t), memory)


@pytest.mark.parametrize("solver", sampler.SOLVERS)
def test_one_point_of_data_is_reached_exactly(rng, solver):
  x = jnp.asarray(rng.normal(size=(2, 3, 4)), jnp.float32)
  point = jnp.asarray(rng.normal(size=(2, 3, 4)), jnp.float32)
  got = run(solver, 5, lambda x_t, t: (x_t - point) / t, x)
  np.testing.assert_allclose(got, point, atol=1e-4)


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2), ("unipc", 2)])
def test_solvers_converge_at_their_order(rng, solver, order):
  x = jnp.asarray(rng.normal(size=(2, 3, 4)), jnp.float32)
  errors = [error_of(solver, n, x) for n in (16, 64)]
  assert errors[1] < errors[0] / 4 ** (order - 0.5)


def test_dpmpp_is_more_accurate_than_euler(rng):
  """Its first and last steps are of first order, so it gains a factor rather than an order."""
  x = jnp.asarray(rng.normal(size=(2, 3, 4)), jnp.float32)
  for steps in (16, 64):
    assert error_of("dpm++", steps, x) < error_of("euler", steps, x) / 2


def error_of(solver, steps, x):
  exact = gaussian_flow(x, 0.7, 0.5)
  return float(jnp.abs(run(solver, steps, gaussian_velocity(0.7, 0.5), x) - exact).max())


@pytest.mark.parametrize("solver", sampler.SOLVERS)
def test_known_tokens_never_change(rng, solver):
  x = jnp.asarray(rng.normal(size=(2, 3, 4)), jnp.float32)
  made = jnp.asarray([[True, False, True], [False, True, True]])
  got = run(solver, 6, gaussian_velocity(0.1, 0.9), x, made)
  np.testing.assert_array_equal(got[~made], x[~made])
  assert (got[made] != x[made]).all()


@pytest.mark.parametrize("solver", sampler.SOLVERS)
def test_a_table_may_be_run_in_pieces(rng, solver):
  x = jnp.asarray(rng.normal(size=(2, 3, 4)), jnp.float32)
  velocity = forgetful(gaussian_velocity(-0.4, 0.8))
  table = jnp.asarray(sampler.table(solver, schedule(6, 2.0)))
  whole = sampler.solve(velocity, sampler.start(x), table, MADE).y
  carry = sampler.solve(velocity, sampler.start(x), table[:2], MADE)
  pieces = sampler.solve(velocity, carry, table[2:], MADE).y
  np.testing.assert_allclose(pieces, whole, atol=1e-6)


@pytest.mark.parametrize(
  ("solver", "scheduler"),
  [
    ("dpm++", DPMSolverMultistepScheduler),
    ("unipc", UniPCMultistepScheduler),
  ],
)
@pytest.mark.filterwarnings("ignore:__array__ implementation")  # inside diffusers
def test_solvers_agree_with_their_published_implementations(rng, solver, scheduler):
  """On levels that stay clear of pure noise, where the peers' clipping of log-SNR differs."""
  reference = scheduler(
    prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=1.0, solver_order=2,
    final_sigmas_type="zero", lower_order_final=True,
  )  # fmt: skip
  reference.set_timesteps(8)
  levels = reference.sigmas.double().numpy()
  x = rng.normal(size=(2, 3, 4)).astype(np.float32)
  sample = torch.tensor(x, dtype=torch.float64)
  for t, level in zip(reference.timesteps, levels, strict=False):
    v = gaussian_velocity(0.3, 0.6)(sample, float(level))
    sample = reference.step(v, t, sample).prev_sample
  table = jnp.asarray(sampler.table(solver, levels))
  got = sampler.solve(
    forgetful(gaussian_velocity(0.3, 0.6)), sampler.start(jnp.asarray(x)), table, MADE
  ).y  # fmt: skip
  np.testing.assert_allclose(got, sample.numpy(), atol=2e-5)


def test_noise_depends_on_seed_sample_and_absolute_frame_only():
  whole = sampler.initial_noise(3, np.arange(4), 5, 2, 3, 6)
  part = sampler.initial_noise(3, np.array([2]), 3, 2, 3, 6, first=2)
  np.testing.assert_array_equal(part[0], whole[2, 2:])
  assert not np.array_equal(whole, sampler.initial_noise(4, np.arange(4), 5, 2, 3, 6))
  assert abs(float(jnp.std(whole)) - 1) < 0.1
  assert len(np.unique(np.asarray(jax.device_get(whole)))) > 0.99 * whole.size


def test_unknown_sampler_is_refused_by_name():
  with pytest.raises(UserError, match="choose one of euler, heun"):
    sampler.table("ddim", np.array([1.0, 0.0]))
