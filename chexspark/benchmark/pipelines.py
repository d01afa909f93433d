"""The suite ``pipelines``: networks trained from several forms of the same images. Runs on the driver.

In: full-size images. Out: of each form and way to read it, images per second and the share of the time in which
the step waits for input, beside the step by itself and beside what Dell EMC published.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import TypedDict

from chexspark.benchmark.chart import FedBar, FedPanel, fed_chart
from chexspark.benchmark.full_size import keep_full_size, stored_labels
from chexspark.benchmark.reader_data import make_store, write_records
from chexspark.benchmark.results import measurements
from chexspark.benchmark.suite import Measured, Work
from chexspark.cluster.launch import ENVIRONMENT
from chexspark.errors import UserError
from chexspark.progress import ProgressLine

BATCH, ROUNDS = 16, 3
STEPS, SECONDS = 4, 4.0  # of a turn, at least: fast steps live on what was read ahead before them

NETWORKS = {"resnet50": "ResNet-50", "densenet121": "DenseNet-121"}
# Ways of `readers`.
PIPELINES = {
    "full_size_naive": "full-size PNG files, one by one",
    "full_size_tuned": "full-size PNG files, parallel with prefetch",
    "full_size_records_naive": "TFRecord of full-size PNG, one by one",
    "full_size_records_tuned": "TFRecord of full-size PNG, parallel with prefetch",
    "tfrecord_raw": "TFRecord of ready pixels, parallel with prefetch",
    "chexspark": "chexspark",
}
STEP_ALONE = "memory"  # a way, too
BASE, RECORDS = "full_size_tuned", "full_size_records_tuned"

# Dell EMC's study of input pipelines for CheXNet, SC19: images per second from TFRecord over those from PNG files, "up to".
PUBLISHED_GAINS = {"resnet50": 0.084, "densenet121": 0.131}
PUBLISHED = "published by Dell EMC, SC19, of GPUs"


class Turn(TypedDict):
    """Some steps of a network, fed by one pipeline."""

    images_per_second: float
    idle_share: float  # of the time


class PipelineRow(TypedDict):
    """A network fed by one pipeline; medians of the rounds."""

    network: str
    pipeline: str  # a key of `PIPELINES`, or `STEP_ALONE`
    images_per_second: float
    idle_share: float
    gain: float  # in images per second, over `BASE` in the same round
    rounds: list[Turn]


class PipelineRates(TypedDict):
    """What the suite ``pipelines`` finds."""

    batch: int
    rows: list[PipelineRow]
    published_gains_on_gpus: dict[str, float]  # of `RECORDS` over `BASE`, at most


Turns = dict[tuple[str, str], list[Turn]]  # by network and pipeline, in the order of the rounds


def measure_pipelines(work: Work) -> Measured:
    """The suite ``pipelines``. Raises UserError where too few of the user's images can be read."""
    make_store(work.spark, work.folder, list(work.images), work.count, work.size)
    stored = len(stored_labels(work.folder))
    if stored < BATCH:
        raise UserError(
            f"--images={work.config.images}: ingest took {stored} of {work.count} images, and a "
            f"batch has {BATCH}: give X-rays that can be read"
        )
    keep_full_size(work.folder, stored)
    write_records(work.folder, "raw", "full-size")
    rows = rows_of(take_turns(work))
    found: PipelineRates = {
        "batch": BATCH,
        "rows": rows,
        "published_gains_on_gpus": PUBLISHED_GAINS,
    }
    title = f"training from several forms of images, {work.size}×{work.size}, float32, batch {BATCH}, one rank"
    return Measured(found, pipelines_text(rows, title), pipelines_chart(rows, title))


