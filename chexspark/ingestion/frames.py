"""A DataFrame of images and labels in, the store out. Runs on the driver; the images go through Spark tasks.

One pass of the frame, without decoding, tells names, patients, labels and digests of the images; from these
the driver plans where each image is stored, as it does for files. A second pass brings the images there:
encoded bytes are shuffled, no pixels, and none of them goes to the driver.
"""

import functools
import hashlib
import json
import logging
import time
from dataclasses import dataclass
from typing import Any

import pandas as pd
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from chexspark.arguments import takes
from chexspark.config import FrameConfig, IngestConfig
from chexspark.errors import RunFailedError, UserError, listed, spoken
from chexspark.ingestion import frame_columns as columns
from chexspark.ingestion.frame_task import CHANGED, FrameTask, result_of
from chexspark.ingestion.image_names import label_names
from chexspark.ingestion.inputs import IngestInputs, check_splits, layout_settings
from chexspark.ingestion.job import complete, dealt, images_written
from chexspark.ingestion.sets import ImageSet
from chexspark.ingestion.sources import SourceFile
from chexspark.ingestion.splits import patient_fraction
from chexspark.ingestion.summary import patients_of
from chexspark.ingestion.task import Label, TaskResult
from chexspark.ingestion.workplace import Workplace, holds_other_things
from chexspark.preparation import PAD, Preparation
from chexspark.session import hand_settings, small_batches
from chexspark.spark_progress import watched
from chexspark.storage import Location, locate
from chexspark.store.manifest import FILE_NAME, SPLITS, Manifest, read_manifest
from chexspark.store.schema import FACTS

log = logging.getLogger(__name__)

SET = "DataFrame"  # what the set of its images is called in the store
DESCRIBED = tuple(
    SET if name == "source" else None for name in FACTS
)  # what is known of its images
TAKES = ("train", "val")  # the splits of such a store: what is for testing is evaluated as a frame
ROWS = 64  # images that a task has of a frame at a time
PLAN = "key string, task int, position int, name string, patient string, split string, labels binary, digest string"


@dataclass(frozen=True)
class Facts:
    """What is known of a frame after one pass. `rows`: key, name, patient, split, labels (bytes), digest, bytes,
    a row per image that can be stored, each once."""

    rows: pd.DataFrame
    findings: tuple[str, ...]
    refused: list[tuple[str, str, int]]  # what the row is called, reason, bytes
    copies: int  # rows that are the same as others
    digest: str  # SHA-256 of all of it, whatever the order of the rows


@takes(FrameConfig, frame=True, connect=True)
def ingest_frame(frame: DataFrame, config: FrameConfig) -> Manifest:
    """Write a store of a DataFrame's images at `out` and return its manifest.

    The store has a train and a val split. One that is there already, of the same rows and settings, is left as
    it is. A row that cannot be used is set aside with its reason. Raises UserError for what the user can mend.
    """
    started = time.monotonic()
    facts = read_facts(frame, config)
    return write_store(frame, facts, config, started)


def write_store(frame: DataFrame, facts: Facts, config: FrameConfig, started: float) -> Manifest:
    """See `ingest_frame`, which raises the same; `facts` are the frame's, `started` by `time.monotonic`."""
    out, ingest = locate(config.out), ingest_config(config)
    if (out / FILE_NAME).is_file():
        manifest = read_manifest(out)
        if facts.digest in manifest.sources["digests"] and manifest.settings == layout_settings(
            ingest
        ):
            log.info("%s already holds this store: nothing to do", out)
            return manifest
        raise UserError(
            f"--out={out} already holds a store of other rows or settings: give another folder"
        )
    if holds_other_things(out):
        raise UserError(f"--out={out} has other files in it: give a new or empty folder")
    if facts.copies:
        log.warning("note: %s rows are the same as others, and count once", f"{facts.copies:,}")
    inputs = inputs_of(facts)
    check_splits(patients_of(inputs.labels.values()), TAKES)
    out.make_directory(config.private)
    with Workplace(out) as workplace:
        if (out / FILE_NAME).is_file():
            raise UserError(
                f"--out={out}: another ingest has written there meanwhile: run it again"
            )
        workplace.clean(None)
        results = run_tasks(frame, facts, config, workplace.folder, ingest)
        results.append(TaskResult(quarantined=facts.refused))
        return complete(workplace, inputs, ingest, results, [], None, started)


