"""The rooms keep to themselves: who imports whom, and what driver and ranks load."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from chexspark.commands import COMMANDS
from chexspark.run.folder import TABLES, RunFolder
from chexspark.storage import Location

PACKAGE = Path(__file__).parent.parent / "chexspark"
ROOMS = [
    "store",
    "run",
    "ingestion",
    "data",
    "models",
    "training",
    "cluster",
    "evaluation",
    "ml",
    "tuning",
]
DRIVER = ["chexspark.ingestion.job", "chexspark.cluster.job", "chexspark.cluster.doctor",
          "chexspark.evaluation.job", "chexspark.evaluation.report", "chexspark.evaluation.predict",
          "chexspark.evaluation.explain", "chexspark.evaluation.export", "chexspark.phantom",
          "chexspark.ingestion.frames", "chexspark.ml.classifier", "chexspark.ml.evaluator", "chexspark.ml.scoring", "chexspark.tuning.job", "chexspark.tuning.trial",
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


def test_one_module_imports_horovod_s_operations():
    users = [
        path.relative_to(PACKAGE).as_posix()
        for path in sorted(PACKAGE.rglob("*.py"))
        if any(name.startswith("horovod.tensorflow") for name in imports_of(path))
    ]
    assert users == ["training/horovod_ring.py"]


def test_every_command_is_a_job_that_says_how_to_run_it():
    jobs = sorted((PACKAGE.parent / "jobs").glob("*.py"))
    assert {job.stem for job in jobs} == COMMANDS.keys() - {"phantom"}
    for job in jobs:
        text = job.read_text()
        assert f'run_command("{job.stem}", sys.argv[1:])' in text and len(text.splitlines()) < 12
        assert f"spark-submit jobs/{job.name}" in ast.get_docstring(ast.parse(text))


# Where sleeping is the point: `wait_for` itself, work that holds a slot, a rank that waits for a file, a slow server.
SLEEPERS = {
    ("hadoop.py", "wait_for"),
    ("test_hadoop.py", "pause"),
    ("conftest.py", "wait"),
    ("test_doctor.py", "hold"),
    ("test_turn.py", "stay_until"),
    ("s3_server.py", "__call__"),
    ("test_lock.py", "enter_often"),
}


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


def run_names() -> set[str]:
    """Every name in a run, as `run/folder.py` has it."""
    run = RunFolder(Location(None, "", ""))
    places = [getattr(run, n) for n, v in vars(RunFolder).items() if isinstance(v, property)]
    return {part for place in places for part in place.path.split("/")} | set(TABLES)


def path_texts(tree: ast.AST):
    """The texts that stand in path expressions: ``a / "b"``, ``join("a", "b")``, ``Path("a")``."""
    for node in ast.walk(tree):
        operands = []
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            operands = [node.left, node.right]
        elif isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if name in ("join", "joinpath", "Path", "locate", "run_folder", "open", "glob"):
                operands = node.args
        for operand in operands:
            for part in ast.walk(operand):
                if isinstance(part, ast.Constant) and isinstance(part.value, str):
                    yield part.lineno, part.value


def test_no_name_of_a_run_stands_in_a_path_outside_its_room():
    names = run_names()
    assert {"lineage.json", "config.yaml", "model.keras", "history", "checkpoints"} <= names
    found = [
        f"{path.relative_to(PACKAGE)}:{line}: {text}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.parent.name != "run"
        for line, text in path_texts(ast.parse(path.read_text()))
        if names & set(text.split("/"))
    ]
    assert not found


def test_the_search_for_names_in_paths_finds_them():
    code = (
        'a = run / "best" / f"model.keras"; b = os.path.join(x, "logs/rank-1.log"); c = "history"'
    )
    texts = [text for _, text in path_texts(ast.parse(code))]
    assert {"best", "model.keras", "logs/rank-1.log"} <= set(texts) and "history" not in texts
