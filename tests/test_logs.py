"""What ranks say: all of it in their logs, warnings also at the driver, once."""

import errno
import logging
import os
import subprocess
import sys

from chexspark.cluster.view import EpochTable
from chexspark.progress import ProgressLine
from chexspark.storage import Location, locate
from chexspark.training.events import Problem
from chexspark.training.rank import rank_log


def test_warnings_reach_the_driver_but_not_what_tensorflow_says(tmp_path):
    script = """
import logging, os, sys
from chexspark.storage import locate
from chexspark.training.rank import Warnings, rank_log
class Events:
    rank = 1
    def send(self, event):
        told.append((type(event).__name__, event.rank, event.text))
told = []
with rank_log(locate(sys.argv[1])):
    logging.getLogger().addHandler(Warnings(Events()))
    for name in ("chexspark.data.reader", "tensorflow", "absl"):
        logging.getLogger(name).warning("%s is slow", name)
    logging.getLogger("chexspark").info("going well")
    print("printed")
    os.write(2, b"said by a library in C" + bytes([10]))
print(told)
"""
    place = tmp_path / "rank-1.log"
    done = subprocess.run([sys.executable, "-c", script, place], capture_output=True, text=True)
    assert done.stdout == "[('Problem', 1, 'chexspark.data.reader is slow')]\n"
    text = place.read_text()
    for line in ("WARNING tensorflow: tensorflow is slow", "going well", "printed", "library in C"):
        assert line in text


def test_a_log_goes_where_files_cannot_grow_every_few_seconds(tmp_path, monkeypatch, wait_for):
    monkeypatch.setattr("chexspark.training.rank.LOG_SECONDS", 0.1)

    class Remote:
        def __init__(self, plain):
            self.plain = plain

        def __getattr__(self, name):
            return getattr(self.plain, name)

    local = locate(str(tmp_path / "rank-0.log"))
    local.write_text("before\n")
    place = Location(Remote(local.filesystem), local.path, "s3://bucket/rank-0.log")
    before = logging.getLogger().handlers[:]
    with rank_log(place):
        os.write(1, b"printed\n")
        wait_for(lambda: local.is_file() and local.read_text() == "before\nprinted\n")
        os.write(1, b"more\n")
    logging.getLogger().handlers[:] = before
    assert local.read_text() == "before\nprinted\nmore\n"


def test_a_problem_is_shown_once_with_rank_and_host(capsys):
    with ProgressLine() as line:
        table = EpochTable(line, 3)
        for rank, text in ((1, "a page is damaged"), (0, "a page is damaged"), (0, "another")):
            table.take(Problem(rank, "b", text))
    assert capsys.readouterr().err == "rank 1 on b: a page is damaged\nrank 0 on b: another\n"


def test_a_log_on_a_mount_where_files_cannot_grow(tmp_path, monkeypatch, wait_for):
    """As on those of object stores: no file is opened at its end."""
    monkeypatch.setattr("chexspark.training.rank.LOG_SECONDS", 0.1)
    plain = open

    def refuse(path, mode="r", *rest, **more):
        if mode == "a":
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")
        return plain(path, mode, *rest, **more)

    monkeypatch.setattr("builtins.open", refuse)
    place = locate(str(tmp_path / "rank-0.log"))
    place.write_text("before\n")
    before = logging.getLogger().handlers[:]
    with rank_log(place):
        os.write(1, b"printed\n")
        wait_for(lambda: place.read_text() == "before\nprinted\n")
    logging.getLogger().handlers[:] = before
