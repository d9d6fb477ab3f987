"""A plan says what the compiled program needs; without a compiler, about the same."""

import dataclasses
import json
import math
from importlib import util

import jax
import pytest

from sora_jax import config as config_lib
from sora_jax.cli import main
from sora_jax.errors import UserError
from sora_jax.plan import estimate, measure, search, topology
from sora_jax.plan.report import Memory, Plan, Work
from sora_jax.train import pods, program

SMALL = ("model.layers=4", "model.heads=2", "packing.length=1000", "text.layers=1")
KEYS = {
  "fits", "params", "memory", "flops", "attention_forwards", "cycles", "collectives", "padding",
  "tokens", "compile_seconds", "seconds", "mesh", "source",
}  # fmt: skip
tpu = pytest.mark.skipif(util.find_spec("libtpu") is None, reason="libtpu is for Linux on x86")
slow = pytest.mark.slow


def small(*overrides):
  """A transformer like those of the pods, in bfloat16, that compiles in seconds."""
  sizes = ("model.width=128", "model.mlp_width=256", "model.text_width=64", "text.width=64")
  rest = ("text.heads=2", "text.length=16", "packing.text_length=16", "train.batch_size=4")
  return config_lib.load("configs/wan_1_3b.py", (*SMALL, *sizes, *rest, *overrides))


@tpu
def test_the_command_prints_one_object(capsys):
  argv = [
    "plan",
    "--json",
    "--config=configs/wan_1_3b.py",
    "--clip=5x160x256",
    "--topology=v5e:2x2",
  ]
  argv += ["--config.model.layers=2", "--config.text.width=64", "--config.model.text_width=64"]
  argv += ["--config.model.width=128", "--config.model.heads=2", "--config.model.mlp_width=128"]
  argv += ["--config.text.heads=2", "--config.train.batch_size=2", "--config.model.remat=none"]
  assert main.main(argv) == 0
  plan = json.loads(capsys.readouterr().out)
  assert plan.keys() >= KEYS and plan["source"] == "compiled" and plan["fits"]
  assert plan["tokens"] == 2 * 10 * 16 and plan["mesh"] == {
    "data": 2, "fsdp": 1, "context": 2, "tensor": 1
  }  # fmt: skip
  memory = plan["memory"]
  assert memory["peak"] == sum(memory[part] for part in ("params", "optimizer", "activations"))
  assert plan["flops"]["executed"] > plan["flops"]["model"] > 0
  assert plan["unknown_loops"] == 0
  assert plan["attention_forwards"] == pytest.approx(3.5, abs=0.01)
  assert plan["collectives"]["all-to-all"]["bytes"] > 0  # two heads, traded by two devices


@tpu
@slow
@pytest.mark.parametrize(("remat", "forwards"), [("none", 3.5), ("attention", 3.5), ("full", 4.5)])
def test_what_is_kept_is_not_computed_again(remat, forwards):
  target = topology.parse("v5e:1x1")
  plan = measure.measure(small(f"model.remat={remat}"), "small", target)
  assert plan.work.forwards == pytest.approx(forwards, abs=0.01)
  assert 0 < plan.work.padding < 0.2  # most of it the prompt: 16 pieces in a block of 128


@tpu
@slow
def test_the_estimate_is_near_what_is_compiled():
  target = topology.parse("v5p:2x2x2")
  for mode in ("train", "sample"):
    config = small("train.mesh={'fsdp': 2, 'context': 4}", "model.width=512", "model.heads=4")
    found = measure.measure(config, "small", target, mode)
    guess = estimate.estimate(config, "small", target, mode, topology.devices(target))
    assert guess.source == "estimated" and found.source == "compiled"
    assert (guess.memory.params, guess.memory.optimizer) == (
      found.memory.params, found.memory.optimizer,
    )  # fmt: skip
    assert guess.work.model == found.work.model
    for kind in ("all-gather", "all-to-all"):
      sent = found.work.collectives[kind]["bytes"]
      assert guess.work.collectives[kind]["bytes"] == pytest.approx(sent, rel=0.5), (mode, kind)


