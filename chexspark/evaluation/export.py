"""A run in, its best model as SavedModel and ONNX out. Runs on the driver and in a Spark task.

Each is run on images, of a store or synthetic, and compared with the model itself before it is kept.
"""

import dataclasses
import json
import logging
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pyspark.sql import SparkSession

from chexspark.arguments import takes
from chexspark.config import ExportConfig
from chexspark.errors import RunFailedError
from chexspark.evaluation.inference import Model, load_keras
from chexspark.evaluation.runs import best_models, check_fit, one_preparation
from chexspark.evaluation.task_device import quiet_errors, task_device
from chexspark.extras import check_extra
from chexspark.findings import FINDINGS
from chexspark.models import LOGITS
from chexspark.phantom import draw_anatomy, draw_phantom, generator
from chexspark.preparation import Preparation
from chexspark.run.folder import RunFolder, run_folder
from chexspark.run.settings import check_run
from chexspark.session import start_session
from chexspark.spark_progress import watched
from chexspark.storage import Location, locate
from chexspark.store.manifest import read_manifest
from chexspark.store.row_groups import RowGroup, read_row_group, row_groups

log = logging.getLogger(__name__)

TOLERANCE = 1e-4  # of a logit: ten times what one rounding of float32 at 128 layers comes to
IMAGES = 32  # to verify on
OPSET = 17  # ONNX operators; onnxruntime 1.12 and later
SAVED_MODEL, ONNX = "savedmodel", "onnx"
NAMES = "findings.json"  # a JSON list of the names, in the order of the logits
IMAGE = "image.json"  # how images are made: size, fit, bit_depth

Logits = np.ndarray  # float32 (images, findings)


class Exported(NamedTuple):
    """A model in another format, and how it compares with the model itself."""

    place: str
    difference: float  # of a logit, the largest
    images: int


@takes(ExportConfig)
def export(spark: SparkSession | None, config: ExportConfig) -> dict[str, Location]:
    """Write the best model in each format, verified; return format → place.

    Both take uint8 (batch, size, size, 1) and return logits float32 (batch, findings): a probability is
    1 / (1 + e^-logit). The names of the findings, in the order of the logits, are beside them in
    ``findings.json``, a JSON list, and in ONNX's metadata under ``findings``, the same list; how images of
    other shapes and depths become those is in ``image.json`` and under ``image``: size, fit, bit_depth. Raises
    UserError for what the user can mend, RunFailedError when an exported model differs from the model.
    """
    if ONNX in config.formats:
        check_extra("export", "--formats onnx")
    run = run_folder(config.run)
    check_run(run)
    group, shown = images_to_verify(run, config.data)
    out = locate(config.out) if config.out else run.exported
    out.make_directory()
    model, formats, how = (
        best_models([run], config.model)[0],
        config.formats,
        one_preparation([run]),
    )
    spark = start_session(spark, "export")
    with watched(spark, "export", IMAGES):
        one = spark.sparkContext.parallelize([out.uri], 1)
        (found,) = one.map(lambda place: write_formats(model, group, how, formats, place)).collect()
    (out / NAMES).write_text(json.dumps(model.findings) + "\n")
    (out / IMAGE).write_text(json.dumps(dataclasses.asdict(how)) + "\n")
    for name, made in found.items():
        log.info("%s: %s (on %s images of %s its logits differ by %.1e at most)",
                 name, made.place, made.images, shown, made.difference)  # fmt: skip
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
    model: Model, group: RowGroup | None, how: Preparation, formats: Sequence[str], out: str
) -> dict[str, Exported]:
    """Export and verify in a Spark task, on images that were made as `how` says.

    Raises RunFailedError for a format that gives other logits than the model.
    """
    keras_model = load_keras(model, task_device())
    found_there = read_row_group(group, how.size).images[:IMAGES] if group else phantoms(how.size)
    images = found_there[..., None].copy()
    expected = np.asarray(keras_model(images, training=False))
    metadata = {
        "findings": json.dumps(model.findings),
        "image": json.dumps(dataclasses.asdict(how)),
    }
    writers: dict[str, Callable[..., tuple[Path, Logits]]] = {
        SAVED_MODEL: write_saved_model, ONNX: write_onnx,
    }  # fmt: skip
    found = {}
    for name in formats:
        with tempfile.TemporaryDirectory(prefix="chexspark-") as folder, quiet_errors():
            made, logits = writers[name](keras_model, metadata, Path(folder), images)
            difference = float(np.abs(logits - expected).max())
            if not difference <= TOLERANCE:
                raise RunFailedError(
                    f"{name} differs from the model by {difference:.1e} on {len(images)} images, more "
                    f"than {TOLERANCE:g}: it was not kept"
                )
            found[name] = Exported(str(keep(made, locate(out))), difference, len(images))
    return found


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
    model: Any, metadata: dict[str, str], folder: Path, images: np.ndarray
) -> tuple[Path, Logits]:
    """Write ``savedmodel/``, load it again as a stranger would, and run it on uint8 (n, size, size, 1)."""
    import tensorflow as tf

    place = folder / SAVED_MODEL
    signature = tf.TensorSpec((None, *model.input_shape[1:]), tf.uint8, name="image")
    serve = tf.function(lambda image: {LOGITS: model(image, training=False)}, [signature])
    tf.saved_model.save(model, str(place), signatures=serve)
    loaded = tf.saved_model.load(str(place)).signatures["serving_default"]
    return place, loaded(image=tf.constant(images))[LOGITS].numpy()


def write_onnx(
    model: Any, metadata: dict[str, str], folder: Path, images: np.ndarray
) -> tuple[Path, Logits]:
    """Write ``model.onnx`` with the metadata, and run it in onnxruntime on uint8 (n, size, size, 1)."""
    import onnx
    import onnxruntime
    import tensorflow as tf
    import tf2onnx

    place = folder / "model.onnx"
    signature = tf.TensorSpec((None, *model.input_shape[1:]), tf.uint8, name="image")
    forward = tf.function(lambda image: {LOGITS: model(image, training=False)})
    proto, _ = tf2onnx.convert.from_function(forward, [signature], opset=OPSET)
    onnx.helper.set_model_props(proto, metadata)
    onnx.checker.check_model(proto)
    onnx.save(proto, str(place))
    session = onnxruntime.InferenceSession(str(place), providers=["CPUExecutionProvider"])
    return place, session.run([LOGITS], {"image": images})[0]
