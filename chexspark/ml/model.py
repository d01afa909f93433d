"""A trained run as a Spark ML Model. Runs on the driver; images are scored in Spark tasks.

In: a run, as training wrote it. Out: a DataFrame with the probabilities of its images. TensorFlow is loaded in
the tasks alone, but for `getKerasModel`.
"""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any, Self, get_args

import pandas as pd
from pyspark.ml import Model
from pyspark.ml.util import MLReadable, MLReader, MLWritable, MLWriter
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from chexspark.config import EvaluateConfig
from chexspark.errors import UserError
from chexspark.evaluation.calibration import Scaling
from chexspark.evaluation.inference import Model as Network
from chexspark.evaluation.inference import Scorer, load_keras
from chexspark.evaluation.metrics import NOT_FITTED, Fitted
from chexspark.evaluation.operating_points import operating_points
from chexspark.evaluation.runs import best_model
from chexspark.findings import column_name
from chexspark.ingestion import frame_columns as columns
from chexspark.ml.measuring import check_unseen, metrics_frame, scored_rows
from chexspark.ml.params import (
    COLUMNS,
    FINDINGS_OF,
    OUTPUT,
    SettingParams,
    check_frame,
    in_params,
    with_params,
)
from chexspark.ml.saving import ModelReader, ModelWriter
from chexspark.ml.scoring import (
    PROBABILITIES,
    REASON,
    SEEN,
    FrameScoring,
    probabilities_udf,
    scored_udf,
)
from chexspark.run.folder import RunFolder, run_folder
from chexspark.run.history import read_history
from chexspark.run.lineage import Lineage, preparation_of, read_lineage
from chexspark.run.seen_patients import read_seen_patients
from chexspark.run.settings import check_run
from chexspark.session import BATCH_BYTES, BATCH_ROWS, hand_settings
from chexspark.settings import check_value

KINDS = get_args(columns.Kind)
BOOTSTRAP = next(f for f in dataclasses.fields(EvaluateConfig) if f.name == "bootstrap")
ROWS, SPARKS_ROWS = "256", "10000"  # rows of an Arrow batch: ours, and Spark's own default
SCORED = "chexspark_scored"  # the column that all others are taken from


