"""Measurements that a user can repeat. Runs on the driver.

In: a suite's name. Out: its table on the screen, and ``OUT/<suite>.json`` and ``OUT/<suite>.svg``.
Rates are measured in turn, round after round, in one run: their ratios hold, on machines that are
shared too, better than any rate by itself.
"""

import json
import logging
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import psutil
from pyspark.sql import SparkSession

from chexspark.arguments import takes
from chexspark.benchmark.chart import rates_chart
from chexspark.benchmark.reader_data import make_forms
from chexspark.benchmark.training import (
    make_store,
    measure_start,
    measure_training,
    start_text,
    training_text,
)
from chexspark.cluster.launch import ENVIRONMENT
from chexspark.config import BenchmarkConfig
from chexspark.errors import RunFailedError, UserError
from chexspark.progress import ProgressLine
from chexspark.session import has_session, start_session
from chexspark.storage import locate

log = logging.getLogger(__name__)

ROUNDS, ROUND_SECONDS, TRAINING_STEPS = 3, 3.0, 6
BATCH, RANKS = 32, 2
USUAL = {"reader": (4096, 256), "train": (128, 224), "start": (800, 64)}  # images, size

READER_WAYS = {
    "chexspark": "chexspark",
    "pyarrow_loop": "bare pyarrow loop (in order, no check)",
    "tfrecord_raw": "TFRecord, raw pixels, tf.data",
    "make_batch_reader": "Petastorm make_batch_reader, raw pixels, tf.data",
    "tfrecord_png": "TFRecord, PNG, tf.data",
    "make_reader": "Petastorm make_reader, this store, tf.data",
    "make_reader_png": "Petastorm make_reader, PNG, tf.data",
    "full_size_tuned": "full-size PNG, tf.data, parallel with prefetch",
    "full_size_naive": "full-size PNG, tf.data, one by one",
}


class ReaderRates(TypedDict):
    """What the suite ``reader`` finds; a way is a key of `READER_WAYS`."""

    images_per_second: dict[str, float]  # of each way, the median of its rounds
    rounds: dict[str, list[float]]
    waiting_share_while_training: float  # of the time of a training


class Measured(NamedTuple):
    """What a suite found, the table of it, and its chart, SVG, if it has one."""

    found: Mapping[str, Any]  # JSON
    text: str
    chart: str | None = None


@takes(BenchmarkConfig)
def benchmark(spark: SparkSession | None, config: BenchmarkConfig) -> dict[str, Any]:
    """Run a suite and return what was measured. Raises UserError for what the user can mend."""
    out = locate(config.out)
    images = find_images(config.images)
    count, size = (given or usual for given, usual in zip(
        (config.count, config.size), USUAL[config.suite], strict=True))  # fmt: skip
    out.make_directory()
    was_there = spark is not None or has_session()
    spark = start_session(spark, "benchmark")
    with tempfile.TemporaryDirectory(prefix="chexspark-benchmark-") as name:
        folder = Path(name)
        if config.suite == "reader":
            make_forms(spark, folder, images, count, size)
            measured = measure_readers(folder, size)
        elif config.suite == "train":
            rates = measure_training(spark, folder, size, count, RANKS)
            title = f"images per second, DenseNet-121, {size}×{size}, float32, {RANKS} ranks of one thread"
            chart = rates_chart(rates["images_per_second"], title)
            measured = Measured(rates, training_text(rates, RANKS, size), chart)
        else:
            store = make_store(spark, folder, count, size)
            if not was_there:
                spark.stop()  # its cores and its memory are the job's
            start = measure_start(folder, store, RANKS)
            measured = Measured(start, start_text(start, count, size, RANKS))
    log.info(measured.text)
    found = {
        **measured.found,
        "images": config.images or "synthetic",
        "count": count,
        "size": size,
        "machine": machine(),
    }
    written = [out / f"{config.suite}.json"]
    written[0].write_text(json.dumps(found, indent=1) + "\n")
    if measured.chart:
        written.append(out / f"{config.suite}.svg")
        written[1].write_text(measured.chart)
    log.info("written: %s", ", ".join(map(str, written)))
    return found


def measure_readers(folder: Path, size: int) -> Measured:
    """The suite ``reader``, on the forms in `folder`."""
    found = run_readers(folder)
    title = f"images per second to TensorFlow, {size}×{size}, one rank, batch {BATCH}"
    rates = {READER_WAYS[way]: rate for way, rate in found["images_per_second"].items()}
    return Measured(found, reader_text(found), rates_chart(rates, title))


def machine() -> dict[str, int | str | None]:
    """What was measured on."""
    return {"cores": psutil.cpu_count(), "processor": platform.machine()}


def find_images(folder: str | None) -> list[Path]:
    """The PNG files of a local folder. Raises UserError where there are none."""
    if folder is None:
        return []
    images = sorted(Path(folder).glob("*.png"))
    if not images:
        raise UserError(f"--images={folder}: there is no PNG file in this local folder")
    return images


def run_readers(folder: Path) -> ReaderRates:
    """Run the ways in a process of their own. Raises RunFailedError with its last words."""
    arguments = [folder, BATCH, ROUNDS, ROUND_SECONDS, TRAINING_STEPS]
    command = [sys.executable, "-m", "chexspark.benchmark.readers", *map(str, arguments)]
    rates: dict[str, list[float]] = {way: [] for way in READER_WAYS}
    waiting = math.nan
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env=os.environ | ENVIRONMENT
        ) as process,
        ProgressLine() as line,
    ):
        line.show("warming up")
        for text in process.stdout or ():
            found = json.loads(text)
            if found["way"] == "training":
                waiting = found["waiting"]
                continue
            rate = found["images"] / found["seconds"]
            rates[found["way"]].append(rate)
            line.show(
                f"round {found['round'] + 1} of {ROUNDS}: "
                f"{READER_WAYS[found['way']]}: {rate:,.0f} images/s"
            )
        if process.wait():
            errors.seek(0)
            raise RunFailedError(f"the benchmark stopped:\n{errors.read()[-2000:]}")
    return {
        "images_per_second": {way: statistics.median(values) for way, values in rates.items()},
        "rounds": rates,
        "waiting_share_while_training": waiting,
    }


def reader_text(found: ReaderRates) -> str:
    """The table: rate of each way, and chexspark's as a multiple of it."""
    rates = found["images_per_second"]
    lines = [f"{'':<52}{'images/s':>10}{'chexspark is':>14}"]
    for way, name in READER_WAYS.items():
        ratio = f"{rates['chexspark'] / rates[way]:.2f} x" if way != "chexspark" else ""
        lines.append(f"{name:<52}{rates[way]:>10,.0f}{ratio:>14}")
    share = found["waiting_share_while_training"]
    lines.append(f"waiting for input while DenseNet-121 trains: {share:.2%} of the time")
    return "\n".join(lines)
