"""A model over many images in Spark tasks. Runs on the driver and in Spark tasks.

In: a split of a store, the runs' best models. Out: a DataFrame of one row per image: image_index,
patient_id, what the store knows of patient and study, ``prob_<Finding>``, ``label_<Finding>``.
A task reads one row group with pyarrow, checks it as training does, and hands Arrow batches on; the
Python worker that Spark keeps for its tasks loads the models once.
"""

import functools
import gc
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from scipy.special import expit

from chexspark.evaluation.predictions import label_column, probability_column
from chexspark.evaluation.task_device import task_device
from chexspark.evaluation.views import number_of_views, views
from chexspark.reduction import reduced
from chexspark.session import task_slots
from chexspark.storage import locate
from chexspark.store.manifest import Manifest
from chexspark.store.row_groups import RowGroup, read_row_group
from chexspark.store.schema import FACTS, parquet_schema
from chexspark.user_code import Code

STORED_COLUMNS = {"image_index": pa.string(), "patient_id": pa.string()} | {
    name: kind for name, (kind, _) in FACTS.items()
}
SPARK_TYPES = {pa.string(): "string", pa.int16(): "smallint"}
DEVICES = 8  # GPUs of a host
# A task costs 0.2 s beside the model: so it has work for longer, 256 images of 64x64 or 21 of 224x224. Progress comes
# by tasks, and slow hosts take fewer.
PIXELS_PER_TASK, MANY_TASKS, TASKS_PER_SLOT = 1 << 20, 32, 4

Batches = Iterable[pa.RecordBatch]


@dataclass(frozen=True)
class Model:
    """A ``model.keras`` as tasks take it; plain values."""

    uri: str
    digest: str  # SHA-256, which tells it from one before it
    findings: tuple[str, ...]  # in the order of its outputs
    network: str  # the name of one of `models.MODELS`, or of the user's own
    size: int  # height and width of the images that it takes, pixels: those of larger ones are reduced
    code: Code | None = None  # of a network of the user's own
    same_code: bool = True  # as it was when the run was trained


@dataclass(frozen=True)
class Scorer:
    """What a task needs to score images; plain values. Every model has all of `findings`."""

    models: tuple[Model, ...]
    findings: tuple[str, ...]  # those to score, in the order of the columns
    tta: tuple[str, ...]  # what is scored beside each image, and averaged: see `views`
    batch_size: int


def positions(findings: Sequence[str], among: Sequence[str]) -> list[int]:
    """Where findings stand among others. Raises ValueError for one that is not there."""
    return [among.index(finding) for finding in findings]


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """The probabilities of logits (rows, findings), float64 (rows, findings)."""
    return expit(logits.astype(np.float64))


def score_split(
    spark: SparkSession,
    groups: list[RowGroup],
    manifest: Manifest,
    scorer: Scorer,
) -> DataFrame:
    """Score the images of row groups, in enough tasks that slow hosts do not hold up. Lazy.

    `manifest`: of their store, whose labels have the scorer's findings.
    """
    size, schema = manifest.image_size, parquet_schema(manifest.image_size, manifest.schema_version)
    columns = [f"{name} {SPARK_TYPES[kind]}" for name, kind in STORED_COLUMNS.items()]
    columns += [f"{probability_column(finding)} double" for finding in scorer.findings]
    columns += [f"{label_column(finding)} tinyint" for finding in scorer.findings]
    names = [column.split()[0] for column in columns]
    labels = positions(scorer.findings, manifest.findings)

    def score(batches: Batches) -> Batches:
        for batch in batches:
            for position in batch.column(0).to_pylist():
                there = tuple(name for name in STORED_COLUMNS if name in schema.names)
                read = read_row_group(groups[position], size, there)
                probabilities = probabilities_of(read.images, scorer)
                arrays = [
                    read.others[name].combine_chunks()
                    if name in there
                    else pa.nulls(len(read.images), kind)
                    for name, kind in STORED_COLUMNS.items()
                ]
                arrays += [pa.array(column) for column in probabilities.T]
                arrays += [pa.array(column, pa.int8()) for column in read.labels[:, labels].T]
                yield pa.RecordBatch.from_arrays(arrays, names)

    pixels = size**2 * sum(group.rows for group in groups)
    tasks = task_count(len(groups), pixels, task_slots(spark))
    return spark.range(0, len(groups), 1, tasks).mapInArrow(score, ", ".join(columns))


def task_count(groups: int, pixels: int, slots: int) -> int:
    """How many tasks score so many row groups: for each of the `slots` as many as its share of `pixels` is worth."""
    worth = max(1, pixels // (slots * PIXELS_PER_TASK))
    return min(groups, slots * min(worth, max(TASKS_PER_SLOT, MANY_TASKS // slots)))


def probabilities_of(images: np.ndarray, scorer: Scorer) -> np.ndarray:
    """The mean probability over models and views of each image: float64 (rows, findings).

    `images`: uint8 (rows, size, size). Raises RunFailedError as `task_device` and `load_keras` do.
    """
    device = task_device()
    models = load_models(scorer.models, device)
    import tensorflow as tf

    places = [positions(scorer.findings, model.findings) for model in scorer.models]
    total = np.zeros((len(images), len(scorer.findings)))
    for start in range(0, len(images), scorer.batch_size):
        part = slice(start, start + scorer.batch_size)
        with tf.device(device):
            for view in views(images[part], scorer.tta):
                pixels = {
                    size: tf.constant(np.ascontiguousarray(reduced(view, size)[..., None]))
                    for size in {model.size for model in scorer.models}
                }
                for model, of, place in zip(models, scorer.models, places, strict=True):
                    total[part] += sigmoid(model(pixels[of.size]).numpy()[:, place])
    return total / (len(models) * number_of_views(scorer.tta))


@functools.lru_cache(maxsize=DEVICES)
def load_models(models: tuple[Model, ...], device: str) -> tuple[Callable, ...]:
    """Compiled functions uint8 (n, size, size, 1) → logits (n, findings of the model), on a device."""
    loaded = [load_keras(model, device) for model in models]
    import tensorflow as tf

    with tf.device(device):
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
def load_keras(model: Model, device: str) -> Any:
    """The network that the run says, with the arrays of its ``model.keras``, on a device (`task_device`).

    It is built here, from our own code or that which the user names: nothing in the file is built or imported.
    Raises RunFailedError where the file is damaged or another by now, or of another network.
    """
    import tensorflow as tf
    import tf_keras as keras

    from chexspark.models import build_model
    from chexspark.models.weights import fill, fill_custom

    content = locate(model.uri).read_bytes()
    keras.mixed_precision.set_global_policy("float32")
    with tf.device(device):
        built = build_model(model.network, model.size, len(model.findings), model.code)
        if model.code:
            fill_custom(built, content, model.digest, model.uri, model.network, model.same_code)
        else:
            fill(built, content, model.digest, model.uri)
    return built