@with_params({**COLUMNS, **OUTPUT})
class ChestXrayModel(Model, SettingParams, MLReadable, MLWritable):
    """A trained network over the images of a DataFrame: what `ChestXrayClassifier.fit` returns.

    `fromRun` makes one of a run that ``chexspark train`` wrote.
    """

    def __init__(self, run: str | None = None, **values: Any) -> None:
        super().__init__(**values)
        self.run_path = run
        self.network: str | None = None  # no Param: who loads a Model names it again

    @classmethod
    @in_params
    def fromRun(cls, run: str, model: str | None = None, **values: Any) -> Self:
        """A Model of a run, by its path. `model`: as of `setModel`; `values`: Params.

        Raises UserError for what is no run.
        """
        made = cls(os.fspath(run), **values).setModel(model)
        check_run(made.run)
        made.best_model()  # which says what is wrong
        return made

    def setModel(self, model: str | None) -> Self:
        """Name the network of your own that the run was trained with, ``package.module:function``.

        Its code runs. A saved Model does not keep the name: nothing is imported because a file says so.
        """
        self.network = model
        return self

    def best_model(self) -> Network:
        """The network with its weights. Raises UserError as `evaluation.runs.best_model` does."""
        return best_model(self.run, [self.network] if self.network else [])

    def __repr__(self) -> str:
        if self.run_path is None:
            return f"ChestXrayModel: uid={self.uid}, without a run"
        return f"ChestXrayModel: uid={self.uid}, run={self.run_path}"

    @property
    def run(self) -> RunFolder:
        """The run. Raises UserError for a Model without one."""
        if self.run_path is None:
            raise UserError("this ChestXrayModel has no run: use fit, load or fromRun")
        return run_folder(self.run_path)

    @property
    def findingNames(self) -> tuple[str, ...]:
        """The findings, in the order of the probabilities."""
        return tuple(self.lineage["findings"])

    @property
    def lineage(self) -> Lineage:
        """Where the run comes from: store, versions, hosts."""
        return read_lineage(self.run)

    @property
    def history(self) -> pd.DataFrame:
        """A row per epoch."""
        return read_history(self.run)

    def operating_points(self) -> list[Fitted]:
        """What the validation split says of each finding, in their order; nothing where it was not asked."""
        found = operating_points(self.run, self.best_model())
        return found.fitted if found else [NOT_FITTED] * len(self.findingNames)

    @property
    def thresholds(self) -> dict[str, float | None]:
        """Finding → the probability from which on `prediction` is 1: Youden's, of the validation split."""
        points = self.operating_points()
        return {
            name: each.thresholds["youden"]
            for name, each in zip(self.findingNames, points, strict=True)
        }

    @property
    def calibration(self) -> dict[str, Scaling | None]:
        """Finding → slope and intercept that a logit is to be scaled by, fitted on the validation split."""
        points = self.operating_points()
        return {
            name: each.chosen.scaling for name, each in zip(self.findingNames, points, strict=True)
        }

    def getKerasModel(self) -> Any:
        """The network with its weights, as a Keras model of logits, of images as its run shows them to it: those of a
        run of ``--size`` are reduced before. Loads TensorFlow into this process."""
        check_run(self.run)
        return load_keras(self.best_model(), "/CPU:0")

    @in_params
    def transform(self, dataset: DataFrame, params: Mapping | None = None) -> DataFrame:
        """See Spark ML: the rows with further columns. Lazy. Raises UserError for columns that cannot be."""
        check_frame(dataset, "transform", streaming=True)
        return super().transform(dataset, params)

    def _transform(self, dataset: DataFrame) -> DataFrame:
        self.output_columns(dataset, self.findingNames)
        image, kind = self.image(dataset)
        patient = self.patient(dataset)
        scoring = self.scoring(kind, ask_seen=patient is not None and bool(self.value("seen")))
        hand_settings(dataset.sparkSession)
        lower_batches(dataset.sparkSession)
        unknown = F.lit(None).cast("string") if patient is None else patient
        kept = [columns.quoted(name) for name in dataset.columns]
        scored = dataset.select(*kept, scored_udf(scoring)(image, unknown).alias(SCORED))
        if self.value("invalid") == "skip":
            scored = scored.filter(F.col(SCORED)[REASON].isNull())
        values = self.output_values(dataset)
        named = {self.value("probability"): {FINDINGS_OF: list(self.findingNames)}}
        added = [value.alias(name, metadata=named.get(name, {})) for name, value in values.items()]
        return scored.select(*kept, *added)

    def output_values(self, dataset: DataFrame) -> dict[str, Column]:
        """The columns that `transform` adds, by name, out of `SCORED`."""
        found = F.col(SCORED)[PROBABILITIES]
        thresholds = self.thresholds
        calls = [
            F.lit(None).cast("double") if thresholds[finding] is None
            else (found[i] >= F.lit(thresholds[finding])).cast("double")
            for i, finding in enumerate(self.findingNames)
        ]  # fmt: skip
        values = {
            self.value("probability"): columns.array_to_vector(dataset, found),
            self.value("prediction"): F.when(found.isNotNull(), F.array(*calls)),
            self.value("reason"): F.col(SCORED)[REASON],
            self.value("seen"): F.col(SCORED)[SEEN],
        }
        if self.value("prefix"):
            for i, finding in enumerate(self.findingNames):
                values[self.value("prefix") + column_name(finding)] = found[i]
        return {name: value for name, value in values.items() if name}

    def image(self, dataset: DataFrame) -> tuple[Column, columns.Kind]:
        """The column of images, and what they are. Raises UserError."""
        name = self.value("image")
        image, kind = columns.column(dataset, name, "--image")
        return image, columns.image_kind(kind, name)

    def patient(self, dataset: DataFrame) -> Column | None:
        """The column of patients; None where there is none, and nobody can know whom the model has seen."""
        name = self.value("patient")
        return columns.patient_column(dataset, name) if name and name in dataset.columns else None

    def scoring(self, kind: columns.Kind, ask_seen: bool) -> FrameScoring:
        """What the tasks need. Raises UserError where the run has no model, or a damaged one."""
        model, lineage = self.best_model(), self.lineage
        scorer = Scorer((model,), model.findings, (), EvaluateConfig.batch_size)
        seen = read_seen_patients(self.run, lineage) if ask_seen else None
        return FrameScoring(
            scorer, preparation_of(lineage), kind, self.value("invalid") == "error", seen
        )

    @in_params
    def udf(self, kind: columns.Kind = "file") -> Any:
        """A function of Spark from images to an array of probabilities, null for an image that cannot be used.

        `kind`: file (the bytes of image files), path, or struct (Spark's image struct). For
        ``spark.udf.register("score", model.udf())`` and SQL. Raises UserError for another kind.
        """
        if kind not in KINDS:
            raise UserError(f"kind is {kind!r}, but must be one of {', '.join(KINDS)}")
        return probabilities_udf(self.scoring(kind, ask_seen=False))

    @in_params
    def evaluate(
        self, dataset: DataFrame, allowSeen: bool = False, bootstrap: int = EvaluateConfig.bootstrap
    ) -> DataFrame:
        """A row per finding, and their mean: AUROC, average precision and what else ``chexspark evaluate`` has.

        `bootstrap`: resamples of the patients for the intervals. Raises UserError where the model has seen
        patients of these, unless `allowSeen`, and where labels are missing.
        """
        check_frame(dataset, "evaluate")
        check_value(BOOTSTRAP, bootstrap, "bootstrap")
        image, kind = self.image(dataset)
        patient = self.patient(dataset)
        hand_settings(dataset.sparkSession)
        lower_batches(dataset.sparkSession)
        names, given = tuple(self.label_columns()), tuple(self.value("findings") or ())
        scoring = self.scoring(kind, ask_seen=patient is not None)
        table, findings = scored_rows(dataset, scoring, image, patient, names, given)
        check_unseen(table, patient is not None, allowSeen)
        points = dict(zip(self.findingNames, self.operating_points(), strict=True))
        fitted = [points[finding] for finding in findings]
        return metrics_frame(dataset.sparkSession, table, findings, fitted, bootstrap)

    def write(self) -> MLWriter:
        """What saves it; ``write().overwrite()`` in place of what is there."""
        return ModelWriter(self)

    def save(self, path: str) -> None:
        """Save it into a new folder, which can be moved. Raises UserError where something is there."""
        self.write().save(path)

    @classmethod
    def read(cls) -> MLReader:
        """What loads it."""
        return ModelReader(cls)

    @classmethod
    def load(cls, path: str, model: str | None = None) -> Self:
        """The Model that was saved in a folder. `model`: as of `setModel`. Raises UserError for what is none."""
        return cls.read().load(path).setModel(model)


def lower_batches(spark: SparkSession) -> None:
    """Have this session hand fewer rows at a time to Python, where nobody has said how many.

    Of 10,000 images a task would take gigabytes; newer Sparks bound the bytes by themselves.
    """
    if spark.conf.get(BATCH_BYTES, None) is None and spark.conf.get(BATCH_ROWS) == SPARKS_ROWS:
        spark.conf.set(BATCH_ROWS, ROWS)
