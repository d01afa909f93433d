"""Runs and a store, or anybody's scores, in; predictions and metrics out. Runs on the driver."""

import dataclasses
import logging
from collections.abc import Iterable
from typing import NamedTuple, cast

import numpy as np
import pandas as pd
import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.functions import lit

from chexspark.arguments import takes
from chexspark.config import EvaluateConfig
from chexspark.errors import UserError, listed, spoken
from chexspark.evaluation import tables
from chexspark.evaluation.ensembles import blend, scores_of_each, weights_of
from chexspark.evaluation.inference import Scorer
from chexspark.evaluation.maps import Mapper, write_maps
from chexspark.evaluation.measuring import (
    GIVEN,
    Scored,
    Validation,
    read_against,
    write_comparison,
    write_metrics,
)
from chexspark.evaluation.metrics import Metric
from chexspark.evaluation.runs import (
    best_models,
    check_fit,
    check_scored_by,
    check_seen,
    different_runs,
    shared_findings,
    validation_fault,
)
from chexspark.evaluation.scores import GivenScores, Scores, read_given
from chexspark.evaluation.scoring import Scoring, earlier_scores, score
from chexspark.evaluation.store_split import StoreSplit
from chexspark.evaluation.studies import STUDY, by_study
from chexspark.evaluation.views import in_order
from chexspark.findings import column_name
from chexspark.run.folder import METRICS, PREDICTIONS, RunFolder, run_folder
from chexspark.run.tracking import tell_figures
from chexspark.session import start_session
from chexspark.spark_tables import read_parquet
from chexspark.storage import locate
from chexspark.store.manifest import read_manifest
from chexspark.store.row_groups import checked_column
from chexspark.store.schema import parquet_schema

log = logging.getLogger(__name__)


SHOWN = ("finding", "auroc", "auroc_low", "auroc_high", "average_precision", "positives", "negatives", "note")  # fmt: skip


class Evaluation(NamedTuple):
    """What `evaluate` returns: both are also written, as Parquet."""

    predictions: DataFrame  # one row per image
    metrics: DataFrame  # one row per finding, and `mean`

    def _repr_html_(self) -> str:
        """For a notebook: the metrics that are asked for first."""
        table = self.metrics.select(*SHOWN).toPandas()
        return table.round(4).to_html(index=False, na_rep="–", border=0)


@takes(EvaluateConfig)
def evaluate(spark: SparkSession | None, config: EvaluateConfig) -> Evaluation:
    """Score a split of the store with the best model of a run, or take scores that are there.

    The findings are those that the store and all runs have, or that have both scores and labels. Writes
    predictions, metrics, subgroups, and where it can comparison, localisation and examples into the run
    or `out`. Raises UserError for what the user can mend, before Spark is asked.
    """
    check_settings(config)
    if config.predictions is not None:
        return evaluate_scores(spark, config)
    return evaluate_runs(spark, config)


def check_settings(config: EvaluateConfig) -> None:
    """Raise UserError for settings that do not go together."""
    if config.predictions is not None:
        given = ["--data"] * bool(config.data) + ["--tta"] * bool(config.tta)
        given += ["--fit-weights"] * config.fit_weights
        if given:
            raise UserError(
                f"--predictions is scored already: leave out {' and '.join(given)}, or leave out "
                "--predictions"
            )
        if not config.out:
            raise UserError(
                "--out is missing: the folder that metrics of --predictions are written to"
            )
        return
    for name in ("data", "run"):
        if not getattr(config, name):
            raise UserError(f"--{name} is missing (or give --predictions, --labels and --out)")
    for name in ("labels", "validation_predictions"):
        if getattr(config, name) is not None:
            flag = "--" + name.replace("_", "-")
            raise UserError(f"{flag} goes with --predictions only: a store has its own")
    different_runs(config.run)
    if config.fit_weights and len(config.run) < 2:
        raise UserError("--fit-weights is for an ensemble: give --run two runs or more")
    if len(config.run) > 1 and not config.out:
        raise UserError(
            f"--out is missing: an ensemble of {len(config.run)} runs needs a folder of its own"
        )


