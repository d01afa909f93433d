"""Whether a probability of 0.3 means three in ten. Pure; runs anywhere.

In: labels and probabilities of known rows of one finding. Out: Brier score, expected calibration
error, and the scaling that the validation split asks for: a temperature, which makes all probabilities
more or less sure, or Platt's, which shifts them too.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from scipy.optimize import minimize, minimize_scalar
from scipy.special import expit, logit

BINS = 15  # of equal width, as in Guo et al. 2017
TINY = 1e-15  # so that a probability of 0 or 1 keeps a finite logit
LOG_RANGE = 5.0  # the temperature is looked for in e^-5 … e^5
FOLDS = 5  # of the patients, to choose a scaling
Method = Literal["temperature", "platt"]


class Scaling(NamedTuple):
    """What becomes of a logit: slope · logit + intercept. A temperature is a slope of 1 / temperature."""

    slope: float
    intercept: float = 0.0


class Chosen(NamedTuple):
    """The scaling of one finding, and the temperature beside it; None where there is none."""

    temperature: float | None
    method: Method | None
    scaling: Scaling | None


NOT_SCALED = Chosen(None, None, None)


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


def fit_plain(labels: np.ndarray, probabilities: np.ndarray) -> Scaling | None:
    """The temperature as a scaling; `labels`, `probabilities`: as in `fit_temperature`, which raises."""
    temperature = fit_temperature(labels, probabilities)
    return None if temperature is None else Scaling(1 / temperature)


def fit_platt(labels: np.ndarray, probabilities: np.ndarray) -> Scaling | None:
    """The slope and intercept of the logits with the smallest log loss.

    `labels`: 1 or 0, (rows,); `probabilities`: (rows,). Source: Platt 1999, without his change of the
    labels: it is logistic regression on the logit.

    None where there is none: where a threshold parts the classes the loss falls without end, and a slope
    of 0 or less would turn the order of the images round. Raises ValueError without both classes.
    """
    positive = labels == 1
    if not 0 < positive.sum() < len(labels):
        raise ValueError("a scaling needs both classes")
    logits, sign = to_logits(probabilities), np.where(positive, 1.0, -1.0)
    yes, no = logits[positive], logits[~positive]
    if no.max() <= yes.min() or yes.max() <= no.min():
        return None
    centre, width = logits.mean(), logits.std()
    standard = (logits - centre) / width  # so that both figures are of one size

    def loss(given: np.ndarray) -> tuple[float, np.ndarray]:
        margins = sign * (given[0] * standard + given[1])
        pull = -sign * expit(-margins)
        return np.logaddexp(0, -margins).mean(), np.array([(pull * standard).mean(), pull.mean()])

    slope, intercept = minimize(loss, (1.0, 0.0), jac=True, method="BFGS", tol=1e-9).x
    slope /= width
    return Scaling(float(slope), float(intercept - slope * centre)) if slope > 0 else None


def choose_scaling(
    labels: np.ndarray, probabilities: np.ndarray, patients: np.ndarray, seed: int = 0
) -> Chosen:
    """Temperature or Platt scaling: the one with the smaller log loss on patients it was not fitted on.

    `labels`: 1 or 0, `probabilities` and `patients`: (rows,). On the rows it was fitted on Platt's always
    wins, since it can be any temperature; so the losses are those of five folds of the patients, each
    scaled by what the other four say. Raises ValueError without both classes.
    """
    plain, platt = fit_plain(labels, probabilities), fit_platt(labels, probabilities)
    temperature = None if plain is None else 1 / plain.slope
    names, patient = np.unique(patients, return_inverse=True)
    folds = np.random.default_rng(seed).permutation(len(names))[patient] % FOLDS

    def held_out(fit: Callable[[np.ndarray, np.ndarray], Scaling | None]) -> float:
        """The log loss, infinite where not every fold can be scaled."""
        losses = np.full(len(labels), np.inf)
        for fold in np.unique(folds):
            held = folds == fold
            fitting = labels[~held]
            scaling = (
                fit(fitting, probabilities[~held]) if 0 < fitting.sum() < len(fitting) else None
            )
            if scaling is not None:
                margins = np.where(labels[held] == 1, 1, -1) * scaled_logits(
                    probabilities[held], scaling
                )
                losses[held] = np.logaddexp(0, -margins)
        return float(losses.mean())

    if platt is not None and held_out(fit_platt) < held_out(fit_plain):
        return Chosen(temperature, "platt", platt)
    return NOT_SCALED if plain is None else Chosen(temperature, "temperature", plain)


def scale(probabilities: np.ndarray, scaling: Scaling) -> np.ndarray:
    """The probabilities, (rows,), with their logits scaled."""
    return expit(scaled_logits(probabilities, scaling))


def scaled_logits(probabilities: np.ndarray, scaling: Scaling) -> np.ndarray:
    """The scaled logits of probabilities (rows,)."""
    return scaling.slope * to_logits(probabilities) + scaling.intercept


def to_logits(probabilities: np.ndarray) -> np.ndarray:
    """The logits of probabilities (rows,), kept finite."""
    return logit(np.clip(probabilities, TINY, 1 - TINY))
