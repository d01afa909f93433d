"""The table of predictions: a row per image, two columns per finding. Pure; runs anywhere.

In: a table in the form of ``RUN/predictions`` and the names of its findings. Out: its columns' names,
and its labels and scores as arrays.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from chexspark.findings import LABEL, PROBABILITY, column_name


def probability_column(finding: str) -> str:
    """The column of a finding's scores: ``prob_Pleural_Thickening``."""
    return PROBABILITY + column_name(finding)


def label_column(finding: str) -> str:
    """The column of a finding's labels: ``label_Pleural_Thickening``."""
    return LABEL + column_name(finding)


def labels_of(table: pd.DataFrame, findings: Sequence[str]) -> np.ndarray:
    """Labels int8 (rows, findings): 1, 0, or −1 for unknown. Raises KeyError without a column."""
    return table[[label_column(finding) for finding in findings]].to_numpy(np.int8)


def scores_of(table: pd.DataFrame, findings: Sequence[str]) -> np.ndarray:
    """Scores float64 (rows, findings). Raises KeyError without a column."""
    return table[[probability_column(finding) for finding in findings]].to_numpy(np.float64)


@dataclass(frozen=True)
class LabelledScores:
    """Rows with their labels and scores, as the statistics take them."""

    findings: tuple[str, ...]
    labels: np.ndarray  # int8 (rows, findings): 1, 0, or −1 for unknown
    scores: np.ndarray  # float64 (rows, findings)
    patients: np.ndarray  # (rows,)

    def part(self, rows: np.ndarray) -> "LabelledScores":
        """The rows of a mask, bool (rows,)."""
        return LabelledScores(
            self.findings, self.labels[rows], self.scores[rows], self.patients[rows]
        )


def labelled_scores(table: pd.DataFrame, findings: tuple[str, ...]) -> LabelledScores:
    """The labels and scores of a table of predictions. Raises KeyError without a column."""
    patients = table["patient_id"].to_numpy(str)
    return LabelledScores(
        findings, labels_of(table, findings), scores_of(table, findings), patients
    )
