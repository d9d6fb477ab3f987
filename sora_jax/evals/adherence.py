"""The oracle: reads colour, shape, motion and look of the main object off a clip's pixels.

A small classifier trained on clips of `sora_jax.worlds`, whose labels are exact. What makes it a
judge and not just a classifier:
  * it was trained and checked on damaged clips. Slight damage (an autoencoder's, a file's) must not
    change its mind; heavy damage (blur, double exposure, doubled objects, frozen or shuffled
    frames, cuts, noise; see `degrade`) must make its *validity* output say no;
  * it saw every combination of colour, shape and motion, so that it has no prejudice against those
    held out from the generator's training;
  * it does not guess: an attribute whose probability is below `CERTAIN` counts as not read, and a
    clip counts as adherent only if it is valid and colour, shape and motion are read as asked;
  * colour and shape are also read per slot of three frames, with "absent" as an answer. That scores
    permanence by identity: the object must be read as the same one before and after it was hidden.

It is no judge of anything outside that world, nor of texture, light, camera or bystanders.

The main object is the one that the caption is about; among resting bystanders it is the one that
moves, or the largest in front. A heat map, supervised with the renderer's segmentation, finds it,
and colour and shape are read under the heat map alone.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, repeat
from safetensors.numpy import load_file

from sora_jax.errors import UserError
from sora_jax.interop.names import unflatten
from sora_jax.models.conv import conv3d
from sora_jax.models.layers import Attention, LayerNorm, Mlp
from sora_jax.typing import Array, Bool, Float, Params, UInt8
from sora_jax.worlds import VOCABULARY

FRAMES, SIZE = 17, 64
SLOTS, PER_SLOT = 6, 3  # the first frame counts twice
CERTAIN = 0.5  # least probability of an attribute that counts as read
VALID = 0.5  # least probability of validity
FOCUS = 0.33  # slight damage leaves 0.38 or more, blur of 2.2 px or more at most 0.29
GRAIN = 18.0  # slight damage makes 9 grey levels at most, noise of 40 grey levels at least 31
ATTRIBUTES: dict[str, tuple[str, ...]] = {
  "colour": VOCABULARY.colours,
  "shape": VOCABULARY.shapes,
  "motion": VOCABULARY.motions,
  "look": VOCABULARY.looks,
}
WEIGHTS = Path(str(resources.files("sora_jax"))) / "evals" / "weights" / "oracle"


class _Conv(nn.Module):
  """3x3 convolution per slot, "SAME" padding."""

  features: int
  stride: int = 1

  @nn.compact
  def __call__(self, x: Float[Array, "b t h w i"]) -> Float[Array, "b t _h _w o"]:
    shape = (1, 3, 3, x.shape[-1], self.features)
    init = nn.initializers.variance_scaling(2.0, "fan_in", "normal", in_axis=(1, 2, 3))
    bias = self.param("bias", nn.initializers.zeros, (self.features,))
    pad = (2 - self.stride, 1)
    x = conv3d(
      x, self.param("kernel", init, shape), (1, self.stride, self.stride), ((0, 0), pad, pad)
    )
    return x + bias[None, None, None, None]


class _Block(nn.Module):
  """Each place of each slot sees all others: two of a kind, or frames out of order, are found."""

  heads: int

  @nn.compact
  def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
    width = x.shape[-1]
    ids = jnp.ones(x.shape[:2], jnp.int32)
    attention = Attention(width, self.heads, name="attention")
    x = x + attention(LayerNorm(affine=True, name="norm_a")(x), ids)
    mlp = Mlp(2 * width, width, name="mlp")
    return x + mlp(LayerNorm(affine=True, name="norm_b")(x))


class Oracle(nn.Module):
  """Clips of 17 frames at 64 px, floats in [-1, 1] -> logits.

  Returns a dict: `colour`, `shape`, `motion`, `look` (b, classes), `valid` (b,), `slot_colour` and
  `slot_shape` (b, 6, classes + 1; the last class is "absent"), `heat` (b, 6, 64).
  """

  fine: int = 48
  wide: int = 96
  heads: int = 3
  blocks: int = 3

  @nn.compact
  def __call__(self, x: Float[Array, "b 17 64 64 3"]) -> dict[str, Array]:
    # Three frames at a time: short motion is within reach of a single position.
    x = jnp.concatenate([x[:, :1], x], axis=1)
    x = rearrange(x, "b (t p) (h q) (w r) c -> b t h w (p q r c)", p=PER_SLOT, q=4, r=4)
    x = nn.relu(nn.Dense(2 * self.fine, name="patches")(x))
    x = nn.Dense(self.fine, name="stem")(x)
    x = x + self.param("place", nn.initializers.normal(0.02), (1, 1, 16, 16, self.fine))
    fine = nn.relu(_Conv(self.fine, name="fine")(x))
    wide = rearrange(_Conv(self.wide, 2, name="down")(fine), "b t h w d -> b (t h w) d")
    place = nn.initializers.normal(0.02)
    wide = wide + self.param("place_wide", place, wide.shape[1:])
    for index in range(self.blocks):
      wide = _Block(self.heads, name=f"block{index}")(wide)
    wide = LayerNorm(affine=True, name="out")(wide)
    wide = rearrange(wide, "b (t n) d -> b t n d", t=SLOTS)

    heat = nn.Dense(2, name="heat")(wide)
    found = [self._look_at(heat[..., k], fine, wide) for k in (0, 1)]
    context = jnp.concatenate([jnp.mean(wide, 2), jnp.max(wide, 2)], axis=-1)
    slots = jnp.concatenate([*found, context], axis=-1)
    slots = nn.relu(nn.Dense(128, name="slots")(slots))
    clip = rearrange(slots, "b t d -> b (t d)")

    colour = nn.Dense(len(ATTRIBUTES["colour"]) + 1, name="slot_colour")(found[0])
    shape = nn.relu(nn.Dense(96, name="slot_shape_hidden")(found[0]))
    # Colour and shape of the clip are read where the object is seen, weighted by how sure that is.
    seen = jax.nn.softmax(-2.0 * jax.nn.log_softmax(colour)[..., -1:].clip(-8.0), axis=1)
    overall = jnp.sum(seen * jnp.concatenate([found[0], shape], axis=-1), axis=1)
    texture = jnp.concatenate([jnp.mean(fine, (1, 2, 3)), jnp.max(fine, (1, 2, 3))], axis=-1)
    verdict = jnp.concatenate(
      [jnp.mean(slots, 1), jnp.max(slots, 1), texture, nn.relu(nn.Dense(64, name="course")(clip))],
      axis=-1,
    )
    return {
      "colour": _head(overall, "colour"),
      "shape": _head(overall, "shape"),
      "motion": _head(clip, "motion"),
      "look": _head(texture, "look"),
      "valid": _mlp(verdict, 1, "valid")[:, 0],
      "slot_colour": colour,
      "slot_shape": nn.Dense(len(ATTRIBUTES["shape"]) + 1, name="slot_shape")(shape),
      "heat": heat[..., 0],
    }

  def _look_at(self, heat: Array, fine: Array, wide: Array) -> Array:
    """Features under a heat map, per slot, with the map's place, spread and height."""
    share = jax.nn.softmax(heat, axis=-1)
    near = jnp.einsum("btn,btnd->btd", share, wide)
    grid = rearrange(share, "b t (h w) -> b t h w", h=8)
    blown = repeat(grid, "b t h w -> b t (h q) (w r)", q=2, r=2) / 4
    detail = jnp.einsum("bthw,bthwd->btd", blown, fine)
    # The sharpest response, too: an average blurs the outline that tells a cone from a capsule.
    peak = jnp.max(fine * jnp.minimum(8 * blown, 1.0)[..., None], axis=(2, 3))
    axis = jnp.linspace(-1.0, 1.0, 8)
    row, column = (jnp.einsum("bthw,h->bt", grid.swapaxes(2, 3) if swap else grid, axis)
                   for swap in (False, True))  # fmt: skip
    height = jax.nn.logsumexp(heat, axis=-1)
    spread = -jnp.sum(share * jnp.log(share + 1e-9), axis=-1)
    facts = jnp.stack([3 * row, 3 * column, height, spread], axis=-1)
    return jnp.concatenate([near, detail, peak, facts], axis=-1)


