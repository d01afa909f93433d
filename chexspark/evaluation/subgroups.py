"""Parts of the patients by what is known of them, and whether one falls behind. Pure; runs anywhere.

In: sex, age, view position and follow-up of each row; AUROCs of all resamples. Out: groups of rows,
and a test of each against all rows that corrects for how many are tested.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import norm

AGES = (0, 20, 40, 60, 80, 121)  # years; NIH's ages above 120 are errors of the release
AGE_NAMES = ("0-19", "20-39", "40-59", "60-79", "80 and more")
COLUMNS = ("sex", "age", "view_position", "follow_up")
LEVEL = 0.05
MIN_PATIENTS = 10  # of the rarer class: with fewer, neither interval nor test says much
MOST_GROUPS = 6  # of one attribute, the largest: free text would make a group of each row


@dataclass(frozen=True)
class Group:
    """Some rows. `by` is the attribute, `name` its value."""

    by: str
    name: str
    rows: np.ndarray  # bool (rows,)

    def __str__(self) -> str:
        return f"{self.by.replace('_', ' ')} {self.name}"


def groups_of(table: pd.DataFrame) -> list[Group]:
    """The groups of each attribute that the table has, with two groups or more."""
    groups: list[Group] = []
    for column in COLUMNS:
        if column not in table:
            continue
        values = naming(column, table[column])
        counts = values.value_counts()
        names = sorted(counts.index[:MOST_GROUPS])
        if len(names) > 1:
            groups += [Group(column, name, (values == name).to_numpy()) for name in names]
    return groups


def naming(column: str, values: pd.Series) -> pd.Series:
    """The group of each row by name, None where the value is not known."""
    if column == "age":
        years = pd.to_numeric(values, errors="coerce")
        return pd.cut(years, AGES, right=False, labels=AGE_NAMES).astype(object)
    if column == "follow_up":
        numbers = pd.to_numeric(values, errors="coerce")
        named = np.where(numbers > 0, "later images", "first image")
        return pd.Series(named, values.index).where(numbers.notna())
    return values.where(values.notna()).astype(object)


def falls_behind(differences: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """One-sided p of each difference being 0 or more, corrected for their number; float64 (tests,).

    `differences`: (tests,) of a group's AUROC minus that of all rows, NaN where there is no test;
    `draws`: (tests, resamples) of the same in resamples of patients, whose spread is the standard
    error. Correction: Holm 1979.
    """
    p = np.full(len(differences), np.nan)
    for i in np.flatnonzero(~np.isnan(differences)):
        error = np.nanstd(draws[i])
        p[i] = norm.cdf(differences[i] / error) if error > 0 else np.nan
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested])]
    steps = p[order] * np.arange(len(order), 0, -1)
    p[order] = np.minimum(np.maximum.accumulate(steps), 1) if len(order) else steps
    return p
