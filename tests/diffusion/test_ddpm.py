"""Laws of the DDPM process: against brute force, against itself, and against diffusers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from diffusers.schedulers import scheduling_ddpm

from sora_jax.diffusion import ddpm
from sora_jax.diffusion.guidance import guide_channels
from sora_jax.errors import UserError

CHAIN = ddpm.Chain.linear()


@pytest.mark.parametrize("t", [1, 37, 400, 999])
def test_posterior_is_what_bayes_says(t, rng):
  x, noise = rng.normal(size=2)
  kept, before, beta = CHAIN.kept[t], CHAIN.kept[t - 1], CHAIN.beta[t]
  x_t = np.sqrt(kept) * x + np.sqrt(1 - kept) * noise
  grid = np.linspace(-8, 8, 400_001)
  log = -((grid - np.sqrt(before) * x) ** 2) / (2 * (1 - before))
  log -= (x_t - np.sqrt(1 - beta) * grid) ** 2 / (2 * beta)
  weight = np.exp(log - log.max())
  weight /= weight.sum()
  mean = (weight * grid).sum()
  one = lambda value: jnp.full((1, 1), value, jnp.float32)  # noqa: E731
  got = ddpm.posterior_mean(CHAIN, one(x), one(noise), jnp.array([t]))
  assert float(got[0, 0]) == pytest.approx(mean, abs=1e-5)
  assert CHAIN.variance[t] == pytest.approx((weight * (grid - mean) ** 2).sum(), rel=1e-4)


def test_respaced_chains_are_consistent():
  for spacing in ("linspace", "leading", "trailing"):
    chain = CHAIN.respaced(250, spacing)
    assert len(chain) == 250
    np.testing.assert_array_equal(chain.a, CHAIN.a[list(chain.times)])
    # its variances are those with which its own steps lead to the a_t it kept
    np.testing.assert_allclose(np.cumprod(1 - chain.beta), chain.a, rtol=1e-12)
  assert CHAIN.respaced(1000) == CHAIN
  assert CHAIN.respaced(250).times[:3] == (0, 4, 8) and CHAIN.respaced(250).times[-1] == 999
  for count in (0, 1001):
    with pytest.raises(UserError, match="1 to 1000"):
      CHAIN.respaced(count)
  with pytest.raises(UserError, match="no spacing 'even'"):
    CHAIN.respaced(10, "even")


def test_vlb_is_not_negative_and_0_for_the_truth(rng):
  x, noise = (jnp.asarray(rng.normal(size=(1000, 3, 4)), jnp.float32) for _ in range(2))
  predicted = noise + 0.3 * jnp.asarray(rng.normal(size=x.shape), jnp.float32)
  output = jnp.asarray(rng.uniform(-1.5, 1.5, size=x.shape), jnp.float32)
  t = jnp.arange(1000)
  vlb_terms = jax.jit(functools.partial(ddpm.vlb_terms, CHAIN))
  terms = vlb_terms(predicted, output, x, noise, t)
  assert terms.shape == (1000,) and np.all(np.isfinite(terms)) and np.all(terms > -1e-6)
  truth = vlb_terms(noise, -jnp.ones_like(x), x, noise, t)
  np.testing.assert_allclose(truth[1:], 0, atol=1e-4)
  # at t = 0 the likelihoods of all levels add up to 1
  levels = jnp.linspace(-1, 1, 256)[None]
  every = jnp.broadcast_to(levels, (3, 256))
  mean, log_std = jnp.array([[-0.7], [0.0], [1.2]]), jnp.array([[-3.0], [-5.0], [-2.0]])
  total = jnp.sum(jnp.exp(-ddpm._level_nll(every, mean, log_std)), axis=-1)
  np.testing.assert_allclose(total, 1, rtol=1e-4)


def test_the_mean_is_trained_by_the_simple_loss_alone(rng):
  x = jnp.asarray(rng.normal(size=(4, 5, 6)), jnp.float32)
  key = jax.random.key(3)

  @jax.jit
  @jax.jacrev
  def grads(weights):
    model = lambda x_t, time: jnp.concatenate([weights[0] * x_t, weights[1] * x_t], -1)  # noqa: E731
    total, parts = ddpm.loss(CHAIN, model, x, key)
    return jnp.stack([parts["simple"], parts["vlb"], total])

  simple, vlb, total = grads(jnp.array([0.7, 0.2]))
  assert abs(simple[0]) > 1e-3 and abs(vlb[1]) > 1e-4
  assert vlb[0] == 0 and simple[1] == 0
  np.testing.assert_allclose(total, [simple[0], 0.001 * vlb[1]], rtol=1e-3)
  loss, parts = ddpm.loss(CHAIN, lambda x_t, time: 0.5 * x_t, x, key)
  assert parts.keys() == {"simple"} and loss == parts["simple"]


def shared(rng, shape=(2, 3, 4, 4)):
  """A model of two outputs, its twin in torch, and noise for every time; torch's axis order."""
  weight = rng.normal(size=(4, 8)).astype(np.float32)
  noise = rng.normal(size=(1001, *shape)).astype(np.float32)

  def model(x, time):
    return jnp.tanh(x @ weight + 0.001 * time)

  def twin(x, time):
    y = torch.tanh(x.permute(0, 2, 3, 1) @ torch.from_numpy(weight) + 0.001 * float(time))
    return y.permute(0, 3, 1, 2)

  return model, twin, noise


