"""A run in, its best model as SavedModel and ONNX out. Runs on the driver and in a Spark task.

Both take gray images of any shape. Each is run on images, of a store or synthetic, and compared with the
model itself before it is kept.
"""

import dataclasses
import functools
import json
import logging
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from pyspark.sql import SparkSession

from chexspark.arguments import takes
from chexspark.config import ExportConfig
from chexspark.errors import RunFailedError
from chexspark.evaluation.export_graph import (
    PROBABILITIES,
    fitted_in_graph,
    raw_image_function,
    reduced_in_graph,
)
from chexspark.evaluation.inference import Model, load_keras, sigmoid
from chexspark.evaluation.operating_points import operating_points, points_as_json
from chexspark.evaluation.runs import best_models, check_fit, one_preparation
from chexspark.evaluation.task_device import quiet_errors, task_device
from chexspark.extras import check_extra
from chexspark.findings import FINDINGS
from chexspark.ingestion.fitting import fitted
from chexspark.models import LOGITS
from chexspark.phantom import draw_anatomy, draw_phantom, generator
from chexspark.preparation import Preparation
from chexspark.reduction import reduced
from chexspark.run.best import NETWORK_SIZE
from chexspark.run.folder import RunFolder, run_folder
from chexspark.run.settings import check_run
from chexspark.session import start_session
from chexspark.spark_progress import watched
from chexspark.spark_tasks import in_tasks
from chexspark.storage import Location, locate
from chexspark.store.manifest import read_manifest
from chexspark.store.row_groups import RowGroup, read_row_group, row_groups

log = logging.getLogger(__name__)

TOLERANCE = 1e-4  # of a logit: ten times what one rounding of float32 at 128 layers comes to
IMAGES = 32  # to verify on
GRAY_LEVELS = 1  # cv2 rounds in between, and fitting in the graph at the end
# Heights and widths of raw images to verify on, in sides of the square: larger, smaller, and one of each.
SHAPES = ((1.9, 2.6), (2.3, 1.4), (0.6, 0.8), (0.7, 1.7))
IMAGES_OF_A_SHAPE = 2
OPSET = 17  # ONNX operators; onnxruntime 1.12 and later
SAVED_MODEL, ONNX = "savedmodel", "onnx"
BESIDE = "assets.extra/chexspark.json"  # in a SavedModel, where TensorFlow has files that it does not load

Metadata = dict[str, Any]  # name → what JSON can say
# From uint8 (images, height, width, 1) to logits and probabilities by name, float32 (images, findings) each.
Scores = Callable[[np.ndarray], dict[str, np.ndarray]]


class Exported(NamedTuple):
    """A model in another format, and how it compares with the model itself."""

    place: str
    difference: float  # of a logit, the largest
    images: int  # of the model's own shape
    others: int  # of other shapes


@takes(ExportConfig)
def export(spark: SparkSession | None, config: ExportConfig) -> dict[str, Location]:
    """Write the best model in each format, verified; return format → place.

    Both take uint8 (batch, height, width, 1), gray images of 8 bits as they are shown, of any shape: they fit
    them into the model's square as ingest does, within a gray level. Both return ``logits`` and
    ``probabilities``, float32 (batch, findings). In ONNX's metadata, in the SavedModel's
    ``assets.extra/chexspark.json`` and as files beside them are ``findings``: the names, in the order of the
    outputs; ``image``: the size, fit and bit_depth of the run's images; and ``operating_points``: finding →
    its thresholds of a probability, ``youden`` and ``sens90``, and its calibration, slope and intercept of a
    logit, as evaluate fitted them on the validation split; null where it has not. Raises
    UserError for what the user can mend, RunFailedError when an exported model differs from the model.
    """
    if ONNX in config.formats:
        check_extra("export", "--formats onnx")
    run = run_folder(config.run)
    check_run(run)
    group, shown = images_to_verify(run, config.data)
    out = locate(config.out) if config.out else run.exported
    out.make_directory()
    (model,), how = best_models([run], config.model), one_preparation([run])
    formats = config.formats
    points = operating_points(run, model)
    metadata = {
        "findings": list(model.findings),
        "image": dataclasses.asdict(how)
        | ({NETWORK_SIZE: model.size} if model.size != how.size else {}),
        "operating_points": points_as_json(points, model.findings),
    }
    spark = start_session(spark, "export")
    with watched(spark, "export", IMAGES):
        (found,) = in_tasks(
            spark,
            [out.uri],
            lambda place: write_formats(model, group, how, metadata, formats, place),
        )
    for name, value in metadata.items():
        (out / f"{name}.json").write_text(json.dumps(value) + "\n")
    for name, made in found.items():
        log.info("%s: %s (on %s images of %s, and on %s of other shapes, its logits differ by %.1e at most)",
                 name, made.place, made.images, shown, made.others, made.difference)  # fmt: skip
    log.info(
        "thresholds and calibration: %s",
        points.words if points else "none: run chexspark evaluate first",
    )
    return {name: locate(made.place) for name, made in found.items()}


