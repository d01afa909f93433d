"""The wheel gives all that the checkout gives: built, installed beside the stack, run from nowhere."""

import ast
import itertools
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from importlib.metadata import distribution, packages_distributions, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import chexspark
from chexspark.commands import COMMANDS

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SEEN_BY_GIT = shutil.ignore_patterns(".*", "build", "*.egg-info", "demo", "__pycache__", "dist")


def normal(name: str) -> str:
    """The name of a distribution as the index spells it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def declared() -> set[str]:
    lists = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    return {normal(re.match(r"[\w.-]+", text)[0]) for texts in lists for text in texts}


def imported() -> set[str]:
    """Top-level modules that the package imports anywhere, its own and the standard library's not."""
    found = set()
    for path in (ROOT / "chexspark").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add(node.module.partition(".")[0])
    return found - set(sys.stdlib_module_names) - {"chexspark"}


def test_every_import_is_declared():
    owners = packages_distributions()
    modules = imported()
    assert {"tensorflow", "h5py", "py4j", "horovod", "yaml"} <= modules
    lacking = {m for m in modules if not {normal(d) for d in owners[m]} & declared()}
    assert not lacking


def lock_of(path: Path) -> dict[str, str]:
    """Version of each distribution in a lock."""
    pairs = [line.split("==") for line in path.read_text().splitlines() if "==" in line]
    return {normal(name): version for name, version in pairs}


LOCKS = [lock_of(ROOT / "conf" / f"spark-{spark}.lock") for spark in ("3.5", "4")]


@pytest.mark.parametrize("lock", LOCKS)
def test_what_is_declared_is_locked_within_its_range(lock):
    texts = [*PROJECT["dependencies"], *itertools.chain(*PROJECT["optional-dependencies"].values())]
    ranges = {normal(r.name): r.specifier for r in map(Requirement, texts)}
    assert not ranges.keys() - lock.keys() - {"chexspark", "horovod"}  # build.sh builds horovod
    outside = {n for n in ranges.keys() & lock.keys() if lock[n] not in ranges[n]}
    assert not outside


def test_what_is_installed_is_one_of_the_locks_and_holds_together():
    """As the locks are installed without dependencies: whole, and no package asks for another version."""
    (lock,) = [lock for lock in LOCKS if lock["pyspark"] == version("pyspark")]
    installed = {name: distribution(name) for name in lock}
    assert {name: found.version for name, found in installed.items()} == lock
    asked = [
        (name, normal(r.name), r.specifier)
        for name in lock
        for r in map(Requirement, installed[name].requires or ())
        if r.marker is None or r.marker.evaluate({"extra": ""})
    ]
    refused = {(name, needed) for name, needed, specifier in asked
               if needed not in lock or lock[needed] not in specifier}  # fmt: skip
    # Petastorm's setup.py is what needs it so old; what it runs does not.
    assert refused == {("petastorm", "setuptools")}


