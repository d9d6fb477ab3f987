import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sora_jax.data.timing import resample
from sora_jax.errors import UserError

RATES = st.sampled_from([4.0, 8.0, 12.5, 24000 / 1001, 25.0, 30.0, 60.0])


@settings(max_examples=150)
@given(native=RATES, fps=RATES, count=st.integers(1, 50), start=st.floats(0, 1))
def test_steady_rates_give_the_nearest_frame(native, fps, count, start):
  """Also when containers round the times to milliseconds."""
  exact = np.arange(count) / native
  rounded = np.round(exact, 3)
  picked = list(resample(zip(rounded, range(count), strict=True), start, fps, None, native))
  wanted = start + np.arange(len(picked)) / fps
  distance = np.abs(exact[picked] - wanted)
  assert (distance <= np.abs(exact - wanted[:, None]).min(axis=1) + 2e-3).all()
  end = start + len(picked) / fps
  assert end >= count / native - 0.3 / max(native, fps) or not picked
  assert not picked or wanted[-1] < count / native


@given(rate=RATES, count=st.integers(1, 40), first=st.integers(0, 40))
def test_the_own_rate_gives_every_frame_once(rate, count, first):
  times = np.round(np.arange(count) / rate, 3)
  picked = list(resample(zip(times, range(count), strict=True), first / rate, rate, None, rate))
  assert picked == list(range(first, count))


def test_long_frames_are_held_not_anticipated():
  timed = [(0.0, "a"), (0.1, "b"), (1.0, "c")]
  assert "".join(resample(timed, 0.0, 10.0, None, 10.0)) == "abbbbbbbbbc"
  assert "".join(resample(timed, 0.0, 10.0, 4, 10.0)) == "abbb"
  assert "".join(resample(timed, 0.95, 10.0, None, 10.0, end=1.3)) == "cccc"


def test_jumps_of_hours_are_damage():
  with pytest.raises(UserError, match="damaged"):
    list(resample([(0.0, "a"), (5000.0, "b")], 0.0, 8.0, None, 8.0))
