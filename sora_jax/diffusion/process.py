"""Rectified flow (Liu et al. 2022; Lipman et al. 2022): the process of all models of videos.

With data x, standard normal noise e and a noise level t in [0, 1] (0 = data, 1 = noise):

  (1)  x_t = (1 - t) x + t e            the straight path from data to noise
  (2)  v   = d x_t / d t = e - x        the velocity, which the model predicts
  (3)  x   = x_t - t v                  data, read off a point and its velocity
  (4)  s(t; a) = a t / (1 + (a - 1) t)  the shift of noise levels (Esser et al. 2024, eq. 23)

A level is broadcast from the left: levels `b n` act on values `b n p`.
"""

from __future__ import annotations

import jax.numpy as jnp

from sora_jax.typing import Array


def _level(t: Array, like: Array) -> Array:
  return jnp.reshape(t, t.shape + (1,) * (like.ndim - t.ndim))


def corrupt(x: Array, noise: Array, t: Array) -> Array:
  """Equation (1)."""
  t = _level(t, x)
  return (1 - t) * x + t * noise


def velocity(x: Array, noise: Array) -> Array:
  """Equation (2)."""
  return noise - x


def data_from(x_t: Array, v: Array, t: Array) -> Array:
  """Equation (3)."""
  return x_t - _level(t, x_t) * v


def shift_levels(t, shift):
  """Equation (4): moves levels towards noise for shift > 1; 0 and 1 stay. Arrays or floats."""
  return shift * t / (1 + (shift - 1) * t)