def take_turns(work: Work) -> Turns:
    """Run the turns in a process of their own. Raises RunFailedError with its last words."""
    ways = [*PIPELINES, STEP_ALONE]
    arguments = [work.folder, BATCH, ROUNDS, STEPS, SECONDS, ",".join(NETWORKS), ",".join(ways)]
    turns: Turns = {(network, way): [] for network in NETWORKS for way in ways}
    with ProgressLine() as line:
        line.show("compiling")
        for found in measurements("chexspark.benchmark.pipeline_turns", arguments, ENVIRONMENT):
            rate = found["images"] / found["seconds"]
            turns[found["network"], found["pipeline"]].append(
                {"images_per_second": rate, "idle_share": found["waited"] / found["seconds"]}
            )
            line.show(
                f"{NETWORKS[found['network']]}, round {found['round'] + 1} of {ROUNDS}: "
                f"{PIPELINES.get(found['pipeline'], 'the step by itself')}: {rate:,.1f} images/s"
            )
    return turns


def rows_of(turns: Mapping[tuple[str, str], list[Turn]]) -> list[PipelineRow]:
    """The table's rows, in the order of the turns."""
    return [
        {
            "network": network,
            "pipeline": pipeline,
            "images_per_second": statistics.median(t["images_per_second"] for t in rounds),
            "idle_share": statistics.median(t["idle_share"] for t in rounds),
            "gain": statistics.median(
                turn["images_per_second"] / base["images_per_second"] - 1
                for turn, base in zip(rounds, turns[network, BASE], strict=True)
            ),
            "rounds": rounds,
        }
        for (network, pipeline), rounds in turns.items()
    ]


def rows_by_network(rows: Sequence[PipelineRow]) -> dict[str, dict[str, PipelineRow]]:
    """Network → pipeline → row."""
    found: dict[str, dict[str, PipelineRow]] = {}
    for row in rows:
        found.setdefault(row["network"], {})[row["pipeline"]] = row
    return found


def pipelines_text(rows: Sequence[PipelineRow], title: str) -> str:
    """The table: rate, waiting, and the gain over tuned PNG files, beside the published one."""
    lines = [title]
    for network, mine in rows_by_network(rows).items():
        head = f"{NETWORKS[network]:<52}{'images/s':>10}{'waiting':>10}{'over PNG files':>16}"
        lines += ["", f"{head}  {PUBLISHED}"]
        for pipeline, row in mine.items():
            name = PIPELINES.get(pipeline, "the step by itself, on a batch in memory")
            gain = f"{row['gain']:+.1%}" if pipeline != BASE else ""
            line = (
                f"{name:<52}{row['images_per_second']:>10,.1f}{row['idle_share']:>10.1%}{gain:>16}"
            )
            if pipeline == RECORDS:
                line += f"  up to {PUBLISHED_GAINS[network]:+.1%}"
            lines.append(line.rstrip())
    lines += ["", f"waiting: of the time, for input; over PNG files: {PIPELINES[BASE]}, in the same round"]  # fmt: skip
    return "\n".join(lines)


def pipelines_chart(rows: Sequence[PipelineRow], title: str) -> str:
    """The chart, SVG: a panel per network, the published gain as a mark at TFRecord's bar."""
    panels = [
        FedPanel(
            NETWORKS[network],
            [bar_of(network, pipeline, mine) for pipeline in PIPELINES],
            mine[STEP_ALONE]["images_per_second"],
        )
        for network, mine in rows_by_network(rows).items()
    ]
    published = "TFRecord with the most that it gained over PNG files, " + PUBLISHED
    return fed_chart(panels, title, published)


def bar_of(network: str, pipeline: str, rows: Mapping[str, PipelineRow]) -> FedBar:
    """A pipeline as the chart has it."""
    row, published = rows[pipeline], None
    if pipeline == RECORDS:
        published = rows[BASE]["images_per_second"] * (1 + PUBLISHED_GAINS[network])
    return FedBar(
        PIPELINES[pipeline], row["images_per_second"], row["idle_share"], published,
        ours=pipeline == "chexspark",
    )  # fmt: skip
