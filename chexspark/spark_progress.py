"""A Spark job with a progress line, and its failure in one line. Runs on the driver."""

import contextlib
import functools
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator

from py4j.protocol import Py4JError
from pyspark import SparkStageInfo, StatusTracker
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession

from chexspark.errors import RunFailedError, StoppedError
from chexspark.progress import ProgressLine, duration
from chexspark.session import is_connect, java_is_gone

POLL_SECONDS = 0.5
LONGEST_REASON = 300
JOB_GROUP = "spark.jobGroup.id"
# Spark 3.5 has no code for it, only these words.
CANCELLED = re.compile(
    r"SPARK_JOB_CANCELLED|OPERATION_CANCELED|cancelled part of cancelled job (group|tag)"
    r"|cancelled as part of cancellation of all jobs"
)
JOB_PROPERTIES = (JOB_GROUP, "spark.job.description", "spark.job.interruptOnCancel")
TRACEBACK = "Traceback (most recent call last):"
EXCEPTION = re.compile(r"^(?:[A-Za-z_][\w$]*\.)+([A-Z]\w*(?=:|$))")  # package.Name: message
AROUND = re.compile(r"^.*?most recent failure: Lost task \S+ in stage \S+ \(TID \d+\) \([^)]*\): ")


@contextlib.contextmanager
def watched(
    spark: SparkSession,
    what: str,
    images: int | None,
    done: Callable[[], int] | None = None,
    remedy: str = "",
) -> Iterator[None]:
    """Show how many of `images` are done while Spark jobs run inside; None: nobody knows of how many.

    `done`: a function that counts them; by default they are taken from the share of finished tasks.
    Raises RunFailedError with the reason, and `remedy` after it, when a job fails.
    """
    if is_connect(spark):  # which draws bars of its own
        with failures_told(what, remedy):
            yield
        return
    context = spark.sparkContext
    users = context.getLocalProperty(JOB_GROUP)  # kept, so that who cancels it ends these jobs too
    group = users or f"chexspark-{uuid.uuid4().hex}"
    tracker = context.statusTracker()
    earlier = frozenset(tracker.getJobIdsForGroup(group))
    done = done or functools.partial(by_tasks, tracker, group, images, earlier)
    finished = threading.Event()
    watcher = threading.Thread(target=watch, args=(what, images, done, finished), daemon=True)
    before = {name: context.getLocalProperty(name) for name in JOB_PROPERTIES}
    context.setJobGroup(group, f"chexspark: {what}")
    watcher.start()
    try:
        with failures_told(what, remedy):
            yield
    finally:
        finished.set()
        watcher.join()
        with contextlib.suppress(Py4JError, OSError):  # where Java is gone
            for name, value in before.items():
                context.setLocalProperty(name, value)


@contextlib.contextmanager
def failures_told(what: str, remedy: str) -> Iterator[None]:
    """Inside, what Spark raises becomes a RunFailedError with the reason, and `remedy` after it.

    Raises StoppedError where the jobs' group, tag or operation was cancelled.
    """
    try:
        yield
    except (Py4JError, PySparkException) as error:
        if java_is_gone(error):
            raise
        if was_cancelled(error):
            raise StoppedError(f"{what} stopped: its Spark jobs were cancelled{remedy}") from error
        raise RunFailedError(
            f"{what} stopped: {reason(str(error) or type(error).__name__)}{remedy}"
        ) from error


def was_cancelled(error: BaseException) -> bool:
    """Whether an error of Spark says that somebody has cancelled the job: by its group, tag, or all jobs."""
    return CANCELLED.search(str(error)) is not None


def watch(
    what: str, images: int | None, done: Callable[[], int], finished: threading.Event
) -> None:
    """Show the line until `finished`. A count that fails is tried again: it is the job that matters."""
    started = time.monotonic()
    with ProgressLine() as line:
        while not finished.wait(POLL_SECONDS):
            try:
                so_far = done()
            except (OSError, Py4JError, PySparkException):
                continue
            line.show(f"{what}: {progress_text(so_far, images, time.monotonic() - started)}")


def progress_text(so_far: int, images: int | None, seconds: float) -> str:
    """``20 of 100 images, 2.0 images/s, 0:40 left``, as far as it is known."""
    if not so_far:
        return f"starting, {duration(seconds)}"
    rate = f"{so_far / seconds:.1f} images/s"
    if images is None:
        return f"{so_far:,} images, {rate}"
    so_far = min(so_far, images)
    return f"{so_far:,} of {images:,} images, {rate}, {duration(seconds * (images - so_far) / so_far)} left"


def by_tasks(
    tracker: StatusTracker, group: str, images: int | None, earlier: frozenset[int] = frozenset()
) -> int:
    """Of `images`, the share of the group's finished tasks; without those of `earlier` jobs."""
    done, tasks = finished_tasks(tracker, group, earlier)
    return (images or 0) * done // max(1, tasks)


def finished_tasks(
    tracker: StatusTracker, group: str, earlier: frozenset[int] = frozenset()
) -> tuple[int, int]:
    """Finished tasks and all tasks of the group's largest stage, of other than the `earlier` jobs."""
    counts = [
        (stage.numTasks, stage.numCompletedTasks) for stage in stages_of(tracker, group, earlier)
    ]
    tasks, done = max(counts, default=(0, 0))
    return done, tasks


def stages_of(
    tracker: StatusTracker, group: str, earlier: frozenset[int] = frozenset()
) -> list[SparkStageInfo]:
    """The stages that Spark knows of a group's jobs, of other than the `earlier` ones."""
    numbers = [job for job in tracker.getJobIdsForGroup(group) if job not in earlier]
    jobs = [tracker.getJobInfo(job) for job in numbers]
    stages = [tracker.getStageInfo(stage) for job in jobs if job for stage in job.stageIds]
    return [stage for stage in stages if stage]


def reason(text: str) -> str:
    """Of the text of an error of Spark, what the task's own exception says, in one line.

    Python's exception goes before Java's, the innermost of Java's before those around it; the name
    of a module or package before an exception's is left out.
    """
    lines = text.splitlines()
    traces = [i for i, line in enumerate(lines) if line.endswith(TRACEBACK)]
    # The frames of a traceback are indented; the first line after them is the exception.
    after = lines[traces[-1] + 1 :] if traces else []
    raised = next((line for line in after if line and not line[0].isspace()), None)
    found = raised or java_reason(lines) or "no reason was given"
    return EXCEPTION.sub(r"\1", found)[:LONGEST_REASON]


def java_reason(lines: list[str]) -> str | None:
    """The innermost cause that says something, else the first line that does."""
    lines = [line.strip() for line in lines]
    caused = [line.removeprefix("Caused by: ") for line in lines if line.startswith("Caused by: ")]
    outer = [line.removeprefix(": ") for line in lines if line.startswith(": ")]
    telling = (
        [line for line in caused if ": " in line][-1:] + outer + [line for line in lines if line]
    )
    return AROUND.sub("", telling[0]) if telling else None