@tpu
def test_a_forward_pass_is_the_transformer_alone():
  """Of the clips that the config has, with no weights of the text encoder, and no sampler."""
  target, config = topology.parse("v5e:2x2"), small("train.mesh={'fsdp': 2, 'context': 2}")
  found = measure.measure(config, "small", target, "forward")
  guess = estimate.estimate(config, "small", target, "forward", topology.devices(target))
  params = program.build(config, topology.devices(target)).state.weights
  dit, text = (sum(x.size for x in jax.tree.leaves(params[part])) for part in ("dit", "text"))
  assert found.params == dit + text and found.clips == guess.clips == 4
  assert found.memory.params == guess.memory.params < (4 * dit + 2 * text) / 2
  assert found.memory.optimizer == 0
  assert found.work.forwards == 1.0 and found.work.padding >= 0
  assert found.work.model == guess.work.model


def test_only_text_to_video_has_a_forward_pass():
  config = config_lib.load("configs/oracle.py")
  with pytest.raises(UserError, match="Only text-to-video configs sample"):
    measure.forward(program.build(config, jax.devices()[:1]))


def test_without_a_compiler_it_is_an_estimate(monkeypatch, capsys):
  monkeypatch.setattr(topology, "installed", lambda chip: False)
  argv = ["plan", "--json", "--config=configs/wan_14b.py", "--topology=v5p:2x2x1"]
  assert main.main(argv) == 0
  plan = json.loads(capsys.readouterr().out)
  assert plan.keys() >= KEYS and plan["source"] == "estimated" and plan["cycles"] is None
  assert plan["flops"]["model"] == pytest.approx(16 * 4.89e15, rel=0.01)
  assert not plan["fits"]  # sixteen clips on four chips


def test_the_text_names_what_is_assumed_and_what_is_not_known():
  work = Work(
    model=1e15, executed=2e15, attention=0.0, forwards=None, padding=None, cycles=None,
    collectives={"all-reduce": {"count": 3, "bytes": 10**10, "between_hosts": 10**9}},
    unknown_loops=2,
  )  # fmt: skip
  plan = Plan(
    config="x", topology="h100:2x8", mode="train", source="compiled", mesh={"data": 16},
    remat="full",
    chip=topology.CHIPS["h100"], chips=16, params=10**9, tokens=10, clips=8,
    memory=Memory(60, 30, 20, 110, 100), work=work, compile_seconds=1.0,
  )  # fmt: skip
  text = plan.text(1000)
  assert "DOES NOT FIT: the weights and their state" in text
  assert "the rest at 60%" in text and "the trips of 2 loops are not known" in text
  assert plan.seconds == max(plan.compute_seconds, plan.communication_seconds)
  assert plan.compute_seconds == pytest.approx(2e15 / (0.6 * 989.4e12))
  assert plan.communication_seconds == pytest.approx(9e9 / (18 * 25e9) + 1e9 / 50e9)
  assert "10.00 GB in 3, 1.00 GB of it between hosts" in text
  shared = dataclasses.replace(plan, chip=topology.CHIPS["tpu7x"])  # two devices on two links
  assert shared.communication_seconds == pytest.approx(2 * 9e9 / (2 * 100e9))
  assert "18 links of 25 GB/s, 50 GB/s between hosts of 8" in text


def test_what_hosts_send_one_another_is_estimated():
  chip = dataclasses.replace(topology.CHIPS["h100"], per_host=4)

  def far(shape, **mesh):
    target = topology.Topology(chip, shape)
    plan = estimate.estimate(small(f"train.mesh={mesh}"), "small", target)
    sent = plan.work.collectives.items()
    return {kind: sums["between_hosts"] for kind, sums in sent if "between_hosts" in sums}

  assert far((1, 4), fsdp=2, context=2) == {}
  assert far((2, 4), fsdp=2, context=4).keys() == {"all-gather", "reduce-scatter"}
  assert "collective-permute" in far((2, 4), context=8)


