"""The ring of the ranks that Horovod has started. Runs on ranks.

The one module that imports Horovod's operations. At world size 1 it takes the same path as at any other.
"""

from collections.abc import Sequence
from typing import Any

import horovod.tensorflow as hvd
import numpy as np
import tensorflow as tf

from chexspark.data.plan import RankFacts
from chexspark.training.ring import Ring


def join() -> RankFacts:
    """Join the others; returns who this rank is. Raises ValueError when they cannot be reached."""
    hvd.init()
    return RankFacts(hvd.rank(), hvd.size())


def leave() -> None:
    """Leave the others."""
    hvd.shutdown()


class HorovodRing(Ring):
    """All ranks that have joined, this one among them."""

    def sum_tensors(self, tensors: list, name: str, half: bool = False) -> list:
        """Reduced together, as one message where they fit."""
        wire = hvd.Compression.fp16 if half else hvd.Compression.none
        return hvd.grouped_allreduce(tensors, op=hvd.Sum, name=name, compression=wire)

    def sum(self, values: Sequence[float], name: str) -> np.ndarray:
        """Float64 (values,)."""
        return hvd.allreduce(tf.constant(values, tf.float64), op=hvd.Sum, name=name).numpy()

    def gather(self, rows: np.ndarray, name: str) -> np.ndarray:
        """See `Ring.gather`."""
        return hvd.allgather(rows, name=name).numpy()

    def gather_objects(self, value: Any) -> list:
        """That of rank 0 first."""
        return hvd.allgather_object(value)

    def from_first(self, value: Any) -> Any:
        """Rank 0's, pickled on the way."""
        return hvd.broadcast_object(value)

    def copy_first(self, variables: list) -> None:
        """Rank 0's values."""
        hvd.broadcast_variables(variables, root_rank=0)
