"""Runs and a store, or anybody's scores, in; predictions and metrics out. Runs on the driver."""

import time
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql.functions import lit

from chexspark.arguments import takes
from chexspark.config import EvaluateConfig
from chexspark.errors import UserError
from chexspark.evaluation import tables
from chexspark.evaluation.comparison import comparison_records
from chexspark.evaluation.inference import LABEL, PROBABILITY, Scorer, score_split
from chexspark.evaluation.maps import write_maps
from chexspark.evaluation.metrics import fit, metric_records
from chexspark.evaluation.runs import (
    check_fit,
    check_runs_of,
    check_seen,
    validation_split,
)
from chexspark.evaluation.scores import read_scores, with_labels
from chexspark.evaluation.subgroups import groups_of
from chexspark.findings import FINDINGS
from chexspark.progress import duration
from chexspark.run.folder import (
    COMPARISON,
    METRICS,
    PREDICTIONS,
    SUBGROUPS,
    TABLES,
    RunFolder,
    model_and_digest,
    run_folder,
)
from chexspark.session import start_session
from chexspark.spark_progress import watched
from chexspark.storage import locate
from chexspark.store.manifest import Manifest, read_manifest
from chexspark.store.row_groups import row_groups

GIVEN = "given"  # the split of scores that come as a file


class Evaluation(NamedTuple):
    """What `evaluate` returns: both are also written, as Parquet."""

    predictions: DataFrame  # one row per image
    metrics: DataFrame  # one row per finding, and `mean`


@takes(EvaluateConfig)
def evaluate(spark, config: EvaluateConfig) -> Evaluation:
    """Score a split of the store with the best model of a run, or take scores that are there.

    Writes predictions, metrics, subgroups, and where it can comparison, localisation and examples
    into the run or `out`. Raises UserError for what the user can mend, before Spark is asked.
    """
    check_settings(config)
    if config.predictions is not None:
        return evaluate_scores(spark, config)
    store, runs = locate(config.data), [run_folder(run) for run in config.run]
    out = run_folder(config.out) if config.out else runs[0]
    manifest = read_manifest(store)
    for run in runs:
        check_fit(store, run, manifest)
    check_seen(runs, store, manifest, config.split)
    val = validation_split(runs, store, manifest, config.split)
    against = read_against(config, manifest) if config.against else None
    models = tuple(model_and_digest(run) for run in runs)
    scorer = Scorer(models, config.flip, config.batch_size)
    out.place.make_directory()
    spark = start_session(spark, "evaluate")
    scored = {}
    for split in dict.fromkeys([val, config.split] if val else [config.split]):
        facts = {
            "runs": [str(run) for run in runs], "models": [d for _, d in models],
            "flip": config.flip, "store": str(store), "store_fingerprint": manifest.fingerprint,
            "split_hash": manifest.split_hash, "data": data_of(manifest),
        }  # fmt: skip
        scored[split] = score(spark, store, manifest, split, scorer, out, facts, config.split)
    fitted_on = f"the {val} split of {store}" if val else None
    table, validation = scored[config.split], scored[val] if val else None
    records = describe(table, validation, config, out, config.split, fitted_on)
    if against is not None:
        compare(table, against, config, out, config.split)
    write_maps(
        spark, store, manifest, config.split, models[0], out, table, records, config.batch_size
    )
    return result(spark, out, config.split)


def check_settings(config: EvaluateConfig) -> None:
    """Raise UserError for settings that do not go together."""
    if config.predictions is not None:
        given = [n for n, v in (("--run", config.run), ("--data", config.data)) if v]
        given += ["--flip"] * config.flip
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
            raise UserError(
                f"--{name} is missing (or give --predictions FILE --labels CSV --out DIR)"
            )
    for name in ("labels", "validation_predictions"):
        if getattr(config, name) is not None:
            flag = "--" + name.replace("_", "-")
            raise UserError(f"{flag} goes with --predictions only: a store has its own")
    if len(set(config.run)) < len(config.run):
        raise UserError("--run names a run twice: an ensemble needs different ones")
    if len(config.run) > 1 and not config.out:
        raise UserError(
            f"--out is missing: an ensemble of {len(config.run)} runs needs a folder of its own"
        )


