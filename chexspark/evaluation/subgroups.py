"""Parts of the patients by what is known of them, and whether one falls behind. Pure; runs anywhere.

In: sex, age, view position, follow-up, hospital, device and set of each row; AUROCs of groups in all resamples. Out: groups of
rows; of each group the difference from its complement, and a test that corrects for how many there are.

The question is whether a group fares worse than the others of which the same is known: women than men,
the old than all who are younger. Both AUROCs are within their own images. Compared with all images, whose
AUROC counts pairs of one image of each, both halves can lie below the whole.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypedDict

import numpy as np
import pandas as pd
from scipy.stats import t as student

from chexspark.evaluation.ranking import interval

AGES = (0, 20, 40, 60, 80, 121)  # years; NIH's ages above 120 are errors of the release
AGE_NAMES = ("0-19", "20-39", "40-59", "60-79", "80 and more")
COLUMNS = (
    "sex",
    "age",
    "view_position",
    "follow_up",
    "institution",
    "manufacturer",
    "device",
    "source",
)
LEVEL = 0.05
POWER = 0.8  # with which a test finds the gap that is called detectable
MIN_PATIENTS = 10  # of the rarer class: with fewer, neither interval nor test says much
MOST_GROUPS = 6  # of one attribute, the largest: free text would make a group of each row


@dataclass(frozen=True)
class Group:
    """Some rows. `by` is the attribute, `name` its value."""

    by: str
    name: str
    rows: np.ndarray  # bool (rows,)
    others: np.ndarray  # bool (rows,): the complement, rows of another known value

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
            known = values.notna().to_numpy()
            for name in names:
                rows = (values == name).to_numpy()
                groups.append(Group(column, name, rows, known & ~rows))
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


class Difference(TypedDict):
    """A group's AUROC minus that of its complement; None where it is not tested."""

    auroc_others: float | None  # of the complement
    difference: float | None
    difference_low: float | None  # 95 % interval
    difference_high: float | None
    compared: int  # findings that the difference is over
    detectable: float | None  # the gap that the test finds in 8 of 10 cases
    p_behind: float | None  # one-sided, corrected for all tests
    behind: bool  # by more than chance


NO_DIFFERENCE = Difference(
    auroc_others=None, difference=None, difference_low=None, difference_high=None, compared=0,
    detectable=None, p_behind=None, behind=False,
)  # fmt: skip


class Ranked(NamedTuple):
    """How the scores of some rows rank, by finding."""

    aurocs: np.ndarray  # float64 (findings,), NaN where not defined
    draws: np.ndarray  # float64 (resamples, findings): the same in resamples of patients
    patients: np.ndarray  # int (findings,): of the rarer class


class Contrast(NamedTuple):
    """A group and its complement, of one finding or of the mean of several."""

    auroc_others: float
    difference: float
    draws: np.ndarray  # float64 (resamples,): the difference in resamples
    error: float  # its standard error
    freedom: float  # degrees of freedom of that error
    findings: int


def rarer_patients(labels: np.ndarray, patients: np.ndarray) -> np.ndarray:
    """How many patients the rarer class of each finding has, int (findings,).

    `labels`: (rows, findings) of 1, 0 or −1 for unknown; `patients`: (rows,).
    """
    counts = [
        [len(np.unique(patients[column == value])) for value in (0, 1)] for column in labels.T
    ]
    return np.array(counts, int).reshape(-1, 2).min(axis=1)


def differences(pairs: Sequence[tuple[Ranked, Ranked]]) -> list[list[Difference]]:
    """How the AUROCs of each group differ from those of its complement, and the test of each.

    `pairs`: group and complement, of the same resamples. Of each pair a `Difference` per finding, and one
    of the mean over the findings that are tested: those of which both have `MIN_PATIENTS` or more.
    """
    contrasts: dict[tuple[int, int], Contrast] = {}
    for g, (group, others) in enumerate(pairs):
        enough = np.flatnonzero(np.minimum(group.patients, others.patients) >= MIN_PATIENTS)
        # Where scores part the classes fully, or are all equal, no resample says otherwise.
        spread = [np.nanstd(part.draws[:, enough], axis=0) for part in (group, others)]
        tested = enough[np.minimum(*spread) > 0]
        for i in tested:
            contrasts[g, i] = contrast_of(group, others, np.array([i]))
        if len(tested):
            contrasts[g, len(group.aurocs)] = contrast_of(group, others, tested)
    p = falls_behind(list(contrasts.values()))
    found = [[NO_DIFFERENCE] * (len(group.aurocs) + 1) for group, _ in pairs]
    for ((g, i), contrast), value in zip(contrasts.items(), p, strict=True):
        low, high = interval(contrast.draws) or (None, None)
        found[g][i] = Difference(
            auroc_others=contrast.auroc_others, difference=contrast.difference, difference_low=low,
            difference_high=high, compared=contrast.findings,
            detectable=detectable_gap(contrast, len(contrasts)), p_behind=float(value),
            behind=bool(value < LEVEL),
        )  # fmt: skip
    return found


def contrast_of(group: Ranked, others: Ranked, which: np.ndarray) -> Contrast:
    """The mean difference over the findings `which`, int (n,), with its standard error.

    With ten positives a bootstrap's error is too small, since its variance divides by n and not by n − 1,
    and itself a guess, for which a normal distribution's tails are too short. So n / (n − 1), and degrees
    of freedom after Welch–Satterthwaite, where n are the patients of the rarer class.
    """
    draws = (group.draws - others.draws)[:, which].mean(axis=1)
    plain = np.concatenate([np.nanvar(part.draws[:, which], axis=0) for part in (group, others)])
    patients = np.concatenate([part.patients[which] for part in (group, others)])
    variances = plain * patients / (patients - 1)
    return Contrast(
        auroc_others=float(others.aurocs[which].mean()),
        difference=float((group.aurocs - others.aurocs)[which].mean()),
        draws=draws,
        error=float(np.nanstd(draws) * np.sqrt(variances.sum() / plain.sum())),
        freedom=float(variances.sum() ** 2 / (variances**2 / (patients - 1)).sum()),
        findings=len(which),
    )


def falls_behind(contrasts: Sequence[Contrast]) -> np.ndarray:
    """One-sided p of each difference being 0 or more, corrected for their number; float64 (contrasts,).

    Sources: Welch 1947 (the test), Holm 1979 (the correction).
    """
    figures = [(each.difference / each.error, each.freedom) for each in contrasts]
    p = student.cdf(*np.array(figures).reshape(-1, 2).T)
    order = np.argsort(p)
    steps = p[order] * np.arange(len(order), 0, -1)
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return corrected


def detectable_gap(contrast: Contrast, tests: int) -> float:
    """By how much a group must truly fall behind to be found with `POWER`, among so many tests."""
    quantiles = student.ppf([1 - LEVEL / tests, POWER], contrast.freedom)
    return float(contrast.error * quantiles.sum())
