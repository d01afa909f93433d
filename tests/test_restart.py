"""What the driver does when ranks are lost, without ranks."""

import socket
from types import SimpleNamespace

import pytest

from chexspark.cluster import job, launch, slots
from chexspark.cluster.timings import Timings
from chexspark.config import TrainConfig
from chexspark.errors import RunFailedError, StoppedError
from chexspark.lock import Lock
from chexspark.run.checkpoint import save
from chexspark.run.resolved import ResolvedTraining
from chexspark.settings import build
from chexspark.storage import locate
from chexspark.training.events import Step


@pytest.fixture
def run_with_losses(monkeypatch, tmp_path):
    """A function that runs `losses` (of rank 1, at an epoch and step each) and then to the end.

    Returns how many ranks each start had. `slots`: how many each restart finds.
    """

    def run(losses, slots=None, silent_host=None, **settings):
        started, slots = [], list(slots or [2] * len(losses))

        def run_ranks(spark, function, arguments, num_proc, on_event, *others):
            started.append(num_proc)
            if len(started) > len(losses):
                return
            epoch, step = losses[len(started) - 1]
            on_event(Step(epoch, 9, step, 99, loss=0.5, learning_rate=0.1, images_per_second=1.0,
                          seconds_left=1.0))  # fmt: skip
            raise launch.RanksLost("rank 1 on b died", 1, silent_host)

        monkeypatch.setattr(job, "run_ranks", run_ranks)
        monkeypatch.setattr(job, "slots_again", lambda *arguments: slots.pop(0))
        given = {"data": "/none", "run": str(tmp_path), "max_restarts": 5}
        with Lock(locate(str(tmp_path)), "--run", "training") as lock:
            settings = ResolvedTraining(build(TrainConfig, given | settings), 2)
            job.run_to_the_end(None, settings, 2, lock, Timings())
        return started

    return run


def test_a_run_is_begun_again_with_the_slots_that_are_left(run_with_losses, capsys, tmp_path):
    save(
        locate(str(tmp_path)) / "checkpoints",
        7,
        [],
        {"epoch": 0, "step": 7, "steps": 99, "losses": 3.5},
    )
    (tmp_path / "logs").mkdir()
    noise = "E0000 00:00:1795260240.266212 13421 cuda_dnn.cc:8310] Unable to register cuDNN"
    (tmp_path / "logs" / "rank-1.log").write_text(f"out of luck\n{noise}\n")
    assert run_with_losses([(0, 9), (1, 9), (2, 9)], slots=[2, 1, 2], min_proc=1) == [2, 2, 1, 2]
    told = capsys.readouterr().err
    assert (
        "  out of luck\nrank 1 on b died, in epoch 1, step 10; restart 1 of 5 at epoch 1, step 8\n"
        in told
    )
    assert "restart 2 of 5" in told and "no more slots: resuming with 1 rank\n" in told
    assert "restart 3 of 5" in told and "more slots again: resuming with 2 ranks\n" in told
    assert told.count("\ntraining again, 0 seconds after the loss\n") == 2, "of three losses"
    assert "cuDNN" not in told


def test_restarts_are_counted(run_with_losses):
    with pytest.raises(RunFailedError, match="rank 1 on b died; 2 restarts were allowed"):
        run_with_losses([(0, 1), (0, 2), (0, 3)], max_restarts=2)


def test_what_fails_in_one_place_is_not_retried_for_ever(run_with_losses):
    with pytest.raises(
        RunFailedError, match="the same 3 times, always at epoch 1, step 8: this does"
    ):
        run_with_losses([(0, 7)] * 3)
    assert len(run_with_losses([(0, 7), (0, 7), (0, 8), (0, 7), (0, 7)])) == 6


def test_executors_of_a_silent_host_are_given_up(run_with_losses, monkeypatch):
    given_up = []
    monkeypatch.setattr(job, "replace_executors", lambda spark, host: given_up.append(host))
    run_with_losses([(0, 1), (0, 2)], silent_host="10.0.0.9")
    assert given_up == ["10.0.0.9", "10.0.0.9"]


@pytest.mark.parametrize(
    "end, reason",
    [
        (
            StoppedError("Spark's application was ended on the cluster"),
            "Spark's application was ended",
        ),
        (KeyboardInterrupt(), "stopped"),
    ],
)
def test_a_run_that_is_stopped_says_where_the_command_goes_on(monkeypatch, tmp_path, end, reason):
    def run_ranks(*arguments):
        raise end

    monkeypatch.setattr(job, "run_ranks", run_ranks)
    config = build(TrainConfig, {"data": "/none", "run": str(tmp_path)})
    with pytest.raises(StoppedError, match=f"^{reason}.*; the same command resumes at epoch 1"):
        job.run_to_the_end(
            None, ResolvedTraining(config, 2), 2, Lock(locate(str(tmp_path)), "--run", "training"),
            Timings(),
        )  # fmt: skip


@pytest.mark.parametrize("there, found", [(1, 1), (2, 2), (3, 3), (4, 3)])
def test_slots_that_came_back_are_used(monkeypatch, there, found):
    supply = slots.Supply(there, 1, slots.UNBOUNDED, "spark://m:7077")
    monkeypatch.setattr(slots, "supply", lambda spark: supply)
    assert slots.slots_again(None, 1, 1, 3) == found


def test_executors_of_other_hosts_are_kept(monkeypatch):
    from chexspark.session import replace_executors

    names = {"a": "10.0.0.8", "b": "10.0.0.9"}

    def look_up(name):
        if name not in names:
            raise OSError("unknown")
        return names[name]

    monkeypatch.setattr(socket, "gethostbyname", look_up)
    executors = [
        SimpleNamespace(id=lambda n=n: str(n), hostPort=lambda h=h: f"{h}:40000")
        for n, h in enumerate(["a", "b", "gone", "b"])
    ]
    replaced = []
    listed = SimpleNamespace(size=lambda: len(executors), apply=executors.__getitem__)
    scala = SimpleNamespace(
        statusStore=lambda: SimpleNamespace(executorList=lambda live: listed),
        killAndReplaceExecutor=replaced.append,
    )
    context = SimpleNamespace(master="spark://m:7077", _jsc=SimpleNamespace(sc=lambda: scala))
    replace_executors(SimpleNamespace(sparkContext=context), "10.0.0.9")
    assert replaced == ["1", "3"]
