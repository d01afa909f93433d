"""How good a Model is: on its validation split, and on the rows of a DataFrame. Runs on the driver.

In: a run and its store; or a Model and a DataFrame with labels. Out: the metrics that ``chexspark evaluate`` has,
into the run or as a DataFrame.
"""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import from_arrow_schema

from chexspark.config import EvaluateConfig
from chexspark.errors import UserError, listed
from chexspark.evaluation import tables
from chexspark.evaluation.inference import Scorer
from chexspark.evaluation.measuring import Scored, Validation, write_metrics
from chexspark.evaluation.metrics import Fitted, Metric, metric_records
from chexspark.evaluation.operating_points import operating_points
from chexspark.evaluation.predictions import label_column, labelled_scores, probability_column
from chexspark.evaluation.runs import best_model
from chexspark.evaluation.scoring import Scoring, earlier_scores, score
from chexspark.evaluation.store_split import StoreSplit
from chexspark.findings import find
from chexspark.ingestion import frame_columns as columns
from chexspark.ml.scoring import PROBABILITIES, REASON, SEEN, FrameScoring, scored_udf
from chexspark.run.folder import RunFolder
from chexspark.spark_progress import watched
from chexspark.storage import Location
from chexspark.store.manifest import read_manifest

log = logging.getLogger(__name__)


def validate(spark: SparkSession, store: Location, run: RunFolder, networks: Sequence[str]) -> None:
    """Score a store's validation split with a run, for thresholds and calibration; what is there stays.

    `networks`: of the user's own, those that the user named.
    """
    model = best_model(run, networks)
    if operating_points(run, model) is not None:
        return
    split = StoreSplit(store, read_manifest(store), "val")
    scoring = Scoring(
        (str(run),), Scorer((model,), model.findings, (), EvaluateConfig.batch_size), run
    )
    table = earlier_scores(split, scoring)
    if table is None:
        table = score(spark, split, scoring, ", for thresholds and calibration")
    words = f"the val split of {store}"
    scored = Scored("val", table, model.findings, Validation(table, words))
    measured = write_metrics(scored, EvaluateConfig.bootstrap, run, told=False)
    without = [row["finding"] for row in measured.whole[:-1] if row["threshold_youden"] is None]
    if without:
        log.warning(
            "note: no threshold, and so no prediction, of %s: among the images of validation none is positive, none "
            "is negative, or no threshold beats chance", listed(without),
        )  # fmt: skip


def scored_rows(
    dataset: DataFrame,
    scoring: FrameScoring,
    image: Any,
    patient: Any,
    names: tuple[str, ...],
    given: tuple[str, ...],
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Patients, labels and scores of a DataFrame's rows, as a table of predictions, and its findings.

    `image`, `patient`: columns; the latter may be None. `names`: the columns of labels, `given`: their findings.
    Adds ``seen``. Raises UserError where no label is of a finding that the model has.
    """
    findings = scoring.scorer.findings
    if not names:
        raise UserError("--labels is missing: the columns of the labels")
    labels = columns.label_columns(dataset, names)
    asked = given or (findings if labels.together else ())
    of_labels = columns.findings_of(names, asked, labels.together)
    places = {
        findings[at]: i
        for i, name in enumerate(of_labels)
        if (at := find(name, findings)) is not None
    }
    if not places:
        raise UserError(
            f"--labels has {listed(of_labels)}, and the model {listed(findings)}: none is in both"
        )
    unknown = F.lit(None).cast("string") if patient is None else patient
    scored = scored_udf(scoring)(image, unknown)
    selected = dataset.select(
        unknown.alias("patient"), labels.column.alias("labels"), scored.alias("scored")
    )
    flat = selected.select(
        "patient", "labels", *(F.col("scored")[n].alias(n) for n in (REASON, PROBABILITIES, SEEN))
    )
    with watched(dataset.sparkSession, "scoring the DataFrame", None):
        rows = flat.toPandas()
    bad = rows[REASON].notna()
    if bad.any():
        kinds = rows.loc[bad, REASON].str.partition(":")[0].value_counts()
        told = ", ".join(f"{number:,} {kind}" for kind, number in kinds.items())
        log.warning(
            "note: %s images could not be used (%s), and are left out", f"{int(bad.sum()):,}", told
        )
    rows = rows[~bad].reset_index(drop=True)
    if rows.empty:
        raise UserError("the DataFrame has no image that can be used")
    table = pd.DataFrame(
        {
            "patient_id": rows["patient"].where(rows["patient"].notna(), rows.index.astype(str)),
            SEEN: rows[SEEN],
        }
    )
    called = "row " + pd.Series(rows.index.astype(str))
    values = columns.label_values(rows["labels"], called, names, of_labels)
    scores = np.array([list(each) for each in rows[PROBABILITIES]], np.float64)
    kept = tuple(finding for finding in findings if finding in places)
    for finding in kept:
        table[label_column(finding)] = values[:, places[finding]]
        table[probability_column(finding)] = scores[:, findings.index(finding)]
    return table, kept


def check_unseen(table: pd.DataFrame, known: bool, allowed: bool) -> None:
    """Raise UserError where the model has seen patients, unless that is `allowed`. `known`: it can be told."""
    if not known:
        log.warning(
            "note: not checked against training patients: set patientCol, a column of patients"
        )
        return
    seen = table.loc[table[SEEN].eq(True), "patient_id"].nunique()
    if not seen:
        return
    text = f"the model was trained, or its epoch chosen, on {seen:,} of {table['patient_id'].nunique():,} patients"
    if not allowed:
        raise UserError(f"{text}: give others, or allowSeen=True for figures that flatter it")
    log.warning("note: %s: these figures flatter it", text)


def metrics_frame(
    spark: SparkSession,
    table: pd.DataFrame,
    findings: tuple[str, ...],
    fitted: list[Fitted] | None,
    resamples: int,
) -> DataFrame:
    """Metrics of a table of predictions as a DataFrame: a row per finding, and their mean.

    `fitted`: of these findings, in their order.
    """
    measured = metric_records(labelled_scores(table, findings), resamples, [], fitted)
    schema = tables.schema_of(Metric)
    records: list[dict[str, Any]] = [dict(record) for record in measured.whole]
    rows = [tuple(record[name] for name in schema.names) for record in records]
    return spark.createDataFrame(rows, from_arrow_schema(schema))
