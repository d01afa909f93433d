"""Runs that are killed, stopped, or begun again end as if nothing had happened."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import psutil
import pyspark
import pytest

from chexspark import train
from chexspark.cluster.view import EpochTable
from chexspark.errors import RunFailedError, UserError
from chexspark.run.checkpoint import latest, moment_of
from chexspark.storage import locate
from chexspark.training.events import Epoch, Step

JOBS = Path(__file__).parent.parent / "jobs"
# VGG-16 has the fewest layers, and is compiled the quickest.
RECIPE = {"model": "vgg16", "epochs": 3, "batch_size": 4, "num_proc": 2, "threads": 1,
          "checkpoint_steps": 3, "flip": True, "learning_rate": 1e-4, "ema": 0.9, "freeze_epochs": 1,
          "deterministic": True}  # fmt: skip


def rank_processes():
    """The processes below this one that are ranks, by rank."""
    found = {}
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            line = process.cmdline()
            if "horovod.spark.task.gloo_exec_fn" in line and "python" in os.path.basename(line[0]):
                found[int(process.environ()["HOROVOD_RANK"])] = process
    return found


@pytest.fixture(scope="module")
def clean(spark, store, tmp_path_factory):
    """An undisturbed run: its history and its weights."""
    run = tmp_path_factory.mktemp("clean") / "run"
    history = train(spark, data=store.path, run=str(run), **RECIPE)
    return history, latest(locate(str(run)) / "checkpoints").arrays(), run


def assert_as_clean(run, history, clean):
    arrays = latest(locate(str(run)) / "checkpoints").arrays()
    assert len(arrays) == len(clean[1])
    for ours, theirs in zip(arrays, clean[1], strict=True):
        np.testing.assert_array_equal(ours, theirs)
    for column in ("train_loss", "val_loss", "val_auroc", "learning_rate"):
        assert history[column].tolist() == clean[0][column].tolist()


def kill_once(monkeypatch, when, rank=1, how=signal.SIGKILL):
    """Send a signal to a rank at the first event for which `when` holds."""
    plain, killed = EpochTable.take, []

    def take(self, event):
        plain(self, event)
        if not killed and when(event):
            process = rank_processes()[rank]
            killed.append(process.pid)
            process.send_signal(how)

    monkeypatch.setattr(EpochTable, "take", take)
    return killed


@pytest.mark.slow
def test_a_killed_rank_ends_in_the_weights_of_the_clean_run(
    spark, store, tmp_path, monkeypatch, capfd, clean
):
    killed = kill_once(monkeypatch, lambda e: isinstance(e, Step) and (e.epoch, e.step) == (1, 5))
    history = train(spark, data=store.path, run=str(tmp_path / "run"), **RECIPE)
    assert killed
    assert_as_clean(tmp_path / "run", history, clean)
    told = capfd.readouterr().err
    assert (
        re.search(r"rank 1 on \S+ died, in epoch [23], .+; restart 1 of 3 at epoch [123], ", told)
        and "resumes at epoch" in told
    )


@pytest.mark.slow
def test_a_stalled_rank_is_treated_as_dead(spark, store, tmp_path, monkeypatch, capfd, clean):
    killed = kill_once(
        monkeypatch, lambda e: isinstance(e, Epoch) and e.epoch == 0, 0, signal.SIGSTOP
    )
    history = train(spark, data=store.path, run=str(tmp_path / "run"), **RECIPE, stall_seconds=10)
    assert_as_clean(tmp_path / "run", history, clean)
    assert re.search(
        r"rank 0 on \S+ has done nothing for \d+ seconds, in .+; restart 1 of 3",
        capfd.readouterr().err,
    )
    assert not psutil.pid_exists(killed[0])


@pytest.mark.slow
def test_no_restart_when_none_is_allowed_and_going_on_with_fewer_ranks(
    spark, store, tmp_path, monkeypatch, capfd
):
    # Plain gradient descent: Adam makes much of the rounding in which world sizes differ. With the
    # samples in another order, losses differ by a hundredth; in bfloat16 by its own rounding.
    recipe = RECIPE | {"optimizer": "sgd", "precision": "float32"}
    undisturbed = train(spark, data=store.path, run=str(tmp_path / "undisturbed"), **recipe)
    kill_once(monkeypatch, lambda e: isinstance(e, Step) and e.epoch == 1)
    with pytest.raises(RunFailedError, match=r"rank \d on .* died; 0 restarts were allowed"):
        train(spark, data=store.path, run=str(tmp_path / "run"), **recipe, max_restarts=0)
    # The last checkpoint is torn: the one before it is taken.
    checkpoints = locate(str(tmp_path / "run")) / "checkpoints"
    os.truncate((latest(checkpoints).place / "arrays.npz").path, 1000)
    at = moment_of(latest(checkpoints).state)
    capfd.readouterr()
    # One rank takes up what two began: the same images in each step, and so the same losses.
    history = train(spark, data=store.path, run=str(tmp_path / "run"), **recipe | {"num_proc": 1})
    assert f"resumes at {at}\n" in capfd.readouterr().err
    assert history["steps"].tolist() == undisturbed["steps"].tolist()
    assert history["learning_rate"].tolist() == undisturbed["learning_rate"].tolist()
    np.testing.assert_allclose(history["train_loss"], undisturbed["train_loss"], rtol=1e-5)


def begin_job(store, run, submit, *more):
    """Start ``jobs/train.py`` with the recipe; `submit`: arguments of ``spark-submit``."""
    flags = [
        f"--{name.replace('_', '-')}" + ("" if value is True else f"={value}")
        for name, value in RECIPE.items()
    ]
    return subprocess.Popen(
        [sys.executable, JOBS / "train.py", "--data", store.path, "--run", run, *flags, *more],
        env=os.environ | {"PYSPARK_SUBMIT_ARGS": submit, "SPARK_LOCAL_IP": "127.0.0.1"},
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
    )  # fmt: skip


@pytest.mark.slow
def test_a_signal_leaves_a_checkpoint_and_no_process_and_the_same_command_goes_on(
    store, tmp_path, clean
):
    run = tmp_path / "run"
    # Other checkpoints than that of the stop are at the ends of epochs only.
    local = "--master local[2] pyspark-shell"
    with ended(begin_job(store, run, local, "--checkpoint-steps=0")) as process:
        for line in process.stderr:
            if re.match(r" +2  ", line):  # the steps that follow are compiled already
                break
        ranks = list(rank_processes().values())
        assert len(ranks) == 2
        process.send_signal(signal.SIGINT)
        told = process.communicate(timeout=600)[1]
    assert process.returncode == 130, told
    at = moment_of(latest(locate(str(run)) / "checkpoints").state)
    assert f"stopped; the same command resumes at {at}: {run}" in told
    assert at.step > 0, "it is within the epoch"
    assert not psutil.wait_procs(ranks, timeout=120)[1]
    with ended(begin_job(store, run, local)) as process:
        told = process.communicate()[1]
    assert process.returncode == 0, told
    history = (locate(str(run)) / "history").read_table().to_pandas()
    assert_as_clean(run, history, clean)


@contextlib.contextmanager
def ended(process):
    """End a process, and all below it, at the end, or after a time in which it should have."""
    family = []

    def end():
        with contextlib.suppress(psutil.Error):
            family.extend(psutil.Process(process.pid).children(recursive=True))
        for one in [*family, process]:
            with contextlib.suppress(psutil.Error, OSError):
                one.kill()

    timer = threading.Timer(300, end)
    timer.start()
    try:
        yield process
    finally:
        timer.cancel()
        end()
        process.wait()


@pytest.fixture
def cluster():
    """A standalone cluster of two workers with one slot each: its address and the workers."""
    spark_class = Path(pyspark.__file__).parent / "bin" / "spark-class"
    environment = os.environ | {"SPARK_LOCAL_IP": "127.0.0.1", "PYSPARK_PYTHON": sys.executable}
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    def start(kind, *arguments):
        return ended(
            subprocess.Popen(
                [spark_class, f"org.apache.spark.deploy.{kind}", "--host", "127.0.0.1",
                 "--webui-port", "0", *arguments],
                env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )
        )  # fmt: skip

    address = f"spark://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        stack.enter_context(start("master.Master", "--port", str(port)))
        one = ("worker.Worker", "--cores", "1", "--memory", "1g", "--work-dir", folder, address)
        yield address, [stack.enter_context(start(*one)) for _ in range(2)]


def child_of(process, word):
    """A child that has a word in its command line."""
    for child in process.children():
        with contextlib.suppress(psutil.Error):  # one that has ended
            if word in " ".join(child.cmdline()):
                return child


def executor_of(worker):
    """The executor's JVM of a standalone worker."""
    return child_of(psutil.Process(worker.pid), "CoarseGrainedExecutorBackend")


