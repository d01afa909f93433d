"""Functions that the driver calls after every epoch: named or given; they may stop a training, and may fail."""

import threading

import pytest

from chexspark import train
from chexspark.cluster import callbacks as callbacks_module
from chexspark.cluster.callbacks import Callbacks, callbacks_of
from chexspark.config import TrainConfig
from chexspark.errors import UserError
from chexspark.ml import ChestXrayClassifier
from chexspark.run.folder import run_folder
from chexspark.run.history import write_history
from chexspark.run.settings import last_checkpoint

FAILING = "def tell(epoch):\n    open(f'epoch-{epoch.number}', 'w').close()\n    raise KeyError('no mail today')\n"
ROW = {"epoch": 0, "steps": 3, "val_auroc": 0.7, "best": True, "learning_rate": 0.1, "val_auroc_Mass": 0.6}  # fmt: skip


def test_they_see_each_epoch_stop_the_run_and_may_fail(spark, store, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(FAILING)
    seen = []

    def on_epoch(epoch):
        seen.append(epoch)
        if epoch.number == 2:
            epoch.stop("good enough")

    given = {"data": store.path, "run": "run", "model": "vgg16", "epochs": 40, "batch_size": 8, "num_proc": 1,
             "threads": 1, "checkpoint_steps": 1}  # fmt: skip
    history = train(spark, **given, callbacks="mine:tell", on_epoch=on_epoch)
    said = capfd.readouterr().err
    assert 2 <= len(history) < 40 and len(seen) == len(history)
    assert [epoch.number for epoch in seen] == list(range(1, len(history) + 1))
    assert [epoch.row["val_auroc"] for epoch in seen] == history["val_auroc"].tolist()
    assert {(epoch.run, epoch.epochs) for epoch in seen} == {(str(tmp_path / "run"), 40)}
    assert "tell failed after epoch 1: KeyError: 'no mail today'" in said
    assert (tmp_path / "epoch-2").exists() and "stopped: good enough; the same command" in said
    run = run_folder(str(tmp_path / "run"))
    found = last_checkpoint(run)
    assert not found.state["finished"] and run.best_model.is_file()
    with pytest.raises(UserError, match=r"epochs was"):  # a run, and to be resumed as one
        train(None, **given | {"epochs": 41})


@pytest.fixture
def run(tmp_path):
    run = run_folder(str(tmp_path / "run"))
    run.place.make_directory()
    write_history(run, [ROW], ("Mass",))
    return run


def test_a_slow_one_holds_nobody_up_and_is_waited_for_at_the_end(run):
    go, seen = threading.Event(), []

    def slow(epoch):
        go.wait(60)
        seen.append(epoch.row["val_auroc_Mass"])

    callbacks = Callbacks([slow], run, 1, print)
    with callbacks.working():
        callbacks.take(0)
        callbacks.take(0)  # comes back while it is called
        assert not seen
        go.set()
    assert seen == [0.6, 0.6] and not callbacks.stop_asked.is_set()


def test_a_training_that_is_stopped_does_not_wait_for_one_that_hangs(run, monkeypatch):
    monkeypatch.setattr(callbacks_module, "AFTER_STOP", 0.1)
    go = threading.Event()
    callbacks = Callbacks([lambda epoch: go.wait(60)], run, 1, print)
    with pytest.raises(KeyboardInterrupt), callbacks.working():
        callbacks.take(0)
        raise KeyboardInterrupt
    assert not go.is_set()
    go.set()


def test_a_history_that_cannot_be_read_is_told(run):
    said = []
    callbacks = Callbacks([print], run, 1, said.append)
    with callbacks.working():
        callbacks.take(5)
    assert said[0].startswith("note: callbacks were not called for epoch 6: ")


@pytest.mark.parametrize(
    "name, message",
    [("gone:tell", "--callbacks gone:tell: there is no module gone"), ("mine:toll", "has no function toll; did you mean tell"),
     ("mine", "is no package.module:function")],
)  # fmt: skip
def test_a_name_that_leads_nowhere_is_refused_first(name, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(FAILING)
    with pytest.raises(UserError, match=message):
        train(None, data="/nowhere", run="/nowhere", callbacks=name)
    with pytest.raises(UserError, match="must be of type Callable"):
        train(None, data="/nowhere", run="/nowhere", on_epoch="mine:tell")


def test_an_estimator_keeps_names_and_no_function(tmp_path):
    given = ChestXrayClassifier(onEpoch=print, callbacks=["mine:tell"])
    assert given.getOnEpoch() is print and given.copy().getOnEpoch() is print
    with pytest.raises(UserError, match="onEpoch is a function, which cannot be saved"):
        given.save(str(tmp_path / "estimator"))
    assert callbacks_of(TrainConfig(data="a", run="b", on_epoch=print)) == [print]
