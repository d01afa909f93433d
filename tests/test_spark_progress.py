"""What failed, in one line, from the texts of Spark's errors; and the progress line."""

import signal
import subprocess
import sys
import threading

import pytest

from chexspark import spark_progress
from chexspark.errors import RunFailedError
from chexspark.spark_progress import progress_text, reason, watch, watched

ABORTED = (
    "An error occurred while calling z:org.apache.spark.api.python.PythonRDD.collectAndServe.\n"
    ": org.apache.spark.SparkException: Job aborted due to stage failure: Task 0 in stage 1.0 failed "
    "4 times, most recent failure: Lost task 0.3 in stage 1.0 (TID 7) (10.0.0.1 executor 1): "
)
STACK = "\tat org.apache.spark.api.python.BasePythonRunner.read(PythonRunner.scala:572)\n"
FRAMES = (
    "Traceback (most recent call last):\n"
    '  File "/usr/lib/pyspark/worker.py", line 1247, in main\n'
    "    raise ValueError: source.code\n"
    "          ^^^^^^^^^^\n"
)
PATH = "OSError: [Errno 5] Input/output error: '/mnt/chexspark.store/train/part-0'"
CHAINED = f"{FRAMES}KeyError: 'first'\n\nDuring handling of the above exception, another exception occurred:\n\n{FRAMES}"
OWN = "chexspark.store.row_groups.DamagedStoreError: /mnt/chexspark.store/a: changed"
PYTHON = "org.apache.spark.api.python.PythonException: "


@pytest.mark.parametrize(
    "text, expected",
    [
        (f"{ABORTED}{PYTHON}{FRAMES}{PATH}\n\n{STACK}\nDriver stacktrace:\n{STACK}Caused by: {PYTHON}{FRAMES}{PATH}\n\n\t... 1 more\n", PATH),
        (f"\n  An exception was thrown from the Python worker. Please see the stack trace below.\n{FRAMES}{PATH}\n", PATH),
        (f"{ABORTED}{PYTHON}{CHAINED}{OWN}\nsecond line\n\n{STACK}", "DamagedStoreError: /mnt/chexspark.store/a: changed"),
        (f"{FRAMES}KeyboardInterrupt\n", "KeyboardInterrupt"),
        (f"{ABORTED}java.io.IOException: Mkdirs failed: file:/x\n{STACK}\nDriver stacktrace:\nCaused by: java.io.IOException: Mkdirs failed: file:/x\n\t... 1 more", "IOException: Mkdirs failed: file:/x"),
        (f"{ABORTED}org.apache.spark.SparkException: Python worker exited unexpectedly (crashed)\n{STACK}Caused by: java.io.EOFException\n\t... 32 more\n\nDriver stacktrace:\nCaused by: org.apache.spark.SparkException: Python worker exited unexpectedly (crashed)\nCaused by: java.io.EOFException\n", "SparkException: Python worker exited unexpectedly (crashed)"),
        (f"{ABORTED}ExecutorLostFailure (executor 1 exited caused by one of the running tasks) Reason: Command exited with code 137\nDriver stacktrace:\n{STACK}", "ExecutorLostFailure (executor 1 exited caused by one of the running tasks) Reason: Command exited with code 137"),
        ("[PATH_NOT_FOUND] Path does not exist: file:/nowhere.", "[PATH_NOT_FOUND] Path does not exist: file:/nowhere."),
        ("model.keras: not a zip file", "model.keras: not a zip file"),
        ("", "no reason was given"),
    ],
)  # fmt: skip
def test_the_reason_is_what_the_innermost_exception_says(text, expected):
    assert reason(text) == expected


def test_a_task_that_fails(spark):
    def fail(_):
        raise OSError(5, "Input/output error", "/mnt/chexspark.store/part")

    with (
        pytest.raises(RunFailedError) as caught,
        watched(spark, "ingest", 1, remedy="; run it again"),
    ):
        spark.sparkContext.parallelize([1], 1).map(fail).collect()
    assert str(caught.value) == (
        "ingest stopped: OSError: [Errno 5] Input/output error: '/mnt/chexspark.store/part'; run it again"
    )


def test_the_caller_s_job_group_is_given_back(spark):
    context = spark.sparkContext
    context.setJobGroup("mine", "my job")
    try:
        with watched(spark, "scoring", 10):
            assert context.getLocalProperty("spark.job.description") == "chexspark: scoring"
        assert context.getLocalProperty("spark.jobGroup.id") == "mine"
        assert context.getLocalProperty("spark.job.description") == "my job"
    finally:
        context.setLocalProperty("spark.jobGroup.id", None)
        context.setLocalProperty("spark.job.description", None)


def test_the_line_outlives_a_count_that_fails(monkeypatch):
    monkeypatch.setattr(spark_progress, "POLL_SECONDS", 0)
    finished, counts = threading.Event(), iter([OSError("gone"), 3])

    def done():
        found = next(counts)
        if isinstance(found, Exception):
            raise found
        finished.set()
        return found

    watch("ingest", 10, done, finished)
    assert finished.is_set()


@pytest.mark.parametrize(
    "so_far, images, expected",
    [
        (0, 10, "starting, 0:10"),
        (20, 100, "20 of 100 images, 2.0 images/s, 0:40 left"),
        (120, 100, "100 of 100 images, 12.0 images/s, 0:00 left"),
        (1500, None, "1,500 images, 150.0 images/s"),
    ],
)
def test_what_the_line_says(so_far, images, expected):
    assert progress_text(so_far, images, 10.0) == expected


STARTING = """
import subprocess
from chexspark.session import stop_session
both = [subprocess.Popen(["bash", "-c", f"read; : {what}"], stdin=subprocess.PIPE) for what in ("spark-submit", "x")]
stop_session()
print(both[0].wait(), both[1].poll())
both[1].kill()
"""


def test_a_java_process_that_was_being_started_is_ended():
    """In a process of its own: this one has a Spark that is to live."""
    ran = subprocess.run(
        [sys.executable, "-c", STARTING], capture_output=True, text=True, check=True
    )
    assert ran.stdout.split() == [f"-{int(signal.SIGKILL)}", "None"]
