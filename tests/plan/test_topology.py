"""Chips and topologies: what exists, what is near what does not, and what cannot be had."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from sora_jax.errors import UserError
from sora_jax.plan import topology
from sora_jax.plan.topology import CHIPS, parse, shapes


@pytest.mark.parametrize(
  ("text", "chips", "devices"),
  [("v4:2x2x1", 4, 4), ("v5e:1x1", 1, 1), ("v5p:4x4x4", 64, 64), ("v6e:16x16", 256, 256)]
  + [("tpu7x:4x4x4", 64, 128), (" V6E:2x4 ", 8, 8), ("h100:2x8", 16, 16)],
)
def test_a_topology_is_a_chip_and_a_shape(text, chips, devices):
  found = parse(text)
  assert (found.chips, found.device_count) == (chips, devices)
  assert parse(str(found)) == found


@pytest.mark.parametrize(
  ("text", "says"),
  [
    ("v5p", "such as v5p:4x4x4"),
    ("v5p:4,4,4", "such as v5p:4x4x4"),
    ("v5:4x4x4", "did you mean 'v5p'"),
    ("h200:1x8", "did you mean 'h100'"),
    ("v5p:8x4x8", "near ones are v5p:4x8x8, v5p:4x4x16,"),  # the same sides first
    ("v6e:4x4x4", "near ones are v6e:8x8,"),
    ("v6e:32x32", "near ones are v6e:16x16,"),
    ("v5p:0x0x0", "near ones are v5p:2x2x1,"),
    ("h100:2x4", "near ones are h100:1x8,"),  # hosts that are not alone are whole
  ],
)
def test_what_there_is_not_names_what_is_near(text, says):
  with pytest.raises(UserError, match=says):
    parse(text)


@pytest.mark.parametrize("chip", CHIPS.values(), ids=lambda chip: chip.name)
def test_chips_and_their_topologies_are_plausible(chip):
  sizes = [topology.Topology(chip, shape).chips for shape in shapes(chip)]
  assert sizes == sorted(sizes) and sizes[-1] == chip.largest
  assert len(set(shapes(chip))) == len(sizes)
  assert all(len(shape) == chip.axes for shape in shapes(chip))
  # Arithmetic intensity at which neither memory nor links wait, in FLOP per byte.
  assert 750 < chip.flops / (chip.link_bandwidth * chip.links) < 4000
  if chip.clock:  # a power of two, the multiply-adds of its matrix units, in each cycle
    assert chip.flops / chip.devices / chip.clock / 2 == pytest.approx(
      {"v5e": 2**16, "v4": 2**17, "v5p": 2**17}.get(chip.name, 2**18), rel=0.01
    )


def test_what_is_not_installed_is_named_with_the_command_that_installs_it(monkeypatch):
  monkeypatch.setattr(topology.util, "find_spec", lambda name: None)
  with pytest.raises(UserError, match=r'libtpu.*pip install -e "\.\[tpu\]"'):
    topology.devices(parse("v5p:2x2x1"))
  with pytest.raises(UserError, match=r'CUDA plugin.*pip install -e "\.\[cuda\]"'):
    topology.devices(parse("h100:2x8"))


def test_a_compiler_that_refuses_or_disagrees_is_said(monkeypatch):
  monkeypatch.setattr(topology.util, "find_spec", lambda name: name)
  for key in topology._LIBTPU:  # set for good otherwise
    monkeypatch.setenv(key, topology._LIBTPU[key])

  def refuse(name, **options):
    raise topology.jax.errors.JaxRuntimeError("INVALID_ARGUMENT: no")

  monkeypatch.setattr(topology.topologies, "get_topology_desc", refuse)
  with pytest.raises(UserError, match="v5p:2x2x1 is refused"):
    topology.devices(parse("v5p:2x2x1"))
  fewer = topology.topologies.TopologyDescription([])
  monkeypatch.setattr(topology.topologies, "get_topology_desc", lambda name, **options: fewer)
  with pytest.raises(UserError, match="should have 4 devices and the installed compiler says 0"):
    topology.devices(parse("v5p:2x2x1"))


def test_libtpu_is_left_alone_until_devices_are_asked_for():
  code = """
import jax
from sora_jax.plan import hlo, topology
topology.parse("v5p:4x4x4")
assert {device.platform for device in jax.devices()} == {"cpu"}
print(any("libtpu.so" in line for line in open("/proc/self/maps")))
"""
  environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, env=environment
  )
  assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "False", "")
