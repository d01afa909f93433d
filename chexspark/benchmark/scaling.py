"""The suite ``scaling``: whole trainings at several numbers of ranks, forecast before. Runs on the driver.

In: a store, or how many synthetic images; numbers of ranks. Out: rates, efficiency and shares by number of ranks, and
curves of loss and AUROC by images seen, each number trained twice: with the learning rate as it is, and scaled with the
ranks after a warm-up (Goyal et al. 2017). All trainings see the same images as often.

Everything is kept in the folder: the store in ``data``, the trainings in ``runs``. The same command again goes on where
it was.
"""

import dataclasses
import json
import logging
import time
from typing import Any

import pyarrow as pa
from pyspark.sql import SparkSession

from chexspark.benchmark.rank_numbers import numbers_of_ranks
from chexspark.benchmark.scaling_page import scaling_page
from chexspark.benchmark.scaling_rows import (
    SCALINGS,
    Training,
    curves,
    rows_of,
    scaling_text,
    trainings,
)
from chexspark.benchmark.suite import Measured, Work
from chexspark.benchmark.training import split_text
from chexspark.cluster.diagnosis import data_faults
from chexspark.cluster.job import train
from chexspark.errors import UserError
from chexspark.ingestion.job import ingest
from chexspark.phantom import write_release
from chexspark.run.folder import run_folder
from chexspark.run.history import History
from chexspark.run.lineage import read_lineage
from chexspark.run.settings import read_settings
from chexspark.storage import Location, locate
from chexspark.store.manifest import FILE_NAME, Manifest, read_manifest
from chexspark.text_files import read_json

log = logging.getLogger(__name__)

VALIDATION_SHARE = 0.2  # of the patients, where X-rays are synthetic
BEYOND = (2, 4, 8)  # times the most ranks that are measured: what is forecast too


def measure_scaling(work: Work) -> Measured:
    """The suite ``scaling``. Raises UserError for what the user can mend, before anything is trained."""
    config = work.config
    numbers = numbers_of_ranks(work.spark, config.ranks)
    out = locate(config.out)
    data = config.data or make_data(work.spark, out, work.count, work.size)
    manifest = read_manifest(locate(data))
    for fault in data_faults(manifest.splits["train"].images, numbers[-1]):
        raise UserError(fault)
    (out / "runs").make_directory()
    notes = Notes(out / "runs" / "measured.json")
    settings = {
        "data": data, "model": config.model, "batch_size": config.batch_size, "epochs": config.epochs,
        "schedule": "constant",
    }  # fmt: skip
    if numbers[-1] > 1 and "forecast" not in notes.values:
        log.info("forecast, before it is measured:")
        at = [*numbers, *(numbers[-1] * more for more in BEYOND)]
        found = train(work.spark, **settings, run=str(out / "runs" / "forecast"), dry_run=True, at=at,
                      num_proc=numbers[-1])  # fmt: skip
        notes.add("forecast", found.to_dict("records"))
    histories = {}
    for training in trainings(numbers):
        run = out / "runs" / training.name
        log.info("training: %s", training.name)
        began, new = time.perf_counter(), not run.exists()
        histories[training] = train(
            work.spark, **settings, run=str(run), num_proc=training.ranks,
            scale_learning_rate=training.scaling, warmup_epochs=SCALINGS[training.scaling],
        )  # fmt: skip
        if new:
            notes.add(training.name, time.perf_counter() - began)
    return measured(work, manifest, data, histories, notes.values)


class Notes:
    """What only a study's first attempt can know, kept in a file: JSON, by name."""

    def __init__(self, place: Location) -> None:
        self.place = place
        self.values: dict[str, Any] = read_json(place, str(place)) if place.is_file() else {}

    def add(self, name: str, value: Any) -> None:
        """Keep a value."""
        self.values[name] = value
        self.place.write_text(json.dumps(self.values))


def make_data(spark: SparkSession, out: Location, count: int, size: int) -> str:
    """A store of synthetic X-rays in the study's folder, unless it is there."""
    place = out / "data" / f"{count}-images-{size}"
    store, release = place / "store", place / "release"
    if not (store / FILE_NAME).is_file():
        if release.exists():  # of an attempt that was interrupted
            release.delete_directory()
        write_release(out=str(release), images=count, size=size)
        images = release / "images"
        split = release / "split.csv"
        names = [file.base_name for file in images.list_files()]
        split.write_text(split_text(names, VALIDATION_SHARE))
        ingest(spark, images=str(images), labels=str(release / "Data_Entry_2017.csv"), out=str(store), size=size,
               split_file=str(split))  # fmt: skip
    return str(store)


def measured(
    work: Work,
    manifest: Manifest,
    data: str,
    histories: dict[Training, History],
    notes: dict[str, Any],
) -> Measured:
    """The study's figures, its table, which is kept as Parquet too, and its page."""
    out, images = locate(work.config.out), manifest.splits["train"].images
    table = curves(histories, images)
    (out / "scaling.parquet").write_table(pa.Table.from_pandas(table, preserve_index=False))
    rows = rows_of(table, notes)
    run = run_folder(str(out / "runs" / list(histories)[-1].name))
    lineage, (_, settings) = read_lineage(run), read_settings(run)
    about = {
        "model": work.config.model, "batch_size": work.config.batch_size, "epochs": work.config.epochs,
        "learning_rate": settings["learning_rate"], "optimizer": settings["optimizer"],
        "precision": settings["precision"], "store": data, "train_images": images,
        "val_images": manifest.splits["val"].images, "image_size": manifest.image_size,
        "synthetic": work.config.data is None,
        "hosts": len({rank["host"] for rank in lineage["ranks"]}),
        "devices": sorted({rank["device"] for rank in lineage["ranks"]}),
    }  # fmt: skip
    found = about | {
        "count": sum(split.images for split in manifest.splits.values()), "size": manifest.image_size,
        "rows": [dataclasses.asdict(row) for row in rows],
        "forecast": notes.get("forecast", []),
        "curves": table.astype(object).where(table.notna(), None).to_dict("records"),
    }  # fmt: skip
    return Measured(
        found, scaling_text(rows, table), page=scaling_page(about, rows, table, found["forecast"])
    )
