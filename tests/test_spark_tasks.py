"""Functions in Spark tasks."""

import os

import pyarrow as pa
import pytest

from chexspark.spark_tasks import in_tasks

FACTORY = "PYTHON_WORKER_FACTORY_SECRET"  # another for each pool of Python workers that Spark keeps


def test_results_come_in_the_order_of_their_items(spark):
    assert in_tasks(spark, list("cab"), lambda item: (item, [item] * 2)) == [
        ("c", ["c", "c"]),
        ("a", ["a", "a"]),
        ("b", ["b", "b"]),
    ]
    assert in_tasks(spark, [], str) == []


def test_workers_are_those_that_score(spark):
    """A model that scoring has loaded is there for maps: RDDs have workers of their own."""

    def factory(batches):
        for batch in batches:
            yield pa.RecordBatch.from_arrays([pa.array([os.environ[FACTORY]] * len(batch))], ["f"])

    (row,) = spark.range(0, 1, 1, 1).mapInArrow(factory, "f string").collect()
    assert in_tasks(spark, [FACTORY], os.getenv) == [row.f]


def test_what_fails_in_a_task_is_raised(spark):
    with pytest.raises(Exception, match="ZeroDivisionError"):
        in_tasks(spark, [1, 0], lambda item: 1 // item)