def python_worker_of(worker):
    """Spark's Python worker in which a rank's task runs: below the executor's Python daemon."""
    daemon = child_of(executor_of(worker), "pyspark.daemon")
    for process in daemon.children():
        with contextlib.suppress(psutil.Error):
            if process.children():
                return process


@pytest.mark.slow
@pytest.mark.cluster
def test_an_executor_and_a_python_worker_are_killed_on_a_cluster(store, tmp_path, clean, cluster):
    run, (address, workers) = tmp_path / "run", cluster
    process = begin_job(
        store, run, f"--master {address} --executor-cores 1 --executor-memory 512m pyspark-shell"
    )
    told = []
    with ended(process):
        for line in process.stderr:
            told.append(line)
            if re.match(r" +1  .+ best so far", line):
                executor_of(workers[0]).kill()
            if re.match(r" +2  ", line):
                python_worker_of(workers[1]).kill()
        assert process.wait() == 0, "".join(told)
    for number in (1, 2):
        assert any(f"; restart {number} of 3 at epoch" in line for line in told), "".join(told)
    history = (locate(str(run)) / "history").read_table().to_pandas()
    assert_as_clean(run, history, clean)


def test_a_finished_run_says_so_and_another_config_is_refused(spark, store, capfd, clean):
    history, _, run = clean
    again = train(spark, data=store.path, run=str(run), **RECIPE)
    assert again["epoch"].tolist() == history["epoch"].tolist()
    assert "is finished: 3 epochs" in capfd.readouterr().out
    with pytest.raises(UserError, match=r"learning_rate was 0\.0001, now 0\.1; seed was 0, now 5"):
        train(spark, data=store.path, run=str(run), **RECIPE | {"learning_rate": 0.1, "seed": 5})
    with pytest.raises(UserError, match="has files in it, but no run"):
        train(spark, data=store.path, run=str(run / "logs"), **RECIPE)
