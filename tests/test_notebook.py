"""The notebook runs from its first cell to its last, in an empty folder, on fewer images."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parent.parent / "notebooks/chexnet.ipynb"
SMALLER = {"images=800": "images=120", "epochs=6": "epochs=1"}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_notebook_runs(tmp_path):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "it is kept without outputs"
    for usual, smaller in SMALLER.items():
        (cell,) = [cell for cell in notebook.cells if usual in cell.source]
        cell.source = cell.source.replace(usual, smaller)
    NotebookClient(
        notebook,
        timeout=800,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    ).execute()
    (shown,) = [o.data["text/plain"] for o in notebook.cells[-1].outputs if "data" in o]
    assert Path(shown.strip("'")) == tmp_path / "notebook-demo/run/report.html"
    assert (tmp_path / "notebook-demo/run/report.html").is_file()