def _mlp(x: Array, classes: int, name: str) -> Array:
  return nn.Dense(classes, name=name)(nn.relu(nn.Dense(96, name=f"{name}_hidden")(x)))


def _head(x: Array, name: str) -> Array:
  return _mlp(x, len(ATTRIBUTES[name]), name)


@dataclass(frozen=True)
class Reading:
  """What the oracle reads off one clip. `None` is an abstention.

  Attributes:
    colour, shape, motion, look: names from VOCABULARY.
    valid: the clip shows an undamaged world.
    slots: (colour, shape) per three frames, ("absent", "absent") where no main object is seen.
  """

  colour: str | None
  shape: str | None
  motion: str | None
  look: str | None
  valid: bool
  slots: tuple[tuple[str, str], ...]

  def matches(self, **asked: str) -> bool:
    """Valid, and every asked attribute read as asked. An abstention does not match."""
    return self.valid and all(getattr(self, name) == value for name, value in asked.items())

  def ends(self) -> tuple[tuple[str, str], tuple[str, str]]:
    """The object as first seen and as last seen: by its first and last two sightings.

    If the clip's last slot shows no object, it counts as absent there, and likewise for the first.
    """
    seen = [slot for slot in self.slots if slot[0] != "absent"]
    absent = ("absent", "absent")
    first = absent if self.slots[0][0] == "absent" else _vote(seen[:2])
    last = absent if self.slots[-1][0] == "absent" else _vote(seen[:-3:-1])
    return first, last

  def permanent(self, colour: str, shape: str, motion: str) -> bool:
    """The object that went behind the wall is the one that was asked for, before and after.

    For "passes": valid, the motion as asked, and colour and shape as asked at both ends. For
    "hides" it must be absent in the end; for "stays" (the empty control) nothing may come out: the
    motion is read as asked, and the same object is there in the end as in the beginning.
    """
    if not (self.valid and self.motion == motion):
      return False
    wanted, absent = (colour, shape), ("absent", "absent")
    first, last = self.ends()
    return first == wanted and last == (absent if motion == "hides" else wanted)


