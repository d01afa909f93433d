"""What a run has come to: its history, its best epoch, its plateau. Pure; runs on ranks.

In: the figures of each epoch. Out: the rows of ``RUN/history``; which epoch is the best; when to stop.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from chexspark.findings import column_name
from chexspark.run.history import AUROC, Row
from chexspark.training.schedule import Plateau

Score = tuple[float, float]  # of two epochs the greater is the better


@dataclass
class Record:
    """Changed after each epoch, by `add`; alike on all ranks."""

    plateau: Plateau
    history: list[Row] = field(default_factory=list)
    best: Score = (-math.inf, -math.inf)

    def add(self, row: Row, score: Score) -> None:
        """Take an epoch's row; where it says ``best``, those before it are not any more."""
        if row["best"]:
            self.best = score
            for earlier in self.history:
                earlier["best"] = False
        self.history.append(row)

    def is_over(self, patience: int | None) -> bool:
        """Whether the last `patience` epochs brought nothing better; without it, never."""
        since = next((n for n, row in enumerate(reversed(self.history)) if row["best"]), 0)
        return patience is not None and since >= patience


def score_of(mean_auroc: float, loss: float, best_by: str) -> Score:
    """What epochs are compared by: ``auroc`` or ``loss``, and the other where they are equal in it.

    No AUROC is worse than any.
    """
    auroc = -math.inf if math.isnan(mean_auroc) else mean_auroc
    return (auroc, -loss) if best_by == "auroc" else (-loss, auroc)


def none_if_nan(value: float) -> float | None:
    """The number, or None for NaN, which JSON does not know."""
    return None if math.isnan(value) else value


def validation_columns(
    loss: float, mean: float, aurocs: np.ndarray, findings: Sequence[str]
) -> Row:
    """A row's columns of validation; `aurocs`: float64 (findings,), NaN where there is none."""
    names = [AUROC + column_name(name) for name in findings]
    values = [none_if_nan(float(value)) for value in aurocs]
    return {
        "val_loss": loss,
        "val_auroc": none_if_nan(mean),
        **dict(zip(names, values, strict=True)),
    }
