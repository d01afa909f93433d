"""Training steps fed by a way of `readers`, timed. Runs in a process of its own, with TensorFlow.

In: a network, and batches of images with their labels. Out: images, seconds, and how many of these the step waited.
"""

import contextlib
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tf_keras as keras

from chexspark.data.augmentation import DRAWS
from chexspark.data.pipeline import StepInputs
from chexspark.models import build_model
from chexspark.training.ring import Alone
from chexspark.training.step import Steps


class Fed(NamedTuple):
    """What came of some steps."""

    images: int
    seconds: float
    waited: float  # of the seconds, for input


def compiled_steps(network: str, size: int, findings: int, batch: int) -> Steps:
    """The steps of a network by its name, float32, as one rank trains it."""
    model = build_model(network, size, findings)
    return Steps(model, keras.optimizers.legacy.Adam(1e-3), batch, Alone())


def images_in(batch: Any) -> int:
    """Real images of a batch of any of the ways."""
    weights = getattr(batch, "weights", None)
    return len(batch[0]) if weights is None else int(np.sum(weights))


def again_and_again(way: Callable[[], Iterator], rows: int) -> Generator[StepInputs, None, None]:
    """The batches of a training of as many epochs as are asked for."""
    while True:
        yield from full_batches(way(), rows)


def full_batches(batches: Any, rows: int) -> Iterator[StepInputs]:
    """An epoch of a way as a step takes it. What tf.data leaves over at its end, fewer than `rows`, is left out."""
    weights, draws = tf.ones(rows), tf.zeros((rows, DRAWS))
    with contextlib.closing(batches):
        for batch in batches:
            if isinstance(batch, StepInputs):
                yield batch
            elif len(batch[0]) == rows:
                yield StepInputs(batch[0], batch[1], weights, draws, np.arange(rows))


def train_fed(steps: Steps, batches: Iterator[StepInputs], count: int, seconds: float = 0.0) -> Fed:
    """Take at least `count` steps and at least that long, after a step that is not timed.

    That one compiles, and what is read ahead is there after it.
    """
    steps.train(next(batches))
    images, taken, waited, started = 0, 0, 0.0, time.perf_counter()
    while taken < count or time.perf_counter() - started < seconds:
        asked = time.perf_counter()
        inputs = next(batches)
        waited += time.perf_counter() - asked
        steps.train(inputs)
        images, taken = images + images_in(inputs), taken + 1
    return Fed(images, time.perf_counter() - started, waited)
