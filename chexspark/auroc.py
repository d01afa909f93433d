"""AUROC of many findings at once. Pure functions; runs on driver and ranks.

In: labels and scores of pooled rows, of all ranks together. Out: one AUROC per finding.
"""

import numpy as np
from sklearn.metrics import roc_auc_score


def auroc_per_finding(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """AUROC per finding, float64 (findings,); NaN where a finding has not both classes.

    `labels`: (rows, findings) of 1, 0, or −1 for unknown, which is left out. `scores`: the same
    shape, higher for more likely.
    """
    aurocs = np.full(labels.shape[1], np.nan)
    for i in range(labels.shape[1]):
        known = labels[:, i] >= 0
        truth = labels[known, i]
        if 0 < truth.sum() < len(truth):
            aurocs[i] = roc_auc_score(truth, scores[known, i])
    return aurocs


def mean_auroc(aurocs: np.ndarray) -> float:
    """The mean of AUROCs (findings,) over the findings that have one; NaN when none has."""
    defined = aurocs[~np.isnan(aurocs)]
    return float(defined.mean()) if len(defined) else float("nan")
