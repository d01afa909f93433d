"""Images without labels and a run in, probabilities out. Runs on the driver and in Spark tasks.

Out: a Parquet folder of one row per image, with the checks that ingest makes; beside it, what was
refused and why.
"""

import logging
import posixpath
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from pyspark import StorageLevel
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.functions import lit

from chexspark.arguments import takes
from chexspark.config import PredictConfig
from chexspark.errors import UserError, spoken
from chexspark.evaluation.inference import Scorer, probabilities_of
from chexspark.evaluation.predictions import probability_column
from chexspark.evaluation.runs import best_model, different_runs, one_preparation, shared_findings
from chexspark.ingestion.images import BadImageError, prepare
from chexspark.ingestion.sources import (
    NO_IMAGE,
    ImageFile,
    SourceFile,
    find_sources,
    passed_over_words,
    read_source_images,
)
from chexspark.preparation import Preparation
from chexspark.session import start_session
from chexspark.spark_progress import watched
from chexspark.storage import Location, locate

log = logging.getLogger(__name__)

TASK_IMAGES = 64  # loose files of a task
QUARANTINE = "-quarantine"
PASSED_OVER = NO_IMAGE.partition(":")[0]  # the kind of that reason
FILE_COLUMNS = {"image_index": "string", "path": "string", "bytes": "long", "reason": "string",
                "original_width": "int", "original_height": "int", "inverted": "boolean"}  # fmt: skip
Batches = Iterable[pa.RecordBatch]
ARROW_TYPES = {"string": pa.string(), "long": pa.int64(), "int": pa.int32(),
               "boolean": pa.bool_(), "double": pa.float64()}  # fmt: skip


class Predicted(NamedTuple):
    """What `predict` returns: both are also written, as Parquet."""

    predictions: DataFrame  # one row per image
    quarantine: DataFrame  # path, reason, bytes of what was refused


@takes(PredictConfig)
def predict(spark: SparkSession | None, config: PredictConfig) -> Predicted:
    """Score images that have no labels with the best model of a run, or of several.

    Of several, the findings that all have. Raises UserError for what the user can mend.
    """
    runs, out = different_runs(config.run), locate(config.out)
    how = one_preparation(runs, config.bit_depth)
    models = tuple(best_model(run) for run in runs)
    findings, left_out = shared_findings(
        {f"the run {run}": model.findings for run, model in zip(runs, models, strict=True)}
    )
    beside = quarantine_of(out)
    for place in (out, beside):
        if place.exists() and (not place.is_directory() or place.list_files()):
            raise UserError(f"--out: {place} is there already: give a new or empty folder")
    files, archives, passed_over = find_sources(config.images)
    sources = [tuple(files[i : i + TASK_IMAGES]) for i in range(0, len(files), TASK_IMAGES)]
    sources += [(archive,) for archive in archives]
    if left_out:
        log.warning("note: %s", left_out)
    if passed_over:
        log.warning(spoken("note: --images: %s"), passed_over_words([f.name for f in passed_over]))
    scorer = Scorer(models, findings, config.flip, config.batch_size)
    out.make_directory()
    spark = start_session(spark, "predict")
    number = f"{len(files):,} images" + f" and {len(archives):,} archives" * bool(archives)
    log.info("scoring %s at %s", number, how.words())
    one_each = spark.range(0, len(sources), 1, len(sources))
    columns = columns_of(findings)
    scored = one_each.mapInArrow(source_scorer(sources, how, scorer), ", ".join(map(" ".join, columns.items())))  # fmt: skip
    scored = scored.withColumn("run", lit(" + ".join(str(run) for run in runs)))
    with watched(spark, "scoring", max(len(files), len(sources))):
        write_apart(scored, passed_over, out, beside)
    result = Predicted(spark.read.parquet(out.spark_uri), spark.read.parquet(beside.spark_uri))
    tell(result, out, beside)
    return result


