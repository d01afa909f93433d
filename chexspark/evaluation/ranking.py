"""AUROC and average precision, with intervals from resampled patients. Pure; runs anywhere.

In: labels (rows, findings) of 1, 0 or −1 for unknown, scores of the same shape, the patient of each
row. Out: the figures, and their values in every resample.

A resample draws patients with replacement, and each of a patient's images comes as often as the
patient. What a resample's AUROC and average precision need are sums of those counts between
neighbouring scores of positives: one sparse matrix per finding, of (places, patients), times the
matrix of counts, (patients, resamples), gives them for all resamples at once.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_matrix
from sklearn.metrics import average_precision_score

from chexspark.auroc import auroc_per_finding

CHUNK = 200  # resamples at a time: 200 × 6,000 places of a frequent finding are 10 MB
INTERVAL = (2.5, 97.5)  # percentiles


class Draws(NamedTuple):
    """Figures of every resample, float64 (groups, resamples, findings); NaN where not defined."""

    aurocs: np.ndarray
    precisions: np.ndarray


def rankings(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """AUROC and average precision per finding, float64 (findings,); NaN without both classes."""
    aurocs = auroc_per_finding(labels, scores)
    precisions = np.full(len(aurocs), np.nan)
    for i in np.flatnonzero(~np.isnan(aurocs)):
        known = labels[:, i] >= 0
        precisions[i] = average_precision_score(labels[known, i], scores[known, i])
    return aurocs, precisions


def bootstrap(
    labels: np.ndarray, scores: np.ndarray, patients: np.ndarray, resamples: int,
    groups: Sequence[np.ndarray] | None = None, seed: int = 0,
) -> Draws:  # fmt: skip
    """Draw the patients `resamples` times; AUROC and average precision of each draw.

    `groups`: masks of rows (rows,), all rows by default. The draws are the same for every group and
    every scores with the same patients and seed, so differences between them are paired.
    Source: Field and Welsh 2007 (the cluster bootstrap).
    """
    names, patient = np.unique(patients, return_inverse=True)
    groups = [np.ones(len(labels), bool)] if groups is None else groups
    places = [
        [Places(labels[rows, i], scores[rows, i], patient[rows], len(names)) for i in range(labels.shape[1])]
        for rows in groups
    ]  # fmt: skip
    shape = (len(groups), resamples, labels.shape[1])
    draws = Draws(np.full(shape, np.nan), np.full(shape, np.nan))
    random = np.random.default_rng(seed)
    for start in range(0, resamples, CHUNK):
        number = min(CHUNK, resamples - start)
        counts = patient_counts(random, len(names), number)
        for g, row in enumerate(places):
            for f, place in enumerate(row):
                part = place.figures(counts)
                draws.aurocs[g, start : start + number, f] = part[0]
                draws.precisions[g, start : start + number, f] = part[1]
    return draws


def patient_counts(random: np.random.Generator, patients: int, draws: int) -> np.ndarray:
    """How often each patient is in each draw, float32 (patients, draws); columns sum to `patients`."""
    drawn = random.integers(0, patients, (draws, patients))
    drawn += np.arange(draws)[:, None] * patients
    counts = np.bincount(drawn.ravel(), minlength=draws * patients).reshape(draws, patients)
    return np.ascontiguousarray(counts.T, np.float32)  # whole numbers: exact in float32


class Places:
    """One finding's scores as places to count patients at.

    The distinct scores v_1 < … < v_K of positives are K places for positives. For negatives there
    are 2K + 1: below v_1, at v_1, between v_1 and v_2, at v_2, …, above v_K.
    """

    def __init__(
        self, truth: np.ndarray, scores: np.ndarray, patient: np.ndarray, patients: int
    ) -> None:
        positive, negative = truth == 1, truth == 0
        values, at = np.unique(scores[positive], return_inverse=True)
        left = np.searchsorted(values, scores[negative], side="left")
        right = np.searchsorted(values, scores[negative], side="right")
        self.both = bool(positive.any() and negative.any())
        self.positives = counting(at, patient[positive], (len(values), patients))
        self.negatives = counting(left + right, patient[negative], (2 * len(values) + 1, patients))

    def figures(self, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """AUROC and average precision under counts (patients, draws), float64 (draws,) each."""
        if not self.both:
            return (np.full(counts.shape[1], np.nan),) * 2
        positives, negatives = self.positives @ counts, self.negatives @ counts
        # Sums of up to millions of images: exact in float32 below 2^24, so from here in float64.
        found = np.cumsum(positives[::-1], axis=0, dtype=np.float64)[::-1]
        below = np.cumsum(negatives, axis=0, dtype=np.float64)
        all_positives, all_negatives = found[0], below[-1]
        won = np.einsum("kd,kd->d", positives, below[:-1:2] + negatives[1::2] / 2, dtype=np.float64)
        false = all_negatives - below[:-1:2]
        precision = np.divide(found, found + false, out=np.zeros_like(found), where=found > 0)
        summed = np.einsum("kd,kd->d", positives, precision, dtype=np.float64)
        nothing = np.full(len(won), np.nan)
        pairs = all_positives * all_negatives
        aurocs = np.divide(won, pairs, out=nothing.copy(), where=pairs > 0)
        return aurocs, np.divide(summed, all_positives, out=nothing, where=pairs > 0)


def counting(rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int]) -> csr_matrix:
    """The sparse matrix that counts how often each (row, column) is there, float32."""
    return csr_matrix((np.ones(len(rows), np.float32), (rows, columns)), shape=shape)


def interval(draws: np.ndarray) -> tuple[float, float] | None:
    """The 95 % percentile interval of resampled values (resamples,), of those that are defined.

    None where fewer than half are: what is left would be the interval of something else.
    """
    defined = draws[~np.isnan(draws)]
    if len(defined) * 2 < len(draws) or not len(defined):
        return None
    low, high = np.percentile(defined, INTERVAL)
    return float(low), float(high)
