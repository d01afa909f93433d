"""Where a package that only some jobs need is missing, one line says what to install."""

import importlib.util

import pytest

import chexspark
from chexspark.errors import UserError
from chexspark.extras import check_extra
from chexspark.ingestion.images import BadImageError, prepare
from chexspark.ingestion.sources import find_sources
from chexspark.preparation import Preparation


@pytest.fixture
def without(monkeypatch):
    """A function that makes packages look as if they were not installed."""
    find = importlib.util.find_spec

    def hide(*names):
        monkeypatch.setattr(
            importlib.util,
            "find_spec",
            lambda name, package=None: None if name in names else find(name, package),
        )

    return hide


@pytest.mark.parametrize(
    "command, package, message",
    [
        (
            "report",
            "matplotlib",
            "report needs matplotlib, .*: run pip install 'chexspark.report.'",
        ),
        ("train", "horovod", r"train needs horovod, .*: build it with \./build.sh setup"),
    ],
)
def test_a_command_names_the_extra_that_it_lacks(without, command, package, message):
    without(package)
    with pytest.raises(UserError, match=message) as raised:
        getattr(chexspark, command)
    assert "\n" not in str(raised.value)


def test_export_needs_onnx_only_for_onnx(without):
    without("onnx", "tf2onnx")
    with pytest.raises(
        UserError, match=r"--formats onnx needs onnx and tf2onnx.*chexspark\[export"
    ):
        chexspark.export(None, run="/no-run")
    with pytest.raises(UserError, match=r"/no-run has no"):
        chexspark.export(None, run="/no-run", formats="savedmodel")


def test_dicom_is_refused_on_the_driver_and_in_archives(without, tmp_path):
    without("pydicom")
    (tmp_path / "a.png").touch()
    assert len(find_sources((str(tmp_path),))[0]) == 1
    (tmp_path / "b.dcm").touch()
    with pytest.raises(UserError, match=r"a DICOM file of --images needs pydicom.*\[dicom\]"):
        find_sources((str(tmp_path),))
    with pytest.raises(BadImageError, match=r"a DICOM file needs pydicom"):
        prepare(bytes(128) + b"DICM" + bytes(64), Preparation(32), "b.dcm")


def test_all_are_installed_where_the_tests_run():
    for extra in ("train", "report", "export", "dicom", "mlflow", "search"):
        check_extra(extra, "this test")
