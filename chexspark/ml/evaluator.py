"""A Spark ML Evaluator of the probabilities of findings, and folds that keep patients apart. Runs on the driver."""

import dataclasses
import logging
from typing import Any, Self

import numpy as np
import pandas as pd
from pyspark.ml.evaluation import Evaluator
from pyspark.ml.util import DefaultParamsReadable, DefaultParamsWritable
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from sklearn.metrics import average_precision_score, roc_auc_score

from chexspark.errors import UserError, closest, listed
from chexspark.evaluation.calibration import brier
from chexspark.findings import UNKNOWN
from chexspark.ingestion import frame_columns as columns
from chexspark.ml.params import (
    FINDINGS_OF,
    FRAME,
    OUTPUT,
    SettingParams,
    check_frame,
    in_params,
    with_params,
)
from chexspark.settings import setting

log = logging.getLogger(__name__)

MEAN_AUROC, MEAN_AP, BRIER, OF_ONE = "meanAUROC", "meanAP", "brier", "AUROC:"


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluatorSettings:
    """What an Evaluator measures."""

    metric_name: str = setting(
        "meanAUROC, meanAP (average precision) or brier, the mean over the findings; or AUROC:<finding>", "metric",
        MEAN_AUROC)  # fmt: skip


METRIC = {field.name: field for field in dataclasses.fields(EvaluatorSettings)}
USED = {name: FRAME[name] for name in ("labels", "findings")} | {
    name: OUTPUT[name] for name in ("label", "probability", "seen")
}


@with_params(METRIC, USED)
class ChestXrayEvaluator(Evaluator, SettingParams, DefaultParamsReadable, DefaultParamsWritable):
    """One figure of the rows that a `ChestXrayModel` has scored, for CrossValidator and others.

    Labels that are not known, and rows without probabilities, are left out. A finding without both classes has
    no figure, and the mean is that of the others.
    """

    def isLargerBetter(self) -> bool:
        """Whether a larger figure is a better one: not with brier."""
        return self.value("metric_name") != BRIER

    def setParams(self, **values: Any) -> Self:
        """Set several Params by name. Raises UserError as for others, and for a metric that is none."""
        super().setParams(**values)
        metric = self.value("metric_name")
        if metric not in (MEAN_AUROC, MEAN_AP, BRIER) and not metric.startswith(OF_ONE):
            raise UserError(
                f"metricName={metric}: must be {MEAN_AUROC}, {MEAN_AP}, {BRIER} or {OF_ONE}<finding>"
            )
        return self

    @in_params
    def evaluate(self, dataset: DataFrame, params: Any = None) -> float:
        """The figure. Raises UserError where it is not defined for any finding, and warns of patients that the
        model has seen."""
        check_frame(dataset, "evaluate")
        return super().evaluate(dataset, params)

    def _evaluate(self, dataset: DataFrame) -> float:
        names = tuple(self.label_columns())
        if not names:
            raise UserError("--labels is missing: the columns of the labels")
        labels = columns.label_columns(dataset, names)
        field = columns.field_of(dataset.schema, self.value("probability"))
        said = list(field.metadata.get(FINDINGS_OF, ())) if field else []
        given = tuple(self.value("findings") or (said if labels.together else ()))
        findings = columns.findings_of(names, given, labels.together)
        metric = self.value("metric_name")
        wanted = metric.removeprefix(OF_ONE) if metric.startswith(OF_ONE) else None
        if wanted is not None and wanted not in findings:
            raise UserError(
                f"metricName={metric}: there is no such finding{closest(wanted, findings)} ({listed(findings)})"
            )
        lacking = [finding for finding in findings if said and finding not in said]
        if lacking:
            raise UserError(
                f"--labels has {listed(lacking)}, and --probability={self.value('probability')} is of {listed(said)}"
            )
        truth, scores = self.rows(dataset, labels.column, names, findings)
        if said:
            scores = scores[:, [said.index(finding) for finding in findings]]
        if scores.shape[1] != len(findings):
            raise UserError(
                f"--probability={self.value('probability')} has {scores.shape[1]} values, and there are "
                f"{len(findings)} labels: give the labels of all findings of the model, in its order"
            )
        places = [findings.index(wanted)] if wanted is not None else range(scores.shape[1])
        values = [
            one for i in places if (one := figure(metric, truth[:, i], scores[:, i])) is not None
        ]
        if not values:
            raise UserError(
                f"metricName={metric} is not defined: no finding has both classes among these rows"
            )
        return float(np.mean(values))

    def rows(
        self, dataset: DataFrame, labels: Any, names: tuple[str, ...], findings: tuple[str, ...]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Labels, int8 (rows, findings), and probabilities, float64 (rows, outputs), of the rows that have some.

        Raises UserError where none has.
        """
        name, seen_name = self.value("probability"), self.value("seen")
        found, kind = columns.column(dataset, name, "--probability")
        array = (
            columns.vector_to_array(dataset, found)
            if kind.simpleString() == columns.VECTOR
            else found
        )
        scored = dataset.filter(found.isNotNull())
        seen = (
            F.col(f"`{seen_name}`") if seen_name in dataset.columns else F.lit(None).cast("boolean")
        )
        table = scored.select(
            labels.alias("labels"), array.alias("scores"), seen.alias("seen")
        ).toPandas()
        if table.empty:
            raise UserError(
                f"--probability={name} is null in all rows: there is nothing to measure"
            )
        number = int(table["seen"].eq(True).sum())
        if number:
            log.warning("note: %s of %s rows are of patients that the model has seen: this figure flatters it "
                        "(patientFolds keeps patients apart)", f"{number:,}", f"{len(table):,}")  # fmt: skip
        called = "row " + pd.Series(table.index.astype(str))
        truth = columns.label_values(table["labels"], called, names, findings)
        return truth, np.array([list(row) for row in table["scores"]], np.float64)


def figure(metric: str, labels: np.ndarray, scores: np.ndarray) -> float | None:
    """A metric of one finding, of labels and probabilities (rows,); None where it is not defined."""
    known = labels != UNKNOWN
    truth, score = labels[known], scores[known]
    if not len(truth):
        return None
    if metric == BRIER:
        return brier(truth, score)
    if not 0 < (truth == 1).sum() < len(truth):
        return None
    return float(
        average_precision_score(truth, score) if metric == MEAN_AP else roc_auc_score(truth, score)
    )


@in_params
def patientFolds(
    df: DataFrame, patientCol: str, numFolds: int = 3, seed: int = 0, foldCol: str = "fold"
) -> DataFrame:
    """The rows with a column of the fold, 0 … `numFolds` − 1, by a hash of the patient: a patient's are in one.

    For CrossValidator's `foldCol`. Lazy. Raises UserError for columns that cannot be.
    """
    if not isinstance(numFolds, int) or numFolds < 2:
        raise UserError(f"numFolds is {numFolds!r}, but must be a whole number of 2 or more")
    if foldCol in df.columns:
        raise UserError(f"the DataFrame has a column {foldCol} already: give another foldCol")
    patient = columns.patient_column(df, patientCol)
    return df.withColumn(
        foldCol, F.pmod(F.xxhash64(F.lit(str(seed)), patient), F.lit(numFolds)).cast("int")
    )
