"""A Spark job with a progress line, and its failure in one line. Runs on the driver."""

import contextlib
import re
import threading
import time
import uuid

from py4j.protocol import Py4JError
from pyspark.errors import PySparkException

from chexspark.errors import RunFailed
from chexspark.progress import ProgressLine, duration

POLL_SECONDS = 0.5
LONGEST_REASON = 300
EXCEPTION = re.compile(r"[A-Za-z_][\w.]*: ")


@contextlib.contextmanager
def watched(spark, what: str, images: int):
    """Show how many of `images` are done, by finished tasks, while Spark jobs run inside.

    Raises RunFailed with the reason when a job fails.
    """
    context, group = spark.sparkContext, f"chexspark-{uuid.uuid4().hex}"
    finished = threading.Event()
    watcher = threading.Thread(
        target=watch, args=(context, group, what, images, finished), daemon=True
    )
    context.setJobGroup(group, f"chexspark: {what}")
    watcher.start()
    try:
        yield
    except (Py4JError, PySparkException) as error:
        raise RunFailed(f"{what} stopped: {reason(error)}") from error
    finally:
        finished.set()
        watcher.join()
        context.setLocalProperty("spark.jobGroup.id", None)
        context.setLocalProperty("spark.job.description", None)


def watch(context, group: str, what: str, images: int, finished: threading.Event) -> None:
    started = time.monotonic()
    tracker = context.statusTracker()
    with ProgressLine() as line:
        while not finished.wait(POLL_SECONDS):
            done, tasks = finished_tasks(tracker, group)
            seconds = time.monotonic() - started
            if not done:
                line.show(f"{what}: starting, {duration(seconds)}")
                continue
            so_far = images * done // tasks
            left = duration(seconds * (tasks - done) / done)
            line.show(f"{what}: {so_far:,} of {images:,} images, {so_far / seconds:.1f} images/s, {left} left")  # fmt: skip


def finished_tasks(tracker, group: str) -> tuple[int, int]:
    """Finished tasks and all tasks of the group's largest stage."""
    jobs = [tracker.getJobInfo(job) for job in tracker.getJobIdsForGroup(group)]
    stages = [tracker.getStageInfo(stage) for job in jobs if job for stage in job.stageIds]
    counts = [(stage.numTasks, stage.numCompletedTasks) for stage in stages if stage]
    tasks, done = max(counts, default=(0, 0))
    return done, tasks


def reason(error: Exception) -> str:
    """What a task's own exception says, without the stacks of Python and Java around it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    traces = [i for i, line in enumerate(lines) if line.startswith("Traceback (most recent")]
    raised = [line for line in lines[traces[-1] if traces else 0 :] if EXCEPTION.match(line)]
    caused = [line.removeprefix("Caused by: ") for line in lines if line.startswith("Caused by: ")]
    java = [line.removeprefix(": ") for line in lines if line.startswith(": ")]
    found = (raised or caused[-1:] or java or lines or [type(error).__name__])[0]
    return found.rpartition("chexspark.")[2][:LONGEST_REASON]
