"""Spark jobs that other threads start for a caller: they stay in the caller's job group. Runs on the driver.

In: the session and what the jobs are called. Out: whether they were cancelled with the caller's group, and how
many tasks they have. They are told from the caller's other jobs by a tag, and so can be ended alone.
"""

import contextlib
import uuid

from py4j.protocol import Py4JError
from pyspark.sql import SparkSession

from chexspark.errors import StoppedError
from chexspark.spark_progress import JOB_GROUP, stages_of, was_cancelled

CANCELLED = "its Spark jobs were cancelled"


class JobGroup:
    """Made in the caller's thread; `enter` is called in the thread that starts the jobs."""

    def __init__(self, spark: SparkSession, name: str) -> None:
        self.context, self.tag = spark.sparkContext, f"chexspark-{name}-{uuid.uuid4().hex}"
        self.callers = self.context.getLocalProperty(JOB_GROUP)
        self.group = self.callers or self.tag
        self.tracker = self.context.statusTracker()
        self.earlier = frozenset(self.tracker.getJobIdsForGroup(self.group))
        self.cancelled = False  # by somebody else

    def enter(self, description: str) -> None:
        """Have the jobs that this thread starts belong to the group."""
        self.context.setJobGroup(self.group, description, interruptOnCancel=True)
        self.context.addJobTag(self.tag)

    def cancel(self) -> None:
        """End these jobs, and no other of the group; nothing happens where Spark has ended."""
        with contextlib.suppress(Py4JError, OSError, AttributeError):
            self.context.cancelJobsWithTag(self.tag)

    def note(self, error: BaseException) -> None:
        """Take note of what has ended a job.

        PySpark answers Ctrl-C by cancelling all jobs: where ranks run for another thread, they are told so.
        """
        if was_cancelled(error) and self.tag not in str(error):
            self.cancelled = True

    def check_not_cancelled(self) -> None:
        """Raise StoppedError where somebody else has cancelled them."""
        if self.cancelled:
            raise StoppedError(CANCELLED)

    def task_counts(self) -> tuple[int, int]:
        """Tasks that run, and tasks that have ended well, of the jobs, which have one stage."""
        stages = stages_of(self.tracker, self.group, self.earlier)
        counts = [(stage.numActiveTasks, stage.numCompletedTasks) for stage in stages]
        return max(counts, key=sum, default=(0, 0))