def named(given) -> str:
    """How to call scores that are a path or a DataFrame."""
    return given if isinstance(given, str) else "a DataFrame"


def data_of(manifest: Manifest) -> dict[str, str]:
    """What the store holds, in words."""
    words = {
        name: f"{split.images:,} images of {split.patients:,} patients"
        for name, split in manifest.splits.items()
    }
    words["Refused at ingest"] = f"{sum(manifest.quarantined.values()):,} images"
    alike = sum(manifest.duplicates.values())
    words["Alike in different patients"] = f"{alike:,} pairs of images"
    return words


def score(
    spark, store, manifest, split: str, scorer: Scorer, out: RunFolder, facts: dict, asked: str
) -> pd.DataFrame:
    """Score a split into ``OUT/predictions`` and return it; the validation split only once."""
    before = tables.read_evaluation(out).get(split, {})
    folder = out.table(PREDICTIONS, split)
    if (
        split != asked
        and folder.is_directory()
        and all(before.get(n) == v for n, v in facts.items())
    ):
        return folder.read_table().to_pandas()
    images = manifest.splits[split].images
    why = "" if split == asked else ", for thresholds and temperature"
    print(f"scoring {images:,} images of {store / split}{why}", flush=True)
    started = time.monotonic()
    groups = row_groups(store, manifest, split)
    scores = score_split(spark, groups, manifest.image_size, scorer)
    scores = scores.withColumn("run", lit(" + ".join(facts["runs"])))
    scores = scores.withColumn("store_fingerprint", lit(manifest.fingerprint))
    with watched(spark, f"scoring {split}", images):
        scores = scores.repartition(1).sortWithinPartitions("image_index")
        scores.write.mode("overwrite").parquet(folder.spark_uri)
    seconds = time.monotonic() - started
    print(f"{images:,} images in {duration(seconds)}, {images / seconds:.1f} images/s", flush=True)
    for name in TABLES:
        if name != PREDICTIONS:
            out.table(name, split).delete_directory()  # what was said of other scores
    table = folder.read_table().to_pandas()
    if not np.isfinite(scores_of(table)).all():
        bad = (~np.isfinite(scores_of(table))).any(axis=1)
        raise UserError(
            f"the model of --run {' '.join(facts['runs'])} gives {bad.sum():,} of {images:,} images no "
            f"numbers, the first {table['image_index'][bad].iloc[0]}: its weights are broken; train again"
        )
    tables.write_evaluation(out, split, facts | {
        "images": images, "patients": int(table["patient_id"].nunique()),
        "seconds": round(seconds, 1), "metrics": False,
    })  # fmt: skip
    return table


def labels_of(table: pd.DataFrame) -> np.ndarray:
    return table[[LABEL + finding for finding in FINDINGS]].to_numpy(np.int8)


def scores_of(table: pd.DataFrame) -> np.ndarray:
    return table[[PROBABILITY + finding for finding in FINDINGS]].to_numpy(np.float64)


def describe(table, validation, config, out: RunFolder, split: str, fitted_on: str | None):
    """Metrics of all images and of subgroups: written and printed. Returns the former."""
    fitted = None if validation is None else fit(labels_of(validation), scores_of(validation))
    groups = groups_of(table)
    found = metric_records(
        labels_of(table), scores_of(table), table["patient_id"].to_numpy(str), config.bootstrap,
        groups, fitted,
    )  # fmt: skip
    tables.write_split(out, METRICS, split, found[0], tables.metrics_schema())
    rows = tables.subgroup_rows(groups, found)
    tables.write_split(out, SUBGROUPS, split, rows, tables.subgroups_schema())
    notes = tables.warnings_text(groups, found)
    facts = tables.read_evaluation(out)[split]
    tables.write_evaluation(out, split, facts | {
        "metrics": True, "bootstrap": config.bootstrap, "fitted_on": fitted_on, "warnings": notes,
    })  # fmt: skip
    print(tables.metrics_text(found[0], split), *notes, sep="\n", flush=True)
    chosen = f"thresholds and temperature: from {fitted_on}"
    if fitted_on is None:
        chosen = "no thresholds and no temperature, which need a validation split"
        chosen += " (--validation-predictions)" * (split == GIVEN)
    print(chosen, out.table(METRICS), sep="\n", flush=True)
    return found[0]


