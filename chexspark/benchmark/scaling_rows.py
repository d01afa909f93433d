"""What trainings at several numbers of ranks come to. Pure; runs on the driver.

In: histories of trainings, and what was noted of each. Out: a table of curves, rows by number of ranks, text.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from chexspark.progress import duration

SCALINGS = {"none": 0.0, "linear": 1.0}  # of the learning rate, and epochs of warm-up
SHARES = ("input_share", "compute_share", "allreduce_share")
CURVES = (
    "epoch",
    "train_loss",
    "val_loss",
    "val_auroc",
    "learning_rate",
    "images_per_second",
    "seconds",
    *SHARES,
)


@dataclass(frozen=True)
class ScalingRow:
    """What was measured at a number of ranks. Of epochs: all but the first, which compiles; the median."""

    ranks: int
    images_per_second: float
    slowest: float  # epoch, images per second
    fastest: float
    efficiency: float  # of the rate per rank with the fewest ranks
    seconds_per_epoch: float  # without validation
    train_seconds: float | None  # start, validation and all; None for one that was interrupted
    input_share: float
    compute_share: float
    allreduce_share: float
    predicted: float | None  # images per second, before it was measured


@dataclass(frozen=True)
class Training:
    """One of the study's."""

    ranks: int
    scaling: str

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"ranks-{self.ranks}-{self.scaling}"


def trainings(numbers: Sequence[int]) -> list[Training]:
    """Of the study; at one rank there is nothing to scale."""
    return [
        Training(ranks, scaling)
        for ranks in numbers
        for scaling in SCALINGS
        if ranks > 1 or scaling == "none"
    ]


def curves(histories: Mapping[Training, pd.DataFrame], images: int) -> pd.DataFrame:
    """A row per training and epoch; `images`: of the training part."""
    parts = []
    for training, history in histories.items():
        part = pd.DataFrame(history[list(CURVES)]).copy()
        part.insert(0, "ranks", training.ranks)
        part.insert(1, "scaling", training.scaling)
        part.insert(3, "images_seen", (part["epoch"] + 1) * images)
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def rows_of(table: pd.DataFrame, notes: Mapping[str, Any]) -> list[ScalingRow]:
    """A row per number of ranks. `table`: as `curves` returns it; `notes`: the study's."""
    predicted = {each["ranks"]: each["images_per_second"] for each in notes.get("forecast", [])}
    rows: list[ScalingRow] = []
    # An epoch that was resumed after its last step has no rate.
    rated = table[(table["epoch"] > 0) & table["images_per_second"].notna()]
    for ranks, part in rated.groupby("ranks"):
        ranks, rate = int(ranks), float(part["images_per_second"].median())
        first = rows[0] if rows else None
        took = [notes.get(each.name) for each in trainings([ranks])]
        known = [seconds for seconds in took if seconds is not None]
        rows.append(
            ScalingRow(
                ranks=ranks, images_per_second=rate,
                slowest=float(part["images_per_second"].min()),
                fastest=float(part["images_per_second"].max()),
                efficiency=rate / ranks / (first.images_per_second / first.ranks) if first else 1.0,
                seconds_per_epoch=float(part["seconds"].median()),
                train_seconds=statistics.median(known) if known else None,
                **{share: float(part[share].mean()) for share in SHARES},
                predicted=predicted.get(ranks),
            )
        )  # fmt: skip
    return rows


def scaling_text(rows: Sequence[ScalingRow], table: pd.DataFrame) -> str:
    """Two tables, for people: speed, and what was learnt."""
    lines = [
        f"{'ranks':>6}{'images/s':>11}{'predicted':>11}{'efficiency':>12}{'an epoch':>11}{'training':>11}"
        f"{'input':>8}{'compute':>9}{'allreduce':>11}"
    ]
    for row in rows:
        predicted = "–" if row.predicted is None else f"{row.predicted:,.1f}"
        whole = "–" if row.train_seconds is None else duration(row.train_seconds)
        lines.append(
            f"{row.ranks:>6}{row.images_per_second:>11,.1f}{predicted:>11}{row.efficiency:>12.0%}"
            f"{duration(row.seconds_per_epoch):>11}{whole:>11}{row.input_share:>8.1%}{row.compute_share:>9.1%}"
            f"{row.allreduce_share:>11.1%}"
        )
    lines += [
        "",
        f"{'ranks':>6}  {'learning rate':<16}{'training loss':>14}{'loss':>9}{'AUROC':>9}  after all epochs",
    ]
    for (ranks, scaling), part in table.groupby(["ranks", "scaling"], sort=False):
        last = part.iloc[-1]
        lines.append(
            f"{ranks:>6}  {'as it is' if scaling == 'none' else 'scaled, warm-up':<16}{last['train_loss']:>14.4f}"
            f"{last['val_loss']:>9.4f}{last['val_auroc']:>9.4f}"
        )
    return "\n".join(lines)
