"""Training measured: the loop, the step, and what talking costs; and a whole job. Runs on the driver.

In: size, images, ranks. Out: rates, shares and seconds.
"""

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from pyspark.find_spark_home import _find_spark_home

from chexspark.benchmark.train_rank import measure_rank
from chexspark.cluster.launch import run_ranks
from chexspark.config import TrainConfig
from chexspark.errors import RunFailed
from chexspark.ingestion.job import ingest
from chexspark.phantom import write_release
from chexspark.progress import ProgressLine
from chexspark.settings import build
from chexspark.storage import locate

BATCH, ROUNDS = 16, 5
COMMANDS = Path(__file__).parents[1] / "__main__.py"  # a file that spark-submit takes


def make_store(spark, folder: Path, count: int, size: int) -> str:
    """A store of which `count` made images are to train on."""
    nih = folder / "nih"
    write_release(out=str(nih), images=count + 2, size=size)
    names = sorted(path.name for path in (nih / "images").iterdir())
    patients = sorted({name.split("_")[0] for name in names})
    splits = dict.fromkeys(patients, "train") | {patients[-2]: "val", patients[-1]: "test"}
    lines = [f"{int(patient)},{split}" for patient, split in splits.items()]
    (folder / "split.csv").write_text("\n".join(["patient,split", *lines]) + "\n")
    ingest(
        spark, images=str(nih / "images"), labels=str(nih / "Data_Entry_2017.csv"),
        out=str(folder / "store"), size=size, split_file=str(folder / "split.csv"),
    )  # fmt: skip
    return str(folder / "store")


def measure_training(spark, folder: Path, size: int, count: int, ranks: int) -> dict:
    """The three ways of `train_rank`, as images per second over all ranks, and their ratios."""
    config = build(
        TrainConfig,
        {"data": make_store(spark, folder, count, size), "run": str(folder / "run"),
         "batch_size": BATCH, "num_proc": ranks, "threads": 1, "flip": True},
    )  # fmt: skip
    with ProgressLine() as line:

        def show(event):
            if event["event"] == "round":
                line.show(f"round {event['round'] + 1} of {ROUNDS}")

        found = run_ranks(spark, measure_rank, (config, ROUNDS), ranks, show)
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


def training_text(found: dict, ranks: int, size: int) -> str:
    rates = found["images_per_second"]
    return "\n".join(
        [
            f"DenseNet-121 at {size}x{size}, batch {BATCH}, {ranks} ranks of one thread, images/s:",
            f"  {rates['loop']:8.1f}  the training loop",
            f"  {rates['step']:8.1f}  its compiled step, on a batch in memory",
            f"  {rates['silent']:8.1f}  the same step in processes that do not talk",
            f"loop / step:   {found['loop_over_step']:.1%}",
            f"step / silent: {found['step_over_silent']:.1%}",
        ]
    )


def measure_start(spark, folder: Path, count: int, size: int, ranks: int) -> dict:
    """A whole `chexspark train` of two epochs: seconds from the command to the model, last epoch's rate.

    It has a session of its own; `spark` makes the store and is left as it is.
    """
    store = make_store(spark, folder, count, size)
    submit = Path(_find_spark_home()) / "bin" / "spark-submit"
    command = [
        str(submit), "--master", f"local[{ranks}]", str(COMMANDS), "train", "--data", store,
        "--run", str(folder / "run"), "--epochs", "2", "--batch-size", str(BATCH),
        "--num-proc", str(ranks), "--threads", "1",
    ]  # fmt: skip
    python = dict.fromkeys(("PYSPARK_PYTHON", "PYSPARK_DRIVER_PYTHON"), sys.executable)
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | python)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise RunFailed(f"chexspark train ended with {done.returncode}:\n{done.stderr[-2000:]}")
    history = (locate(str(folder / "run")) / "history").read_table().to_pandas()
    return {
        "seconds": seconds,
        "images_per_second": float(history["images_per_second"].iloc[-1]),
        "input_share": float(history["input_share"].iloc[-1]),
    }


def start_text(found: dict, count: int, size: int, ranks: int) -> str:
    return (
        f"{count} images of {size}x{size}, 2 epochs, {ranks} ranks of one thread: "
        f"{found['seconds']:.1f} s from the command to the model, "
        f"{found['images_per_second']:.1f} images/s in the second epoch, "
        f"{found['input_share']:.2%} of it waiting for input"
    )
