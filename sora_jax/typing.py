"""The dim glossary and the array types, used at every public boundary.

One letter has one meaning everywhere in the code base:

  b  batch            n  tokens of a sequence        d  model width
  t  frames           p  contents of one patch       e  text width
  h  height           k  rows of the cond table      s  text tokens
  w  width            z  latent channels             c  pixel channels, or cond features

`lt lh lw` are the frames, rows and columns of the *latent* grid. Videos are channels-last,
`b t h w c`, floats in [-1, 1] inside the library and uint8 in [0, 255] at its boundaries.
Shapes are documentation in production; the tests check them (jaxtyping's import hook).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int, Key, UInt8

Params = dict[str, Any]
PRNGKey = Key[Array, ""]
Scalar = Float[Array, ""]

Video = Float[Array, "b t h w c"]
Latents = Float[Array, "b lt lh lw z"]
Clip = UInt8[np.ndarray, "t h w 3"]  # what files hold
Frame = UInt8[np.ndarray, "h w 3"]

REFERENCE_FPS = 8.0  # time coordinates count latent frames at this rate

__all__ = [
  "REFERENCE_FPS", "Array", "Bool", "Clip", "Float", "Frame", "Int", "Key", "Latents",
  "PRNGKey", "Params", "Scalar", "UInt8", "Video",
]  # fmt: skip
