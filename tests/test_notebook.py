"""The notebooks run from their first cell to their last, in an empty folder, on fewer images."""

import json
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
SMALLER = {
    "chexnet": {"images=800": "images=120", "epochs=6": "epochs=1"},
    "estimator": {
        "images=400": "images=120", "imageSize=64": "imageSize=32", '"resnet50"': '"vgg16"', "epochs=2": "epochs=1", "numProc=2": "numProc=1",
        "[1e-3, 1e-4]).build": "[1e-3]).build", "zip([1e-3, 1e-4]": "zip([1e-3]",
    },
    "own-network": {"images=600": "images=120", "epochs=8": "epochs=2"},
}  # fmt: skip


def test_each_notebook_is_tested():
    assert {path.stem for path in NOTEBOOKS.glob("*.ipynb")} == SMALLER.keys()


@pytest.mark.notebook
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n != "chexnet")) for n in SMALLER]
)
def test_a_notebook_runs(name, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "it is kept without outputs"
    for usual, smaller in SMALLER[name].items():
        (cell,) = [cell for cell in notebook.cells if usual in cell.source]
        cell.source = cell.source.replace(usual, smaller)
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=800, kernel_name="python3", resources=resources).execute()
    shown = {
        cell.source: [o.data for o in cell.outputs if "data" in o]
        for cell in notebook.cells if cell.cell_type == "code"
    }  # fmt: skip
    CHECKS[name](shown, tmp_path)
    # The progress line is one text that was replaced, and empty at the end: it does not pile up.
    lines = [o for cell in shown.values() for o in cell if set(o) == {"text/plain"} and not o["text/plain"]]  # fmt: skip
    said = "".join(
        o.text for cell in notebook.cells for o in cell.get("outputs", []) if o.output_type == "stream"
    )  # fmt: skip
    assert lines and "\r" not in said and not re.search(r"^epoch \d+/\d+, step", said, re.M)


def html_of(shown, begin):
    """What a notebook shows for the cell whose source has a text, as HTML."""
    (outputs,) = [found for source, found in shown.items() if begin in source]
    return [o["text/html"] for o in outputs if "text/html" in o][-1]


def check_tour(shown, folder):
    history = html_of(shown, "train(")
    assert history.count("<svg") == 1 and "val_auroc" in history and "--accent: #" in history
    assert "Atelectasis" in html_of(shown, "evaluate(")
    page = html_of(shown, "report(run=")
    assert page.startswith("<iframe sandbox") and "&lt;!doctype html&gt;" in page
    assert (folder / "notebook-demo/run/report.html").is_file()
    assert "<table" in html_of(shown, "read_store(spark,")
    assert "images were refused" in html_of(shown, "predict(\n")


def check_estimator(shown, folder):
    assert "<svg" in html_of(shown, "model.history")
    assert "Cardiomegaly" in html_of(shown, "model.evaluate(held_back)")
    assert "prob_Effusion" in html_of(shown, "PipelineModel.load")
    assert len(list((folder / "estimator-demo/fits/runs").iterdir())) == 3  # two folds, and all


def check_own_network(shown, folder):
    assert "Pneumothorax" in html_of(shown, 'run="own-demo/run", model="own_network:build")')
    lineage = json.loads((folder / "own-demo/run/lineage.json").read_text())
    assert lineage["network"] == "own_network:build" and len(lineage["findings"]) == 5
    assert any("image/png" in o for cell in shown.values() for o in cell)


CHECKS = {"chexnet": check_tour, "estimator": check_estimator, "own-network": check_own_network}
