"""Checkpoints are whole or not there, and the last whole one is found."""

import os
import subprocess
import sys
import threading

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
        lambda *given: go_on.wait() and save_plainly(*given),
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


KILLED = """
import itertools, os, signal, sys
import numpy as np
import chexspark
from chexspark.run.checkpoint import latest, save
from chexspark.storage import Location, locate
from test_checkpoint import ObjectStore

PACKAGE = os.path.dirname(chexspark.__file__)
folder = locate(sys.argv[1])
if sys.argv[2] == "object store":
    folder = Location(ObjectStore(), folder.path, "s3://bucket/checkpoints")

def write(step):
    save(folder, step, [np.full(30_000, step), np.full(30_000, -step)], {"step": step})

def write_and_die(step, line):
    left = itertools.count(line, -1)
    def trace(frame, event, _):
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if event == "line" and next(left) == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace
    try:
        sys.settrace(trace)
        write(step)
        os._exit(0)
    finally:
        os._exit(1)

write(1)
step = 1
for line in itertools.count():
    child = os.fork()
    if not child:
        write_and_die(step + 1, line)
    status = os.waitpid(child, 0)[1]
    found = latest(folder)
    first, second = found.arrays()
    now = found.state["step"]
    print(line, now - step, (first == now).all() and (second == -now).all(), flush=True)
    if status != signal.SIGKILL:
        sys.exit(status)
    step = now + 1
    write(step)  # puts away what the killed one left
"""


@pytest.mark.parametrize("kind", ["file system", "object store"])
def test_a_kill_before_any_line_of_a_write_leaves_a_whole_one(folder, kind):
    """A process is killed before each line of the package that writing a checkpoint runs."""
    path = os.pathsep.join([os.path.dirname(__file__), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", KILLED, folder.path, kind],
        capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [int(number) for number, *_ in lines] == list(range(len(lines))) and len(lines) > 30
    assert all(whole == "True" for *_, whole in lines), done.stdout
    # Killed early the one before stands, killed late the new one; never anything else.
    steps = [int(step) for _, step, _ in lines]
    assert set(steps) == {0, 1} and steps[0] == 0 and steps[-1] == 1, done.stdout


def test_no_flipped_bit_of_a_state_is_believed(folder, tmp_path):
    state = {
        "epoch": 1,
        "losses": 0.1 + 0.2,
        "history": [{"epoch": 0, "val_loss": 0.25}],
        "finished": False,
    }
    for step in (1, 2):
        save(folder, step, ARRAYS, state | {"step": step})
    place = tmp_path / "checkpoints" / "step-2" / "state.json"
    whole = place.read_bytes()
    right = latest(folder).state
    for position in range(len(whole)):
        for bit in (0, 4):
            place.write_bytes(
                whole[:position] + bytes([whole[position] ^ 1 << bit]) + whole[position + 1 :]
            )
            found = latest(folder).state
            assert found["step"] == 1 or {k: found[k] for k in state} == {
                k: right[k] for k in state
            }
    place.write_bytes(b"[]")
    assert latest(folder).state["step"] == 1
