"""Batches as tensors, the next ones already on their way. Runs on ranks.

In: numpy batches from the reader. Out: tensors on the rank's device. All of it happens in one
background thread, a few batches ahead of the step that takes them.
"""

import queue
import threading
from collections.abc import Generator, Iterable
from typing import Any, NamedTuple, TypeVar

import numpy as np

from chexspark.data.augmentation import DRAWS
from chexspark.data.reader import Batch

BATCHES_AHEAD = 2
Item = TypeVar("Item")


class StepInputs(NamedTuple):
    """What a step takes: tensors on the device, and the rows in numpy."""

    images: Any  # uint8 (batch, size, size, 1)
    labels: Any  # int8 (batch, findings)
    weights: Any  # float32 (batch,)
    draws: Any  # float32 (batch, `DRAWS`): this epoch's random numbers of each image
    rows: np.ndarray  # int64 (batch,)


def tensors(
    batches: Iterable[Batch], draws: np.ndarray | None = None, ahead: int = BATCHES_AHEAD
) -> Generator[StepInputs, None, None]:
    """Yield `StepInputs` from `Batch`es, made up to `ahead` before they are asked for.

    `draws`: float32 (rows of the split, `DRAWS`) from `augmentation.random_numbers`; without it zeros, which
    change nothing. Raises what the reader raises.
    """
    return read_ahead((as_tensors(batch, draws) for batch in batches), ahead)


def as_tensors(batch: Batch, draws: np.ndarray | None = None) -> StepInputs:
    """One batch (see `StepInputs`) on the device: the first GPU that TensorFlow sees, or the CPU."""
    import tensorflow as tf

    # Filler, row −1, takes the last row's numbers: it weighs nothing.
    none = np.zeros((len(batch.rows), DRAWS), np.float32)
    mine = none if draws is None else draws[batch.rows]
    values = (batch.images[..., None], batch.labels, batch.weights, mine)
    images, labels, weights, numbers = (tf.constant(value) for value in values)
    return StepInputs(images, labels, weights, numbers, batch.rows)


def read_ahead(items: Generator[Item, None, None], ahead: int) -> Generator[Item, None, None]:
    """Yield from the generator `items`, run in a background thread up to `ahead` items ahead."""
    ready: queue.Queue[tuple[Any, Any]] = queue.Queue(ahead)  # an item, or what ends them
    stop = threading.Event()

    def put(item: tuple[Any, Any]) -> bool:
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                if not put((item, None)):
                    break
            else:
                put((None, StopIteration))
        except Exception as error:  # handed to the consumer, who raises it
            put((None, error))
        finally:
            items.close()

    thread = threading.Thread(target=work, name="chexspark-ahead", daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if error is StopIteration:
                return
            if error is not None:
                raise error
            yield item
    finally:
        stop.set()
        thread.join()