def ingest_config(config: FrameConfig) -> IngestConfig:
    """The same settings as of an ingest of files."""
    return IngestConfig(
        images=("a DataFrame",), labels=("a DataFrame",), out=config.out, allow_missing="all",
        findings=config.findings, max_bad=config.max_bad, size=config.size, fit=config.fit or PAD,
        bit_depth=config.bit_depth, rows_per_group=config.rows_per_group, split_seed=config.split_seed,
    )  # fmt: skip


def image_column(frame: DataFrame, config: FrameConfig) -> tuple[Column, columns.Kind]:
    """The column of images, and what they are. Raises UserError."""
    image, kind = columns.column(frame, config.image, "--image")
    return image, columns.image_kind(kind, config.image)


def key_column(frame: DataFrame, config: FrameConfig) -> Column:
    """What a row is told by: its name; else the path of its image; else patient and image together."""
    image, kind = image_column(frame, config)
    if config.name:
        return columns.column(frame, config.name, "--name")[0].cast("string")
    if kind == "path":
        return image
    digest = columns.image_digest(image, kind)
    if config.patient:
        digest = F.sha2(
            F.concat_ws("/", columns.patient_column(frame, config.patient), digest), 256
        )
    if kind == "struct":
        return F.when(F.length(image["origin"]) > 0, image["origin"]).otherwise(digest)
    return digest


def read_facts(frame: DataFrame, config: FrameConfig) -> Facts:
    """One pass of the frame. Raises UserError for columns and values that cannot be."""
    hand_settings(frame.sparkSession)
    image, kind = image_column(frame, config)
    labels = columns.label_columns(frame, config.labels)
    findings = columns.findings_of(config.labels, config.findings, labels.together)
    patient, validation = F.lit(None).cast("string"), F.lit(None).cast("boolean")
    if config.patient:
        patient = columns.patient_column(frame, config.patient)
    else:
        log.warning(
            spoken("note: without --patient every row is taken for a patient of its own: where patients have "
                   "several images, figures of validation are too good"))  # fmt: skip
    if config.validation:
        validation = columns.validation_column(frame, config.validation)
    selected = frame.select(
        key_column(frame, config).alias("key"),
        patient.alias("patient"),
        validation.alias("validation"),
        labels.column.alias("labels"),
        columns.image_digest(image, kind).alias("digest"),
        columns.image_bytes(image, kind).alias("bytes"),
    )
    with watched(frame.sparkSession, "reading the DataFrame", None):
        rows = selected.toPandas()
    if rows.empty:
        raise UserError("the DataFrame has no rows")
    return facts_of(rows, config, findings)


def facts_of(rows: pd.DataFrame, config: FrameConfig, findings: tuple[str, ...]) -> Facts:
    """What `read_facts` makes of the rows that it read. Raises UserError for values that cannot be."""
    rows = rows.assign(patient=rows["patient"] if config.patient else rows["key"])
    named = rows["key"].fillna(rows["patient"]).fillna("a row without a name")
    faults = pd.Series("", index=rows.index)
    for column, words in (("digest", "no image: its value is null"), ("key", f"no name: {config.name} is empty"),
                          ("patient", f"no patient: {config.patient} is empty")):  # fmt: skip
        blank = rows[column].isna() | (rows[column].astype(str).str.strip() == "")
        faults = faults.mask(blank, words)
    if config.validation:
        faults = faults.mask(rows["validation"].isna(), f"no split: {config.validation} is null")
    bad = faults != ""
    refused = list(
        zip(named[bad], faults[bad], rows["bytes"][bad].fillna(0).astype(int), strict=True)
    )
    if bad.all():
        kinds = listed(f"{n:,} x {reason}" for reason, n in faults.value_counts().items())
        raise UserError(f"none of the {len(rows):,} rows can be used: {kinds}")
    good = rows[~bad].copy()
    values = columns.label_values(good["labels"], good["key"], config.labels, findings)
    good["labels"] = [row.tobytes() for row in values]
    good["split"] = splits_of(good, config)
    before = len(good)
    good = good.drop(columns="validation").drop_duplicates().sort_values("key")
    twice = good["key"][good["key"].duplicated()]
    if len(twice):
        raise UserError(
            f"{twice.nunique():,} names are of several rows with other images, patients or labels, the first "
            f"{twice.iloc[0]}: " + ("give names that tell images apart" if config.name else "give --name, a column of names")
        )  # fmt: skip
    names = label_names(good["key"])
    good["name"] = good["key"].map(names)
    if good["name"].duplicated().any():
        raise UserError(
            f"--name={config.name}: {good['name'][good['name'].duplicated()].iloc[0]} is written in two ways"
        )
    digest = hashlib.sha256(json.dumps([list(findings), sorted(refused)]).encode())
    for row in good[["key", "patient", "split", "labels", "digest"]].itertuples(
        index=False, name=None
    ):
        digest.update(repr(row).encode())
    return Facts(good, findings, refused, before - len(good), digest.hexdigest())


