"""Training measured: the loop, the step, and what talking costs; and a whole job. Runs on the driver.

In: size, images, ranks. Out: rates, shares and seconds.
"""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TypedDict

from pyspark.sql import SparkSession

from chexspark.benchmark.chart import rates_chart
from chexspark.benchmark.suite import Measured, Work
from chexspark.benchmark.train_rank import measure_rank
from chexspark.cluster.launch import run_ranks
from chexspark.config import TrainConfig
from chexspark.errors import RunFailedError
from chexspark.ingestion.job import ingest
from chexspark.phantom import write_release
from chexspark.progress import ProgressLine
from chexspark.run.folder import run_folder
from chexspark.run.history import read_history
from chexspark.run.resolved import ResolvedTraining
from chexspark.settings import build
from chexspark.training.events import Event, Round

BATCH, ROUNDS, RANKS = 16, 5, 2


class TrainingRates(TypedDict):
    """Of each way of `train_rank`, over all ranks; ratios are medians of the rounds'."""

    images_per_second: dict[str, float]  # the median of the rounds
    rounds: list[dict[str, float]]
    loop_over_step: float
    step_over_silent: float


class StartFound(TypedDict):
    """Of a whole training job."""

    seconds: float  # from the command to the model
    images_per_second: float  # in the last epoch
    input_share: float  # of that epoch's time


def measure_loop(work: Work) -> Measured:
    """The suite ``train``."""
    rates = measure_training(work.spark, work.folder, work.size, work.count, RANKS)
    title = f"images per second, DenseNet-121, {work.size}×{work.size}, float32, {RANKS} ranks of one thread"
    chart = rates_chart(rates["images_per_second"], title)
    return Measured(rates, training_text(rates, RANKS, work.size), chart)


def measure_job_start(work: Work) -> Measured:
    """The suite ``start``."""
    store = make_store(work.spark, work.folder, work.count, work.size)
    if not work.spark_was_there:
        work.spark.stop()  # its cores and its memory are the job's
    start = measure_start(work.folder, store, RANKS)
    return Measured(start, start_text(start, work.count, work.size, RANKS))


def make_store(spark: SparkSession, folder: Path, count: int, size: int) -> str:
    """A store of which `count` synthetic images are to train on."""
    nih = folder / "nih"
    write_release(out=str(nih), images=count + 2, size=size)
    names = [path.name for path in (nih / "images").iterdir()]
    (folder / "split.csv").write_text(split_text(names, 0.0))
    ingest(
        spark, images=str(nih / "images"), labels=str(nih / "Data_Entry_2017.csv"),
        out=str(folder / "store"), size=size, split_file=str(folder / "split.csv"),
    )  # fmt: skip
    return str(folder / "store")


def split_text(names: Iterable[str], validation: float) -> str:
    """A split file for the images of a release: this share of the patients validates, or one, and one more tests."""
    patients = sorted({name.split("_")[0] for name in names})
    first = len(patients) - 1 - max(1, int(validation * len(patients)))
    splits = ["train"] * first + ["val"] * (len(patients) - 1 - first) + ["test"]
    lines = [f"{int(patient)},{split}" for patient, split in zip(patients, splits, strict=True)]
    return "\n".join(["patient,split", *lines]) + "\n"


def measure_training(
    spark: SparkSession, folder: Path, size: int, count: int, ranks: int
) -> TrainingRates:
    """The three ways of `train_rank`, as images per second over all ranks, and their ratios."""
    config = build(
        TrainConfig,
        {"data": make_store(spark, folder, count, size), "run": str(folder / "run"),
         "batch_size": BATCH, "threads": 1, "flip": True, "precision": "float32"},
    )  # fmt: skip
    with ProgressLine() as line:

        def show(event: Event) -> None:
            if isinstance(event, Round):
                line.show(f"round {event.round + 1} of {ROUNDS}")

        settings = ResolvedTraining(config, began_with=ranks)
        found = run_ranks(spark, measure_rank, (settings, ROUNDS), ranks, show)
    rounds = [
        {way: ranks / statistics.mean(rank[number][way] for rank in found) for way in found[0][0]}
        for number in range(ROUNDS)
    ]
    return {
        "images_per_second": {
            way: statistics.median(row[way] for row in rounds) for way in rounds[0]
        },
        "rounds": rounds,
        "loop_over_step": statistics.median(r["loop"] / r["step"] for r in rounds),
        "step_over_silent": statistics.median(r["step"] / r["silent"] for r in rounds),
    }


def training_text(found: TrainingRates, ranks: int, size: int) -> str:
    """The rates and their ratios, for people."""
    rates = found["images_per_second"]
    return "\n".join(
        [
            f"DenseNet-121 at {size}x{size}, float32, batch {BATCH}, {ranks} ranks of one thread, images/s:",
            f"  {rates['loop']:8.1f}  the training loop",
            f"  {rates['step']:8.1f}  its compiled step, on a batch in memory",
            f"  {rates['silent']:8.1f}  the same step in processes that do not talk",
            f"loop / step:   {found['loop_over_step']:.1%}",
            f"step / silent: {found['step_over_silent']:.1%}",
        ]
    )


def measure_start(folder: Path, store: str, ranks: int) -> StartFound:
    """A whole training job of two epochs: seconds from the command to the model, last epoch's rate.

    Raises RunFailedError when the job fails.

    It runs on a Spark session of its own, of as many local slots as ranks; who has one here would do
    well to stop it before, since it takes memory.
    """
    command = [
        sys.executable, "-m", "chexspark", "train", "--data", store,
        "--run", str(folder / "run"), "--epochs", "2", "--batch-size", str(BATCH),
        "--num-proc", str(ranks), "--threads", "1",
    ]  # fmt: skip
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=job_environment(ranks))
    seconds = time.perf_counter() - started
    if done.returncode:
        raise RunFailedError(
            f"the training job ended with {done.returncode}:\n{done.stderr[-2000:]}"
        )
    history = read_history(run_folder(str(folder / "run")))
    return {
        "seconds": seconds,
        "images_per_second": float(history["images_per_second"].iloc[-1]),
        "input_share": float(history["input_share"].iloc[-1]),
    }


def job_environment(slots: int) -> dict[str, str]:
    """The environment of a process that is to have a local Spark session of its own.

    Without what leads a child of ``spark-submit`` to the JVM of this process.
    """
    own = {name: value for name, value in os.environ.items() if "PYSPARK_GATEWAY" not in name}
    return own | {"PYSPARK_SUBMIT_ARGS": f"--master local[{slots}] pyspark-shell"}


def start_text(found: StartFound, count: int, size: int, ranks: int) -> str:
    """What a whole job took, for people."""
    return (
        f"{count} images of {size}x{size}, 2 epochs, {ranks} ranks of one thread: "
        f"{found['seconds']:.1f} s from the command to the model, "
        f"{found['images_per_second']:.1f} images/s in the second epoch, "
        f"{found['input_share']:.2%} of it waiting for input"
    )
