"""Two models on the same images. Pure; runs anywhere.

In: labels and the scores of both models, (rows, findings) each, and the patient of each row. Out: one
record per finding and one for the mean: both AUROCs, their difference, and whether it may be chance.
"""

from typing import TypedDict

import numpy as np

from chexspark.auroc import auroc_per_finding, mean_auroc
from chexspark.evaluation.delong import paired_test
from chexspark.evaluation.predictions import LabelledScores
from chexspark.evaluation.ranking import bootstrap, interval
from chexspark.findings import MEAN


class Difference(TypedDict):
    """Two AUROCs and the first minus the second; None where not defined."""

    auroc: float | None
    auroc_other: float | None
    difference: float | None
    difference_low: float | None  # 95 % interval
    difference_high: float | None
    p_bootstrap: float | None  # two-sided


class _Finding(TypedDict):
    finding: str  # or MEAN


class Comparison(_Finding, Difference):
    """A row of ``comparison``: two models on one finding, or on their mean."""

    p_delong: float | None  # two-sided; takes images for independent
    positives: int | None
    negatives: int | None
    note: str  # why something is not defined


NO_DIFFERENCE = Difference(auroc=None, auroc_other=None, difference=None, difference_low=None,
                           difference_high=None, p_bootstrap=None)  # fmt: skip


def comparison_records(
    rows: LabelledScores, second: np.ndarray, resamples: int, seed: int = 0
) -> list[Comparison]:
    """Compare AUROCs, those of `rows` minus those of the scores `second`, float64 (rows, findings).

    The interval and `p_bootstrap` come from the same resamples of patients for both; `p_delong` from
    DeLong's paired test, which takes images for independent.
    Source of p_bootstrap: Efron and Tibshirani 1993, chapter 16: twice the smaller tail.
    """
    labels, patients, both = rows.labels, rows.patients, (rows.scores, second)
    draws_of = [bootstrap(labels, s, patients, resamples, seed=seed).aurocs[0] for s in both]
    draws = draws_of[0] - draws_of[1]
    first_aurocs, second_aurocs = (auroc_per_finding(labels, scores) for scores in both)
    single = len(np.unique(patients)) < 2
    records = []
    for i, finding in enumerate(rows.findings):
        known = labels[:, i] >= 0
        truth = labels[known, i]
        positives = int(truth.sum())
        negatives = len(truth) - positives
        difference, note, p_delong = NO_DIFFERENCE, "", None
        if np.isnan(first_aurocs[i]):
            note = f"no AUROC: there is no {'negative' if positives else 'positive'}"
        else:
            difference, note = difference_of(first_aurocs[i], second_aurocs[i], draws[:, i], single)
            if not single and min(positives, negatives) > 1:
                p_delong = paired_test(truth, rows.scores[known, i], second[known, i]).p
        records.append(Comparison(
            finding=finding, **difference, p_delong=p_delong, positives=positives,
            negatives=negatives, note=note,
        ))  # fmt: skip
    difference, note, there = NO_DIFFERENCE, "", ~np.isnan(first_aurocs)
    if there.any():
        means = mean_auroc(first_aurocs), mean_auroc(second_aurocs)
        difference, note = difference_of(*means, draws[:, there].mean(axis=1), single)
    left_out = [f for f, is_there in zip(rows.findings, there, strict=True) if not is_there]
    if left_out:
        note = "; ".join(filter(None, ["without " + ", ".join(left_out), note]))
    mean = Comparison(
        finding=MEAN, **difference, p_delong=None, positives=None, negatives=None, note=note
    )
    return [*records, mean]


def difference_of(
    auroc: float, other: float, draws: np.ndarray, single: bool
) -> tuple[Difference, str]:
    """The difference of two AUROCs, with interval and p from resampled differences, and a note.

    `draws`: float64 (resamples,); `single`: all images are of one patient.
    """
    low, high, p, note = None, None, None, ""
    found = None if single else interval(draws)
    if single:
        note = "no interval: all images are of one patient"
    elif found is None:
        note = "no interval: most resamples lack a class"
    else:
        low, high = found
        there = draws[~np.isnan(draws)]
        tail = min((there <= 0).mean(), (there >= 0).mean())
        # A resample more on each side: with 2,000 resamples no p is smaller than 0.001.
        p = float(min(1.0, 2 * (tail * len(there) + 1) / (len(there) + 1)))
    difference = Difference(
        auroc=float(auroc), auroc_other=float(other), difference=float(auroc - other),
        difference_low=low, difference_high=high, p_bootstrap=p,
    )  # fmt: skip
    return difference, note
