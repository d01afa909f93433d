"""DeLong's variance of AUROCs and the paired test of two. Pure; runs anywhere.

In: labels of known rows (1, 0) and the scores of one model or several on the same rows.
Out: AUROCs, their covariance, a test. It takes the rows for independent: where patients have
several images, the bootstrap of patients in `ranking` does not.
Sources: DeLong, DeLong and Clarke-Pearson 1988; in O(n log n) by midranks, Sun and Xu 2014.
"""

import math
from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata

NORMAL_95 = 1.959963984540054


class PairedTest(NamedTuple):
    """AUROC of the first minus that of the second model, on the same rows."""

    difference: float
    variance: float
    p: float | None  # two-sided; None where the difference has no variance


def delong_covariance(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """AUROCs float64 (models,) and their covariance float64 (models, models).

    `labels`: (rows,) of 1 and 0; `scores`: (models, rows). Raises ValueError unless both classes
    have two rows or more: with one, the variance is not defined.
    """
    positive = labels == 1
    m, n = int(positive.sum()), int((~positive).sum())
    if m < 2 or n < 2:
        raise ValueError(f"DeLong's variance needs 2 rows of each class, there are {m} and {n}")
    ranks = rankdata(scores, axis=1)
    of_positives = (ranks[:, positive] - rankdata(scores[:, positive], axis=1)) / n
    of_negatives = 1 - (ranks[:, ~positive] - rankdata(scores[:, ~positive], axis=1)) / m
    covariance = np.cov(of_positives) / m + np.cov(of_negatives) / n
    return of_positives.mean(axis=1), np.atleast_2d(covariance)


def delong_variance(labels: np.ndarray, scores: np.ndarray) -> float | None:
    """The variance of one model's AUROC; None with fewer than two rows of a class.

    `labels`: (rows,) of 1 and 0; `scores`: (rows,).
    """
    positives = int((labels == 1).sum())
    if min(positives, len(labels) - positives) < 2:
        return None
    return float(delong_covariance(labels, scores[None])[1][0, 0])


def paired_test(labels: np.ndarray, first: np.ndarray, second: np.ndarray) -> PairedTest:
    """Test whether two models have the same AUROC. Raises ValueError as `delong_covariance`."""
    aurocs, covariance = delong_covariance(labels, np.stack([first, second]))
    difference = float(aurocs[0] - aurocs[1])
    variance = float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    if variance <= 1e-15:  # equal rankings, but for rounding
        return PairedTest(difference, 0.0, None if difference else 1.0)
    p = math.erfc(abs(difference) / math.sqrt(2 * variance))
    return PairedTest(difference, variance, p)
