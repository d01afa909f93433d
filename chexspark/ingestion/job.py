"""Images and labels in, the store out. Runs on the driver; the images go through Spark tasks."""

import dataclasses
import functools
import hashlib
import itertools
import logging
import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import pyarrow as pa
from pyspark.sql import SparkSession

from chexspark.arguments import takes
from chexspark.config import IngestConfig
from chexspark.errors import UserError, listed, spoken
from chexspark.findings import names_fault
from chexspark.ingestion.dicom_headers import Key, Texts, asked_facts, read_headers
from chexspark.ingestion.image_names import plain_path
from chexspark.ingestion.inputs import (
    IngestInputs,
    check_matches,
    check_splits,
    layout_settings,
    read_inputs,
)
from chexspark.ingestion.label_findings import COLUMNS
from chexspark.ingestion.label_records import check_one_spelling
from chexspark.ingestion.petastorm_metadata import write_petastorm_metadata
from chexspark.ingestion.sources import Sources, is_archive
from chexspark.ingestion.summary import (
    QUARANTINE_SCHEMA,
    patients_of,
    refused_images,
    stored_table,
    summarise,
    summary_text,
    table_of,
    too_many_refused,
)
from chexspark.ingestion.task import (
    FILE_ROWS,
    Kept,
    Known,
    TaskResult,
    WriteTask,
    write_task,
)
from chexspark.ingestion.workplace import Workplace, holds_other_things
from chexspark.preparation import PAD, STRETCH, Preparation
from chexspark.session import start_session
from chexspark.spark_progress import watched
from chexspark.storage import Location, locate
from chexspark.store.manifest import (
    FILE_NAME,
    QUARANTINE,
    SCHEMA_VERSION,
    SPLITS,
    Manifest,
    read_manifest,
)
from chexspark.store.row_groups import checked_split
from chexspark.store.schema import LABELS, parquet_schema

log = logging.getLogger(__name__)
NIH = "NIH ChestX-ray14"  # the label form whose images are square
Image = TypeVar("Image")
MIN_FILES, MIN_FILE_ROWS = 8, 32  # so that a small set still keeps several cores and ranks busy


@takes(IngestConfig)
def ingest(spark: SparkSession | None, config: IngestConfig) -> Manifest:
    """Write the store at `out` and return its manifest.

    A store that is already there from the same input is left as it is. Raises UserError for what
    the user can mend, as far as it can be known before Spark is asked for anything.
    """
    started = time.monotonic()
    out = locate(config.out)
    before = read_manifest(out) if (out / FILE_NAME).is_file() else None

    def headers(sources: Sources) -> dict[Key, Texts]:
        nonlocal spark
        spark = start_session(spark, "ingest")
        facts = asked_facts(config.dicom_columns)
        return read_headers(spark, sources.files, sources.archives, facts)

    if before and config.append:
        check_same_split(before, config, out)
    inputs = read_inputs(config, asked_findings(config, before), before, headers)
    config = with_preparation(config, before, inputs.label_form)
    for note in inputs.notes:
        log.warning(spoken(f"note: {note}"))
    if before and is_in_store(inputs, before, config):
        log.info(f"{out} already holds this store: nothing to do")
        return before
    check_place(out, before, config.append)
    log.info(inputs.table)
    if not inputs.archives:
        names = {file.name for file in inputs.files}
        check_matches(inputs, names, config)
        if not before:
            check_splits(patients_of(inputs.labels[n] for n in names & inputs.labels.keys()))
    out.make_directory(config.private)
    with Workplace(out) as workplace:
        if before != (read_manifest(out) if (out / FILE_NAME).is_file() else None):
            raise UserError(
                f"--out={out}: another ingest has written there meanwhile: run it again"
            )
        spark = start_session(spark, "ingest")
        workplace.clean(before)
        stored = read_stored(out, before)
        check_known_patients(stored, inputs)
        known = what_is_known(inputs, stored)
        tasks = plan_tasks(inputs, config, workplace.folder, before)
        results = run_tasks(spark, tasks, inputs, known, config.size)
        results.append(unreadable_files(inputs))
        return complete(workplace, inputs, config, results, stored, before, started)


