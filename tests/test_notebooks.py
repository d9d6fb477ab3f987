"""The notebooks say the same in both of their forms, and run from top to bottom."""

from pathlib import Path

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.py"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_text_and_notebook_are_the_same(path):
  text = jupytext.read(path)
  notebook = nbformat.read(path.with_suffix(".ipynb"), as_version=4)
  assert [(c.cell_type, c.source) for c in text.cells] == [
    (c.cell_type, c.source) for c in notebook.cells
  ], f"run: jupytext --sync {path.relative_to(FOLDER.parent)}"


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_runs(path):
  notebook = jupytext.read(path)
  client = NotebookClient(
    notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(FOLDER)}}
  )
  client.execute()
  pictures = [
    output
    for cell in notebook.cells
    for output in cell.get("outputs", [])
    if {"image/png", "image/gif"} & set(output.get("data", {}))
  ]
  assert len(pictures) >= 6
