"""The suites and the command, on models whose worth is known: a perfect one and a blind one."""

import json

import numpy as np
import pytest
from cheap import Blind

from sora_jax.cli import main
from sora_jax.data import video
from sora_jax.evals import i3d, reference, suites
from sora_jax.generate import load as loader
from sora_jax.generate import model as generate
from sora_jax.generate.codec import Codec
from sora_jax.worlds import WorldSource


class Perfect:
  """Renders what the prompt describes; reconstructs without loss."""

  def __init__(self) -> None:
    self.sources = [
      WorldSource(8, suites.SEED, split, wording=wording)
      for split, wording in suites.PROMPTS.values()
    ]
    self.sources.append(WorldSource(8, suites.SEED + 1, "validation", scenes=("occlusion",)))
    self.known = {s.caption(i): (s, i) for s in self.sources for i in range(len(s))}

  def sample(self, prompts, *, seed, frames, size, progress):
    found = [self.known[prompt] for prompt in prompts]
    return np.stack([source[i]["video"] for source, i in found])

  def reconstruct(self, clips):
    return clips.copy()


@pytest.fixture(autouse=True)
def cheap(monkeypatch, tmp_path):
  """Colour statistics in the place of I3D, whose own test is in test_fvd."""

  class Colours:
    def __call__(self, clips):
      rows = clips.reshape(len(clips), -1, 3).astype(np.float32)
      few = np.concatenate([rows.mean(1), rows.std(1)], -1) / 255
      return np.pad(few, ((0, 0), (0, i3d.FEATURES - 6)))

  monkeypatch.setattr(i3d, "Features", Colours)
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  monkeypatch.setattr(suites, "RECON_SIZES", ((64, 64),))


def _eval(monkeypatch, model, *args) -> int:
  for loads in (generate, loader):
    monkeypatch.setattr(loads, "load", lambda *args: model)
  monkeypatch.setattr(Codec, "load", lambda name: model)
  return main.main(["eval", *map(str, args)])


def test_text_suite_ranks_a_perfect_and_a_blind_model(monkeypatch, tmp_path):
  found = {}
  for model in (Perfect(), Blind()):
    out = tmp_path / type(model).__name__
    assert _eval(monkeypatch, model, "--suite=text", "--count=2", "--fvd=2", "--out", out) == 0
    found[type(model)] = json.loads((out / "metrics.json").read_text())["metrics"]
    assert (out / "samples.png").stat().st_size > 1000
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert len(rows) == 2 * 3 + 1
    assert {"prompt", "asked", "read", "right"} <= rows[0].keys()
  perfect, blind = found[Perfect], found[Blind]
  seen = "adherence seen"
  assert perfect[seen]["all"]["mean"] > 0 and blind[seen]["all"]["mean"] == 0
  assert perfect["appearance"]["sharpness ratio"]["mean"] == pytest.approx(1)
  assert perfect["appearance"]["flicker ratio"]["mean"] == pytest.approx(1)
  assert blind["appearance"]["sharpness ratio"]["mean"] > 2
  for metric in ("FVD", "kernel"):
    samples = f"{metric} samples"
    assert blind["distance"][samples]["mean"] > perfect["distance"][samples]["mean"]
  floor, remade = (perfect["distance"][f"FVD {k}"]["mean"] for k in ("floor (real)",
                                                                    "reconstructions"))  # fmt: skip
  assert floor == pytest.approx(remade)


def test_interrupted_reference_features_go_on(tmp_path):
  source = WorldSource(3, 5)
  features = i3d.Features()
  whole = reference.cached(source, features, "a")
  path = next((tmp_path / "cache").rglob("*.npy"))
  np.save(path, whole[:2])
  calls = []
  again = reference.cached(source, lambda x: calls.append(len(x)) or features(x), "b")
  np.testing.assert_array_equal(again, whole)
  assert calls == [1]
  reference.cached(source, lambda x: calls.append(len(x)) or features(x), "c")
  assert calls == [1]


def test_recon_suite_on_worlds_and_on_files(monkeypatch, tmp_path, capsys):
  assert _eval(monkeypatch, Perfect(), "--suite=recon", "--count=2", "--out", tmp_path / "a") == 0
  metrics = json.loads((tmp_path / "a" / "metrics.json").read_text())["metrics"]
  assert metrics["worlds 64x64"]["psnr"]["mean"] == 100
  assert metrics["worlds 64x64"]["lpips"]["mean"] < 1e-6
  assert metrics["oracle right"]["clean"] == metrics["oracle right"]["reconstruction"]

  folder = tmp_path / "clips"
  folder.mkdir()
  source = WorldSource(1, 7, height=48, width=80)
  video.write(folder / "one.mp4", source[0]["video"], 8.0)
  (folder / "two.mp4").write_bytes(b"not a video")
  capsys.readouterr()
  args = ("--suite=recon", "--videos", folder, "--out", tmp_path / "b", "--json")
  assert _eval(monkeypatch, Blind(), *args) == 0
  shown = capsys.readouterr()
  printed = json.loads(shown.out)
  assert printed["metrics"]["one.mp4"]["psnr"] < 30
  assert "two.mp4" in shown.err and "two.mp4" not in printed["metrics"]


@pytest.mark.parametrize(
  ("args", "message"),
  [
    (["--suite=text", "--videos", "x", "--out", "o"], "--videos belongs to --suite=recon"),
    (["--suite=recon", "--count", "1", "--out", "o"], "--count must be at least 2"),
    (["--suite=recon", "--fvd", "4", "--out", "o"], "--fvd belongs"),
    (["--suite=recon", "--out", "/dev/null/o"], "cannot be made"),
    (["--suite=recon", "--videos", "no-folder", "--out", "o"], "not a folder"),
  ],
)
def test_bad_arguments_are_one_sentence(monkeypatch, tmp_path, capsys, args, message):
  monkeypatch.chdir(tmp_path)
  assert _eval(monkeypatch, Perfect(), *args) == 2
  error = capsys.readouterr().err
  assert message in error and "Traceback" not in error


def test_the_text_suite_needs_videos_of_prompts(monkeypatch, tmp_path, capsys):
  assert _eval(monkeypatch, object(), "--suite=text", "--count=2", "--out", tmp_path) == 2
  assert "makes images of classes" in capsys.readouterr().err