def splits_of(rows: pd.DataFrame, config: FrameConfig) -> pd.Series:
    """train or val of each row. Raises UserError where a patient is in both."""
    if not config.validation:
        chosen = {
            patient: patient_fraction(patient, config.split_seed) < config.validation_share
            for patient in rows["patient"].unique()
        }
        validation = rows["patient"].map(chosen)
    else:
        validation = rows["validation"].astype(bool)
        crossing = validation.groupby(rows["patient"]).nunique()
        if (crossing > 1).any():
            raise UserError(
                f"--validation={config.validation}: {int((crossing > 1).sum()):,} patients have images for training "
                "and for validation: what a network has learned of a patient would be taken for skill"
            )
    return validation.astype(bool).map({True: "val", False: "train"})


def inputs_of(facts: Facts) -> IngestInputs:
    """What an ingest of files has read when it has the same images and labels."""
    rows = facts.rows
    labels = {
        name: Label(patient, split, bits, DESCRIBED, name)
        for name, patient, split, bits in zip(
            rows["name"], rows["patient"], rows["split"], rows["labels"], strict=True
        )
    }
    files = [SourceFile(name, name, 0, "") for name in rows["name"]]
    return IngestInputs(
        labels, frozenset(), facts.findings, files, [], [], None, [], "", SET, ImageSet(SET, ""), {}, [],
        facts.digest, TAKES,
    )  # fmt: skip


def planned(facts: Facts) -> list[tuple[Any, ...]]:
    """Where each image goes: rows of `PLAN`. The same names give the same plan."""
    plan, task = [], 0
    for split in SPLITS:
        rows = facts.rows[facts.rows["split"] == split].to_dict("records")
        for group in dealt(rows, lambda row: row["name"]):
            for position, row in enumerate(group):
                values = (row[name] for name in ("name", "patient", "split", "labels", "digest"))
                plan.append((row["key"], task, position, *values))
            task += 1
    return plan


def run_tasks(
    frame: DataFrame, facts: Facts, config: FrameConfig, folder: Location, ingest: IngestConfig
) -> list[TaskResult]:
    """Bring the images to the tasks that write them. Raises RunFailedError when Spark gives up."""
    spark, plan = frame.sparkSession, planned(facts)
    tasks = max((row[1] for row in plan), default=0) + 1
    image, kind = image_column(frame, config)
    how = Preparation(ingest.size, ingest.fit or PAD, ingest.bit_depth)
    selected = frame.select(
        key_column(frame, config).alias("key"),
        columns.image_digest(image, kind).alias("now"),
        image.alias("image"),
    )
    table = F.broadcast(spark.createDataFrame(plan, PLAN))
    together = selected.join(table, "key")
    if hasattr(together, "repartitionById"):  # of Spark 4.1: a task each
        together = together.repartitionById(tasks, F.col("task"))
    else:
        together = together.repartition(tasks, "task")
    written = FrameTask(folder.uri, how, ingest.rows_per_group, kind, DESCRIBED)
    done = functools.partial(images_written, folder, ingest.size)
    with small_batches(spark, ROWS), watched(spark, "ingest", len(plan), done, "; run it again"):
        ordered = together.sortWithinPartitions("task", "position")
        found = ordered.mapInArrow(written.write, "result binary").collect()
    results = [result_of(row["result"]) for row in found]
    if {name for result in results for name in result.labelled} != set(facts.rows["name"]):
        raise RunFailedError(CHANGED)
    return results
