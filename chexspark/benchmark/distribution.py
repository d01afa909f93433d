"""Three ways to distribute the same step, side by side. Runs on the driver.

In: numbers of ranks, a network, its batch. Out: rates, bytes, where the time goes, and how far weights differ. The
ways are a ring of Horovod's (`ring_rank`), parameter servers (`server_rank`) and Spark's shuffle (`shuffled`). All
start from the same weights, take the same rows of the same batches, which are in memory, and the same plain SGD in
float32, on one thread of the CPU per rank; each step's loss is divided by the known labels of its global batch. A
first step, which counts as training, compiles; it is not measured.

The ways are measured in turn, round after round, each time in new processes, but for Spark's Python workers. Of sums
of float32 the order is each way's own. For two ranks there is but one, and ring and shuffle came out equal bit for
bit; for three, of a small network, they were 6e-8 of the largest move apart, where `rounding_bound` allows 3e-4.
"""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from pyspark.sql import SparkSession

from chexspark.benchmark.chart import grouped_chart
from chexspark.benchmark.exchange import bytes_needed, largest_difference, rounding_bound
from chexspark.benchmark.rank_numbers import numbers_of_ranks
from chexspark.benchmark.ring_rank import measure_ring
from chexspark.benchmark.server_rank import measure_servers
from chexspark.benchmark.shared_work import Shared, WayFound
from chexspark.benchmark.shuffled import measure_shuffle
from chexspark.benchmark.suite import Measured, Work
from chexspark.benchmark.training import make_store
from chexspark.cluster.launch import ENVIRONMENT, run_ranks
from chexspark.config import BenchmarkConfig, TrainConfig
from chexspark.errors import UserError
from chexspark.models.custom import find_network
from chexspark.progress import ProgressLine
from chexspark.run.resolved import ResolvedTraining
from chexspark.settings import build
from chexspark.training.events import Event

WAYS = {"ring": "ring (Horovod)", "servers": "parameter servers", "shuffle": "Spark's shuffle"}
SYNCHRONOUS = ("ring", "shuffle")
STEPS, ROUNDS = 8, 3
LEARNING_RATE = 0.01
ON_CPU = ENVIRONMENT | {"CUDA_VISIBLE_DEVICES": ""}

NOTES = (
    "MB sent: per rank and step, over all interfaces of a host, the loopback one too: a worker of parameter servers",
    "  asks its own rank's server over it. Of the shuffle it is what Spark writes for the next stage, its own part too, as",
    "  Spark counts it (compressed); on one host that is read from local files, and nothing is sent. needed: what the",
    "  algorithm has to send to other ranks, 2 (N - 1) / N x gradients in all three ways.",
    "compute: in the gradients. exchange: of the ring what is left after the last gradient; of the servers until all",
    "  weights are there, and from the gradients to the updates; of the shuffle reading, summing and updating in tasks.",
    "  scheduling: the rest, with what is pickled on the way out of a task, and waiting for who is slower.",
    "difference: the weights' largest from the ring's, over the largest move of one; in brackets what the rounding of",
    "  weights alone may come to. Parameter servers are asynchronous: from 2 ranks on gradients may be of older weights,",
    "  and weights are not the same from run to run.",
)


class Compared(TypedDict):
    """Weights beside the ring's; None: of the ring itself, and where updates do not wait for all."""

    difference: float | None  # see `exchange.largest_difference`
    rounding: float | None  # of weights alone may make it so large, see `exchange.rounding_bound`


NOT_COMPARED: Compared = {"difference": None, "rounding": None}


class Row(Compared):
    """One way at one number of ranks."""

    way: str
    ranks: int
    images_per_second: float  # over all ranks, the median of the rounds
    rounds: list[float]
    bytes_sent: float  # per rank and step, the median
    bytes_needed: float  # that the algorithm has to send
    compute: float  # shares of the ranks' time, the mean of the rounds
    exchange: float
    scheduling: float
    losses: list[float]  # of the global batch, of each step of the first round
    fresh_workers: int  # that had to build the network while steps were measured


class DistributionFound(TypedDict):
    """What the suite found."""

    model: str
    batch_size: int  # per rank
    steps: int  # measured ones of a round
    learning_rate: float
    gradient_bytes: int
    rows: list[Row]


def measure_distribution(work: Work) -> Measured:
    """The suite ``distribution``. Raises UserError for an unknown network, too many ranks or too few images."""
    config = work.config
    code = find_network(config.model)
    numbers = numbers_of_ranks(work.spark, config.ranks)
    check_count(work.count, config.batch_size, max(numbers))
    store = make_store(work.spark, work.folder, work.count, work.size)
    rows, size = [], 0
    for ranks in numbers:
        training = training_of(config, store, work.folder / "run")
        shared = Shared(ResolvedTraining(training, ranks, code), STEPS)
        rounds = measure_rounds(work.spark, shared)
        size = rounds["ring"][0].end.nbytes
        rows += rows_of(shared, rounds)
    found: DistributionFound = {
        "model": config.model, "batch_size": config.batch_size, "steps": STEPS,
        "learning_rate": LEARNING_RATE, "gradient_bytes": size, "rows": rows,
    }  # fmt: skip
    title = (
        f"images per second, {config.model}, {work.size}×{work.size}, float32, one thread per rank"
    )
    return Measured(found, distribution_text(found, work.size), chart_of(rows, title))