def evaluate_scores(spark, config: EvaluateConfig) -> Evaluation:
    """Metrics of scores that are there already."""
    out, path, name = run_folder(config.out), config.predictions, named(config.predictions)
    table = with_labels(read_scores(path, "--predictions"), config.labels, f"--predictions {name}")
    check_runs_of(table)
    validation = None
    if config.validation_predictions is not None:
        val = read_scores(config.validation_predictions, "--validation-predictions")
        validation = with_labels(val, config.labels, "--validation-predictions")
        shared = set(validation["patient_id"]) & set(table["patient_id"])
        if shared:
            raise UserError(
                f"--validation-predictions and --predictions share {len(shared):,} patients: thresholds "
                "may be fitted on other patients only"
            )
    against = read_against(config, None) if config.against else None
    out.place.make_directory()
    folder = out.table(PREDICTIONS, GIVEN)
    folder.delete_directory()
    folder.write_table(pa.Table.from_pandas(table, preserve_index=False))
    tables.write_evaluation(out, GIVEN, {
        "scores": name, "labels": config.labels, "images": len(table),
        "patients": int(table["patient_id"].nunique()),
    })  # fmt: skip
    fitted_on = None
    if validation is not None:
        fitted_on = f"the {len(validation):,} images of --validation-predictions"
    describe(table, validation, config, out, GIVEN, fitted_on)
    if against is not None:
        compare(table, against, config, out, GIVEN)
    return result(start_session(spark, "evaluate"), out, GIVEN)


def read_against(config: EvaluateConfig, manifest: Manifest | None) -> pd.DataFrame:
    """The scores of the other model: an evaluated run's of the same split, or scores as they are."""
    place = run_folder(config.against) if isinstance(config.against, str) else None
    if place is None or not (place.lineage.is_file() or place.evaluation.is_file()):
        return read_scores(config.against, "--against")
    facts = tables.read_evaluation(place)
    for split in (config.split, GIVEN):
        folder = place.table(PREDICTIONS, split)
        other = facts.get(split, {}).get("store_fingerprint")
        if folder.is_directory() and (not manifest or other in (None, manifest.fingerprint)):
            return folder.read_table().to_pandas()
    raise UserError(
        f"--against {place} has no predictions of the {config.split} split of this store: run "
        f"chexspark evaluate --run {place} first"
    )


def compare(table: pd.DataFrame, other: pd.DataFrame, config, out: RunFolder, split: str) -> None:
    """Compare with another model on the images that both have: written and printed."""
    name = named(config.against)
    columns = [PROBABILITY + finding for finding in FINDINGS]
    other = other.set_index("image_index")[columns]
    both = table[table["image_index"].isin(other.index)]
    if both.empty:
        raise UserError(f"--against {name} has none of the images that were scored")
    if len(both) < max(len(table), len(other)):
        print(f"note: compared on the {len(both):,} images that both have "
              f"(of {len(table):,} and {len(other):,})")  # fmt: skip
    second = other.loc[both["image_index"]].to_numpy(np.float64)
    records = comparison_records(
        labels_of(both), scores_of(both), second, both["patient_id"].to_numpy(str), config.bootstrap
    )
    rows = [{**r, "images": len(both), "other": name} for r in records]
    tables.write_split(out, COMPARISON, split, rows, tables.comparison_schema())
    print(tables.comparison_text(records, name), flush=True)


def result(spark, out: RunFolder, split: str) -> Evaluation:
    """The written tables as Spark DataFrames."""
    frames = [
        spark.read.option("basePath", out.table(name).spark_uri)
        .parquet(out.table(name, split).spark_uri)
        for name in (PREDICTIONS, METRICS)
    ]  # fmt: skip
    return Evaluation(*frames)
