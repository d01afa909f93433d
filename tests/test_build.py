"""Horovod's sources are changed as build.sh needs them, and build.sh refuses what it does not know."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SEEN_BY_GIT = shutil.ignore_patterns(".*", "*.egg-info", "demo", "__pycache__", "dist")


@pytest.fixture(scope="module")
def patch_horovod():
    spec = importlib.util.spec_from_file_location(
        "patch_horovod", ROOT / "conf/build/patch_horovod.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_each_change_is_made_once_or_refused(patch_horovod, tmp_path):
    for change in patch_horovod.CHANGES:
        place = tmp_path / change.file
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text((place.read_text() if place.exists() else "kept\n") + change.old)
    patch_horovod.patch(tmp_path)
    for change in patch_horovod.CHANGES:
        text = (tmp_path / change.file).read_text()
        assert text.startswith("kept\n") and change.new in text and change.reason
        assert change.new.startswith(change.old) or change.old not in text
    with pytest.raises(
        ValueError, match=r"CMakeLists.txt: .*xla_mpi_ops.* is there 0 times, not once"
    ):
        patch_horovod.patch(tmp_path)


def test_the_horovod_that_is_installed_is_the_one_that_is_changed():
    """A newer Horovod may need none of the changes: look at each, then set the version here too."""
    installed = distribution("horovod")
    assert installed.version == "0.28.1"
    assert f"horovod_version={installed.version}\n" in (ROOT / "build.sh").read_text()
    (library,) = Path(installed.locate_file("horovod/tensorflow")).glob("mpi_lib*.so")
    content = library.read_bytes()
    assert b"\0$ORIGIN/../../nvidia/nccl/lib\0" in content, (
        "NCCL is found beside it, wherever it is"
    )
    assert b"HorovodAllreduce" in content and b"CustomCallInstruction" not in content
    assert not re.search(rb"/[^\0]*/site-packages/nvidia", content)


@pytest.mark.parametrize(
    "arguments, message",
    [(["--spark", "5"], "--spark is 3.5 or 4, not '5'"), (["--spark"], "--spark is 3.5 or 4, not ''"),
     (["--gpus"], "setup knows --spark, --gpu and --offline, not '--gpus'")],
)  # fmt: skip
def test_set_up_refuses_what_it_does_not_know(tmp_path, arguments, message):
    done = subprocess.run(
        [ROOT / "build.sh", "setup", *arguments], capture_output=True, text=True,
        env=os.environ | {"CHEXSPARK_VENV": str(tmp_path / "venv")},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (2, f"build.sh: {message}\n")
    assert not (tmp_path / "venv").exists()


@pytest.fixture
def checkout(tmp_path):
    """A copy of what set-up reads, without a wheelhouse: a function that gives build.sh words."""
    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    for name in ("build.sh", "pyproject.toml", "setup.py"):
        shutil.copy(ROOT / name, tmp_path)

    def call(*words):
        done = subprocess.run([tmp_path / "build.sh", *words], capture_output=True, text=True,
                              env=os.environ | {"CHEXSPARK_VENV": ""})  # fmt: skip
        return done.returncode, done.stderr

    call.folder = tmp_path
    return call


def test_set_up_without_a_registry_refuses_a_wheelhouse_that_is_not_the_right_one(checkout):
    remedy = "run ./build.sh wheelhouse where PyPI is reached, and copy dist/wheelhouse"
    house = checkout.folder / "dist/wheelhouse"

    def refused(what):
        return 2, f"build.sh: {what}: {remedy}\n"

    assert checkout("setup", "--offline") == refused("there is no dist/wheelhouse")
    house.mkdir(parents=True)
    assert checkout("setup", "--offline") == refused("dist/wheelhouse has nothing for spark-4")
    (house / "spark-4-gpu-000000000000.sha256").touch()
    assert checkout("setup", "--offline") == refused("dist/wheelhouse has nothing for spark-4")
    (house / "spark-4-000000000000.sha256").touch()
    assert checkout("setup", "--offline") == refused(
        "dist/wheelhouse is of another version of chexspark than this checkout"
    )
    right = subprocess.run(["bash", "-c", ". ./build.sh help >/dev/null; wheel_list"], text=True,
                           cwd=checkout.folder, capture_output=True, check=True)  # fmt: skip
    digest = "0" * 64
    (house / right.stdout.strip()).write_text(f"{digest}  ./absl_py-2.5.1-py3-none-any.whl\n")
    assert checkout("setup", "--offline") == refused("dist/wheelhouse is not whole")
    (house / "absl_py-2.5.1-py3-none-any.whl").write_text("half of it")
    assert checkout("setup", "--offline") == refused("dist/wheelhouse is not whole")
    remedy = remedy.replace("wheelhouse where", "wheelhouse --spark 3.5 --gpu where")
    words = ("setup", "--offline", "--spark", "3.5", "--gpu")
    assert checkout(*words) == refused("dist/wheelhouse has nothing for spark-3.5-gpu")
    assert not (checkout.folder / ".venv").exists()


COMPILERS = re.compile(r".*(gcc|g\+\+|clang).*|cc|c\+\+|cpp|make|cmake|(python|pip).*")


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_set_up_without_network_and_compiler(tmp_path):
    """Wheels are gathered here; another checkout gets them, a host with Java and a Python 3.11 alone."""
    if subprocess.run(["unshare", "--net", "true"], capture_output=True).returncode:
        pytest.skip("a network namespace cannot be made here: it is root who may")
    for name in ("here", "there"):
        shutil.copytree(ROOT, tmp_path / name, ignore=SEEN_BY_GIT)
    done = subprocess.run([tmp_path / "here/build.sh", "wheelhouse"], capture_output=True, text=True,
                          env=os.environ | {"CHEXSPARK_VENV": sys.prefix})  # fmt: skip
    assert done.returncode == 0, done.stderr
    (tmp_path / "there/dist").mkdir()
    (tmp_path / "here/dist/wheelhouse").rename(tmp_path / "there/dist/wheelhouse")
    for name in ("bin", "home"):
        (tmp_path / name).mkdir()
    for path in (path for folder in ("/usr/bin", "/usr/sbin") for path in Path(folder).iterdir()):
        if not COMPILERS.fullmatch(path.name) and not (tmp_path / "bin" / path.name).exists():
            (tmp_path / "bin" / path.name).symlink_to(path)
    (tmp_path / "bin/python3.11").symlink_to(f"{sys.base_prefix}/bin/python3.11")
    stack = "3.5" if distribution("pyspark").version.startswith("3.5") else "4"
    for command in (f"setup --offline --spark {stack}", "test tests/test_config.py"):
        done = subprocess.run(
            ["unshare", "--net", "sh", "-c", f"ip link set lo up && ./build.sh {command}"],
            cwd=tmp_path / "there", capture_output=True, text=True,
            env={"PATH": str(tmp_path / "bin"), "HOME": str(tmp_path / "home"),
                 **{k: v for k, v in os.environ.items() if k == "JAVA_HOME"}},
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout and "installing" not in done.stderr
