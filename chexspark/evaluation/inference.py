"""A model over many images in Spark tasks. Runs on the driver and in Spark tasks.

In: a split of a store, the runs' best models. Out: a DataFrame of one row per image: image_index,
patient_id, view_position, sex, age, follow_up, ``prob_<Finding>``, ``label_<Finding>``.
A task reads one row group with pyarrow, checks it as training does, and hands Arrow batches on; the
Python worker that Spark keeps for its tasks loads the models once.
"""

import contextlib
import functools
import gc
import os
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession

from chexspark.findings import FINDINGS
from chexspark.session import task_slots
from chexspark.storage import locate
from chexspark.store.row_groups import RowGroup, read_row_group

PROBABILITY, LABEL = "prob_", "label_"
STORED_COLUMNS = {"image_index": "string", "patient_id": "string", "view_position": "string",
         "sex": "string", "age": "smallint", "follow_up": "smallint"}  # fmt: skip
PROBABILITIES = [f"{PROBABILITY}{finding} double" for finding in FINDINGS]
COLUMNS = [f"{name} {kind}" for name, kind in STORED_COLUMNS.items()] + PROBABILITIES
COLUMNS += [f"{LABEL}{finding} tinyint" for finding in FINDINGS]
MIN_TASKS, TASKS_PER_SLOT = 32, 4  # a task costs 0.2 s beside the model; progress comes by tasks


@dataclass(frozen=True)
class Scorer:
    """What a task needs to score images; plain values."""

    models: tuple[tuple[str, str], ...]  # (URI of model.keras, its digest)
    flip: bool  # also score the mirror image, and average
    batch_size: int


def score_split(
    spark: SparkSession, groups: list[RowGroup], size: int, scorer: Scorer
) -> DataFrame:
    """Score the images of row groups, in enough tasks that slow hosts do not hold up. Lazy."""
    tasks = min(len(groups), max(MIN_TASKS, TASKS_PER_SLOT * task_slots(spark)))
    positions = spark.range(0, len(groups), 1, tasks)
    return positions.mapInArrow(split_scorer(groups, size, scorer), ", ".join(COLUMNS))


def split_scorer(groups: list[RowGroup], size: int, scorer: Scorer):
    """The function that a Spark task maps over its Arrow batches of row group positions."""

    def score(batches):
        for batch in batches:
            for position in batch.column(0).to_pylist():
                read = read_row_group(groups[position], size, tuple(STORED_COLUMNS))
                probabilities = probabilities_of(read.images, scorer)
                arrays = [read.others[name].combine_chunks() for name in STORED_COLUMNS]
                arrays += [pa.array(column) for column in probabilities.T]
                arrays += [pa.array(column, pa.int8()) for column in read.labels.T]
                names = [column.split()[0] for column in COLUMNS]
                yield pa.RecordBatch.from_arrays(arrays, names)

    return score


def probabilities_of(images: np.ndarray, scorer: Scorer) -> np.ndarray:
    """The mean probability over models and, with `flip`, mirror images: float64 (rows, 14).

    `images`: uint8 (rows, size, size).
    """
    models = load_models(scorer.models)
    import tensorflow as tf

    views = [images, images[:, :, ::-1]] if scorer.flip else [images]
    total = np.zeros((len(images), len(FINDINGS)))
    for start in range(0, len(images), scorer.batch_size):
        part = slice(start, start + scorer.batch_size)
        for model in models:
            for view in views:
                pixels = np.ascontiguousarray(view[part, ..., None])
                logits = model(tf.constant(pixels)).numpy()
                total[part] += 1 / (1 + np.exp(-logits.astype(np.float64)))
    return total / (len(models) * len(views))


@functools.lru_cache(maxsize=1)
def load_models(models: tuple[tuple[str, str], ...]) -> tuple:
    """Compiled functions uint8 (n, size, size, 1) → logits (n, 14) of some ``model.keras``."""
    loaded = [load_keras(*model) for model in models]
    import tensorflow as tf

    compiled = tuple(
        tf.function(
            functools.partial(model, training=False),
            input_signature=[tf.TensorSpec((None, *model.input_shape[1:]), tf.uint8)],
        ).get_concrete_function()
        for model in loaded
    )
    # Spark collects garbage after every task: 0.4 s over TensorFlow's objects, unless they are set aside.
    gc.freeze()
    return compiled


# Once per Python worker, which runs many tasks; the digest tells a model from one before it.
@functools.lru_cache(maxsize=8)
def load_keras(uri: str, digest: str):
    """Load a ``model.keras`` in a Spark task, on the cores that the task has."""
    from pyspark import TaskContext

    # A task that took more threads than its cores would take them from its neighbours.
    context = TaskContext.get()
    os.environ["TF_NUM_INTRAOP_THREADS"] = str(context.cpus() if context else 1)
    os.environ["TF_NUM_INTEROP_THREADS"] = "1"
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    os.environ["TF_FORCE_GPU_ALLOW_GROWTH"] = "true"  # the workers of a host share its GPUs
    with quiet_errors():
        import tf_keras as keras

    with locate(uri).local_copy() as path:
        return keras.models.load_model(path, compile=False, safe_mode=True)


@contextlib.contextmanager
def quiet_errors():
    """Keep what C++ libraries write to standard error while they load off the driver's screen."""
    kept, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)
