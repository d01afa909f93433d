"""A split of a store scored into ``OUT/predictions``. Runs on the driver; the models in Spark tasks.

In: a split, runs and their models. Out: the table of predictions, and what ``evaluation.json`` says of
it. Scores of the validation split that are there are taken as they are when they are the same.
"""

import logging
import time
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
from pyspark.sql import SparkSession
from pyspark.sql.functions import lit

from chexspark.errors import UserError
from chexspark.evaluation import tables
from chexspark.evaluation.inference import Scorer, score_split
from chexspark.evaluation.predictions import scores_of
from chexspark.evaluation.store_split import StoreSplit
from chexspark.evaluation.tables import SplitFacts
from chexspark.progress import duration
from chexspark.run.folder import PREDICTIONS, TABLES, RunFolder
from chexspark.spark_progress import watched
from chexspark.spark_tables import read_parts, write_parts
from chexspark.store.manifest import Manifest

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scoring:
    """What scores, and where to."""

    runs: tuple[str, ...]
    scorer: Scorer
    out: RunFolder
    weights: tuple[float, ...] = ()  # of the models; none: all weigh the same


def facts_of(split: StoreSplit, scoring: Scoring) -> SplitFacts:
    """What ``evaluation.json`` says of scores before there are any."""
    scorer, manifest = scoring.scorer, split.manifest
    return {
        "findings": list(scorer.findings), "runs": list(scoring.runs),
        "models": [model.digest for model in scorer.models], "tta": list(scorer.tta),
        "weights": list(scoring.weights),
        "store": str(split.store), "store_fingerprint": manifest.fingerprint,
        "split_hash": manifest.split_hash, "official_split": manifest.settings.get("split") == "official",
        "data": data_of(manifest),
        "synthetic": manifest.synthetic > 0,
    }  # fmt: skip


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


def earlier_scores(split: StoreSplit, scoring: Scoring) -> pd.DataFrame | None:
    """The predictions of a split that are there already; None where they are of something else."""
    before = tables.read_evaluation(scoring.out).get(split.name, {})
    if any(before.get(name) != value for name, value in facts_of(split, scoring).items()):
        return None
    return tables.read_predictions(scoring.out, split.name, scoring.scorer.findings)


def score(
    spark: SparkSession, split: StoreSplit, scoring: Scoring, purpose: str = ""
) -> pd.DataFrame:
    """Score a split into ``OUT/predictions`` and return it. `purpose`: words for the screen.

    Raises UserError for a model that gives no numbers.
    """
    out, facts, images = scoring.out, facts_of(split, scoring), split.images
    folder, findings = out.table(PREDICTIONS, split.name), scoring.scorer.findings
    log.info("scoring %s images of %s%s", f"{images:,}", split, purpose)
    started = time.monotonic()
    manifest = split.manifest
    scores = score_split(spark, split.row_groups(), manifest, scoring.scorer)
    scores = scores.withColumn("run", lit(" + ".join(scoring.runs)))
    scores = scores.withColumn("store_fingerprint", lit(manifest.fingerprint))
    parts = folder.hidden_name()
    parts.make_directory()
    try:
        with watched(spark, f"scoring {split.name}", images):
            schema = write_parts(scores, parts)
        folder.write_table(read_parts(parts, schema).sort_by("image_index"))
    finally:
        parts.delete_directory()
    seconds = time.monotonic() - started
    log.info("%s images in %s, %.1f images/s", f"{images:,}", duration(seconds), images / seconds)
    forget(scoring, split)
    table = folder.read_table().to_pandas()
    bad = (~np.isfinite(scores_of(table, findings))).any(axis=1)
    if bad.any():
        raise UserError(
            f"the model of --run={' '.join(scoring.runs)} gives {bad.sum():,} of {images:,} images no "
            f"numbers, the first {table['image_index'][bad].iloc[0]}: its weights are broken; train again"
        )
    tables.write_evaluation(out, split.name, {
        **facts, "images": images, "patients": int(table["patient_id"].nunique()),
        "seconds": round(seconds, 1), "metrics": False,
    })  # fmt: skip
    return table


def forget(scoring: Scoring, split: StoreSplit) -> None:
    """Delete what was said of other scores of a split."""
    for name in TABLES:
        if name != PREDICTIONS:
            scoring.out.table(name, split.name).delete_directory()


def write_predictions(split: StoreSplit, scoring: Scoring, table: pd.DataFrame) -> pd.DataFrame:
    """Write predictions that were made of others, as `score` writes its own, and return them."""
    folder = scoring.out.table(PREDICTIONS, split.name)
    folder.delete_directory()
    folder.write_table(pa.Table.from_pandas(table, preserve_index=False))
    forget(scoring, split)
    tables.write_evaluation(scoring.out, split.name, {
        **facts_of(split, scoring), "images": len(table), "patients": int(table["patient_id"].nunique()),
        "metrics": False,
    })  # fmt: skip
    return table
