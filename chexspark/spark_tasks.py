"""Plain functions in Spark tasks. Runs on the driver and in Spark tasks.

In: items, a function, both pickled. Out: what the function returns. The Python workers are those of
`DataFrame.mapInArrow`, so that models that scoring has loaded are there: Spark keeps others for RDDs.
"""

import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import pyarrow as pa
from pyspark.sql import SparkSession

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_tasks(
    spark: SparkSession, items: Sequence[Item], function: Callable[[Item], Result]
) -> list[Result]:
    """What `function` returns for each item, in their order, a task each. Raises what Spark raises."""

    def work(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            for number in batch.column(0).to_pylist():
                result = pickle.dumps(function(items[number]))
                yield pa.RecordBatch.from_arrays([pa.array([result], pa.binary())], ["result"])

    tasks = spark.range(0, len(items), 1, len(items))
    return [
        pickle.loads(row["result"]) for row in tasks.mapInArrow(work, "result binary").collect()
    ]
