"""The numbers of ranks that a suite measures. Runs on the driver."""

import itertools
from collections.abc import Sequence

from pyspark.sql import SparkSession

from chexspark.cluster.slots import (
    SETTLED_SECONDS,
    WAIT_SECONDS,
    how_to_have,
    shortage,
    slots_text,
    wait_for_slots,
)
from chexspark.errors import UserError
from chexspark.session import UNBOUNDED


def numbers_of_ranks(spark: SparkSession, asked: Sequence[int]) -> list[int]:
    """Those asked for, in their order; without any 1, 2, 4 … up to Spark's task slots.

    Waits for executors as a training does. Raises UserError where there are too few slots for the most, StoppedError
    when Spark's application ends.
    """
    most = max(asked, default=UNBOUNDED)
    found, waited = wait_for_slots(
        spark, most, max(asked, default=1), WAIT_SECONDS, SETTLED_SECONDS
    )
    if not found.slots:
        raise UserError(shortage(found, None, waited))
    if asked and most > found.slots:
        raise UserError(
            f"--ranks has {most}, but Spark has {slots_text(found.slots)}: leave it out, or "
            f"{how_to_have(found, most)}"
        )
    if found.slots == UNBOUNDED and not asked:
        raise UserError(
            "--ranks is missing, and Spark would allocate executors without end: give it, or set "
            "spark.dynamicAllocation.maxExecutors"
        )
    return list(dict.fromkeys(asked)) or powers_of_two(found.slots)


def powers_of_two(most: int) -> list[int]:
    """1, 2, 4 … up to `most`."""
    return list(
        itertools.takewhile(lambda number: number <= most, (2**n for n in itertools.count()))
    )