def test_the_extras_that_errors_name_exist():
    from chexspark.extras import PACKAGES

    owners = packages_distributions()
    for extra, modules in PACKAGES.items():
        texts = " ".join(PROJECT["optional-dependencies"][extra])
        for module in modules:
            assert any(normal(name) in texts for name in owners[module]), module


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy of the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, folder / "source", ignore=SEEN_BY_GIT)
    run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index",
         "--wheel-dir", folder, folder / "source"])  # fmt: skip
    (found,) = folder.glob("chexspark-*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """An environment of the wheel alone that sees the stack: a function that runs a command in it."""
    venv = tmp_path_factory.mktemp("installed") / "venv"
    run([sys.executable, "-m", "venv", "--without-pip", venv])
    run([sys.executable, "-m", "pip", "--python", venv / "bin/python", "install", "-q", "--no-deps",
         "--no-index", wheel])  # fmt: skip
    (packages,) = venv.glob("lib/python*/site-packages")
    # A .pth file adds the stack's folder, but not what .pth files there add: no editable install.
    (packages / "stack.pth").write_text(sysconfig.get_path("purelib") + "\n")
    nowhere = tmp_path_factory.mktemp("nowhere")
    path = (
        f"{venv / 'bin'}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    )
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYSPARK_PYTHON")}

    def call(*command):
        return run(command, cwd=nowhere, env=kept | {"PATH": path})

    call.folder, call.packages = nowhere, packages
    return call


def run(command, **options) -> str:
    """What a command prints. Fails with its last words."""
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.mark.slow
def test_the_wheel_has_what_is_not_python(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    recipes = {f"chexspark/recipes/{p.name}" for p in (ROOT / "chexspark/recipes").glob("*.yaml")}
    templates = {str(p.relative_to(ROOT)) for p in ROOT.glob("chexspark/*/*.jinja")}
    modules = {str(p.relative_to(ROOT)) for p in (ROOT / "chexspark").rglob("*.py")}
    forms = {
        f"chexspark/ingestion/label_forms/{p.name}"
        for p in (ROOT / "chexspark/ingestion/label_forms").glob("*.yaml")
    }
    assert len(recipes) >= 9 and len(templates) >= 7 and len(forms) >= 9
    assert "chexspark/experiment/levers.yaml" in names
    assert recipes | templates | forms | modules | {"chexspark/py.typed"} <= names
    assert not [name for name in names if name.startswith(("tests", "jobs", "build"))]


@pytest.mark.slow
def test_its_metadata(installed):
    (found,) = distribution("chexspark").discover(name="chexspark", path=[str(installed.packages)])
    facts = found.metadata
    assert facts["Version"] == chexspark.__version__ and facts["License-Expression"] == "Apache-2.0"
    assert facts["Author"] == "chexspark developers"
    assert facts.get_payload().startswith("# chexspark")
    assert facts["Description-Content-Type"] == "text/markdown"
    assert {"train", "report", "export", "dicom", "mlflow", "search", "test"} <= set(
        facts.get_all("Provides-Extra")
    )
    always = {r for r in found.requires if "extra ==" not in r}
    assert not [r for r in always if re.match("horovod|onnx|matplotlib|jinja2|pydicom", r)]
    assert any(r.startswith("horovod==0.28.1") and '"train"' in r for r in found.requires)


@pytest.mark.slow
def test_commands_and_help_need_no_spark(installed):
    listed = installed("chexspark", "--help")
    assert all(f"\n  {name} " in listed for name in COMMANDS)
    assert (
        installed("python", "-m", "chexspark", "--version")
        == f"chexspark {chexspark.__version__}\n"
    )
    code = (
        "import sys, chexspark.__main__ as m; m.main(['--help']); print('pyspark' in sys.modules)"
    )
    assert installed("python", "-c", code).endswith("False\n")
    where = installed("python", "-c", "import chexspark; print(chexspark.__file__)")
    assert where.startswith(str(installed.packages))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_from_images_to_a_report_in_an_empty_folder(installed):
    installed("chexspark", "phantom", "--out", "nih", "--images", "120", "--size", "32")
    installed("chexspark", "ingest", "--images", "nih/images", "--labels", "nih/Data_Entry_2017.csv",
              "--out", "store", "--size", "32")  # fmt: skip
    script = installed("chexspark", "script").strip()
    installed("spark-submit", "--master", "local[1]", script, "train", "--data", "store", "--run", "run",
              "--recipe", "chexnet", "--weights", "none", "--epochs", "1")  # fmt: skip
    installed("chexspark", "evaluate", "--data", "store", "--run", "run", "--bootstrap", "100")
    installed("chexspark", "report", "--run", "run")
    assert (installed.folder / "run/report.html").stat().st_size > 10_000
    assert "learning_rate: 0.001" in (installed.folder / "run/config.yaml").read_text()
