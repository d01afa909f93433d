"""Whether a probability of 0.3 means three in ten. Pure; runs anywhere.

In: labels and probabilities of known rows of one finding. Out: Brier score, expected calibration
error, and the temperature that the validation split asks for.
"""

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import expit, logit

BINS = 15  # of equal width, as in Guo et al. 2017
TINY = 1e-15  # so that a probability of 0 or 1 keeps a finite logit
LOG_RANGE = 5.0  # the temperature is looked for in e^-5 … e^5


def are_probabilities(scores: np.ndarray) -> bool:
    """Whether scores (rows,) lie in 0–1; not of no rows."""
    return bool(len(scores) and scores.min() >= 0 and scores.max() <= 1)


def brier(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Mean squared error of probabilities (rows,) of 1/0 labels (rows,), 0–1 (Brier 1950)."""
    return float(np.mean((probabilities - labels) ** 2))


def calibration_bins(
    labels: np.ndarray, probabilities: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, mean probability and share of positives per bin, (15,) each; NaN in an empty bin."""
    bins = np.minimum((probabilities * BINS).astype(int), BINS - 1)
    rows = np.bincount(bins, minlength=BINS)
    empty = np.where(rows, rows, np.nan)
    mean = np.bincount(bins, probabilities, BINS) / empty
    return rows, mean, np.bincount(bins, labels, BINS) / empty


def calibration_error(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Expected calibration error, 0–1: |probability − share of positives| of 15 bins, weighted.

    `labels`: 1 or 0, (rows,); `probabilities`: (rows,). Source: Guo et al. 2017, section 2.
    """
    rows, mean, positive = calibration_bins(labels, probabilities)
    return float(np.nansum(rows * np.abs(mean - positive)) / rows.sum())


def fit_temperature(labels: np.ndarray, probabilities: np.ndarray) -> float | None:
    """The temperature with the smallest log loss. Source: Guo et al. 2017, section 4.2.

    `labels`: 1 or 0, (rows,); `probabilities`: (rows,).

    None where there is none: without an error on either side of 0.5 the loss falls as the temperature
    goes to 0, and where the logits say nothing it falls as it grows. Raises ValueError without both
    classes.
    """
    if not 0 < (labels == 1).sum() < len(labels):
        raise ValueError("a temperature needs both classes")
    logits, sign = to_logits(probabilities), np.where(labels == 1, -1.0, 1.0)

    def loss(log_temperature: float) -> float:
        return np.logaddexp(0, sign * logits / np.exp(log_temperature)).mean()

    found = minimize_scalar(loss, bounds=(-LOG_RANGE, LOG_RANGE), method="bounded")
    return float(np.exp(found.x)) if abs(found.x) < LOG_RANGE - 0.01 else None


def scale(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """The probabilities, (rows,), with their logits divided by the temperature."""
    return expit(to_logits(probabilities) / temperature)


def to_logits(probabilities: np.ndarray) -> np.ndarray:
    """The logits of probabilities (rows,), kept finite."""
    return logit(np.clip(probabilities, TINY, 1 - TINY))
