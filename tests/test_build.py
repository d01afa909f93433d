"""Horovod's sources are changed as build.sh needs them, and build.sh refuses what it does not know."""

import importlib.util
import os
import re
import subprocess
from importlib.metadata import distribution
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


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
