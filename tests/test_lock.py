"""One writer at a time in a folder: who is inside, who lives, who comes at the same moment."""

import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time

import pytest

from chexspark import lock
from chexspark.errors import RunFailedError, UserError
from chexspark.lock import BEAT, Lock, is_there, started, system
from chexspark.storage import Location, locate

HERE = {"token": "x", "host": "another", "process": 1, "started": 1, "system": "another"}


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    for name, seconds in (("BEAT", 0.02), ("RETRY", 0.01), ("LOOK", 0.01), ("DEAD", 0.3)):
        monkeypatch.setattr(lock, f"{name}_SECONDS", seconds)


@pytest.fixture
def folder(tmp_path):
    return locate(str(tmp_path))


def lock_of(folder):
    return Lock(folder, "--out", "ingest")


def put(folder, number=1, **more):
    (folder / f"_lock-{number:04}").write_text(json.dumps(HERE | more))


def test_two_at_once_in_one_process(folder):
    with lock_of(folder) as first:
        with pytest.raises(UserError, match=f"is writing there .host .*, process {os.getpid()}"):
            lock_of(folder).__enter__()
        assert first.is_held() and not first.lost.is_set()
    assert not folder.list_files()
    with lock_of(folder):
        pass


ENTER = """
import sys
from chexspark import lock
from chexspark.storage import locate
with lock.Lock(locate(sys.argv[1]), "--run", "training"):
    print("inside", flush=True)
    sys.stdin.read()
"""


def test_a_process_of_this_host_is_there_as_long_as_it_lives_however_slow_its_beat(folder):
    command = [sys.executable, "-c", ENTER, folder.path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"inside\n"
        with pytest.raises(UserError, match=f"process {other.pid}.: wait for it, or end it"):
            lock_of(folder).__enter__()
        other.kill()
    with lock_of(folder) as mine:  # at once: nobody waits for the beat of a process that is gone
        assert mine.name == "_lock-0002" and lock_of(folder).names() == [mine.name]


def test_who_cannot_be_seen_lives_as_long_as_the_beat_changes(folder):
    """Of another host or container; its clock may say anything."""
    put(folder)
    stop = threading.Event()

    def beat():
        number = 0
        while not stop.wait(0.05):
            number += 1
            (folder / f"_lock-0001{BEAT}").write_text(f"x {number}")

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(UserError, match=r"another ingest is writing there .host another"):
            lock_of(folder).__enter__()
    finally:
        stop.set()
        thread.join()
    os.utime(f"{folder.path}/_lock-0001{BEAT}", (2**33, 2**33))  # its clock is ahead
    with lock_of(folder) as mine:
        assert [*mine.names(), mine.is_held()] == ["_lock-0002", True]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"token": "x"}'])
def test_a_damaged_lock_is_a_dead_one_s_when_nothing_changes(folder, content):
    (folder / "_lock-0001").write_text(content)
    began = time.monotonic()
    with lock_of(folder) as mine:
        assert mine.is_held() and time.monotonic() - began >= 0.3


def test_a_lock_that_goes_while_it_is_looked_at(folder, monkeypatch):
    put(folder)
    monkeypatch.setattr(lock.time, "sleep", lambda _: (folder / "_lock-0001").filesystem.delete_file((folder / "_lock-0001").path))  # fmt: skip
    with lock_of(folder) as mine:
        assert mine.name == "_lock-0002"


def test_a_lock_that_cannot_be_read_is_not_taken_for_a_dead_one_s(folder, monkeypatch):
    put(folder)

    def fail(*_):
        raise OSError("Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(Location, "read_bytes", fail)
        with pytest.raises(UserError, match=r"cannot be read .Input/output error.: try again"):
            lock_of(folder).__enter__()
    assert [file.base_name for file in folder.list_files()] == ["_lock-0001"]


def test_the_beat_outlives_errors_of_the_file_system(folder, monkeypatch, wait_for):
    failed, write = [], Location.write_text

    def write_or_fail(place, text):
        if len(failed) < 3 and threading.current_thread() is not threading.main_thread():
            failed.append(place)
            raise OSError("Stale file handle")
        write(place, text)

    with lock_of(folder) as mine:
        monkeypatch.setattr(Location, "write_text", write_or_fail)
        wait_for(lambda: len(failed) == 3)
        beats = mine.beats
        wait_for(lambda: mine.beats > beats + 3)
        assert (folder / (mine.name + BEAT)).read_text().startswith(mine.owner["token"])


def test_who_was_taken_for_dead_learns_it_and_takes_nothing_back(folder, wait_for):
    with lock_of(folder) as mine:
        for file in folder.list_files():
            os.remove(file.path)
        put(folder, 2)
        wait_for(mine.lost.is_set)
        with pytest.raises(RunFailedError, match="another ingest has taken the place"):
            mine.check_held()
    assert [file.base_name for file in folder.list_files()] == ["_lock-0002"]


def test_who_was_taken_for_dead_leaves_the_lock_of_the_same_name_to_the_next(folder, wait_for):
    with lock_of(folder) as mine:
        put(folder, 1)
        wait_for(mine.lost.is_set)
    assert json.loads((folder / "_lock-0001").read_text())["token"] == "x"


def test_a_folder_that_cannot_be_written(folder, monkeypatch):
    def fail(*_):
        raise OSError("Read-only file system")

    monkeypatch.setattr(Location, "create", fail)
    with pytest.raises(UserError, match="cannot be written: Read-only file system"):
        lock_of(folder).__enter__()


def test_who_is_there():
    parent = os.getppid()
    here = {"system": system(), "process": parent, "started": started(parent)}
    assert system() and is_there(HERE | here) is True
    assert is_there(HERE | here | {"started": started(parent) - 1}) is False, "its number went on"
    assert is_there(HERE | here | {"process": 2**22 + 1}) is False
    assert is_there(HERE | here | {"system": system() + "x"}) is None, "another container"
    assert is_there(HERE | here | {"system": None}) is None
    assert is_there(HERE | here | {"process": os.getpid()}) is None, "another thread of this one"


def enter_often(path, rounds, together, inside, most):
    """In each round all come to a new folder at the same moment, and stay a while."""
    for number in range(rounds):
        folder = locate(f"{path}/{number}")
        together.wait()
        try:
            with lock_of(folder):
                with inside.get_lock():
                    inside.value += 1
                    most.value = max(most.value, inside.value)
                time.sleep(0.02)
                with inside.get_lock():
                    inside.value -= 1
        except UserError:
            pass


@pytest.mark.parametrize("left", [False, True], ids=["empty", "a dead one's lock"])
def test_of_those_that_come_at_the_same_moment_one_enters(tmp_path, left):
    rounds, context = 40, multiprocessing.get_context("fork")
    for number in range(rounds):
        (tmp_path / str(number)).mkdir()
        if left:
            put(locate(f"{tmp_path}/{number}"), system=system(), process=2**22 + 1)
    together = context.Barrier(4)
    inside, most = context.Value("i", 0), context.Value("i", 0)
    given = (str(tmp_path), rounds, together, inside, most)
    others = [context.Process(target=enter_often, args=given) for _ in range(4)]
    for other in others:
        other.start()
    for other in others:
        other.join(120)
        assert other.exitcode == 0
    assert most.value == 1


def test_an_object_store_says_that_it_has_no_lock(folder, monkeypatch, caplog):
    monkeypatch.setattr(Location, "creates_exclusively", False)
    with lock_of(folder):
        assert "an object store has no lock" in caplog.text
