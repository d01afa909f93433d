"""The two halves of a step that Spark's shuffle carries, in tasks of one stage and the next. Runs in Spark tasks.

In: records of a partition, numbered pickles of numpy vectors. Out: records, by the number of the partition that they
are for. The network stays in the Python worker, which serves one task after the other; a worker that has none builds
it.
"""

import functools
import gc
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from chexspark.benchmark.exchange import cut, joined, summed
from chexspark.benchmark.shared_work import Shared
from chexspark.tensorflow_import import import_tensorflow

if TYPE_CHECKING:
    from chexspark.benchmark.distributed_step import FlatGradients


class Part(NamedTuple):
    """What a task hands to the one that sums a slice."""

    rank: int
    gradient: np.ndarray  # float32 (values,)
    weights: np.ndarray | None  # the slice as it was, which the task of the slice's number hands on


class TaskTime(NamedTuple):
    """What a task says of itself."""

    step: int
    rank: int
    compute: float  # seconds of gradients
    exchange: float  # to read, put together, cut, sum and apply; not to pickle what goes out
    loss: float | None = None  # of a task of gradients: its part of the global batch's
    built: bool = False  # it had to build the network


@functools.lru_cache(maxsize=1)
def network(shared: Shared) -> "FlatGradients":
    """The network of this Python worker."""
    gc.unfreeze()  # so that one before it can go
    import_tensorflow()
    from chexspark.benchmark.distributed_step import FlatGradients, use_one_thread

    use_one_thread()
    return FlatGradients(shared)


def compute_gradient(
    shared: Shared, times: Any, step: int, rank: int, records: Iterable[tuple[int, Any]]
) -> Iterator[tuple[int, Part]]:
    """The first half: slices of the weights in, or none at the start, slices of this task's gradient out.

    Both are float32 (values,). `times`: an accumulator of `TaskTime`.
    """
    began = time.perf_counter()
    slices = [value for _, value in records]
    builds = network.cache_info().misses
    mine = network(shared)
    weights = joined(slices) if slices else mine.start
    mine.assign(weights)
    ready = time.perf_counter()
    loss, gradient = mine.gradient(step, rank)
    computed = time.perf_counter()
    parts = zip(cut(gradient, shared.ranks), cut(weights, shared.ranks), strict=True)
    found = [
        (number, Part(rank, part, own if number == rank else None))
        for number, (part, own) in enumerate(parts)
    ]
    exchange = time.perf_counter() - began - (computed - ready)
    if built := network.cache_info().misses > builds:
        # Between two tasks PySpark has a worker look through all objects, and of TensorFlow's there are half a million.
        gc.freeze()
    times.add([TaskTime(step, rank, computed - ready, exchange, loss, built)])
    yield from found


def update_slice(
    shared: Shared, times: Any, step: int, number: int, records: Iterable[tuple[int, Part]]
) -> Iterator[tuple[int, tuple[int, np.ndarray]]]:
    """The second half: all tasks' gradients of a slice in, its new weights, float32 (values,), out for all of them."""
    began = time.perf_counter()
    parts = [part for _, part in records]
    total = summed((part.rank, part.gradient) for part in parts)
    old = next(part.weights for part in parts if part.weights is not None)
    weights = old - np.float32(shared.training.config.learning_rate) * total
    times.add([TaskTime(step, number, 0.0, time.perf_counter() - began)])
    for rank in range(shared.ranks):
        yield rank, (number, weights)


def arrived(records: Iterable[tuple[int, Any]]) -> Iterator[int]:
    """How many weights have come to a task."""
    yield sum(len(values) for _, (_, values) in records)