def complete(
    workplace: Workplace,
    inputs: IngestInputs,
    config: IngestConfig,
    results: list[TaskResult],
    stored: list[Kept],
    before: Manifest | None,
    started: float,
) -> Manifest:
    """Make a store of what the tasks have written, and say what came of it.

    `stored`: what the store held before; `started`: when, by `time.monotonic`. Raises UserError where too
    many images were refused, or what was written cannot be a store.
    """
    out = workplace.store
    stop_when_too_many_refused(results, config.max_bad, out, before)
    manifest, tables = summarise(inputs, config, results, stored, before, out)
    workplace.lock.check_held()
    publish(out, workplace.folder, manifest, tables, results)
    manifest = dataclasses.replace(manifest, seconds=round(time.monotonic() - started, 1))
    manifest.write(out)
    log.info(summary_text(manifest, out, results))
    return manifest


def asked_findings(config: IngestConfig, before: Manifest | None) -> tuple[str, ...]:
    """What `read_labels` is to take: what was asked for, or what the store that is added to has.

    Raises UserError for names that cannot be.
    """
    if config.findings in ((), COLUMNS):
        return before.findings if before and config.append and not config.findings else config.findings  # fmt: skip
    fault = names_fault(config.findings)
    if fault:
        raise UserError("--findings " + fault)
    return config.findings


def with_preparation(config: IngestConfig, before: Manifest | None, form: str) -> IngestConfig:
    """The config with the fit, and the bit depth of a store that is added to, where none were given.

    `form`: of the labels. NIH's images are square, and what is published on them is so.
    """
    fit, depth = config.fit, config.bit_depth
    if before:
        fit = fit or before.fit
        depth = before.bit_depth if config.append and depth is None else depth
    return dataclasses.replace(
        config, fit=fit or (STRETCH if form == NIH else PAD), bit_depth=depth
    )


def asked_preparation(config: IngestConfig) -> Preparation:
    """What is done to each image file, by a config whose fit is known."""
    return Preparation(config.size, config.fit or STRETCH, config.bit_depth)


def is_in_store(inputs: IngestInputs, before: Manifest, config: IngestConfig) -> bool:
    """Whether a store has all of this input already. Raises UserError where its settings differ."""
    check_same_settings(before, config, inputs.findings, locate(config.out))
    return inputs.digest in before.sources["digests"]


def check_place(out: Location, before: Manifest | None, append: bool) -> None:
    """Raise UserError unless a store may be written, or added to, at `out`."""
    if before and not append:
        raise UserError(
            f"--out={out} already holds a store of other images, labels, splits or boxes: give "
            "another folder, or --append to add what is new"
        )
    if before and before.schema_version != SCHEMA_VERSION:
        raise UserError(
            f"--append: the store {out} has schema version {before.schema_version}, and this "
            f"chexspark writes {SCHEMA_VERSION}: ingest all into a new folder"
        )
    by = before.settings.get("split_by", "patient") if before else "patient"
    if by != "patient":
        raise UserError(f"--append: {cannot_be_added_to(out, by)}")
    if holds_other_things(out):
        raise UserError(f"--out={out} has other files in it: give a new or empty folder")


def cannot_be_added_to(out: Location, by: str) -> str:
    """Why a store that is split by what is known of patients takes no more, in words."""
    return (
        f"the store {out} is split by {by}, and with more images that split would be another: ingest all into "
        "a new folder, or begin one that is split by patient"
    )


def check_same_split(before: Manifest, config: IngestConfig, out: Location) -> None:
    """Raise UserError where a store is added to that is split by other things than what is asked for.

    Before the labels are read: what is to be added alone may not be split so at all.
    """
    by = before.settings.get("split_by", "patient")
    if by == config.split_by:
        return
    if by != "patient":
        raise UserError(f"--append: {cannot_be_added_to(out, by)}")
    raise UserError(
        f"--split-by={config.split_by}: the store {out} is split by patient, and what is added to it must be, "
        "too: leave --split-by out, or ingest all into a new folder"
    )


