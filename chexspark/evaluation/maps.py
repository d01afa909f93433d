"""Class activation maps of stored images. Runs on the driver and in Spark tasks.

In: a run's best model and images. Out: for each image the maps of all 14 findings at the resolution
of the last features; ``OUT/localisation`` and ``OUT/examples`` of an evaluated split.
A map is the sum of the last features, weighted as the logit weighs their averages: its mean and the
logit's bias are the logit (Zhou et al. 2016; CheXNet, section 2.3). Any Keras model that ends in
global average pooling and a dense layer called ``logits`` has them.
"""

import functools
from dataclasses import dataclass

import numpy as np

from chexspark.errors import RunFailedError
from chexspark.evaluation import tables
from chexspark.evaluation.examples import EXAMPLES_SCHEMA, choose_examples, example_row
from chexspark.evaluation.inference import load_keras
from chexspark.evaluation.localisation import (
    LOCALISATION_SCHEMA,
    localisation_records,
    localisation_text,
    usable_boxes,
)
from chexspark.run.folder import EXAMPLES, LOCALISATION
from chexspark.spark_progress import watched
from chexspark.store.manifest import read_boxes
from chexspark.store.row_groups import RowGroup, image_names, read_row_group, row_groups


class NoMapsError(Exception):
    """The model does not end in global average pooling and ``logits``."""


@dataclass(frozen=True)
class Mapped:
    """An image with its maps."""

    name: str
    maps: np.ndarray  # float32 (14, height, width) of the last features
    probabilities: np.ndarray  # float64 (14,)
    labels: np.ndarray  # int8 (14,), or none
    original_width: int
    original_height: int
    pixels: np.ndarray | None  # uint8 (size, size), where they were asked for


def map_layers(model):
    """The tensor of last features and the dense layer over their averages. Raises NoMapsError."""
    import tf_keras as keras

    names = [layer.name for layer in model.layers]
    if "logits" not in names or not isinstance(model.get_layer("logits"), keras.layers.Dense):
        raise NoMapsError(f"{model.name} has no dense layer called logits")
    logits = model.get_layer("logits")
    before = logits.input.node.layer
    while isinstance(before, (keras.layers.Dropout, keras.layers.Activation)):
        before = before.input.node.layer
    if not isinstance(before, keras.layers.GlobalAveragePooling2D):
        raise NoMapsError(f"{model.name}: logits do not come from global average pooling")
    return before.input, logits


@functools.lru_cache(maxsize=1)
def load_mapper(uri: str, digest: str):
    """A function uint8 (n, size, size) → maps (n, 14, h, w), probabilities (n, 14). Raises NoMapsError."""
    model = load_keras(uri, digest)
    import tensorflow as tf
    import tf_keras as keras

    features, logits = map_layers(model)
    twin = keras.Model(model.input, [features, model.output])
    kernel = logits.kernel.numpy().astype(np.float32)
    signature = tf.TensorSpec((None, *model.input_shape[1:]), tf.uint8)
    run = tf.function(functools.partial(twin, training=False), input_signature=[signature])

    def mapper(images: np.ndarray):
        last, outputs = run(np.ascontiguousarray(images[..., None]))
        maps = np.einsum("nhwc,cf->nfhw", last.numpy().astype(np.float32), kernel)
        return maps, 1 / (1 + np.exp(-outputs.numpy().astype(np.float64)))

    return mapper


def map_images(images: np.ndarray, model: tuple[str, str], batch_size: int):
    """Maps (n, 14, h, w) and probabilities (n, 14) of uint8 (n, size, size), in batches."""
    mapper = load_mapper(*model)
    parts = [mapper(images[start : start + batch_size]) for start in range(0, len(images), batch_size)]  # fmt: skip
    return tuple(np.concatenate(values) for values in zip(*parts, strict=True))


def map_stored(
    spark, groups: list[RowGroup], size: int, wanted, with_pixels, model, batch_size: int
) -> dict[str, Mapped]:
    """Maps of the images named in `wanted`, by name; pixels of those in `with_pixels` too."""
    groups = [group for group in groups if not wanted.isdisjoint(image_names(group))]
    if not groups:
        return {}

    def of_group(group: RowGroup):
        columns = ("image_index", "original_width", "original_height")
        read = read_row_group(group, size, columns)
        rows = [i for i, n in enumerate(read.others["image_index"].to_pylist()) if n in wanted]
        maps, probabilities = map_images(read.images[rows], model, batch_size)
        found = read.others.take(rows).to_pylist()
        return [
            Mapped(fact["image_index"], maps[i], probabilities[i], read.labels[row], fact["original_width"],
                   fact["original_height"],
                   read.images[row].copy() if fact["image_index"] in with_pixels else None)
            for i, (row, fact) in enumerate(zip(rows, found, strict=True))
        ]  # fmt: skip

    with watched(spark, "activation maps", len(wanted)):
        found = spark.sparkContext.parallelize(groups, len(groups)).flatMap(of_group).collect()
    return {mapped.name: mapped for mapped in found}


def write_maps(spark, store, manifest, split, model, out, table, records, batch_size) -> None:
    """Map what the split's boxes and the report's examples need; write both tables, say what came.

    `table`: the split's predictions; `records`: its metrics.
    """
    boxes = read_boxes(store, manifest)
    if boxes is not None:
        boxes = boxes[boxes["image_index"].isin(table["image_index"])]
    examples = choose_examples(table, records)
    boxed = set() if boxes is None else set(boxes["image_index"])
    pictured = {example.name for example in examples}
    if not boxed | pictured:
        return
    try:
        mapped = map_stored(
            spark, row_groups(store, manifest, split), manifest.image_size,
            frozenset(boxed | pictured), frozenset(pictured), model, batch_size,
        )  # fmt: skip
    except RunFailedError as error:
        if NoMapsError.__name__ not in str(error):
            raise
        print(f"note: no class activation maps: {error}", flush=True)
        return
    rows = [example_row(example, mapped[example.name], boxes) for example in examples]
    tables.write_split(out, EXAMPLES, split, rows, EXAMPLES_SCHEMA)
    if not boxed:
        return
    usable, note = usable_boxes(boxes, mapped)
    if note:
        print(f"note: {note}", flush=True)
    if len(usable):
        found = localisation_records(usable, mapped)
        tables.write_split(out, LOCALISATION, split, found, LOCALISATION_SCHEMA)
        print(localisation_text(found), out.table(LOCALISATION), sep="\n", flush=True)
