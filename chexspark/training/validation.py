"""Validation over all ranks. Runs on ranks.

In: this rank's disjoint rows of the split. Out: the loss and the AUROCs of the whole split, the
same on every rank: sums are reduced and divided once, AUROC is of the pooled scores.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from chexspark.auroc import auroc_per_finding, mean_auroc
from chexspark.data.pipeline import tensors
from chexspark.data.plan import FILLER
from chexspark.data.reader import SplitReader
from chexspark.training.faults import StoppedByUserError
from chexspark.training.ring import Ring
from chexspark.training.step import Steps


@dataclass(frozen=True)
class Validation:
    """The figures of one epoch."""

    loss: float  # mean cross-entropy per known label
    aurocs: np.ndarray  # float64 (findings,), NaN where a finding has not both classes
    mean: float  # over those that have


@contextlib.contextmanager
def averaged_weights(steps: Steps) -> Iterator[None]:
    """Inside, the model has the moving averages of its weights, if the recipe keeps them."""
    kept = [variable.numpy() for variable in steps.tracked]
    for variable, average in zip(steps.tracked, steps.averages, strict=True):
        variable.assign(average)
    try:
        yield
    finally:
        for variable, value in zip(steps.tracked, kept, strict=True):
            variable.assign(value)


def validate(
    steps: Steps,
    reader: SplitReader,
    plan: np.ndarray,
    ring: Ring,
    after_batch: Callable[[], None] = lambda: None,
    is_stopping: Callable[[], bool] = lambda: False,
) -> Validation:
    """Score the rows of this rank's `plan`, int64 (steps, rows), and pool what all ranks found.

    Raises StoppedByUserError on all ranks where one `is_stopping`, which is asked after each batch.
    """
    logits, labels, rows, loss, count, stopped = [], [], [], 0.0, 0.0, False
    for inputs in tensors(reader.batches(plan)):
        batch_logits, batch_loss, batch_count = steps.score(inputs)
        logits.append(batch_logits)
        labels.append(inputs.labels.numpy())
        rows.append(inputs.rows)
        loss, count = loss + batch_loss, count + batch_count
        after_batch()
        stopped = is_stopping()
        if stopped:
            break
    loss, count, stops = ring.sum([loss, count, float(stopped)], "val_loss")
    if stops:
        raise StoppedByUserError("stopped while validating")
    all_logits, all_labels, all_rows = (
        ring.gather(np.concatenate(values), f"val_{name}")
        for name, values in (("logits", logits), ("labels", labels), ("rows", rows))
    )
    real = all_rows != FILLER
    aurocs = auroc_per_finding(all_labels[real], all_logits[real])
    return Validation(float(loss / max(count, 1.0)), aurocs, mean_auroc(aurocs))