def say(notes: Iterable[str | None]) -> None:
    """Show the notes that there are."""
    for note in notes:
        if note:
            log.warning("note: %s", spoken(note))


def evaluate_runs(spark: SparkSession | None, config: EvaluateConfig) -> Evaluation:
    """Score a split of a store with the best models of runs; metrics, comparison and maps.

    Raises UserError for what the user can mend.
    """
    store, runs = locate(config.data or ""), different_runs(config.run)
    out = run_folder(config.out) if config.out else runs[0]
    manifest = read_manifest(store)
    for run in runs:
        check_fit(store, run, manifest)
    split = StoreSplit(store, manifest, config.split)
    check_seen(runs, split)
    models = best_models(runs, config.model)
    findings, left_out = shared_findings(
        {f"the store {store}": manifest.findings}
        | {f"the run {run}": model.findings for run, model in zip(runs, models, strict=True)}
    )
    val = split.other("val")
    fault = None if split.name == "val" else validation_fault(runs, val)
    if config.fit_weights and fault:
        raise UserError(f"--fit-weights cannot be: {fault}")
    check_studies(split, config)
    aggregate = aggregate_of(config)
    against = None
    if config.against is not None:
        against = read_against(
            config.against, split.name, findings, manifest.fingerprint, aggregate
        )
    say([
        left_out,
        fault and f"no thresholds and no scaling: {fault}",
        "the best epoch was chosen on validation: its figures flatter the model"
        if split.name == "val" else None,
        "the weights are fitted on validation, whose figures they flatter" if config.fit_weights else None,
    ])  # fmt: skip
    scorer = Scorer(models, findings, in_order(config.tta), config.batch_size)
    scoring = Scoring(tuple(str(run) for run in runs), scorer, out)
    out.place.make_directory(config.private)
    spark = start_session(spark, "evaluate")
    validation = None
    if config.fit_weights:
        each = scores_of_each(spark, val, scoring)
        scoring = dataclasses.replace(scoring, weights=weights_of(each, findings))
        log.info("weights: %s", weights_text(scoring))
        table = blend(val, scoring, each)
    elif split.name != "val" and not fault:
        table = earlier_scores(val, scoring)
        if table is None:
            table = score(spark, val, scoring, ", for thresholds and scaling")
    if split.name != "val" and not fault:
        validation = Validation(rows_of(table, findings, aggregate), f"the val split of {store}")
    if not config.fit_weights:
        table = score(spark, split, scoring)
    elif split.name != "val":
        table = blend(split, scoring, scores_of_each(spark, split, scoring))
    rows = rows_of(table, findings, aggregate)
    if split.name == "val":
        validation = Validation(rows, f"the val split of {store}")
    scored = Scored(split.name, rows, findings, validation, left_out, manifest.means, aggregate)
    measured = write_metrics(scored, config.bootstrap, out)
    if against is not None:
        write_comparison(scored, against, config.bootstrap, out)
    tell_figures(out, figures(measured.whole, split.name))
    heaviest = int(np.argmax(scoring.weights)) if scoring.weights else 0
    mapper = Mapper(models[heaviest], config.batch_size)
    write_maps(spark, split, mapper, table, measured.whole, out)
    return result(spark, out, split.name)


def weights_text(scoring: Scoring) -> str:
    """``run-a 0.620, run-b 0.380``."""
    pairs = zip(scoring.runs, scoring.weights, strict=True)
    return ", ".join(f"{run} {weight:.3f}" for run, weight in pairs)