def test_only_text_to_video_is_estimated_and_sampled():
  config, target = config_lib.load("configs/oracle.py"), topology.parse("v5e:1x1")
  with pytest.raises(UserError, match="only text-to-video configs can be estimated"):
    estimate.estimate(config, "oracle", target, "train")


def test_search_puts_first_what_fits(monkeypatch):
  monkeypatch.setattr(topology, "installed", lambda chip: False)
  target = topology.parse("v5e:2x2")
  plans = search.search(small(), "small", target, best=100)
  assert [p.fits for p in plans] == sorted((p.fits for p in plans), reverse=True)
  assert len({(*p.mesh.values(), p.remat) for p in plans}) == len(plans) > 10
  seconds = [p.seconds for p in plans if p.fits]
  assert seconds == sorted(seconds)


def test_search_leaves_out_what_cannot_be_and_tries_what_is_usual(monkeypatch):
  monkeypatch.setattr(topology, "installed", lambda chip: False)
  plans = search.search(small("model.ulysses=4"), "small", topology.parse("v5e:2x2"), best=100)
  assert plans and {p.mesh["context"] for p in plans} == {1}  # there are two heads
  found = list(search.meshes(small("train.batch_size=256"), 512))
  assert dict(data=8, fsdp=32, context=2, tensor=1) in found  # as `sharding.suggest` has it
  assert not any(1000 % mesh["context"] for mesh in found)


def test_accumulating_keeps_less_and_gathers_more():
  one, two = (
    estimate.estimate(
      small("train.mesh={'fsdp': 4}", "train.batch_size=64", f"train.accumulate={parts}"),
      "small",
      topology.parse("v5e:2x2"),
    )
    for parts in (1, 2)
  )
  assert two.memory.activations < 0.9 * one.memory.activations  # a sum of gradients beside it
  gathered = [plan.work.collectives["all-gather"]["bytes"] for plan in (one, two)]
  assert gathered[1] == 2 * gathered[0]


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--topology=v5p:2x2x1", "--search", "--compile=0"], "--compile is 0"),
    (["--topology=v5p:2x2x1", "--steps=0"], "--steps is 0"),
    (["--topology=v5p:4x4"], "There is no v5p:4x4"),
    (["--topology=v5q:4x4x4"], "did you mean 'v5p'"),
    (["--topology=v5p:2x2x1", "--clip=4x4"], "is no clip"),
    (["--topology=v5p:2x2x1", "--config.train.batch_size=0"], "must be at least 1"),
    (
      ["--topology=v5p:2x2x1", "--config.train.mesh={'fsdp': 2}"],
      "has 2 devices and v5p:2x2x1 has 4",
    ),
    (
      ["--topology=v5p:2x2x1", "--config.train.mesh={'fsdp': 4}", "--config.train.batch_size=6"],
      "nearest batch size that can be is 8",
    ),
  ],
)
def test_what_cannot_be_is_one_sentence(arguments, message, capsys, monkeypatch):
  monkeypatch.setattr(topology, "installed", lambda chip: False)
  assert main.main(["plan", "--config=configs/wan_1_3b.py", *arguments]) == 2
  error = capsys.readouterr().err
  assert message in error and error.count("\n") == 1


@pytest.mark.parametrize("tokens", [1, 8, 320, 12_090, 32_760, 75_600, 111_320, 736_440])
def test_lengths_of_pods_are_divided_by_many_devices(tokens):
  length = pods.divisible(tokens)
  assert tokens <= length <= 1.02 * tokens
  assert length % min(256, 2 ** int(math.log2(max(1, tokens / 50)))) == 0


def test_sequences_that_stay_whole_are_said(capsys):
  program.build(small("packing.length=1001", "train.mesh={'context': 8}"))
  assert "set packing.length=1008" in capsys.readouterr().err
  program.build(small("packing.length=1008", "train.mesh={'context': 8}"))
  assert "warning" not in capsys.readouterr().err
