"""A Spark job with a progress line, and its failure in one line. Runs on the driver."""

import contextlib
import functools
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator

from py4j.protocol import Py4JError
from pyspark import StatusTracker
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession

from chexspark.errors import RunFailedError
from chexspark.progress import ProgressLine, duration
from chexspark.session import java_is_gone

POLL_SECONDS = 0.5
LONGEST_REASON = 300
JOB_PROPERTIES = ("spark.jobGroup.id", "spark.job.description", "spark.job.interruptOnCancel")
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
    context, group = spark.sparkContext, f"chexspark-{uuid.uuid4().hex}"
    done = done or functools.partial(by_tasks, context.statusTracker(), group, images)
    finished = threading.Event()
    watcher = threading.Thread(target=watch, args=(what, images, done, finished), daemon=True)
    before = {name: context.getLocalProperty(name) for name in JOB_PROPERTIES}
    context.setJobGroup(group, f"chexspark: {what}")
    watcher.start()
    try:
        yield
    except (Py4JError, PySparkException) as error:
        if java_is_gone(error):
            raise
        raise RunFailedError(
            f"{what} stopped: {reason(str(error) or type(error).__name__)}{remedy}"
        ) from error
    finally:
        finished.set()
        watcher.join()
        with contextlib.suppress(Py4JError, OSError):  # where Java is gone
            for name, value in before.items():
                context.setLocalProperty(name, value)


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


def by_tasks(tracker: StatusTracker, group: str, images: int | None) -> int:
    """Of `images`, the share of the group's finished tasks."""
    done, tasks = finished_tasks(tracker, group)
    return (images or 0) * done // max(1, tasks)


def finished_tasks(tracker: StatusTracker, group: str) -> tuple[int, int]:
    """Finished tasks and all tasks of the group's largest stage."""
    jobs = [tracker.getJobInfo(job) for job in tracker.getJobIdsForGroup(group)]
    stages = [tracker.getStageInfo(stage) for job in jobs if job for stage in job.stageIds]
    counts = [(stage.numTasks, stage.numCompletedTasks) for stage in stages if stage]
    tasks, done = max(counts, default=(0, 0))
    return done, tasks


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
