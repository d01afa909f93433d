"""The rooms keep to themselves: who imports whom, and what driver and ranks load."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from chexspark.commands import COMMANDS

PACKAGE = Path(__file__).parent.parent / "chexspark"
ROOMS = ["store", "run", "ingestion", "data", "models", "training", "cluster", "evaluation"]
DRIVER = ["chexspark.ingestion.job", "chexspark.cluster.job", "chexspark.cluster.doctor",
          "chexspark.evaluation.job", "chexspark.evaluation.report", "chexspark.evaluation.predict",
          "chexspark.evaluation.explain", "chexspark.evaluation.export", "chexspark.phantom",
          "chexspark.models.cost",
          "chexspark.models.weights", "chexspark.training.schedule"]  # fmt: skip
RANK = ["chexspark.training.rank", "chexspark.training.loop", "chexspark.training.devices",
        "chexspark.models.densenet121", "chexspark.models.amoebanet_d", "chexspark.models.resnet59",
        "chexspark.training.optimizers", "chexspark.data.reader"]  # fmt: skip


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
    return found


@pytest.mark.parametrize("position, room", enumerate(ROOMS))
def test_a_room_imports_only_from_rooms_above_it(position, room):
    files = sorted((PACKAGE / room).glob("*.py"))
    assert files
    for path in files:
        rooms = {m.split(".")[1] for m in imports_of(path) if m.startswith("chexspark.")}
        assert not rooms & set(ROOMS[position + 1 :]), path


def test_the_base_modules_import_no_room():
    for path in sorted(PACKAGE.glob("*.py")):
        rooms = {m.split(".")[1] for m in imports_of(path) if m.startswith("chexspark.")}
        assert not rooms & set(ROOMS), path


@pytest.mark.parametrize(
    "modules, forbidden", [(DRIVER, "tensorflow"), (DRIVER, "tf_keras"), (RANK, "pyspark")]
)
def test_what_driver_and_ranks_never_load(modules, forbidden):
    code = (
        f"import sys, {', '.join(modules)}; print([m for m in sys.modules if m == {forbidden!r}])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stdout + result.stderr[-2000:]


def test_every_command_is_a_job_that_says_how_to_run_it():
    jobs = sorted((PACKAGE.parent / "jobs").glob("*.py"))
    assert {job.stem for job in jobs} == COMMANDS.keys() - {"phantom"}
    for job in jobs:
        text = job.read_text()
        assert f'run_command("{job.stem}", sys.argv[1:])' in text and len(text.splitlines()) < 12
        assert f"spark-submit jobs/{job.name}" in ast.get_docstring(ast.parse(text))


# Where sleeping is the point: `wait_for` itself, work that holds a slot, a rank that waits for a file.
SLEEPERS = {("conftest.py", "wait"), ("test_doctor.py", "hold"), ("test_turn.py", "stay_until")}


def calls_in(path: Path) -> set[tuple[str, str]]:
    """Name of the innermost function, and of what it calls, for all calls in a file."""
    found = set()

    def visit(node, function):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            function = node.name
        if isinstance(node, ast.Call):
            found.add((function, getattr(node.func, "attr", getattr(node.func, "id", ""))))
        for child in ast.iter_child_nodes(node):
            visit(child, function)

    visit(ast.parse(path.read_text()), "")
    return found


def test_no_test_passes_by_luck_or_by_leaving_out():
    """None sleeps and hopes, none reads a text as code, none is skipped for a missing package."""
    for path in sorted(Path(__file__).parent.glob("*.py")):
        for function, called in calls_in(path):
            assert called not in ("eval", "importorskip"), f"{path.name}: {function}"
            if called == "sleep":
                assert (path.name, function) in SLEEPERS, f"{path.name}: {function}: use wait_for"
