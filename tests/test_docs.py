"""What the documentation tells a user to type works."""

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from sora_jax import config as config_lib
from sora_jax.cli.main import make_parser, split_overrides
from sora_jax.worlds import VOCABULARY

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES += sorted((ROOT / "experiments").glob("*/README.md"))
CONFIGS = sorted((ROOT / "configs").glob("*.py"))


def commands(text: str) -> list[str]:
  """Lines of code that start with `sora-jax`, with their continuations."""
  joined = re.sub(r"\\\n\s*", " ", text)
  return [line.strip() for line in joined.splitlines() if re.match(r"\s*sora-jax \w", line)]


def documented() -> list:
  found = []
  for page in PAGES:
    for block in re.findall(r"```\w*\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
      found += [pytest.param(c, id=f"{page.name}: {c[:60]}") for c in commands(block)]
  for path in CONFIGS:
    note = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    found += [pytest.param(c, id=f"{path.name}: {c[:60]}") for c in commands(note)]
  return found


@pytest.mark.parametrize("command", documented())
def test_documented_commands_are_understood(command):
  words, overrides = split_overrides(shlex.split(command, comments=True)[1:])
  if "--help" in words:
    with pytest.raises(SystemExit, match="0"):
      make_parser().parse_args(words)
    return
  args = make_parser().parse_args(words)
  if getattr(args, "config", None):
    config_lib.load(str(ROOT / args.config), overrides)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
  for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
    if "://" not in target:
      assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_page_of_words_names_them_all():
  page = (ROOT / "docs" / "text.md").read_text(encoding="utf-8")
  for kind in ("colours", "shapes", "floors", "lights"):
    for word in getattr(VOCABULARY, kind):
      assert re.search(rf"\b{word}\b", page), f"{kind}: {word}"


@pytest.mark.slow
def test_python_of_the_readme_runs(tmp_path):
  blocks = re.findall(r"```python\n(.*?)```", PAGES[0].read_text(encoding="utf-8"), re.DOTALL)
  assert blocks
  for code in blocks:
    done = subprocess.run(
      [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
  assert list(tmp_path.glob("*.mp4"))


@pytest.mark.slow
def test_demo_writes_moving_videos(tmp_path):
  from sora_jax.data import video

  script = [sys.executable, "examples/demo.py", "--out", str(tmp_path)]
  done = subprocess.run(script, cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  clips = [video.read(path)[0] for path in tmp_path.glob("*.mp4")]
  assert len(clips) >= 3
  for clip in clips:
    assert len(clip) >= 17 and min(clip.shape[1:3]) >= 64
    assert abs(clip[0].astype(int) - clip[-1]).max() > 40, "nothing moves"
  assert len(list(tmp_path.glob("*.gif"))) == 1 and len(list(tmp_path.glob("*.png"))) == 1
