"""The numbers of ranks that a suite measures. Runs on the driver."""

from collections.abc import Sequence

from pyspark.sql import SparkSession

from chexspark.cluster.slots import check_ranks


def numbers_of_ranks(spark: SparkSession, given: Sequence[int]) -> list[int]:
    """Those given, fewest first; where none are, 1, 2, 4 … and all of Spark's task slots.

    Waits for executors as a training does. Raises UserError where Spark has not the slots, StoppedError when its
    application ends.
    """
    slots = check_ranks(spark, max(given, default=None), setting="--ranks")
    return sorted(set(given) or {2**power for power in range(slots.bit_length())} | {slots})
