"""What chexspark says, as a command and as a call."""

import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest

from chexspark import errors, ingest
from chexspark.errors import UserError, spoken
from chexspark.output import LOGGER, Screen, is_shown, show_output
from chexspark.phantom import write_release
from chexspark.progress import ProgressLine
from chexspark.signatures import stub

PACKAGE = Path(__file__).parent.parent / "chexspark"
TEXT = (
    "--data=/a b is wrong: lower --batch-size, give --append, --rows-per-group=64 or --no-flip "
    "(--conf spark.x=1, --master-url=y)"
)


def test_a_command_speaks_of_flags():
    assert spoken(TEXT) == (
        "--data /a b is wrong: lower --batch-size, give --append, --rows-per-group 64 or --no-flip "
        "(--conf spark.x=1, --master-url y)"
    )


def test_a_call_speaks_of_keywords(monkeypatch):
    monkeypatch.setattr(errors, "at_command_line", False)
    assert spoken(TEXT) == (
        "data=/a b is wrong: lower batch_size, give append=True, rows_per_group=64 or flip=False "
        "(--conf spark.x=1, --master-url=y)"
    )
    with pytest.raises(UserError) as caught:
        ingest(images="/nowhere", labels="/nowhere.csv", out="/tmp/x", max_bad=2)
    assert str(caught.value) == "max_bad is 2, but must be at most 1"
    assert caught.value.text == "--max-bad is 2, but must be at most 1"


def test_a_setting_with_a_value_is_written_with_a_sign_that_says_so():
    """``--data {store}`` in a source would be told to a notebook as ``data {store}``."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            if "command" not in line:
                assert not re.search(r"(?<![\w-])--[a-z]+(-[a-z]+)* \{", line), f"{path}:{number}"


def test_only_the_command_line_prints():
    allowed = {
        "command_line.py",
        "__main__.py",
        "output.py",
        "cost.py",
        "smoke_test.py",
        "signatures.py",
    }
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.name not in allowed:
            assert not re.search(r"^\s*print\(", path.read_text(), re.M), path


@pytest.fixture
def logger():
    """The logger as it is before anything is said."""
    before = LOGGER.handlers[:], LOGGER.level, LOGGER.propagate
    LOGGER.handlers, LOGGER.propagate = [], True
    LOGGER.setLevel(logging.NOTSET)
    yield LOGGER
    LOGGER.handlers, LOGGER.propagate = before[0], before[2]
    LOGGER.setLevel(before[1])


def test_a_notebook_sees_lines_and_can_silence_them(tmp_path):
    code = (
        "import logging, sys; from chexspark.phantom import write_release\n"
        "write_release(out=sys.argv[1] + '/a', images=2)\n"
        "logging.basicConfig(level='INFO')\n"
        "logging.getLogger('chexspark').setLevel('ERROR')\n"
        "write_release(out=sys.argv[1] + '/b', images=2)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert re.fullmatch(r"2 phantoms of \d patients: .*/a\n", done.stdout), done.stdout


def test_a_library_that_sets_up_logging_says_nothing_twice(tmp_path):
    code = (
        "import logging, sys; from chexspark.phantom import write_release\n"
        "write_release(out=sys.argv[1] + '/a', images=2)\n"
        "logging.basicConfig(level='INFO', stream=sys.stdout)  # as Horovod's launcher does\n"
        "write_release(out=sys.argv[1] + '/b', images=2)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert len(done.stdout.splitlines()) == 2, done.stdout


def test_who_has_set_up_logging_keeps_it(logger, caplog, capsys):
    caplog.set_level(logging.WARNING)  # the root's; Horovod's launcher may have lowered it
    show_output()  # pytest has set up logging
    assert not any(isinstance(handler, Screen) for handler in LOGGER.handlers)
    assert not is_shown(), "the root logger's level is WARNING"


def test_a_silenced_progress_line_says_nothing(logger, capsys):
    LOGGER.setLevel(logging.ERROR)
    with ProgressLine() as line:
        line.say("a")
        line.show("b")
    assert capsys.readouterr().err == ""


def test_release_without_a_session(tmp_path):
    """A function that uses no session takes none, and says so to who gives one."""
    with pytest.raises(
        UserError, match="write_release takes settings and no Spark session by name"
    ):
        write_release(object(), out=str(tmp_path / "x"), images=1)


def test_editors_get_the_signatures_of_today():
    assert (PACKAGE / "__init__.pyi").read_text() == stub(), (
        "run: python -m chexspark.signatures > chexspark/__init__.pyi"
    )
