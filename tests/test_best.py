"""RUN/best is of the history that goes on, whenever a rank dies."""

import json

import pytest

from chexspark.run.best import promote, save_best, settle
from chexspark.run.folder import run_folder
from chexspark.storage import Location


class Model:
    def __init__(self, content):
        self.content = content

    def save(self, path):
        path.write_text(self.content)


@pytest.fixture
def run(tmp_path):
    """A run whose best epoch is 0, and in which epoch 1 was better and waits."""
    run = run_folder(str(tmp_path / "run"))
    for epoch in (0, 1):
        if epoch:
            promote(run)
        save_best(Model(f"weights {epoch}"), run, {"epoch": epoch, "val_auroc": 0.1 + 0.2})
    return run


def best(run):
    place = run.place / "best"
    return (place / "model.keras").read_text(), json.loads((place / "best.json").read_text())


FIRST = ("weights 0", {"epoch": 0, "val_auroc": 0.1 + 0.2})
SECOND = ("weights 1", {"epoch": 1, "val_auroc": 0.1 + 0.2})


def test_a_model_is_promoted_once(run):
    assert best(run) == FIRST
    promote(run)
    promote(run)
    assert best(run) == SECOND and not run.waiting.exists()


def test_a_model_of_an_epoch_that_is_lost_is_deleted(run):
    settle(run, [{"epoch": 0}])
    assert best(run) == FIRST and not run.waiting.exists()


def test_a_model_of_an_epoch_that_is_known_is_promoted(run):
    settle(run, [{"epoch": 0}, {"epoch": 1}])
    assert best(run) == SECOND and not run.waiting.exists()


def test_a_model_that_was_not_written_whole_is_deleted(run):
    (run.waiting / "best.json").filesystem.delete_file((run.waiting / "best.json").path)
    promote(run)
    assert best(run) == FIRST
    settle(run, [{"epoch": 0}, {"epoch": 1}])
    assert best(run) == FIRST and not run.waiting.exists()


def test_a_death_between_the_two_files_is_made_good(run, monkeypatch):
    plain = Location.move_to

    def move_to(self, target):
        if target.path.endswith("best.json"):
            raise KeyboardInterrupt
        plain(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Location, "move_to", move_to)
        with pytest.raises(KeyboardInterrupt):
            promote(run)
    settle(run, [{"epoch": 0}, {"epoch": 1}])
    assert best(run) == SECOND