def write_apart(
    scored: DataFrame, passed_over: list[SourceFile], out: Location, beside: Location
) -> None:
    """Write the rows of images that could be used, and beside them those that could not.

    `passed_over`: loose files that are no images, which are named among these.
    """
    scored = scored.persist(StorageLevel.DISK_ONLY)
    try:
        good = scored.where("reason is null").drop("reason", "bytes")
        good.coalesce(1).sortWithinPartitions("path").write.mode("overwrite").parquet(out.spark_uri)
        bad = scored.where("reason is not null").select("path", "reason", "bytes")
        others = [(file.uri, NO_IMAGE, file.bytes) for file in passed_over]
        bad = bad.union(scored.sparkSession.createDataFrame(others, bad.schema))
        bad.coalesce(1).sortWithinPartitions("path").write.mode("overwrite").parquet(
            beside.spark_uri
        )
    finally:
        scored.unpersist()


def tell(result: Predicted, out: Location, beside: Location) -> None:
    """Say what came of it. Raises UserError when no image could be used."""
    good = result.predictions.count()
    reasons = result.quarantine.selectExpr("split(reason, ':')[0] as kind").groupBy("kind").count()
    refused = {row["kind"]: row["count"] for row in reasons.collect()}
    passed_over = refused.pop(PASSED_OVER, 0)
    listed = ", ".join(f"{number:,} {kind}" for kind, number in sorted(refused.items()))
    if refused and not good:
        raise UserError(
            f"none of {sum(refused.values()):,} images can be used ({listed}): see {beside}"
        )
    if not good:
        raise UserError("--images has archives without images: there is nothing to score")
    if passed_over:
        log.info("passed over: %s files that are no images: %s", f"{passed_over:,}", beside)
    if refused:
        log.info("refused: %s: %s", listed, beside)
    names = result.predictions.select("image_index").distinct().count()
    if names < good:
        log.warning("note: %s images share their name with another; `path` tells them apart",
                    f"{good - names:,}")  # fmt: skip
    log.info("%s images: %s", f"{good:,}", out)


def quarantine_of(out: Location) -> Location:
    """``scores-quarantine.parquet`` beside ``scores.parquet``."""
    stem, extension = posixpath.splitext(out.uri.rstrip("/"))
    return locate(f"{stem}{QUARANTINE}{extension}")


def columns_of(findings: Sequence[str]) -> dict[str, str]:
    """The columns of a scored image, name → Spark's type."""
    return FILE_COLUMNS | {probability_column(finding): "double" for finding in findings}


def source_scorer(
    sources: list[tuple[SourceFile, ...]], how: Preparation, scorer: Scorer
) -> Callable[[Batches], Batches]:
    """The function that a Spark task maps over its Arrow batches of source positions."""

    def score(batches: Batches) -> Batches:
        for batch in batches:
            for position in batch.column(0).to_pylist():
                held: list[ImageFile] = []
                for image in read_source_images(sources[position]):
                    held.append(image)
                    if len(held) == TASK_IMAGES:
                        yield scored_batch(held, how, scorer)
                        held = []
                if held:
                    yield scored_batch(held, how, scorer)

    return score


def scored_batch(held: list[ImageFile], how: Preparation, scorer: Scorer) -> pa.RecordBatch:
    """Rows of `columns_of` for some images: probabilities of the good, the reason of the bad."""
    rows: list[dict[str, Any]] = []
    good: list[tuple[dict[str, Any], np.ndarray]] = []
    for name, path, number, content in held:
        row = {"image_index": name, "path": path, "bytes": number}
        try:
            if isinstance(content, BadImageError):
                raise content
            image = prepare(content, how, name)
            row |= {"original_width": image.original_width, "inverted": image.inverted,
                    "original_height": image.original_height}  # fmt: skip
            good.append((row, image.pixels))
        except BadImageError as error:
            row["reason"] = str(error)
        rows.append(row)
    if good:
        found = probabilities_of(np.stack([pixels for _, pixels in good]), scorer)
        names = [probability_column(finding) for finding in scorer.findings]
        for (row, _), values in zip(good, found.tolist(), strict=True):
            row |= dict(zip(names, values, strict=True))
    columns = columns_of(scorer.findings).items()
    return pa.RecordBatch.from_pylist(
        rows, pa.schema([(name, ARROW_TYPES[kind]) for name, kind in columns])
    )
