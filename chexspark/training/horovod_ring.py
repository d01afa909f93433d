"""The ring of the ranks that Horovod has started. Runs on ranks.

The one module that imports Horovod's operations. At world size 1 it takes the same path as at any other.
"""

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import horovod.tensorflow as hvd
import numpy as np
import tensorflow as tf

from chexspark.data.plan import RankFacts
from chexspark.training.ring import Ring

MESSAGE_BYTES = 64 << 20  # of variables that are copied together: there are three copies on the way


def join() -> RankFacts:
    """Join the others; returns who this rank is. Raises ValueError when they cannot be reached."""
    hvd.init()
    return RankFacts(hvd.rank(), hvd.size())


def leave() -> None:
    """Leave the others."""
    hvd.shutdown()


class HorovodRing(Ring):
    """All ranks that have joined, this one among them."""

    def sum_tensor(self, tensor: Any, name: str, half: bool = False) -> Any:
        """See `Ring.sum_tensor`."""
        wire = hvd.Compression.fp16 if half else hvd.Compression.none
        return hvd.allreduce(tensor, op=hvd.Sum, name=name, compression=wire)

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

    @contextlib.contextmanager
    def timeline(self, file: str) -> Iterator[None]:
        """See `Ring.timeline`. Raises ValueError unless ``HOROVOD_TIMELINE`` was ``DYNAMIC`` at the start."""
        hvd.start_timeline(file, mark_cycles=True)
        try:
            yield
        finally:
            hvd.stop_timeline()

    def copy_first(self, variables: list) -> None:
        """Rank 0's values, many variables in a message: each message takes cycles of Horovod's."""
        for number, alike in enumerate(messages_of(variables)):
            values = np.concatenate([variable.numpy().ravel() for variable in alike])
            found = hvd.broadcast(values, root_rank=0, name=f"first_{number}").numpy()
            ends = np.cumsum([variable.shape.num_elements() for variable in alike])
            for variable, part in zip(alike, np.split(found, ends[:-1]), strict=True):
                variable.assign(part.reshape(variable.shape))


def messages_of(variables: list) -> list[list]:
    """Variables that go in one message: of one type, up to `MESSAGE_BYTES` or a single one that is larger."""
    messages: list[list] = []
    for _, alike in itertools.groupby(
        sorted(variables, key=lambda variable: variable.dtype.name),
        key=lambda variable: variable.dtype.name,
    ):
        filled = MESSAGE_BYTES
        for variable in alike:
            size = variable.shape.num_elements() * variable.dtype.size
            if filled + size > MESSAGE_BYTES:
                messages.append([])
                filled = 0
            messages[-1].append(variable)
            filled += size
    return messages
