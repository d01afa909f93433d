"""Class activation maps of stored images. Runs on the driver and in Spark tasks.

In: a run's best model and images. Out: for each image the maps of all findings of the model at the
resolution of the last features; ``OUT/localisation`` and ``OUT/examples`` of an evaluated split.
A map is the sum of the last features, weighted as the logit weighs their averages: its mean and the
logit's bias are the logit (Zhou et al. 2016; CheXNet, section 2.3). Any Keras model that ends in
global average pooling and a dense layer called ``logits`` has them, also with a layer normalisation between
the two: the features of each place are then normalised by the statistics of the averages.
"""

import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from pyspark.sql import SparkSession

from chexspark.evaluation import tables
from chexspark.evaluation.examples import choose_examples, example_row
from chexspark.evaluation.inference import DEVICES, Model, load_keras, sigmoid
from chexspark.evaluation.localisation import (
    localisation_records,
    localisation_text,
    usable_boxes,
)
from chexspark.evaluation.metrics import Metric
from chexspark.evaluation.store_split import StoreSplit
from chexspark.evaluation.task_device import task_device
from chexspark.findings import UNKNOWN, is_mean
from chexspark.models import LOGITS
from chexspark.preparation import Placing, Preparation
from chexspark.reduction import reduced
from chexspark.run.folder import EXAMPLES, LOCALISATION, RunFolder
from chexspark.spark_progress import watched
from chexspark.spark_tasks import in_tasks
from chexspark.store.manifest import read_boxes
from chexspark.store.row_groups import RowGroup, image_names, read_row_group

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class NoMaps:
    """Why a model has no maps: it does not end in global average pooling and ``logits``."""

    reason: str


@dataclass(frozen=True)
class Mapped:
    """An image with its maps."""

    name: str
    findings: tuple[str, ...]  # of the model
    maps: np.ndarray  # float32 (findings, height, width) of the last features
    probabilities: np.ndarray  # float64 (findings,)
    labels: dict[str, int]  # finding of the store → 1, 0 or −1; none for an image of no store
    placing: Placing  # of the original image in the stored one
    pixels: np.ndarray | None  # uint8 (size, size), where they were asked for

    def map_of(self, finding: str) -> np.ndarray:
        """The map of one finding, float32 (height, width). Raises ValueError for another's."""
        return self.maps[self.findings.index(finding)]

    def label_of(self, finding: str) -> int:
        """1, 0, or −1 where it is not known."""
        return self.labels.get(finding, UNKNOWN)


class ImageMaps(NamedTuple):
    """Maps of some images."""

    maps: np.ndarray  # float32 (images, findings, height, width)
    probabilities: np.ndarray  # float64 (images, findings)


@dataclass(frozen=True)
class Mapper:
    """What a task needs to map images; plain values."""

    model: Model
    batch_size: int


@dataclass(frozen=True)
class StoredImages:
    """Images of a store that are to be mapped."""

    names: frozenset[str]
    pictured: frozenset[str]  # those whose pixels are to come along
    preparation: Preparation  # of the store's images
    findings: tuple[str, ...]  # of the store


class Top(NamedTuple):
    """The end of a network that has maps."""

    features: Any  # the tensor of the last ones, (batch, height, width, channels)
    normalisation: Any  # the layer normalisation of their averages; None: there is none
    logits: Any  # the dense layer


def map_layers(model: Any) -> Top | NoMaps:
    """The end of a model."""
    import tf_keras as keras

    names = [layer.name for layer in model.layers]
    if LOGITS not in names or not isinstance(model.get_layer(LOGITS), keras.layers.Dense):
        return NoMaps(f"{model.name} has no dense layer called {LOGITS}")
    logits = model.get_layer(LOGITS)
    before, normalisation = logits.input.node.layer, None
    while isinstance(before, (keras.layers.Dropout, keras.layers.Activation)):
        before = before.input.node.layer
    if isinstance(before, keras.layers.LayerNormalization):
        before, normalisation = before.input.node.layer, before
    if not isinstance(before, keras.layers.GlobalAveragePooling2D):
        return NoMaps(f"{model.name}: {LOGITS} do not come from global average pooling")
    return Top(before.input, normalisation, logits)


def normalised(features: np.ndarray, layer: Any) -> np.ndarray:
    """Features, float32 (n, height, width, channels), whose average is the layer normalisation of their average."""
    average = features.mean((1, 2), keepdims=True)
    deviation = np.sqrt(average.var(3, keepdims=True) + layer.epsilon)
    centred = (features - average.mean(3, keepdims=True)) / deviation
    if layer.scale:
        centred *= layer.gamma.numpy()
    return centred + layer.beta.numpy() if layer.center else centred


