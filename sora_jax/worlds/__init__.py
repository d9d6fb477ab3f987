"""MuJoCo worlds: captioned clips with exact ground truth, rendered on the fly.

    from sora_jax import worlds
    source = worlds.WorldSource(count=1000, seed=0)      # random access, Grain compatible
    source[3]["video"], source[3]["caption"]             # uint8 t h w 3, "a red ball ..."

`sample_spec` draws a world, `render` films it, `captions.describe` puts it into words.
"""

import os

# Before MuJoCo is imported anywhere below: render without a display.
os.environ.setdefault("MUJOCO_GL", "egl")
# Mesa's software rasteriser would otherwise start a thread per core in every worker process.
os.environ.setdefault("LP_NUM_THREADS", "0")

from sora_jax.worlds import captions  # noqa: E402
from sora_jax.worlds.film import Clip, render  # noqa: E402
from sora_jax.worlds.sampling import sample_spec  # noqa: E402
from sora_jax.worlds.source import WorldSource  # noqa: E402
from sora_jax.worlds.spec import Camera, Fixture, Spec, Thing  # noqa: E402
from sora_jax.worlds.vocabulary import (  # noqa: E402
  VOCABULARY,
  is_heldout,
  mirror_motion,
  motion_family,
)

__all__ = [
  "VOCABULARY", "Camera", "Clip", "Fixture", "Spec", "Thing", "WorldSource", "captions",
  "is_heldout", "mirror_motion", "motion_family", "render", "sample_spec",
]  # fmt: skip