def check_same_settings(
    before: Manifest, config: IngestConfig, findings: tuple[str, ...], out: Location
) -> None:
    """Raise UserError when a store that is there was written with other settings or findings."""
    asked = layout_settings(config)
    made = before.settings | {
        "fit": before.fit,
        "bit_depth": before.bit_depth,
    }  # older ones lack them
    if before.findings != findings:
        raise UserError(
            f"--out={out} already holds a store of other findings ({', '.join(before.findings)} there, "
            f"{', '.join(findings)} here): give another folder, or the same --findings"
        )
    differ = [f"{n} {v} there, {asked[n]} here" for n, v in made.items() if v != asked[n]]
    if differ:
        raise UserError(
            f"--out={out} already holds a store with other settings ({', '.join(differ)}): give "
            "another folder, or the same settings"
        )


def stop_when_too_many_refused(
    results: list[TaskResult], max_bad: float, out: Location, before: Manifest | None
) -> None:
    """Raise UserError when too many images were refused, having written which to STORE/quarantine.

    Those that the store had refused before stay there.
    """
    fault = too_many_refused(results, max_bad)
    if fault:
        place = out / QUARANTINE
        earlier = stored_table(out, QUARANTINE, QUARANTINE_SCHEMA, before)
        every = dict.fromkeys(
            [*earlier, *refused_images(results)]
        )  # each once, however often it is tried
        place.write_table(table_of(list(every), QUARANTINE_SCHEMA))
        raise UserError(f"{fault}: see {place}")


def read_stored(out: Location, before: Manifest | None) -> list[Kept]:
    """What a store that is added to already holds, without its pixels. Raises DamagedStoreError."""
    stored = []
    columns = ("image_index", "patient_id", LABELS, "original_mode", "inverted", "perceptual_hash",
               "pixel_digest", "original_width", "original_height", "source")  # fmt: skip
    if before is None:
        return []
    for split in SPLITS:
        for row in checked_split(out, before, split, columns).to_pylist():
            labels = np.array(row[LABELS], np.int8).tobytes()
            stored.append(
                Kept(row["image_index"], row["patient_id"], split, labels, row["original_mode"],
                     row["inverted"], row["perceptual_hash"], row["pixel_digest"],
                     (row["original_width"], row["original_height"]), row["source"])
            )  # fmt: skip
    return stored


def what_is_known(inputs: IngestInputs, stored: list[Kept]) -> Known:
    """What the tasks know of labels, and of the images of their set that the store has.

    Which images are there, their pixels tell: names repeat. Raises UserError where the store has a name for
    another patient.
    """
    this = inputs.image_set
    there = {
        plain_path(kept.name.removeprefix(this.prefix)): kept
        for kept in stored
        if kept.source == this.name
    }
    relabelled = []
    for name in there.keys() & inputs.labels.keys():
        label, kept = inputs.labels[name], there[name]
        if label.path != name:
            continue  # another image may have this name: its pixels tell
        if label.patient_id != kept.patient_id:
            raise UserError(
                f"{name} is of another patient in the store than it would be now: if these are other images, "
                "give their set another name, --source"
            )
        if label.labels != kept.labels:
            relabelled.append(name)
    if relabelled:
        log.warning(f"note: {len(relabelled):,} images that the store has have other labels there, which "
                    f"stay: {listed(sorted(relabelled), 3)}")  # fmt: skip
    digests = {name: kept.pixel_digest for name, kept in there.items()}
    return Known(inputs.labels, digests, inputs.left_out)


def check_known_patients(stored: list[Kept], inputs: IngestInputs) -> None:
    """Raise UserError when the new labels would move a patient that the store has."""
    where = {kept.patient_id: kept.split for kept in stored}
    this = inputs.image_set
    there = {k.patient_id for k in stored if k.source == this.name}
    new = {label.patient_id for label in inputs.labels.values()}
    check_one_spelling(
        (patient.removeprefix(this.prefix), at)
        for patients, at in ((there, "of the store"), (new, "of what is added"))
        for patient in patients
    )
    for name, label in inputs.labels.items():
        if label.split and where.get(label.patient_id, label.split) != label.split:
            raise UserError(
                f"the patient of {name} is in the store's {where[label.patient_id]} split, but "
                f"would now be in {label.split}: add with the split that the store was made with"
            )


