"""Images without labels and a run in, probabilities out. Runs on the driver and in Spark tasks.

Out: a Parquet folder of one row per image, with the checks that ingest makes; beside it, what was
refused and why. Tasks write their rows as they score them, so that what ends a job does not undo it.
"""

import logging
import posixpath
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession

from chexspark.arguments import takes
from chexspark.config import PredictConfig
from chexspark.errors import RunFailedError, UserError, spoken
from chexspark.evaluation.inference import Scorer, probabilities_of
from chexspark.evaluation.predictions import probability_column
from chexspark.evaluation.runs import best_models, different_runs, one_preparation, shared_findings
from chexspark.evaluation.views import in_order
from chexspark.ingestion.frame_columns import quoted
from chexspark.ingestion.images import BadImageError, prepare
from chexspark.ingestion.kinds import NO_IMAGE
from chexspark.ingestion.sources import (
    ImageFile,
    SourceFile,
    find_sources,
    passed_over_words,
    read_source_images,
)
from chexspark.preparation import Preparation
from chexspark.session import start_session
from chexspark.spark_progress import watched
from chexspark.spark_tables import PartWriter, finish, read_parquet
from chexspark.storage import Location, locate

log = logging.getLogger(__name__)

FIRST_ROWS = 10  # that a notebook shows
TASK_IMAGES = 64  # loose files of a task
QUARANTINE = "-quarantine"
PASSED_OVER = NO_IMAGE.partition(":")[0]  # the kind of that reason
FILE_COLUMNS = [("image_index", pa.string()), ("path", pa.string()), ("original_width", pa.int32()),
                ("original_height", pa.int32()), ("inverted", pa.bool_())]  # fmt: skip
REFUSED = pa.schema([("path", pa.string()), ("reason", pa.string()), ("bytes", pa.int64())])
Batches = Iterable[pa.RecordBatch]
Row = dict[str, Any]  # column → value


class Predicted(NamedTuple):
    """What `predict` returns: both are also written, as Parquet."""

    predictions: DataFrame  # one row per image
    quarantine: DataFrame  # path, reason, bytes of what was refused

    def _repr_html_(self) -> str:
        """For a notebook: the first rows, and how many images were refused."""
        scores = [n for n in self.predictions.columns if n.startswith(probability_column(""))]
        table = self.predictions.select("image_index", *map(quoted, scores)).limit(FIRST_ROWS)
        refused = f"<p>{self.quarantine.count():,} images were refused</p>"
        return table.toPandas().round(4).to_html(index=False, border=0) + refused


@takes(PredictConfig, connect=True)
def predict(spark: SparkSession | None, config: PredictConfig) -> Predicted:
    """Score images that have no labels with the best model of a run, or of several.

    Of several, the findings that all have. Raises UserError for what the user can mend.
    """
    runs, out = different_runs(config.run), locate(config.out)
    how = one_preparation(runs, config.bit_depth)
    models = best_models(runs, config.model)
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
    scorer = Scorer(models, findings, in_order(config.tta), config.batch_size)
    for place in (out, beside):
        place.make_directory(config.private)
    with PartWriter(beside, REFUSED, len(sources)) as writer:
        named = [{"path": f.uri, "reason": NO_IMAGE, "bytes": f.bytes} for f in passed_over]
        writer.write(pa.RecordBatch.from_pylist(named, REFUSED))
    spark = start_session(spark, "predict")
    number = f"{len(files):,} images" + f" and {len(archives):,} archives" * bool(archives)
    log.info("scoring %s at %s", number, how.words())
    scoring = Scoring(out.uri, beside.uri, " + ".join(str(run) for run in runs), how, scorer)
    remedy = f"; what was scored until then is in {out}"
    with watched(spark, "scoring", max(len(files), len(sources)), remedy=remedy):
        one_each = spark.range(0, len(sources), 1, len(sources))
        one_each.mapInArrow(source_scorer(sources, scoring), "source long").collect()
    try:
        finish(out, schema_of(findings), "path")
        finish(beside, REFUSED, "path")
    except OSError as error:
        raise RunFailedError(
            f"{error}{remedy}, in files that could not be brought into one"
        ) from error
    result = Predicted(read_parquet(spark, [out]), read_parquet(spark, [beside]))
    tell(result, out, beside)
    return result


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


@dataclass(frozen=True)
class Scoring:
    """What a task needs beside its images; plain values."""

    out: str  # the folder of the scores, a URI
    beside: str  # that of what is refused
    run: str
    preparation: Preparation  # of the images that the model takes
    scorer: Scorer


def schema_of(findings: Sequence[str]) -> pa.Schema:
    """The columns of a scored image."""
    scores = [(probability_column(finding), pa.float64()) for finding in findings]
    return pa.schema([*FILE_COLUMNS, *scores, ("run", pa.string())])


def source_scorer(
    sources: list[tuple[SourceFile, ...]], scoring: Scoring
) -> Callable[[Batches], Batches]:
    """The function that a Spark task maps over its Arrow batches of source positions."""

    def score(batches: Batches) -> Batches:
        for batch in batches:
            for position in batch.column(0).to_pylist():
                write_scores(read_source_images(sources[position]), scoring, position)
            yield batch.slice(0, 0)

    return score


def write_scores(images: Iterable[ImageFile], scoring: Scoring, task: int) -> None:
    """Score images, so many at a time, and write their rows, and those of what is refused."""
    schema = schema_of(scoring.scorer.findings)
    good: list[tuple[Row, np.ndarray]] = []
    bad: list[Row] = []
    with (
        PartWriter(locate(scoring.out), schema, task) as scores,
        PartWriter(locate(scoring.beside), REFUSED, task) as refused,
    ):

        def write() -> None:
            if good:
                scores.write(scored(good, scoring, schema))
            refused.write(pa.RecordBatch.from_pylist(bad, REFUSED))
            good.clear()
            bad.clear()

        for name, path, number, content in images:
            try:
                if isinstance(content, BadImageError):
                    raise content
                image = prepare(content, scoring.preparation, name)
                row = {"image_index": name, "path": path, "original_width": image.original_width,
                       "original_height": image.original_height, "inverted": image.inverted}  # fmt: skip
                good.append((row, image.pixels))
            except BadImageError as error:
                bad.append({"path": path, "reason": str(error), "bytes": number})
            if len(good) + len(bad) == TASK_IMAGES:
                write()
        write()


def scored(
    good: list[tuple[Row, np.ndarray]], scoring: Scoring, schema: pa.Schema
) -> pa.RecordBatch:
    """Rows with the probabilities of their pixels, uint8 (size, size)."""
    found = probabilities_of(np.stack([pixels for _, pixels in good]), scoring.scorer)
    names = [probability_column(finding) for finding in scoring.scorer.findings]
    rows = [
        row | dict(zip(names, values, strict=True)) | {"run": scoring.run}
        for (row, _), values in zip(good, found.tolist(), strict=True)
    ]
    return pa.RecordBatch.from_pylist(rows, schema)