def theirs(scheduler, twin, noise, steps, monkeypatch, outputs):
  scheduler.set_timesteps(steps)
  x = torch.from_numpy(noise[1000]).permute(0, 3, 1, 2)
  for t in scheduler.timesteps:
    drawn = torch.from_numpy(noise[int(t)]).permute(0, 3, 1, 2)
    monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *_, drawn=drawn, **__: drawn)
    x = scheduler.step(twin(x, t)[:, :outputs], t, x).prev_sample
  return x.permute(0, 2, 3, 1).numpy()


def ours(chain, model, noise, eta, outputs, clip=None):
  def stacked(time):
    return jnp.asarray(noise)[time.astype(jnp.int32)]

  rows = ddpm.table(chain, eta)
  only = lambda x, time: model(x, time)[..., :outputs]  # noqa: E731
  return jax.jit(lambda x: ddpm.solve(only, x, rows, stacked, clip))(noise[1000])


def relative_error(a, b):
  return np.linalg.norm(np.asarray(a) - b) / np.linalg.norm(b)


@pytest.mark.parametrize(
  ("spacing", "learned", "clip"),
  [
    ("linspace", True, None),
    ("linspace", False, 0.8),
    ("leading", True, 0.8),
    ("trailing", False, None),
  ],
)
def test_same_samples_as_ddpm_scheduler(spacing, learned, clip, rng, monkeypatch):
  model, twin, noise = shared(rng)
  outputs = 8 if learned else 4
  scheduler = DDPMScheduler(
    variance_type="learned_range" if learned else "fixed_small", clip_sample=clip is not None,
    clip_sample_range=clip or 1.0, timestep_spacing=spacing,
  )  # fmt: skip
  expected = theirs(scheduler, twin, noise, 25, monkeypatch, outputs)
  got = ours(CHAIN.respaced(25, spacing), model, noise, 1.0, outputs, clip)
  assert relative_error(got, expected) < 1e-4


@pytest.mark.parametrize("steps", [10, 50])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_same_samples_as_ddim_scheduler(steps, spacing, rng, monkeypatch):
  model, twin, noise = shared(rng)
  scheduler = DDIMScheduler(clip_sample=False, timestep_spacing=spacing)
  expected = theirs(scheduler, twin, noise, steps, monkeypatch, 4)
  chain = CHAIN.respaced(steps, spacing)
  assert relative_error(ours(chain, model, noise, 0.0, 4), expected) < 1e-4
  rows = ddpm.table(chain, 0.0)
  without = ddpm.solve(lambda x, t: model(x, t)[..., :4], jnp.asarray(noise[1000]), rows)
  assert relative_error(without, expected) < 1e-4


def test_a_chain_may_be_run_in_pieces(rng):
  model, _, noise = shared(rng)
  stacked = lambda time: jnp.asarray(noise)[time.astype(jnp.int32)]  # noqa: E731
  rows = ddpm.table(CHAIN.respaced(12))
  x = jnp.asarray(noise[1000])
  whole = ddpm.solve(model, x, rows, stacked)
  for piece in (rows[:5], rows[5:]):
    x = ddpm.solve(model, x, piece, stacked)
  np.testing.assert_allclose(x, whole, rtol=1e-5, atol=1e-6)


def test_the_right_noise_leads_back_to_the_data(rng):
  data = jnp.asarray(rng.normal(size=(2, 6, 4)), jnp.float32)
  chain = CHAIN.respaced(20)
  kept = dict(zip(chain.times, chain.a, strict=True))
  lookup = jnp.asarray([kept.get(t, 1.0) for t in range(1000)])

  def oracle(x, time):
    a = lookup[time.astype(jnp.int32)]
    return (x - jnp.sqrt(a) * data) / jnp.sqrt(1 - a)

  x = jnp.asarray(rng.normal(size=data.shape), jnp.float32)
  noise = lambda time: jax.random.normal(jax.random.key(time.astype(jnp.int32)), x.shape)  # noqa: E731
  for eta in (0.0, 0.5, 1.0):
    made = ddpm.solve(oracle, x, ddpm.table(chain, eta), noise)
    np.testing.assert_allclose(made, data, atol=1e-4)


def test_guidance_of_the_first_channels(rng):
  yes, no = (jnp.asarray(rng.normal(size=(2, 3, 8)), jnp.float32) for _ in range(2))
  out = guide_channels(yes, no, 4.0, 3)
  np.testing.assert_array_equal(out[..., 3:], yes[..., 3:])
  np.testing.assert_allclose(out[..., :3], (4 * yes - 3 * no)[..., :3], rtol=1e-5, atol=1e-5)
