"""Images without labels and a run in, probabilities out. Runs on the driver and in Spark tasks.

Out: a Parquet folder of one row per image, with the checks that ingest makes; beside it, what was
refused and why.
"""

import posixpath
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from pyspark import StorageLevel
from pyspark.sql import DataFrame
from pyspark.sql.functions import lit

from chexspark.arguments import takes
from chexspark.config import PredictConfig
from chexspark.errors import UserError
from chexspark.evaluation.inference import PROBABILITIES, Scorer, probabilities_of
from chexspark.findings import FINDINGS
from chexspark.ingestion.images import BadImageError, prepare
from chexspark.ingestion.sources import SourceFile, find_sources, read_source_images
from chexspark.run.folder import RunFolder, model_and_digest, run_folder
from chexspark.run.lineage import read_lineage
from chexspark.run.settings import check_run
from chexspark.session import start_session
from chexspark.spark_progress import watched
from chexspark.storage import Location, locate

TASK_IMAGES = 64  # loose files of a task
QUARANTINE = "-quarantine"
FILE_COLUMNS = ["image_index string", "path string", "bytes long", "reason string",
         "original_width int", "original_height int", "inverted boolean"]  # fmt: skip
COLUMNS = FILE_COLUMNS + PROBABILITIES


class Predicted(NamedTuple):
    """What `predict` returns: both are also written, as Parquet."""

    predictions: DataFrame  # one row per image
    quarantine: DataFrame  # path, reason, bytes of what was refused


@takes(PredictConfig)
def predict(spark, config: PredictConfig) -> Predicted:
    """Score images that have no labels with the best model of a run, or of several.

    Raises UserError for what the user can mend.
    """
    runs, out = [run_folder(run) for run in config.run], locate(config.out)
    if len(set(config.run)) < len(config.run):
        raise UserError("--run names a run twice: an ensemble needs different ones")
    size = image_size(runs)
    beside = quarantine_of(out)
    for place in (out, beside):
        if place.exists() and (not place.is_directory() or place.list_files()):
            raise UserError(f"--out: {place} is there already: give a new or empty folder")
    files, archives = find_sources(config.images)
    sources = [tuple(files[i : i + TASK_IMAGES]) for i in range(0, len(files), TASK_IMAGES)]
    sources += [(archive,) for archive in archives]
    models = tuple(model_and_digest(run) for run in runs)
    scorer = Scorer(models, config.flip, config.batch_size)
    out.make_directory()
    spark = start_session(spark, "predict")
    number = f"{len(files):,} images" + f" and {len(archives):,} archives" * bool(archives)
    print(f"scoring {number} at {size} pixels", flush=True)
    one_each = spark.range(0, len(sources), 1, len(sources))
    scored = one_each.mapInArrow(source_scorer(sources, size, scorer), ", ".join(COLUMNS))
    scored = scored.withColumn("run", lit(" + ".join(str(run) for run in runs)))
    scored = scored.persist(StorageLevel.DISK_ONLY)
    try:
        with watched(spark, "scoring", max(len(files), len(sources))):
            good = scored.where("reason is null").drop("reason", "bytes")
            good.coalesce(1).sortWithinPartitions("path").write.mode("overwrite").parquet(out.spark_uri)  # fmt: skip
            bad = scored.where("reason is not null").select("path", "reason", "bytes")
            bad.coalesce(1).sortWithinPartitions("path").write.mode("overwrite").parquet(beside.spark_uri)  # fmt: skip
    finally:
        scored.unpersist()
    result = Predicted(spark.read.parquet(out.spark_uri), spark.read.parquet(beside.spark_uri))
    tell(result, out, beside)
    return result


def tell(result: Predicted, out: Location, beside: Location) -> None:
    """Print what came of it. Raises UserError when no image could be used."""
    good = result.predictions.count()
    reasons = result.quarantine.selectExpr("split(reason, ':')[0] as kind").groupBy("kind").count()
    refused = {row["kind"]: row["count"] for row in reasons.collect()}
    listed = ", ".join(f"{number:,} {kind}" for kind, number in sorted(refused.items()))
    if refused and not good:
        raise UserError(
            f"none of {sum(refused.values()):,} images can be used ({listed}): see {beside}"
        )
    if not good:
        raise UserError("--images has archives without images: there is nothing to score")
    if refused:
        print(f"refused: {listed}: {beside}")
    names = result.predictions.select("image_index").distinct().count()
    if names < good:
        print(
            f"note: {good - names:,} images share their name with another; `path` tells them apart"
        )
    print(f"{good:,} images: {out}", flush=True)


def image_size(runs: list[RunFolder]) -> int:
    """The one size of the runs' images. Raises UserError where they differ or have no model."""
    sizes = {}
    for run in runs:
        check_run(run)
        sizes[read_lineage(run)["image_size"]] = run
    if len(sizes) > 1:
        listed = ", ".join(f"{run} at {size}" for size, run in sorted(sizes.items()))
        raise UserError(f"--run: an ensemble needs one image size, but {listed} pixels")
    return next(iter(sizes))


def quarantine_of(out: Location) -> Location:
    """``scores-quarantine.parquet`` beside ``scores.parquet``."""
    stem, extension = posixpath.splitext(out.uri.rstrip("/"))
    return locate(f"{stem}{QUARANTINE}{extension}")


def source_scorer(sources: list[tuple[SourceFile, ...]], size: int, scorer: Scorer):
    """The function that a Spark task maps over its Arrow batches of source positions."""

    def score(batches):
        for batch in batches:
            for position in batch.column(0).to_pylist():
                held = []
                for image in read_source_images(sources[position]):
                    held.append(image)
                    if len(held) == TASK_IMAGES:
                        yield scored_batch(held, size, scorer)
                        held = []
                if held:
                    yield scored_batch(held, size, scorer)

    return score


def scored_batch(held: list, size: int, scorer: Scorer) -> pa.RecordBatch:
    """Rows of `COLUMNS` for some images: probabilities of the good, the reason of the bad."""
    rows, good = [], []
    for name, path, number, content in held:
        row = {"image_index": name, "path": path, "bytes": number, "reason": None,
               "original_width": None, "original_height": None, "inverted": None}  # fmt: skip
        try:
            if isinstance(content, BadImageError):
                raise content
            image = prepare(content, size, name)
            row |= {"original_width": image.original_width, "inverted": image.inverted,
                    "original_height": image.original_height}  # fmt: skip
            good.append((row, image.pixels))
        except BadImageError as error:
            row["reason"] = str(error)
        rows.append(row)
    if good:
        found = probabilities_of(np.stack([pixels for _, pixels in good]), scorer)
        for (row, _), values in zip(good, found, strict=True):
            row |= {
                f"prob_{finding}": float(v) for finding, v in zip(FINDINGS, values, strict=True)
            }
    return pa.RecordBatch.from_pylist(rows, arrow_schema())


def arrow_schema() -> pa.Schema:
    kinds = {"string": pa.string(), "long": pa.int64(), "int": pa.int32(), "boolean": pa.bool_(),
             "double": pa.float64()}  # fmt: skip
    return pa.schema([(name, kinds[kind]) for name, kind in map(str.split, COLUMNS)])
