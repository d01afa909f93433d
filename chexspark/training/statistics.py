"""What is not trained, but follows the batches: the statistics of batch normalisation. On ranks.

In: a rank's steps. Out: averages over the ranks, or each rank's own, for checkpoints.
"""

import horovod.tensorflow as hvd
import numpy as np


def average_statistics(steps) -> None:
    """Average what is not trained (the statistics of batch normalisation) over the ranks."""
    if not steps.statistics:
        return
    averages = hvd.grouped_allreduce([v.value() for v in steps.statistics], op=hvd.Average)
    for variable, average in zip(steps.statistics, averages, strict=True):
        variable.assign(average)


def all_statistics(steps) -> np.ndarray:
    """The statistics of every rank, float32 (ranks, values)."""
    parts = [np.zeros(0, np.float32), *(v.numpy().ravel() for v in steps.statistics)]
    mine = np.concatenate(parts)[np.newaxis]
    return hvd.allgather(mine, name="statistics").numpy() if mine.size else mine


def take_statistics(steps, found: np.ndarray, rank: int) -> None:
    """Take this rank's row of what `all_statistics` gave, or the rows' mean at another world size."""
    mine = found[rank] if len(found) == hvd.size() else found.mean(axis=0)
    for variable in steps.statistics:
        size = int(np.prod(variable.shape))
        variable.assign(mine[:size].reshape(variable.shape))
        mine = mine[size:]
