"""Checkpoints are whole or not there, and the last whole one is found."""

import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from pyarrow import fs

from chexspark.run.checkpoint import Writer, latest, save, write_synced
from chexspark.storage import Location, locate

ARRAYS = [np.arange(6, dtype=np.float32).reshape(2, 3), np.array(7, np.int64), np.zeros(0)]


@pytest.fixture
def folder(tmp_path):
    return locate(str(tmp_path / "checkpoints"))


def names(folder):
    return folder.list_folders()


def test_what_is_written_is_read(folder):
    save(folder, 5, ARRAYS, {"epoch": 1, "losses": 0.1 + 0.2})
    found = latest(folder)
    assert found.state["epoch"] == 1 and found.state["losses"] == 0.1 + 0.2
    for ours, given in zip(found.arrays(), ARRAYS, strict=True):
        np.testing.assert_array_equal(ours, given)
        assert ours.dtype == given.dtype


def test_the_last_two_are_kept_and_steps_are_numbers(folder):
    for step in (8, 9, 10, 100):
        save(folder, step, ARRAYS, {"step": step})
    assert names(folder) == ["step-10", "step-100"]
    assert latest(folder).state["step"] == 100


def test_no_folder_and_none_whole(folder, tmp_path):
    assert latest(folder) is None
    (tmp_path / "checkpoints" / "step-3").mkdir(parents=True)
    assert latest(folder) is None


@pytest.mark.parametrize(
    "damage",
    [lambda p: os.truncate(p / "arrays.npz", 50), lambda p: (p / "arrays.npz").unlink(),
     lambda p: os.truncate(p / "state.json", 10), lambda p: (p / "state.json").unlink(),
     lambda p: flip(p / "arrays.npz")],
    ids=["short", "no arrays", "state short", "no state", "a flipped byte"],
)  # fmt: skip
def test_a_torn_one_is_passed_over(folder, tmp_path, damage):
    for step in (1, 2):
        save(folder, step, ARRAYS, {"step": step})
    damage(tmp_path / "checkpoints" / "step-2")
    assert latest(folder).state["step"] == 1


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_nothing_is_unpickled(folder, tmp_path):
    save(folder, 1, ARRAYS, {})
    np.savez(tmp_path / "x.npz", **{"00000": np.array([{"a": 1}], dtype=object)})
    place = tmp_path / "checkpoints" / "step-1"
    (tmp_path / "x.npz").rename(place / "arrays.npz")
    with pytest.raises(ValueError, match="allow_pickle"):
        latest(folder, thorough=False).arrays()


def test_a_full_disk_is_told_and_leaves_the_one_before(folder, tmp_path, monkeypatch):
    told = []
    writer = Writer(folder, told.append)
    writer.write(1, ARRAYS, {"step": 1})
    writer.wait()

    def full(place, content):
        open(place.path, "wb").close()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("chexspark.run.checkpoint.write_synced", full)
    writer.then = lambda: told.append("written")
    writer.write(2, ARRAYS, {"step": 2})
    writer.wait()
    assert told == ["checkpoint of step 2 was not written: [Errno 28] No space left on device"]
    assert names(folder) == ["step-1"] and latest(folder).state["step"] == 1


def test_the_state_is_that_of_the_moment_in_which_it_was_given(folder, monkeypatch):
    go_on, save_plainly = threading.Event(), write_synced
    monkeypatch.setattr(
        "chexspark.run.checkpoint.write_synced",
        lambda *given: go_on.wait(30) and save_plainly(*given),
    )
    told, history = [], [{"epoch": 0, "best": True}]
    writer = Writer(folder, told.append, lambda: told.append(names(folder)))
    writer.write(1, ARRAYS, {"history": history})
    history[0]["best"] = False
    history.append({"epoch": 1, "best": True})
    go_on.set()
    writer.wait()
    assert latest(folder).state["history"] == [{"epoch": 0, "best": True}]
    assert told == [["step-1"]]


class ObjectStore:
    """A file system like S3's: folders cannot be renamed."""

    type_name = "s3"

    def __init__(self):
        self.plain = fs.LocalFileSystem()

    def __getattr__(self, name):
        return getattr(self.plain, name)

    def move(self, source, target):
        if os.path.isdir(source):
            raise OSError("NO_SUCH_KEY during CopyObject operation")
        self.plain.move(source, target)


def test_an_object_store_keeps_checkpoints_too(folder, monkeypatch):
    place = Location(ObjectStore(), folder.path, "s3://bucket/checkpoints")
    for step in (1, 2, 3):
        save(place, step, ARRAYS, {"step": step})
    assert names(place) == ["step-2", "step-3"] and latest(place).state["step"] == 3

    def cut(place, content):
        if place.path.endswith("state.json"):
            raise OSError("connection reset")
        place.filesystem.open_output_stream(place.path).close()

    monkeypatch.setattr("chexspark.run.checkpoint.write_synced", cut)
    with pytest.raises(OSError, match="connection reset"):
        save(place, 4, ARRAYS, {"step": 4})
    assert names(place) == ["step-2", "step-3"] and latest(place).state["step"] == 3


def test_what_a_killed_rank_left_is_cleared_away(folder):
    save(folder, 1, ARRAYS, {"step": 1})
    (folder / "unfinished-7").make_directory()
    Writer(folder, print)
    assert names(folder) == ["step-1"]


def test_a_kill_inside_a_write_leaves_a_whole_one(folder, tmp_path):
    """SIGKILL at several moments of a process that does nothing but write checkpoints."""
    script = """
import sys, numpy as np
from chexspark.storage import locate
from chexspark.run.checkpoint import save
folder = locate(sys.argv[1])
for step in range(int(sys.argv[2]), 10**6):
    save(folder, step, [np.full(300_000, step), np.full(300_000, -step)], {"step": step})
    print(step, flush=True)
"""
    first = 1
    for pause in (0.003, 0.011, 0.017, 0.029):
        process = subprocess.Popen(
            [sys.executable, "-c", script, folder.path, str(first)],
            stdout=subprocess.PIPE,
            text=True,
        )
        written = int(process.stdout.readline())
        time.sleep(pause)
        process.send_signal(signal.SIGKILL)
        process.wait()
        written = max([written, *map(int, process.stdout.read().split())])
        found = latest(folder)
        step = found.state["step"]
        assert step >= written
        assert all(
            (array == sign * step).all()
            for array, sign in zip(found.arrays(), (1, -1), strict=True)
        )
        first = step + 1
