"""Every notebook runs from top to bottom, and its stored outputs are those of the code as it is.

`STORE_NOTEBOOKS=1 python -m pytest -n 0 tests/test_notebooks.py` stores them anew.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import nbformat
import numpy as np
import pytest
from nbformat import NotebookNode

if TYPE_CHECKING:
    from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# Text that the outputs must contain: a notebook whose cells do nothing fails.
SHOWN = {
    "quickstart": ["of the subset", "<iframe"],
    "embed_images": ["160 images", "largest difference:", "(160, 128) float16 stored within"],
    "sensitivity": ["54 settings", "other seed  expected  finest", "in CLIPScore"],
    "own_kernels": ["in what was kept", "largest difference:", "temperature 0.200 ->"],
}
# Versions and devices, times and rates, rounding errors, addresses: these differ between runs and machines.
VARIES = re.compile(r"jax [\d.]+ on \[.*\]|[\d.,]+ (s|min|[kMG]?B|[a-z]+/s)\b|\d\.\de-\d+|0x[0-9a-f]+")
DECIMAL = re.compile(r"\d+\.\d+")
PADDING = re.compile(r" +(?=[\],])")  # of a number that ends in zeros


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NotebookClient]:
    """One kernel for all notebooks, with two devices: starting Python and jax takes as long as their cells do."""
    from nbclient import NotebookClient

    environment = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}
    environment |= {"PYTHONPATH": str(ROOT), "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    folder = str(tmp_path_factory.mktemp("kernel"))
    client = NotebookClient(nbformat.v4.new_notebook(), timeout=240, coalesce_streams=True, record_timing=False)
    with client.setup_kernel(env=environment, cwd=folder):
        yield client


def execute(client: NotebookClient, notebook: NotebookNode, folder: Path) -> None:
    """Runs all cells in a folder, without the names that another notebook has left."""
    client.nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(f"%reset -f\n%cd -q {folder}")])
    client.execute_cell(client.nb.cells[0], 0)
    client.nb = notebook
    client.reset_execution_trackers()
    for index, cell in enumerate(notebook.cells):
        client.execute_cell(cell, index, execution_count=client.code_cells_executed + 1)


def text_of(notebook: NotebookNode) -> str:
    """What all cells printed or returned as text, less what differs between runs."""
    outputs = [one for cell in notebook.cells if cell.cell_type == "code" for one in cell.outputs]
    shown = [one.get("text") or one.data["text/plain"] for one in outputs if "image/png" not in one.get("data", ())]
    return PADDING.sub("", VARIES.sub("~", "\n".join(shown)))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the kernel's own transport
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebook_shows_what_it_did_when_it_was_stored(kernel, tmp_path, path):
    stored = nbformat.read(path, as_version=4)
    assert stored.cells[0].source.endswith(nbformat.read(NOTEBOOKS[0], as_version=4).cells[0].source)
    notebook = nbformat.from_dict(stored)
    execute(kernel, notebook, tmp_path)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            errors = [one.text for one in cell.outputs if one.get("name") == "stderr"]
            assert not [text for text in errors if "Warning" in text]
            cell.outputs = [one for one in cell.outputs if one.get("name") != "stderr"]  # progress bars
    if os.environ.get("STORE_NOTEBOOKS"):
        nbformat.write(notebook, path)
        stored = notebook
    assert all(words in str(notebook) for words in SHOWN[path.stem])
    shown, before = text_of(notebook), text_of(stored)
    assert DECIMAL.sub("~", shown) == DECIMAL.sub("~", before)
    # Another CPU may round a score in another way, and so select another pair.
    np.testing.assert_allclose(
        [float(number) for number in DECIMAL.findall(shown)],
        [float(number) for number in DECIMAL.findall(before)],
        rtol=0.02,
        atol=0.4,
    )
    assert path.stat().st_size < 200 * 1024
