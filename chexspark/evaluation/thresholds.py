"""Where a score becomes a yes, and what comes of it. Pure; runs anywhere.

In: labels and scores of known rows of one finding. Out: thresholds, chosen on the validation split
and nowhere else; sensitivity, specificity, PPV and NPV at a threshold, on any split.
"""

from typing import Literal, TypedDict

import numpy as np
from sklearn.metrics import roc_curve

Rule = Literal["youden", "sens90"]
RULES: tuple[Rule, ...] = ("youden", "sens90")
SENSITIVITY = 0.9


class Thresholds(TypedDict):
    """A threshold per rule; None where there is none."""

    youden: float | None
    sens90: float | None


class OperatingPoint(TypedDict):
    """What comes of a threshold, 0–1 each; None where a denominator is 0."""

    sensitivity: float | None
    specificity: float | None
    ppv: float | None
    npv: float | None


NO_THRESHOLDS = Thresholds(youden=None, sens90=None)
NO_POINT = OperatingPoint(sensitivity=None, specificity=None, ppv=None, npv=None)


def choose_thresholds(labels: np.ndarray, scores: np.ndarray) -> Thresholds:
    """A threshold per rule, of 1/0 labels (rows,) and scores (rows,); yes is a score at or above it.

    ``youden``: where sensitivity + specificity is largest (Youden 1950); None where none beats
    chance. ``sens90``: the highest with a sensitivity of at least 0.9. Raises ValueError without
    both classes.
    """
    if not 0 < (labels == 1).sum() < len(labels):
        raise ValueError("a threshold needs both classes")
    false, true, thresholds = roc_curve(labels, scores, drop_intermediate=False)
    best = int(np.argmax(true - false))
    # The curve begins at (0, 0) with a threshold of infinity: nothing is called positive.
    enough = int(np.argmax(true >= SENSITIVITY))
    return {
        "youden": float(thresholds[best]) if true[best] > false[best] else None,
        "sens90": float(thresholds[enough]),
    }


def operating_point(labels: np.ndarray, scores: np.ndarray, threshold: float) -> OperatingPoint:
    """Sensitivity, specificity, ppv, npv of 1/0 labels (rows,) and scores (rows,) at a threshold."""
    called, positive = scores >= threshold, labels == 1
    right_yes, right_no = int((called & positive).sum()), int((~called & ~positive).sum())
    return {
        "sensitivity": share(right_yes, positive.sum()),
        "specificity": share(right_no, (~positive).sum()),
        "ppv": share(right_yes, called.sum()),
        "npv": share(right_no, (~called).sum()),
    }


def share(part: int, whole: int) -> float | None:
    """The part of the whole, 0–1; None where the whole is 0."""
    return float(part / whole) if whole else None