def plan_tasks(
    inputs: IngestInputs,
    config: IngestConfig,
    folder: Location,
    before: Manifest | None,
) -> list[WriteTask]:
    """Deal the images of each split to tasks of nearly equal length, and an archive to each task.

    The same input gives the same tasks, whatever the cluster.
    """
    groups = []
    for split in SPLITS:
        files = [
            f
            for f in inputs.files
            if f.name in inputs.labels and inputs.labels[f.name].split == split
        ]
        groups += dealt(files, lambda file: file.name)
    groups += [(archive,) for archive in inputs.archives]
    files_before = [f.path for s in before.splits.values() for f in s.files] if before else []
    first = max((int(path.split("part-")[1][:5]) for path in files_before), default=-1) + 1
    how = asked_preparation(config)
    return [
        WriteTask(folder=folder.uri, number=first + i, preparation=how,
             rows_per_group=config.rows_per_group, sources=sources, prefix=inputs.image_set.prefix)
        for i, sources in enumerate(groups)
    ]  # fmt: skip


def dealt(images: list[Image], name_of: Callable[[Image], str]) -> list[tuple[Image, ...]]:
    """The images of a split, dealt to tasks. The same names give the same, whatever the cluster.

    Stored in an order that has nothing to do with the patient, so that neighbours differ.
    """
    ordered = sorted(images, key=lambda image: hashlib.sha256(name_of(image).encode()).digest())
    number = max(-(-len(ordered) // FILE_ROWS), min(MIN_FILES, -(-len(ordered) // MIN_FILE_ROWS)))
    edges = np.linspace(0, len(ordered), number + 1).astype(int)
    return [tuple(ordered[a:b]) for a, b in itertools.pairwise(edges)]


def run_tasks(
    spark: SparkSession,
    tasks: list[WriteTask],
    inputs: IngestInputs,
    known: Known,
    size: int,
) -> list[TaskResult]:
    """Let Spark's tasks write, one each. Raises RunFailedError when Spark gives up."""
    if not tasks:
        return []
    context = spark.sparkContext
    wanted = {f.name for f in inputs.files}
    labels = {n: v for n, v in known.labels.items() if inputs.archives or n in wanted}
    shared = context.broadcast(dataclasses.replace(known, labels=labels))
    total = None if inputs.archives else len(wanted & labels.keys())
    # The longest first, so that no core waits long for the last.
    ordered = sorted(tasks, key=lambda t: (not is_archive(t.sources[0]), -len(t.sources)))
    written = functools.partial(images_written, locate(tasks[0].folder), size)
    try:
        with watched(spark, "ingest", total, written, "; run it again"):
            spread = context.parallelize(ordered, len(ordered))
            return spread.map(lambda task: write_task(task, shared.value)).collect()
    finally:
        shared.destroy()


def unreadable_files(inputs: IngestInputs) -> TaskResult:
    """What cannot be read, and has no label by which it would be a task's."""
    return TaskResult(quarantined=[(f.uri, f.fault, f.bytes) for f in inputs.unreadable])


def images_written(folder: Location, size: int) -> int:
    """How many images the workplace holds, by its bytes: rows are of fixed length."""
    row_bytes = parquet_schema(size).field("image").type.byte_width
    return sum(info.size for info in folder.list_files()) // row_bytes


def publish(
    out: Location,
    folder: Location,
    manifest: Manifest,
    tables: dict[str, pa.Table | None],
    results: list[TaskResult],
) -> None:
    """Move the files into the store and write what goes beside them; the manifest comes after."""
    for split in SPLITS:
        (out / split).make_directory()
    for _, file in (pair for result in results for pair in result.files):
        (folder / file.path).move_to(out / file.path)
    for split, summary in manifest.splits.items():
        write_petastorm_metadata(
            out / split, summary.files, manifest.image_size, len(manifest.findings)
        )
    for name, table in tables.items():
        if table is not None:
            (out / name).write_table(table)