def images_to_verify(run: RunFolder, data: str | None) -> tuple[RowGroup | None, str]:
    """Where images for a comparison are, and what they are called; None: phantoms are drawn.

    Raises UserError for a store that is not of the run's kind of images.
    """
    if data is None:
        return None, "synthetic X-rays"
    store = locate(data)
    manifest = read_manifest(store)
    check_fit(store, run, manifest)
    split = next(s for s in ("test", "val", "train") if manifest.splits[s].images)
    return row_groups(store, manifest, split)[0], str(store / split)


def phantoms(size: int) -> np.ndarray:
    """Synthetic X-rays, uint8 (`IMAGES`, size, size)."""
    drawn = [
        draw_phantom(
            size, FINDINGS[i % 14 : i % 14 + 1], generator(i), draw_anatomy(generator(i, 1))
        )[0]
        for i in range(IMAGES)
    ]
    return np.stack(drawn)


def write_formats(
    model: Model,
    group: RowGroup | None,
    how: Preparation,
    metadata: Metadata,
    formats: Sequence[str],
    out: str,
) -> dict[str, Exported]:
    """Export and verify in a Spark task, on images that were made as `how` says, and on raw ones.

    Raises RunFailedError for a format that gives other scores than the model.
    """
    keras_model = load_keras(model, task_device())
    found_there = read_row_group(group, how.size).images[:IMAGES] if group else phantoms(how.size)
    images = found_there[..., None].copy()
    raw = raw_images(found_there)
    prepared = [images, *(as_ingested(r, how) for r in raw)]
    expected = [
        np.asarray(keras_model(as_reduced(p, model.size), training=False)) for p in prepared
    ]
    whole = raw_image_function(keras_model, how, model.size)
    writers: dict[str, Callable[..., tuple[Path, Scores]]] = {
        SAVED_MODEL: functools.partial(write_saved_model, keras_model), ONNX: write_onnx,
    }  # fmt: skip
    found = {}
    for name in formats:
        with tempfile.TemporaryDirectory(prefix="chexspark-") as folder, quiet_errors():
            made, scores = writers[name](whole, metadata, Path(folder))
            differences = [
                difference_of(scores(shown), logits)
                for shown, logits in zip([images, *raw], expected, strict=True)
            ]
            difference = float(np.max(differences))
            if not difference <= TOLERANCE:
                raise RunFailedError(
                    f"{name} differs from the model by {difference:.1e} on {len(images)} images, more "
                    f"than {TOLERANCE:g}: it was not kept"
                )
            place = str(keep(made, locate(out)))
            found[name] = Exported(place, difference, len(images), sum(map(len, raw)))
    return found


def raw_images(stored: np.ndarray) -> list[np.ndarray]:
    """Images of other shapes, made of uint8 (images, size, size): uint8 (images, height, width, 1) per shape."""
    size, some = stored.shape[1], stored[:IMAGES_OF_A_SHAPE]
    sides = [(max(1, round(high * size)), max(1, round(wide * size))) for high, wide in SHAPES]
    return [
        np.stack([cv2.resize(image, (width, height)) for image in some])[..., None]
        for height, width in sides
    ]


def as_ingested(raw: np.ndarray, how: Preparation) -> np.ndarray:
    """What the exported graph shows to its network of uint8 (images, height, width, 1): (images, size, size, 1).

    Raises RunFailedError where that is not what ingest stores of them.
    """
    shown: np.ndarray = fitted_in_graph(raw, how).numpy()
    where = how.placing(raw.shape[2], raw.shape[1])
    stored = np.stack([fitted(image, where) for image in raw[..., 0]])
    levels = int(np.abs(shown[..., 0].astype(int) - stored).max())
    if levels > GRAY_LEVELS:
        raise RunFailedError(
            f"images of {where.width} × {where.height} pixels are fitted otherwise than by ingest, by up to "
            f"{levels} gray levels: nothing was exported"
        )
    return shown


