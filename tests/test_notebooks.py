"""Every notebook runs from top to bottom in a kernel of its own."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]


# Text that the outputs must contain: a notebook whose cells do nothing fails.
SHOWN = {
    "quickstart": ["of the subset", "<iframe"],
    "embed_images": ["400 images", "largest difference:", "(400, 128) float16 stored within"],
    "sensitivity": ["72 settings", "other seed  expected  finest", "in CLIPScore"],
    "own_kernels": ["in what was kept", "largest difference:", "temperature 0.200 ->"],
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the kernel's own transport
@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_the_notebook_runs(tmp_path, monkeypatch, path):
    from nbclient import NotebookClient

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setenv("MPLBACKEND", "agg")
    notebook = nbformat.read(path, as_version=4)
    assert "%pip install" in notebook.cells[0].source
    NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output.text for output in outputs if output.get("name") == "stderr" and "Warning" in output.text]
    assert all(words in str(outputs) for words in SHOWN.get(path.stem, []))
