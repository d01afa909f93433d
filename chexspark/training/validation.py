"""Validation over all ranks. Runs on ranks.

In: this rank's disjoint rows of the split. Out: the loss and the AUROCs of the whole split, the
same on every rank: sums are reduced and divided once, AUROC is of the pooled scores.
"""

import contextlib
from dataclasses import dataclass

import horovod.tensorflow as hvd
import numpy as np
import tensorflow as tf

from chexspark.auroc import auroc_per_finding, mean_auroc
from chexspark.data.pipeline import tensors
from chexspark.data.plan import FILLER
from chexspark.training.faults import StoppedByUserError


@dataclass(frozen=True)
class Validation:
    """The figures of one epoch."""

    loss: float  # mean cross-entropy per known label
    aurocs: np.ndarray  # float64 (findings,), NaN where a finding has not both classes
    mean: float  # over those that have


@contextlib.contextmanager
def averaged_weights(steps):
    """Inside, the model has the moving averages of its weights, if the recipe keeps them."""
    kept = [variable.numpy() for variable in steps.tracked]
    for variable, average in zip(steps.tracked, steps.averages, strict=True):
        variable.assign(average)
    try:
        yield
    finally:
        for variable, value in zip(steps.tracked, kept, strict=True):
            variable.assign(value)


def validate(steps, reader, plan: np.ndarray, goes_on=lambda: True) -> Validation:
    """Score the rank's rows and pool what all ranks found.

    `goes_on` is asked after each batch. Raises StoppedByUserError on all ranks where it says no on one.
    """
    logits, labels, rows, loss, count, stopped = [], [], [], 0.0, 0.0, False
    for inputs in tensors(reader.batches(plan)):
        batch_logits, batch_loss, batch_count = steps.score(inputs)
        logits.append(batch_logits)
        labels.append(inputs.labels.numpy())
        rows.append(inputs.rows)
        loss, count = loss + batch_loss, count + batch_count
        stopped = not goes_on()
        if stopped:
            break
    sums = tf.constant([loss, count, stopped], tf.float64)
    loss, count, stopped = hvd.allreduce(sums, op=hvd.Sum, name="val_loss").numpy()
    if stopped:
        raise StoppedByUserError("stopped while validating")
    pooled = {
        name: hvd.allgather(np.concatenate(values), name=f"val_{name}").numpy()
        for name, values in (("logits", logits), ("labels", labels), ("rows", rows))
    }
    real = pooled["rows"] != FILLER
    aurocs = auroc_per_finding(pooled["labels"][real], pooled["logits"][real])
    return Validation(float(loss / max(count, 1.0)), aurocs, mean_auroc(aurocs))
