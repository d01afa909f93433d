"""The suite ``reader``: one set of images in several forms, read in turn. Runs on the driver.

In: images. Out: rates to TensorFlow, and the share of a training's time that waits for input.
"""

import math
import statistics
from pathlib import Path
from typing import TypedDict

from chexspark.benchmark.chart import rates_chart
from chexspark.benchmark.reader_data import make_forms
from chexspark.benchmark.results import measurements
from chexspark.benchmark.suite import Measured, Work
from chexspark.cluster.launch import ENVIRONMENT
from chexspark.progress import ProgressLine

ROUNDS, ROUND_SECONDS, TRAINING_STEPS = 3, 3.0, 6
BATCH = 32

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


def measure_readers(work: Work) -> Measured:
    """The suite ``reader``."""
    make_forms(work.spark, work.folder, list(work.images), work.count, work.size)
    found = run_readers(work.folder)
    title = f"images per second to TensorFlow, {work.size}×{work.size}, one rank, batch {BATCH}"
    rates = {READER_WAYS[way]: rate for way, rate in found["images_per_second"].items()}
    return Measured(found, reader_text(found), rates_chart(rates, title))


def run_readers(folder: Path) -> ReaderRates:
    """Run the ways in a process of their own. Raises RunFailedError with its last words."""
    arguments = [folder, BATCH, ROUNDS, ROUND_SECONDS, TRAINING_STEPS]
    rates: dict[str, list[float]] = {way: [] for way in READER_WAYS}
    waiting = math.nan
    with ProgressLine() as line:
        line.show("warming up")
        for found in measurements("chexspark.benchmark.readers", arguments, ENVIRONMENT):
            if found["way"] == "training":
                waiting = found["waiting"]
                continue
            rate = found["images"] / found["seconds"]
            rates[found["way"]].append(rate)
            line.show(
                f"round {found['round'] + 1} of {ROUNDS}: "
                f"{READER_WAYS[found['way']]}: {rate:,.0f} images/s"
            )
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
