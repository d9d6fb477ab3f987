"""The laws of the house: what may import what, how long a file may be, what a reader counts on."""

import ast
import re
import subprocess
import sys
from functools import cache
from importlib import util
from pathlib import Path

import pytest

from sora_jax import config as config_lib

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "sora_jax"
MODULES = sorted(PACKAGE.rglob("*.py"))
CONFIGS = sorted(p for p in (ROOT / "configs").glob("*.py") if p.stem not in ("__init__", "common"))

# A module imports its own layer and the layers above it in this list.
LAYERS = (
  ("typing", "errors", "config", "provenance"),
  ("models", "diffusion"),
  ("data", "parallel", "worlds"),
  ("train", "generate", "evals", "interop"),
  ("plan",),
  ("cli",),
)
# All that models may know of the machine: a constraint that does nothing without a mesh, weights
# gathered for use, the number of devices a batch is split over, and the one attention function.
PLACEMENT = {
  "sora_jax.parallel.sharding.constrain",
  "sora_jax.parallel.sharding.gather",
  "sora_jax.parallel.sharding.batch_shards",
  "sora_jax.parallel.attention.attend",
}
# Libraries that only some files may import: everything else goes through those files.
RESERVED = {
  "orbax": ("train/checkpoint.py",),
  "av": ("data/video.py", "data/video_out.py"),
  "mujoco": ("worlds/",),
  "flax.linen": ("models/", "evals/"),
  # `sora-jax convert --check` runs the reference implementations, where they are installed.
  "torch": ("interop/probes.py",),
  "diffusers": ("interop/probes.py",),
  "transformers": ("interop/probes.py",),
  "torchvision": (),
  "tensorflow": (),
}
MAX_FILE, MAX_FUNCTION = 400, 70
# In two parts, so that this file passes its own test.
MACHINE = re.compile("/" + "(work/|root/|opt/wheels|opt/pypi)")


def name_of(path: Path) -> str:
  return path.relative_to(ROOT).as_posix()


@cache
def parse(path: Path) -> ast.Module:
  return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports(path: Path) -> set[str]:
  """Dotted names of everything a file imports, at any depth; `from a import b` is `a.b`."""
  found = set()
  for node in ast.walk(parse(path)):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert not node.level, f"{name_of(path)}:{node.lineno}: relative import"
      found |= {f"{node.module}.{alias.name}" for alias in node.names}
  return found


def layer(dotted: str) -> int | None:
  """Index into `LAYERS`; None outside of them."""
  part = (dotted + ".generate").split(".")[1]  # the package itself stands for what it re-exports
  return next((i for i, names in enumerate(LAYERS) if part in names), None)


def within(dotted: str, library: str) -> bool:
  return dotted == library or dotted.startswith(library + ".")


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_one_way(path):
  relative = path.relative_to(ROOT).with_suffix("")
  own = layer(".".join(relative.parts))
  if own is None:  # sora_jax/__init__.py re-exports the public interface
    assert relative.parts[1:] in {("__init__",), ("__main__",)}, "a module outside all layers"
    return
  pure = relative.parts[1] in LAYERS[1]
  for dotted in imports(path):
    if not within(dotted, "sora_jax") or dotted in PLACEMENT:
      continue
    other = layer(dotted)
    assert other is not None and other <= own, f"{name_of(path)} imports {dotted}"
    assert not (pure and within(dotted, "sora_jax.config")), f"{name_of(path)} knows the config"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_reserved_libraries_stay_in_their_files(path):
  relative = path.relative_to(PACKAGE).as_posix()
  for dotted in imports(path):
    for library, places in RESERVED.items():
      if within(dotted, library):
        assert relative.startswith(places) if places else False, f"{relative} imports {dotted}"


def test_nothing_imports_tensorflow_or_torch():
  code = """
import importlib, pkgutil, sys
import sora_jax
for module in pkgutil.walk_packages(sora_jax.__path__, "sora_jax."):
  if not module.name.endswith("__main__"):
    importlib.import_module(module.name)
print(*{name.split(".")[0] for name in sys.modules} & {"tensorflow", "torch", "torchvision"})
"""
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
  assert done.returncode == 0, done.stderr
  assert done.stdout.strip() == ""


def test_torchvision_is_absent():
  """The one that pip finds breaks the import of the reference models this suite compares with."""
  assert util.find_spec("torchvision") is None


def source_files() -> list[Path]:
  folders = ("sora_jax", "configs", "tests", "benchmarks", "examples", "experiments", "notebooks")
  return [ROOT / "setup.py", *(p for f in folders for p in sorted((ROOT / f).rglob("*.py")))]


def test_files_and_functions_are_short():
  long = [
    f"{name_of(p)}: {n} lines"
    for p in source_files()
    if (n := len(p.read_text(encoding="utf-8").splitlines())) > MAX_FILE
  ]
  for path in MODULES:
    for node in ast.walk(parse(path)):
      if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        length = (node.end_lineno or node.lineno) - node.lineno + 1
        if length > MAX_FUNCTION:
          long.append(f"{name_of(path)}:{node.lineno} {node.name}: {length} lines")
  assert not long, "\n".join(long)


def test_everything_public_has_a_docstring():
  silent = []
  for path in MODULES:
    tree = parse(path)
    if tree.body and ast.get_docstring(tree) is None:
      silent.append(name_of(path))
    for node in tree.body:
      if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
        if ast.get_docstring(node) is None:
          silent.append(f"{name_of(path)}:{node.lineno} {node.name}")
  assert not silent, "\n".join(silent)


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
def test_every_config_is_a_lab_note_with_a_smoke_form(path):
  note = ast.get_docstring(parse(path)) or ""
  assert "sora-jax train" in note, "the docstring names the command that runs it"
  full, smoke = config_lib.load(str(path)), config_lib.load(f"{path}:smoke")
  assert smoke.train.steps <= 20 < full.train.steps
  keys = set(config_lib.flatten(full)) ^ set(config_lib.flatten(smoke))
  assert not keys, "the smoke form only changes values"


def test_no_machine_paths():
  """No file says where it was written; binary files are not text and are left out."""
  folders = [p for p in ROOT.iterdir() if p.is_dir() and not p.name.startswith(".")]
  written = {"demo", "runs", "data", "results", "site", "build", "dist"}
  files = [p for p in ROOT.iterdir() if p.is_file() and p.name != ".git"]
  files += [p for f in folders if f.name not in written for p in f.rglob("*") if p.is_file()]
  guilty = []
  for path in [*files, *(ROOT / ".ci").iterdir()]:
    if "__pycache__" in path.parts or any(part.endswith(".egg-info") for part in path.parts):
      continue
    try:
      text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
      continue
    guilty += [f"{name_of(path)}: {m.group()}" for m in MACHINE.finditer(text)]
  assert not guilty, "\n".join(guilty)


def run(*command: str) -> str:
  done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, cwd=ROOT)
  return "" if done.returncode == 0 else done.stdout + done.stderr


def test_ruff():
  assert not (report := run("ruff", "check", "--output-format=concise", ".")), report


@pytest.mark.slow
def test_mypy():
  assert not (report := run("mypy")), report
