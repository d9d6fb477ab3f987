"""The rig: eight fake devices, headless rendering, few skips.

Everything here happens before the first test module imports JAX.
"""

import os
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
# The tests compile much and compute little: unoptimised programs cost less than half in all.
# Eight devices on a busy machine may wait for one another for longer than 40 seconds, after which
# XLA would abort the process.
os.environ["XLA_FLAGS"] = (
  "--xla_backend_optimization_level=0 --xla_cpu_collective_call_terminate_timeout_seconds=600"
)
os.environ.setdefault("MUJOCO_GL", "egl")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import hypothesis
import jax
import numpy as np
import pytest

MAX_SKIPS = 3
CACHE = Path(__file__).parent.parent / ".cache" / "jax-tests"

hypothesis.settings.register_profile("suite", deadline=None)  # nothing here is a timed test
hypothesis.settings.load_profile("suite")
jax.config.update("jax_num_cpu_devices", 8)
# Compiling takes most of the suite's time, and most programs are the same from run to run.
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


@pytest.fixture
def rng() -> np.random.Generator:
  """A seeded NumPy generator; tests draw their inputs from it instead of using ones or zeros."""
  return np.random.default_rng(0)


def random_weights(init, *inputs, scale=0.3, seed=0):
  """Random parameters of a module, none of them 0; nothing is compiled for it."""
  draw = np.random.default_rng(seed)

  def one(path, leaf):
    centre = float(str(path[-1].key) == "scale")
    return jax.numpy.asarray(centre + scale * draw.normal(size=leaf.shape), leaf.dtype)

  shapes = jax.eval_shape(init, jax.random.key(0), *inputs)["params"]
  return jax.tree_util.tree_map_with_path(one, shapes)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
  """A suite that skips is a suite that does not test: more than `MAX_SKIPS` is a failure."""
  reporter = session.config.pluginmanager.get_plugin("terminalreporter")
  skipped = len(reporter.stats.get("skipped", [])) if reporter else 0
  if skipped > MAX_SKIPS and session.exitstatus == pytest.ExitCode.OK:
    reporter.write_line(f"\n{skipped} tests were skipped, at most {MAX_SKIPS} may be", red=True)
    session.exitstatus = pytest.ExitCode.TESTS_FAILED
