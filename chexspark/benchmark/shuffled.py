"""Steps whose gradients Spark's shuffle carries, measured. Runs on the driver.

In: a session, `Shared`. Out: `WayFound`. It is the way of BigDL (Dai et al. 2019, "BigDL: A Distributed Deep Learning
Framework for Big Data", on parameter synchronisation): a step is two stages, of which the first computes gradients and
cuts them into slices, and the second sums a slice in a task, updates its weights and hands them to all tasks of the
next step. BigDL itself runs each half as a job, and hands weights on through Spark's block manager; here both are
shuffles, of PySpark's RDDs.

All measured steps are one Spark job: a job per step took a third longer where tasks did nothing. What tasks have written stays on disk
until it is over: (2 × ranks + 1) × gradients per step. Tasks compute as ranks do, in an environment like theirs; the
network stays in the Python workers.
"""

import contextlib
import functools
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from pyspark import RDD, AccumulatorParam, SparkContext
from pyspark.sql import SparkSession

from chexspark.benchmark.exchange import joined, shares
from chexspark.benchmark.shared_work import Shared, WayFound
from chexspark.benchmark.shuffle_tasks import TaskTime, arrived, compute_gradient, update_slice
from chexspark.session import hand_to_tasks
from chexspark.spark_progress import JOB_GROUP, watched


class Listed(AccumulatorParam):
    """An accumulator of lists: what each task adds."""

    def zero(self, value: list) -> list:
        """None."""
        return []

    def addInPlace(self, value1: list, value2: list) -> list:  # noqa: N802
        """Both."""
        value1.extend(value2)
        return value1


def measure_shuffle(
    spark: SparkSession, shared: Shared, environment: dict[str, str], what: str
) -> WayFound:
    """Train in Spark tasks. `environment`: of ranks; `what`: words for the progress line.

    Raises RunFailedError when a task fails, StoppedError when its job is cancelled.
    """
    context, ranks = spark.sparkContext, shared.ranks
    times: Any = context.accumulator([], Listed())
    rows = shared.training.config.batch_size

    def images() -> int:
        return rows * sum(each.loss is not None for each in list(times.value))

    with (
        in_environment(context, environment),
        watched(spark, what, (shared.steps + 1) * ranks * rows, images),
    ):
        state = step_of(context.parallelize([], ranks), shared, times, 0)
        state.mapPartitions(arrived).collect()  # builds and compiles
        group = context.getLocalProperty(JOB_GROUP)
        earlier = set(context.statusTracker().getJobIdsForGroup(group))
        began = time.perf_counter()
        for step in range(1, shared.steps + 1):
            state = step_of(state, shared, times, step)
        state.mapPartitions(arrived).collect()
        seconds = time.perf_counter() - began
        written = shuffled_bytes(context, group, earlier)
        end = joined(value for _, value in state.mapPartitionsWithIndex(only_first).collect())
    return way_found(shared, seconds, written, times.value, end)


def step_of(state: RDD, shared: Shared, times: Any, step: int) -> RDD:
    """A step as two stages: slices of weights for each task in, and out."""
    first = functools.partial(compute_gradient, shared, times, step)
    second = functools.partial(update_slice, shared, times, step)
    for half in (first, second):
        state = state.mapPartitionsWithIndex(half).partitionBy(shared.ranks, int)
    return state


def only_first(number: int, records: Iterator) -> Iterator:
    """The records of the first partition."""
    return records if number == 0 else iter(())


def way_found(
    shared: Shared, seconds: float, written: int, times: list[TaskTime], end: np.ndarray
) -> WayFound:
    """What tasks have said, together; `written`: bytes, `end`: float32 (weights,)."""
    losses = [0.0] * (shared.steps + 1)
    for each in times:
        losses[each.step] += each.loss or 0.0
    measured = [each for each in times if each.step]
    of_ranks = [[each for each in measured if each.rank == rank] for rank in range(shared.ranks)]
    kinds = [
        [sum(getattr(each, kind) for each in mine) for mine in of_ranks]
        for kind in ("compute", "exchange")
    ]
    return WayFound(
        seconds, written / shared.ranks / shared.steps, shares(seconds, *kinds), losses, end,
        fresh=sum(each.built for each in measured),
    )  # fmt: skip


def shuffled_bytes(context: SparkContext, group: str, earlier: set[int]) -> int:
    """What stages of a group's jobs, but for the `earlier` ones, have written for the next, by Spark's own count."""
    scala, tracker = context._jsc.sc(), context.statusTracker()
    scala.listenerBus().waitUntilEmpty()  # it counts in a thread of its own
    jobs = [tracker.getJobInfo(job) for job in set(tracker.getJobIdsForGroup(group)) - earlier]
    stages = {stage for job in jobs if job for stage in job.stageIds}
    store = scala.statusStore()
    return sum(store.lastStageAttempt(stage).shuffleWriteBytes() for stage in stages)


@contextlib.contextmanager
def in_environment(context: SparkContext, environment: dict[str, str]) -> Iterator[None]:
    """Inside, the Python workers of new tasks have these variables: Spark starts others for it."""
    before = {name: context.environment.get(name) for name in environment}
    for name, value in environment.items():
        hand_to_tasks(name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            hand_to_tasks(name, value)
