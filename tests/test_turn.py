"""Two launches of ranks at once in one session; and what a launch leaves as it found it."""

import os
import signal
import sys
import threading
from types import SimpleNamespace

import cloudpickle
import pytest
from pyspark import InheritableThread

from chexspark.cluster import launch, turn
from chexspark.cluster.job_group import JobGroup
from chexspark.errors import RunFailedError, StoppedError


def stay_until(address, path, opened):
    """A rank that writes when it begins and ends; it ends once the file `opened` is there."""
    import os
    import time

    from chexspark.training.events import EventSender

    with EventSender(address, int(os.environ["HOROVOD_RANK"])):
        note(path, "begin")
        for _ in range(600):
            if os.path.exists(opened):
                break
            time.sleep(0.1)
        note(path, "end")
    return os.path.exists(opened)


def note(path, word):
    with open(path, "a") as file:
        file.write(word + "\n")


def rank_number(address):
    import os

    return int(os.environ["HOROVOD_RANK"])


@pytest.fixture(scope="module", autouse=True)
def sent_by_value():
    """No rank could import this module."""
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def run_here(spark, function, *arguments, ranks=1):
    return launch.run_ranks(spark, function, arguments, ranks, lambda event: None)


@pytest.mark.slow
def test_a_second_launch_waits_for_the_first_and_a_third_works(spark, tmp_path, capsys, wait_for):
    path, opened, told, found = tmp_path / "notes", tmp_path / "opened", [], {}

    def waits():
        told.append(capsys.readouterr().err)
        return "waiting for it to end" in "".join(told)

    def start(name):
        def work():
            found[name] = run_here(spark, stay_until, str(path), str(opened))

        thread = threading.Thread(target=work)
        thread.start()
        return thread

    first = start("first")
    wait_for(path.exists, seconds=300)
    second = start("second")
    try:
        wait_for(waits, seconds=300)
    finally:
        opened.touch()
        for thread in (first, second):
            thread.join()
    assert found == {"first": [True], "second": [True]}
    assert path.read_text().split() == ["begin", "end", "begin", "end"]
    assert run_here(spark, rank_number, ranks=2) == [0, 1]


@pytest.mark.parametrize("group", ["a cell of a notebook", None])
def test_ranks_end_with_the_jobs_of_who_asked_for_them(spark, tmp_path, wait_for, group):
    """From a thread of the user's, with a group of its own, or by Ctrl-C, for which PySpark cancels all jobs."""
    context, path, found = spark.sparkContext, tmp_path / "notes", []

    def work():
        if group:
            context.setJobGroup(group, "training")
        try:
            run_here(spark, stay_until, str(path), str(tmp_path / "never"))
        except StoppedError as error:
            found.append(str(error))

    thread = InheritableThread(target=work)
    thread.start()
    wait_for(path.exists, seconds=300)
    context.cancelJobGroup(group) if group else context.cancelAllJobs()
    thread.join()
    assert found == ["its Spark jobs were cancelled"]
    assert path.read_text().split() == ["begin"]


def test_a_job_group_keeps_its_other_jobs_when_ranks_are_ended(spark):
    context = spark.sparkContext
    context.setJobGroup("a cell of a notebook", "two things")
    try:
        jobs = JobGroup(spark, "ranks")
        assert jobs.group == "a cell of a notebook" and jobs.task_counts() == (0, 0)
        spark.range(10).count()
        assert jobs.task_counts()[1] > 0
        jobs.cancel()
        assert spark.range(10).count() == 10
        assert JobGroup(spark, "others").task_counts() == (0, 0), "earlier jobs do not count"
    finally:
        for name in ("spark.jobGroup.id", "spark.job.description", "spark.job.interruptOnCancel"):
            context.setLocalProperty(name, None)


@pytest.fixture
def taken():
    """The turn, held by another thread until the test ends."""
    inside, over = threading.Event(), threading.Event()

    def hold():
        with turn.turn(None):
            inside.set()
            over.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    assert inside.wait(60)
    yield
    over.set()
    thread.join()


def test_who_waits_can_be_stopped_by_ctrl_c(taken, monkeypatch):
    monkeypatch.setattr(turn, "has_ended", lambda spark: os.kill(os.getpid(), signal.SIGINT))
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), turn.turn(None):
        pytest.fail("it is another's turn")
    assert signal.getsignal(signal.SIGINT) is before


def test_who_waits_ends_with_spark_s_application(taken):
    ended = SimpleNamespace(sparkContext=SimpleNamespace(_jsc=None))
    with pytest.raises(StoppedError, match="Spark's application was ended"), turn.turn(ended):
        pytest.fail("it is another's turn")


def test_the_turn_is_given_back_after_a_failure():
    with pytest.raises(RunFailedError), turn.turn(None):
        raise RunFailedError("x")
    done = []

    def take():
        with turn.turn(None):
            done.append(True)

    thread = threading.Thread(target=take)
    thread.start()
    thread.join()
    assert done


def test_signals_that_another_language_handles_are_no_fault(monkeypatch):
    monkeypatch.setattr(signal, "signal", lambda number, handler: seen.append(handler))
    seen = []
    with turn.signals_to("ours"):
        pass
    assert seen == ["ours", "ours", signal.SIG_DFL, signal.SIG_DFL]


def test_a_thread_of_the_user_that_fails_meanwhile_is_seen(spark, monkeypatch, capfd):
    seen = []
    monkeypatch.setattr(threading, "excepthook", lambda failure: seen.append(failure.exc_value))
    hook, error = threading.excepthook, KeyError("the user's")

    def run(address):
        raise error

    def of_rank_0(event):
        thread = threading.Thread(target=run, args=(None,))
        thread.start()
        thread.join()

    def speak_and_fail(address):
        import os

        from chexspark.training.events import EventSender, Note

        with EventSender(address, int(os.environ["HOROVOD_RANK"])) as sender:
            sender.send(Note("here"))
            raise ValueError("a rank's own")

    with pytest.raises(launch.RanksLost):
        launch.run_ranks(spark, speak_and_fail, (), 1, of_rank_0)
    assert error in seen and seen.count(error) == len(seen), "Horovod's own threads are silent"
    assert threading.excepthook is hook
