"""What is not trained, but follows the batches: the statistics of batch normalisation. On ranks.

In: a rank's variables of them. Out: averages over the ranks, or each rank's own, for checkpoints.
"""

import numpy as np

from chexspark.data.plan import RankFacts
from chexspark.training.ring import Ring


def average_statistics(variables: list, ring: Ring) -> None:
    """Average the statistics over the ranks."""
    if variables:
        ring.average(variables)


def all_statistics(variables: list, ring: Ring) -> np.ndarray:
    """The statistics of every rank, float32 (ranks, values)."""
    parts = [np.zeros(0, np.float32), *(v.numpy().ravel() for v in variables)]
    mine = np.concatenate(parts)[np.newaxis]
    return ring.gather(mine, "statistics") if mine.size else mine


def take_statistics(variables: list, found: np.ndarray, facts: RankFacts) -> None:
    """Take this rank's row of what `all_statistics` gave, or the rows' mean at another world size."""
    mine = found[facts.rank] if len(found) == facts.world_size else found.mean(axis=0)
    for variable in variables:
        size = int(np.prod(variable.shape))
        variable.assign(mine[:size].reshape(variable.shape))
        mine = mine[size:]