def _vote(pairs: Sequence[tuple[str, str]]) -> tuple[str, str]:
  """The most frequent colour and shape; the pair nearest the end of the clip decides a draw."""
  colours, shapes = zip(*pairs, strict=True)
  return max(colours, key=colours.count), max(shapes, key=shapes.count)


def prepare(clips: UInt8[np.ndarray, "b t h w 3"]) -> Float[np.ndarray, "b 17 64 64 3"]:
  """17 frames spread evenly over the clip, resized to 64 x 64, in [-1, 1]."""
  frames = np.round(np.linspace(0, clips.shape[1] - 1, FRAMES)).astype(int)
  x = clips[:, frames].astype(np.float32)
  if x.shape[2:4] != (SIZE, SIZE):
    x = np.asarray(jax.image.resize(x, (*x.shape[:2], SIZE, SIZE, 3), "bilinear"))
  return x / np.float32(127.5) - 1


def sound(x: Float[np.ndarray, "b 17 64 64 3"]) -> Bool[np.ndarray, " b"]:
  """Whether clips, as `prepare` returns them, are neither out of focus nor covered in noise.

  Focus: the strongest steps between neighbouring pixels over the strongest across four pixels (99th
  percentiles); a sharp edge makes its whole step at once. Grain: the median second difference along
  rows, in grey levels; worlds are smooth but for edges.
  """
  y = 127.5 * np.einsum("bthwc,c->bthw", x[:, ::4], np.array([0.299, 0.587, 0.114], np.float32))
  steps = []
  for reach in (1, 4):
    down = np.abs(y[:, :, reach:, :-reach] - y[:, :, :-reach, :-reach])
    across = np.abs(y[:, :, :-reach, reach:] - y[:, :, :-reach, :-reach])
    steps.append(np.quantile(np.maximum(down, across), 0.99, axis=(1, 2, 3)))
  grain = np.median(np.abs(np.diff(y, 2, axis=3)), axis=(1, 2, 3))
  return (steps[0] >= FOCUS * steps[1]) & (grain <= GRAIN)


class Judge:
  """The trained oracle: `judge(clips)` reads a batch of uint8 clips `b t h w 3`."""

  def __init__(self, folder: Path = WEIGHTS) -> None:
    """Reads `folder` (default: the shipped weights).

    Raises:
      UserError: the folder holds no oracle.
    """
    try:
      config = json.loads((folder / "config.json").read_text())
      tensors = load_file(folder / "oracle.safetensors")
    except (OSError, ValueError) as error:
      raise UserError(f"{folder} holds no oracle ({error}); train one or reinstall") from error
    self.params: Params = unflatten({k: v.astype(np.float32) for k, v in tensors.items()})
    model = Oracle(**config["model"])
    self._apply = jax.jit(lambda params, x: model.apply({"params": params}, x))

  def logits(self, clips: UInt8[np.ndarray, "b t h w 3"]) -> dict[str, np.ndarray]:
    """The network's outputs. The batch is processed in pieces of at most 16 clips."""
    parts: list[Any] = []
    for start in range(0, len(clips), 16):
      piece = clips[start : start + 16]
      padded = np.concatenate([piece, np.repeat(piece[-1:], 16 - len(piece), 0)])
      out = jax.device_get(self._apply(self.params, prepare(padded)))
      parts.append({name: values[: len(piece)] for name, values in out.items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

  def __call__(self, clips: UInt8[np.ndarray, "b t h w 3"]) -> list[Reading]:
    fine = np.concatenate([sound(prepare(clips[i : i + 16])) for i in range(0, len(clips), 16)])
    return [
      reading if ok else dataclasses.replace(reading, valid=False)
      for reading, ok in zip(readings(self.logits(clips)), fine, strict=True)
    ]


def readings(logits: dict[str, np.ndarray]) -> list[Reading]:
  """Names instead of numbers."""
  chosen: dict[str, list[str | None]] = {}
  for name, classes in ATTRIBUTES.items():
    x = np.exp(logits[name] - logits[name].max(-1, keepdims=True))
    sure = x.max(-1) / x.sum(-1) >= CERTAIN
    best = x.argmax(-1)
    chosen[name] = [classes[i] if ok else None for i, ok in zip(best, sure, strict=True)]
  valid = 1 / (1 + np.exp(-logits["valid"].astype(np.float64))) >= VALID
  colours, shapes = ((*ATTRIBUTES[name], "absent") for name in ("colour", "shape"))
  out = []
  for index in range(len(valid)):
    slots = []
    for c, s in zip(logits["slot_colour"][index], logits["slot_shape"][index], strict=True):
      gone = c.argmax() == len(colours) - 1
      best = int(s[:-1].argmax())
      slots.append(("absent", "absent") if gone else (colours[c.argmax()], shapes[best]))
    values = {name: chosen[name][index] for name in ATTRIBUTES}
    out.append(Reading(**values, valid=bool(valid[index]), slots=tuple(slots)))
  return out
