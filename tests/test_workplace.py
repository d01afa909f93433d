"""The folder of an ingest in the making: who has it, who lives, what is cleaned away."""

import json
import os
import socket
import threading
import time

import psutil
import pytest

from chexspark.errors import RunFailedError, UserError
from chexspark.ingestion import workplace
from chexspark.ingestion.workplace import OWNER, Workplace, holds_other_things, is_alive
from chexspark.storage import Location, locate
from chexspark.store.manifest import UNFINISHED


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    for name in ("BEAT_SECONDS", "RETRY_SECONDS", "LOOK_AGAIN_SECONDS"):
        monkeypatch.setattr(workplace, name, 0.01)


@pytest.fixture
def store(tmp_path):
    (tmp_path / "store").mkdir()
    return locate(str(tmp_path / "store"))


def owner_of(store):
    return json.loads((store / UNFINISHED / OWNER).read_text())


def owner(**more):
    return {"token": "x", "host": "another", "process": 1, "started": 0.0, "beat": time.time()} | more  # fmt: skip


def put_owner(store, content: str):
    (store / UNFINISHED).make_directory()
    (store / UNFINISHED / OWNER).write_text(content)


def test_the_heartbeat_outlives_errors_of_the_file_system(store, monkeypatch, wait_for):
    failed = []
    write = Location.write_text

    def write_or_fail(place, text):
        if len(failed) < 3 and threading.current_thread() is not threading.main_thread():
            failed.append(place)
            raise OSError("Stale file handle")
        write(place, text)

    with Workplace(store):
        first = owner_of(store)["beat"]
        monkeypatch.setattr(Location, "write_text", write_or_fail)
        wait_for(lambda: len(failed) == 3)
        wait_for(lambda: owner_of(store)["beat"] > first)
    assert not (store / UNFINISHED).exists()


def test_an_owner_that_cannot_be_read_is_not_taken_for_dead(store, monkeypatch):
    put_owner(store, json.dumps(owner()))

    def fail(place):
        raise OSError("Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(Location, "read_text", fail)
        with pytest.raises(UserError, match=r"cannot be read .Input/output error.: try again"):
            Workplace(store).__enter__()
    assert owner_of(store)["token"] == "x"


def test_an_owner_that_is_being_replaced_is_looked_for_again(store, monkeypatch):
    (store / UNFINISHED).make_directory()
    monkeypatch.setattr(workplace.time, "sleep", lambda _: put_owner(store, json.dumps(owner())))
    with pytest.raises(UserError, match=r"another ingest is writing there .host another"):
        Workplace(store).__enter__()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"token": "x"}'])
def test_a_damaged_owner_lives_as_long_as_its_file_is_young(store, content):
    put_owner(store, content)
    with pytest.raises(UserError, match="another ingest is writing there"):
        Workplace(store).__enter__()
    os.utime((store / UNFINISHED / OWNER).path, (0, 0))
    with Workplace(store) as place:
        assert owner_of(store)["token"] == place.token


def test_who_is_alive():
    me, parent = psutil.Process(), psutil.Process().parent()
    here = {"host": socket.gethostname(), "process": me.pid, "started": me.create_time()}
    old = time.time() - 61
    assert is_alive(owner()) and not is_alive(owner(beat=old))
    assert is_alive(owner(**here)), "another thread of this process"
    assert not is_alive(owner(**here, beat=old)) and not is_alive(owner(**here | {"started": 1.0}))
    other = here | {"process": parent.pid, "started": parent.create_time()}
    assert is_alive(owner(**other, beat=old)), "on this host a slow beat is no sign of death"
    assert not is_alive(owner(**other | {"process": 2**22 + 1}))


def test_two_at_once_in_one_process(store):
    with Workplace(store), pytest.raises(UserError, match=f"process {os.getpid()}"):
        Workplace(store).__enter__()
    assert not (store / UNFINISHED).exists()


def test_who_was_taken_for_dead_leaves_the_place_to_the_other(store):
    with pytest.raises(RunFailedError, match="another ingest has taken the place"), Workplace(store) as mine:  # fmt: skip
        (mine.folder / "part").write_text("x")
        put_owner(store, json.dumps(owner()))
        (store / "train").make_directory()
        mine.check_held()
    assert owner_of(store)["token"] == "x" and (store / "train").exists()
    assert not mine.folder.exists()


def test_a_failure_leaves_only_what_was_refused(store):
    with pytest.raises(OSError, match="full"), Workplace(store):
        for name in ("train", "boxes", "quarantine"):
            (store / name).make_directory()
        raise OSError("full")
    assert store.list_folders() == ["quarantine"]


def test_folders_of_other_things(store):
    assert not holds_other_things(store)
    (store / "quarantine").make_directory()
    (store / "quarantine" / "a").write_text("x")
    assert not holds_other_things(store)
    (store / "thesis.txt").write_text("x")
    assert holds_other_things(store)
    (store / UNFINISHED).make_directory()
    assert not holds_other_things(store)