@functools.lru_cache(maxsize=DEVICES)
def load_mapper(model: Model, device: str) -> Callable[[np.ndarray], ImageMaps] | NoMaps:
    """A function uint8 (n, size, size) → maps and probabilities. Raises as `load_keras` does."""
    keras_model = load_keras(model, device)
    import tensorflow as tf
    import tf_keras as keras

    top = map_layers(keras_model)
    if isinstance(top, NoMaps):
        return top
    twin = keras.Model(keras_model.input, [top.features, keras_model.output])
    kernel = top.logits.kernel.numpy().astype(np.float32)
    signature = tf.TensorSpec((None, *keras_model.input_shape[1:]), tf.uint8)
    run = tf.function(functools.partial(twin, training=False), input_signature=[signature])

    def mapper(images: np.ndarray) -> ImageMaps:
        with tf.device(device):
            last, outputs = run(np.ascontiguousarray(reduced(images, model.size)[..., None]))
        features = last.numpy().astype(np.float32)
        if top.normalisation is not None:
            features = normalised(features, top.normalisation)
        maps = np.einsum("nhwc,cf->nfhw", features, kernel)
        return ImageMaps(maps, sigmoid(outputs.numpy()))

    return mapper


def map_images(images: np.ndarray, mapper: Mapper) -> ImageMaps | NoMaps:
    """Maps and probabilities of uint8 (n, size, size), in batches."""
    map_batch = load_mapper(mapper.model, task_device())
    if isinstance(map_batch, NoMaps):
        return map_batch
    starts = range(0, len(images), mapper.batch_size)
    parts = [map_batch(images[start : start + mapper.batch_size]) for start in starts]
    return ImageMaps(*(np.concatenate(values) for values in zip(*parts, strict=True)))


def map_stored(
    spark: SparkSession, groups: Sequence[RowGroup], wanted: StoredImages, mapper: Mapper
) -> dict[str, Mapped] | NoMaps:
    """Maps of the images in `wanted`, by name, from the row groups of a store."""
    holding = [group for group in groups if not wanted.names.isdisjoint(image_names(group))]

    def of_group(group: RowGroup) -> list[Mapped | NoMaps]:
        columns = ("image_index", "original_width", "original_height")
        read = read_row_group(group, wanted.preparation.size, columns)
        names = read.others["image_index"].to_pylist()
        rows = [i for i, name in enumerate(names) if name in wanted.names]
        found = map_images(read.images[rows], mapper)
        if isinstance(found, NoMaps):
            return [found]
        facts = read.others.take(rows).to_pylist()
        return [
            Mapped(
                fact["image_index"], mapper.model.findings, found.maps[i], found.probabilities[i],
                dict(zip(wanted.findings, read.labels[row].tolist(), strict=True)),
                wanted.preparation.placing(fact["original_width"], fact["original_height"]),
                read.images[row].copy() if fact["image_index"] in wanted.pictured else None,
            )
            for i, (row, fact) in enumerate(zip(rows, facts, strict=True))
        ]  # fmt: skip

    if not holding:
        return {}
    with watched(spark, "activation maps", len(wanted.names)):
        found = in_tasks(spark, holding, of_group)
    return by_name(list(chain.from_iterable(found)))


def by_name(found: Sequence[Mapped | NoMaps]) -> dict[str, Mapped] | NoMaps:
    """What tasks returned, by name; why there are no maps, where one says so."""
    for each in found:
        if isinstance(each, NoMaps):
            return each
    return {each.name: each for each in found if isinstance(each, Mapped)}


def write_maps(
    spark: SparkSession, split: StoreSplit, mapper: Mapper, table: pd.DataFrame,
    records: Sequence[Metric], out: RunFolder,
) -> None:  # fmt: skip
    """Map what the split's boxes and the report's examples need; write both tables, say what came.

    `table`: the split's predictions; `records`: its metrics, a row per finding and their mean.
    """
    findings = [record["finding"] for record in records if not is_mean(record["finding"])]
    boxes = read_boxes(split.store, split.manifest)
    if boxes is not None:
        boxes = boxes[boxes["image_index"].isin(table["image_index"])]
        boxes = boxes[boxes["finding"].isin(findings)]
    examples = choose_examples(table, records)
    boxed = frozenset() if boxes is None else frozenset(boxes["image_index"])
    pictured = frozenset(example.name for example in examples)
    if not boxed | pictured:
        return
    manifest = split.manifest
    wanted = StoredImages(boxed | pictured, pictured, manifest.preparation, manifest.findings)
    mapped = map_stored(spark, split.row_groups(), wanted, mapper)
    if isinstance(mapped, NoMaps):
        log.warning("note: no class activation maps: %s", mapped.reason)
        return
    rows = [example_row(example, mapped[example.name], boxes) for example in examples]
    tables.write_split(out, EXAMPLES, split.name, rows)
    if boxes is None or not boxed:
        return
    usable, notes = usable_boxes(boxes, mapped)
    for note in notes:
        log.warning("note: %s", note)
    if len(usable):
        found = localisation_records(usable, mapped, findings)
        tables.write_split(out, LOCALISATION, split.name, found)
        log.info("%s\n%s", localisation_text(found), out.table(LOCALISATION))
