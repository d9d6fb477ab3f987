"""What a world can contain, and which combinations are never trained on."""

from __future__ import annotations

from types import SimpleNamespace

COLOURS: dict[str, tuple[float, float, float]] = {
  "red": (0.86, 0.07, 0.07),
  "orange": (0.98, 0.47, 0.03),
  "yellow": (0.97, 0.86, 0.08),
  "green": (0.08, 0.62, 0.14),
  "cyan": (0.08, 0.80, 0.85),
  "blue": (0.10, 0.22, 0.90),
  "purple": (0.46, 0.11, 0.72),
  "pink": (0.99, 0.45, 0.72),
}
SHAPES = ("ball", "cube", "cylinder", "cone", "capsule")
# Half of the object's typical extent in metres; at 64 px one metre is about 18 px.
SIZES: dict[str, float] = {"small": 0.40, "medium": 0.49, "large": 0.60}
MOTIONS = (
  "left", "right", "toward", "away",
  "falls", "bounces",
  "passes_left", "passes_right", "hides", "stays",
  "hits_left", "hits_right",
  "pushed_left", "pushed_right",
  "topples", "swings", "circles",
)  # fmt: skip
SCENES = (
  "roll", "fall", "bounce", "occlusion", "collide", "push", "topple", "pendulum", "orbit",
  "still_life",
)  # fmt: skip
LOOKS = ("plain", "line", "pixel", "mono")
FLOORS = ("grey", "white", "dark", "wooden", "checkered", "sandy", "grassy", "tiled")
LIGHTS = ("day", "dusk", "night")
CAMERAS = (
  "static", "pan_left", "pan_right", "zoom_in", "zoom_out", "orbit_left", "orbit_right",
)  # fmt: skip
SPLITS = ("train", "validation", "heldout")

VOCABULARY = SimpleNamespace(
  colours=tuple(COLOURS), shapes=SHAPES, sizes=tuple(SIZES), motions=MOTIONS, scenes=SCENES,
  looks=LOOKS, floors=FLOORS, lights=LIGHTS, cameras=CAMERAS, splits=SPLITS,
)  # fmt: skip

_FAMILIES = (
  "across", "depth", "falls", "bounces", "passes", "hides", "stays", "hits", "pushed", "topples",
  "swings", "circles",
)  # fmt: skip
_DEPTH = {"left": "across", "right": "across", "toward": "depth", "away": "depth"}


def motion_family(motion: str) -> str:
  """The motion without its direction, so that mirroring a clip never changes its family."""
  return _DEPTH.get(motion, motion.removesuffix("_left").removesuffix("_right"))


def mirror_motion(motion: str) -> str:
  """The motion's name in the clip flipped left to right."""
  swap = {"left": "right", "right": "left"}
  head, _, tail = motion.rpartition("_")
  return f"{head}_{swap[tail]}" if head and tail in swap else swap.get(motion, motion)


def is_heldout(colour: str, shape: str, motion: str) -> bool:
  """True for about 10 % of colour x shape x motion.

  No main object of `train` and `validation` has them (bystanders lie about in all of them).

  A Latin-square-like rule: every (shape, motion family) loses at most one colour, so each pair of
  attributes is still trained on, only never the triple.
  """
  colours = tuple(COLOURS)
  index = (
    colours.index(colour) + 3 * SHAPES.index(shape) + 7 * _FAMILIES.index(motion_family(motion))
  )
  return index % 10 == 0