def as_reduced(images: np.ndarray, size: int) -> np.ndarray:
    """What the exported graph makes for its network of stored images, uint8 (images, side, side, 1).

    Raises RunFailedError where that is not what `reduced` makes of them.
    """
    shown = np.asarray(reduced_in_graph(images, size))
    levels = int(np.abs(shown[..., 0].astype(int) - reduced(images[..., 0], size)).max())
    if levels > GRAY_LEVELS:
        raise RunFailedError(
            f"images of {images.shape[1]} pixels are reduced to {size} otherwise than in training, by up to "
            f"{levels} gray levels: nothing was exported"
        )
    return shown


def difference_of(scores: dict[str, np.ndarray], logits: np.ndarray) -> float:
    """The largest difference of scores from those of the expected logits (images, findings); NaN stays NaN."""
    expected = {LOGITS: logits, PROBABILITIES: sigmoid(logits)}
    return float(np.max([np.abs(scores[name] - expected[name]).max() for name in expected]))


def keep(made: Path, out: Location) -> Location:
    """Copy a file or a folder into `out`, in place of what has its name there."""
    target = out / made.name
    if made.is_file():
        target.write_bytes(made.read_bytes())
        return target
    target.delete_directory()
    for file in sorted(path for path in made.rglob("*") if path.is_file()):
        place = out / str(file.relative_to(made.parent))
        (out / str(file.parent.relative_to(made.parent))).make_directory()
        place.write_bytes(file.read_bytes())
    return target


def write_saved_model(
    model: Any, whole: Any, metadata: Metadata, folder: Path
) -> tuple[Path, Scores]:
    """Write ``savedmodel/`` of a Keras model in its `whole` function, and load it again as a stranger would."""
    import tensorflow as tf

    place = folder / SAVED_MODEL
    tf.saved_model.save(model, str(place), signatures=whole)
    beside = place / BESIDE
    beside.parent.mkdir()
    beside.write_text(json.dumps(metadata) + "\n")
    loaded = tf.saved_model.load(str(place))

    def scores(images: np.ndarray) -> dict[str, np.ndarray]:
        found = loaded.signatures["serving_default"](image=tf.constant(images))
        return {name: values.numpy() for name, values in found.items()}

    return place, scores


def complementary_error(graph: Any, node: Any, name: str, arguments: Any) -> None:
    """Make TensorFlow's Erfc, which gelu is computed by and tf2onnx does not know, 1 − Erf in a graph of ONNX."""
    (output,) = node.output
    shape, kind = graph.get_shape(output), graph.get_dtype(output)
    graph.remove_node(node.name)
    error = graph.make_node("Erf", node.input, dtypes=[kind], shapes=[shape])
    one = graph.make_const(f"{name}_one", np.array(1, np.float32))
    parts = [one.output[0], error.output[0]]
    graph.make_node("Sub", parts, name=name, outputs=[output], dtypes=[kind], shapes=[shape])


def write_onnx(whole: Any, metadata: Metadata, folder: Path) -> tuple[Path, Scores]:
    """Write ``model.onnx`` of the `whole` function with the metadata, and load it in onnxruntime."""
    import onnx
    import onnxruntime
    import tf2onnx

    place = folder / "model.onnx"
    proto, _ = tf2onnx.convert.from_function(
        whole, whole.input_signature, opset=OPSET,
        custom_op_handlers={"Erfc": (complementary_error, [])},
    )  # fmt: skip
    texts = {name: json.dumps(value) for name, value in metadata.items()}
    onnx.helper.set_model_props(proto, texts)
    onnx.checker.check_model(proto)
    onnx.save(proto, str(place))
    session = onnxruntime.InferenceSession(str(place), providers=["CPUExecutionProvider"])

    def scores(images: np.ndarray) -> dict[str, np.ndarray]:
        names = [LOGITS, PROBABILITIES]
        return dict(zip(names, session.run(names, {"image": images}), strict=True))

    return place, scores
