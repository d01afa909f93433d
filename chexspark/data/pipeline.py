"""Batches as tensors, the next ones already on their way. Runs on ranks.

In: numpy batches from the reader. Out: tensors on the rank's device. All of it happens in one
background thread, a few batches ahead of the step that takes them.
"""

import queue
import threading
from typing import NamedTuple

import numpy as np

from chexspark.data.augmentation import DRAWS

BATCHES_AHEAD = 2


class StepInputs(NamedTuple):
    """What a step takes: tensors on the device, and the rows in numpy."""

    images: object  # uint8 (batch, size, size, 1)
    labels: object  # int8 (batch, findings)
    weights: object  # float32 (batch,)
    draws: object  # float32 (batch, 7): this epoch's random numbers of each image
    rows: np.ndarray  # int64 (batch,)


def tensors(batches, draws: np.ndarray | None = None, ahead: int = BATCHES_AHEAD):
    """Yield `StepInputs` from `Batch`es, made up to `ahead` before they are asked for.

    `draws`: float32 (rows of the split, 7) from `augmentation.random_numbers`; without it zeros, which
    change nothing. Raises what the reader raises.
    """
    return read_ahead((as_tensors(batch, draws) for batch in batches), ahead)


def as_tensors(batch, draws: np.ndarray | None = None) -> StepInputs:
    """One batch on the device: the first GPU that TensorFlow sees, or the CPU."""
    import tensorflow as tf

    # Filler, row −1, takes the last row's numbers: it weighs nothing.
    none = np.zeros((len(batch.rows), DRAWS), np.float32)
    mine = none if draws is None else draws[batch.rows]
    values = (batch.images[..., None], batch.labels, batch.weights, mine)
    return StepInputs(*(tf.constant(value) for value in values), batch.rows)


def read_ahead(items, ahead: int):
    """Yield from the generator `items`, run in a background thread up to `ahead` items ahead."""
    ready, stop = queue.Queue(ahead), threading.Event()

    def put(item) -> bool:
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work():
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