def check_count(count: int, batch_size: int, ranks: int) -> None:
    """Raise UserError where there are fewer images than a global batch has."""
    if count < batch_size * ranks:
        raise UserError(
            f"--count={count} is too few: {ranks} ranks of {batch_size} images take {ranks * batch_size} in a step; "
            "raise it, or lower --batch-size or --ranks"
        )


def training_of(config: BenchmarkConfig, store: str, run: Path) -> TrainConfig:
    """The training whose steps are taken; nothing is written to `run`."""
    return build(
        TrainConfig,
        {"data": store, "run": str(run), "model": config.model, "batch_size": config.batch_size,
         "optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0, "learning_rate": LEARNING_RATE,
         "threads": 1, "flip": False, "precision": "float32"},
    )  # fmt: skip


def measure_rounds(spark: SparkSession, shared: Shared) -> dict[str, list[WayFound]]:
    """The rounds of each way. Raises RunFailedError where a rank or a task fails, UserError for the user's mistake."""
    rounds: dict[str, list[WayFound]] = {way: [] for way in WAYS}
    for number in range(ROUNDS):
        for way, found in rounds.items():
            what = f"round {number + 1} of {ROUNDS}, {shared.ranks} ranks: {WAYS[way]}"
            found.append(measure_way(spark, way, shared, what))
    return rounds


def measure_way(spark: SparkSession, way: str, shared: Shared, what: str) -> WayFound:
    """One round of one way; `what`: words for the progress line."""
    if way == "shuffle":
        return measure_shuffle(spark, shared, ON_CPU, what)
    function = {"ring": measure_ring, "servers": measure_servers}[way]
    with ProgressLine() as line:

        def show(_: Event) -> None:
            line.show(what)

        first, *_ = run_ranks(spark, function, (shared,), shared.ranks, show, ON_CPU)
    assert first is not None  # rank 0's
    return first


def rows_of(shared: Shared, rounds: dict[str, list[WayFound]]) -> list[Row]:
    """A row per way of what was found at one number of ranks."""
    ring, images = rounds["ring"][0], shared.steps * shared.training.global_batch
    rows: list[Row] = []
    for way, found in rounds.items():
        rates = [images / each.seconds for each in found]
        same = way != "ring" and (way in SYNCHRONOUS or shared.ranks == 1)
        weights = compared(shared, found[0], ring) if same else NOT_COMPARED
        kinds = {kind: statistics.mean(each.shares[kind] for each in found)
                 for kind in ("compute", "exchange", "scheduling")}  # fmt: skip
        rows.append({
            "way": way, "ranks": shared.ranks, "images_per_second": statistics.median(rates),
            "rounds": rates, "bytes_sent": statistics.median(each.bytes_sent for each in found),
            "bytes_needed": bytes_needed(shared.ranks, ring.end.nbytes), "compute": kinds["compute"],
            "exchange": kinds["exchange"], "scheduling": kinds["scheduling"], "losses": found[0].losses,
            "difference": weights["difference"], "rounding": weights["rounding"],
            "fresh_workers": sum(each.fresh for each in found),
        })  # fmt: skip
    return rows


def compared(shared: Shared, found: WayFound, ring: WayFound) -> Compared:
    """The weights of a way that waits for all, beside the ring's."""
    assert ring.start is not None  # it is the ring's
    return {
        "difference": largest_difference(found.end, ring.end, ring.start),
        "rounding": rounding_bound(ring.end, ring.start, shared.steps + 1),
    }


def chart_of(rows: Sequence[Row], title: str) -> str:
    """Rates by ways and ranks, SVG."""
    rates = {
        name: {row["ranks"]: row["images_per_second"] for row in rows if row["way"] == way}
        for way, name in WAYS.items()
    }
    return grouped_chart(rates, title, "ranks")


def distribution_text(found: DistributionFound, size: int) -> str:
    """The table and what its figures mean, for people."""
    lines = [
        f"{found['model']} at {size}x{size}, float32, plain SGD, {found['batch_size']} images and one thread per rank, "
        f"{found['steps']} steps, {ROUNDS} rounds in turn:",
        f"{'ranks':>5}  {'way':<17} {'images/s':>9} {'MB sent':>9} {'needed':>8} {'compute':>8} {'exchange':>9} "
        f"{'scheduling':>11}  difference",
    ]
    lines += map(row_text, found["rows"])
    fresh = sum(row["fresh_workers"] for row in found["rows"])
    if fresh:
        lines.append(
            f"Spark's tasks came to {fresh} fresh Python workers, which built the network anew."
        )
    return "\n".join([*lines, *NOTES])


def row_text(row: Row) -> str:
    """A row of the table."""
    shown = "-"
    if row["difference"] is not None:
        shown = f"{row['difference']:.1e} ({row['rounding']:.1e})"
    return (
        f"{row['ranks']:>5}  {WAYS[row['way']]:<17} {row['images_per_second']:>9.1f} "
        f"{row['bytes_sent'] / 1e6:>9.2f} {row['bytes_needed'] / 1e6:>8.2f} {row['compute']:>8.1%} "
        f"{row['exchange']:>9.1%} {row['scheduling']:>11.1%}  {shown}"
    )