def evaluate_scores(spark: SparkSession | None, config: EvaluateConfig) -> Evaluation:
    """Metrics of scores that are there already, and comparison."""
    predictions = cast(Scores, config.predictions)  # which are there in this mode
    given = read_given(predictions, "--predictions", config.labels, config.label_form)
    runs = different_runs(config.run)
    unknown = check_scored_by(runs, given.table)
    aggregate = aggregate_of(config)
    validation = None
    if config.validation_predictions is not None:
        val = read_given(
            config.validation_predictions,
            "--validation-predictions",
            config.labels,
            config.label_form,
        )
        check_validation(val, given)
        words = f"the {len(val.table):,} images of --validation-predictions"
        validation = Validation(rows_of(val.table, given.findings, aggregate), words)
    against = None
    if config.against is not None:
        against = read_against(config.against, config.split, given.findings, None, aggregate)
    rows = rows_of(given.table, given.findings, aggregate)
    say([given.left_out, *given.notes, unknown])
    out = run_folder(config.out or "")
    out.place.make_directory(config.private)
    folder = out.table(PREDICTIONS, GIVEN)
    folder.delete_directory()
    folder.write_table(pa.Table.from_pandas(given.table, preserve_index=False))
    tables.write_evaluation(out, GIVEN, {
        "findings": list(given.findings),
        "scores": predictions if isinstance(predictions, str) else "a DataFrame",
        "labels": config.labels, "images": len(given.table),
        "patients": int(given.table["patient_id"].nunique()),
        "checked_against": [str(run) for run in runs] if unknown is None else [],
    })  # fmt: skip
    scored = Scored(GIVEN, rows, given.findings, validation, given.left_out, given.means, aggregate)
    measured = write_metrics(scored, config.bootstrap, out)
    tell_figures(out, figures(measured.whole, GIVEN))
    if against is not None:
        write_comparison(scored, against, config.bootstrap, out)
    return result(start_session(spark, "evaluate"), out, GIVEN)


def figures(records: Iterable[Metric], split: str) -> dict[str, float | None]:
    """AUROC and average precision of each row of the metrics, with their intervals, by the names that MLflow has."""
    return {
        f"{split}_{score}_{column_name(record['finding'])}{end}": record[f"{score}{end}"]  # type: ignore[literal-required]
        for record in records
        for score in ("auroc", "average_precision")
        for end in ("", "_low", "_high")
    }


def aggregate_of(config: EvaluateConfig) -> str | None:
    """How scores of a study's images are put together; None where images are counted."""
    return config.aggregate if config.by == STUDY else None


def rows_of(table: pd.DataFrame, findings: tuple[str, ...], aggregate: str | None) -> pd.DataFrame:
    """The rows that are counted: images, or studies. Raises UserError where no image has a study."""
    if not aggregate:
        return table
    rows = by_study(table, findings, aggregate)
    without = int(table["study_id"].isna().sum())
    alone = f", {without:,} images without a study each for itself" if without else ""
    log.info(
        f"{len(rows):,} studies of {len(table):,} images, the {aggregate} of their scores{alone}"
    )
    return rows


def check_studies(split: StoreSplit, config: EvaluateConfig) -> None:
    """Raise UserError where studies are to be counted and the store knows of none, before any is scored."""
    if config.by != STUDY:
        return
    if "study_id" in parquet_schema(split.manifest.image_size, split.manifest.schema_version).names:
        groups = split.row_groups()
        if any(
            value is not None for group in groups for value in checked_column([group], "study_id")
        ):
            return
    raise UserError(
        f"--by=study: no image of {split} has a study: ingest with a label form that has study, or, of "
        "DICOM files, with --dicom-columns=study"
    )


def check_validation(validation: GivenScores, given: GivenScores) -> None:
    """Raise UserError unless thresholds of all findings may be fitted on these other patients."""
    shared = set(validation.table["patient_id"]) & set(given.table["patient_id"])
    if shared:
        raise UserError(
            f"--validation-predictions and --predictions share {len(shared):,} patients: thresholds "
            "may be fitted on other patients only"
        )
    missing = [finding for finding in given.findings if finding not in validation.findings]
    if missing:
        raise UserError(
            f"--validation-predictions has no scores or no labels of {listed(missing)}, which "
            "--predictions has: give them in both, or leave them out of both"
        )


def result(spark: SparkSession, out: RunFolder, split: str) -> Evaluation:
    """The written tables as Spark DataFrames."""
    frames = [read_parquet(spark, [out.table(name, split)]) for name in (PREDICTIONS, METRICS)]
    return Evaluation(*(frame.withColumn("split", lit(split)) for frame in frames))
