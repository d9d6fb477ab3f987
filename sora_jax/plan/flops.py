"""The floating-point operations that a function asks for, before any compiler sees it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core

from sora_jax.models.attention import RECOMPUTED


def count(f: Callable[..., Any], *args: Any) -> int:
  """2 per multiply-add of the matmuls and convolutions of `f(*args)`, loops as often as they run.

  Of branches the most expensive one counts; of a `while` whose trips cannot be known, one trip.
  What a backward pass makes again in the scope `RECOMPUTED` does not count.
  Abstract arguments (`jax.ShapeDtypeStruct`) will do.
  """
  return _count(jax.make_jaxpr(f)(*args).jaxpr)


def _count(jaxpr: core.Jaxpr) -> int:
  return sum(_of(eqn) for eqn in jaxpr.eqns)


def _of(eqn: core.JaxprEqn) -> int:
  if RECOMPUTED in str(eqn.source_info.name_stack):
    return 0
  shape = lambda var: getattr(var.aval, "shape", ())  # noqa: E731
  match eqn.primitive.name:
    case "dot_general":
      (contracted, _), _ = eqn.params["dimension_numbers"]
      left, out = shape(eqn.invars[0]), math.prod(shape(eqn.outvars[0]))
      return 2 * out * math.prod(left[axis] for axis in contracted)
    case "conv_general_dilated":
      kernel, spec = shape(eqn.invars[1]), eqn.params["dimension_numbers"].rhs_spec
      out = math.prod(shape(eqn.outvars[0]))
      dilation = math.prod(eqn.params["lhs_dilation"])  # zeros between inputs are no work
      return 2 * out * math.prod(kernel) // kernel[spec[0]] // dilation
    case "scan":
      return eqn.params["length"] * _count(eqn.params["jaxpr"].jaxpr)
    case "cond":
      return max(_count(branch.jaxpr) for branch in eqn.params["branches"])
  inner = (_jaxprs(value) for value in eqn.params.values())
  return sum(_count(jaxpr) for found in inner for jaxpr in found)


def _jaxprs(value: Any) -> list[core.Jaxpr]:
  if isinstance(value, core.ClosedJaxpr):
    return [value.jaxpr]
  return [value] if isinstance(value, core.Jaxpr) else []
