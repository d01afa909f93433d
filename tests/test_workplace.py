"""The folder of an ingest in the making: what it leaves, what is cleaned away."""

import pytest

from chexspark.errors import RunFailedError
from chexspark.ingestion.workplace import Workplace, holds_other_things
from chexspark.storage import locate
from chexspark.store.manifest import UNFINISHED


@pytest.fixture
def store(tmp_path):
    (tmp_path / "store").mkdir()
    return locate(str(tmp_path / "store"))


def test_who_was_taken_for_dead_leaves_the_place_to_the_other(store):
    with pytest.raises(RunFailedError, match="another ingest has taken the place"), Workplace(store) as mine:  # fmt: skip
        (mine.folder / "part").write_text("x")
        (store / mine.lock.name).write_text('{"token": "x"}')
        (store / "train").make_directory()
        mine.lock.check_held()
    assert (store / "train").exists() and not mine.folder.exists()


def test_a_failure_leaves_only_what_was_refused(store):
    with pytest.raises(OSError, match="full"), Workplace(store):
        for name in ("train", "boxes", "quarantine"):
            (store / name).make_directory()
        raise OSError("full")
    assert store.list_folders() == ["quarantine"] and not store.list_files()


def test_folders_of_other_things(store):
    assert not holds_other_things(store)
    (store / "quarantine").make_directory()
    (store / "quarantine" / "a").write_text("x")
    (store / "_lock-0001").write_text("x")
    assert not holds_other_things(store)
    (store / "thesis.txt").write_text("x")
    assert holds_other_things(store)
    (store / UNFINISHED).make_directory()
    assert not holds_other_things(store)
