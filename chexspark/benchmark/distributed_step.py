"""What all ways to distribute a step have alike: batches, network, gradients. Runs on ranks and in tasks.

In: `Shared`. Out: the rows of each rank and step, in memory; the network with its start weights; gradients of a
rank's rows, divided by the known labels of the global batch, so that those of all ranks need only be added up.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf
import tf_keras as keras

from chexspark.benchmark.shared_work import Shared
from chexspark.data.pipeline import StepInputs
from chexspark.data.plan import RankFacts
from chexspark.data.reader import SplitReader
from chexspark.storage import locate
from chexspark.store.manifest import read_manifest
from chexspark.training.feed import Feed
from chexspark.training.loss import Loss, known_labels
from chexspark.training.setup import make_model


class Rows(NamedTuple):
    """The rows of all ranks: of rank r in batch b they are at b × ranks + r."""

    images: np.ndarray  # uint8 (batches × ranks, batch, size, size, 1)
    labels: np.ndarray  # int8 (batches × ranks, batch, findings)
    known: np.ndarray  # float32 (batches × ranks,): known labels of the global batch


def use_one_thread() -> None:
    """Have TensorFlow work on the CPU, as a rank with ``--threads 1`` does (`devices.claim_device`)."""
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(2)
    tf.config.set_visible_devices([], "GPU")


def build(shared: Shared) -> keras.Model:
    """The network with its start weights, the same ones everywhere."""
    training = shared.training
    manifest = read_manifest(locate(training.config.data))
    return make_model(
        training.config, training.image_size(manifest), manifest.findings, training.code
    )[0]


def batches_of(shared: Shared, rank: int) -> list[StepInputs]:
    """A rank's rows of the epoch's first global batches, unchanged. Raises DamagedStoreError."""
    store = locate(shared.training.config.data)
    reader = SplitReader(store, read_manifest(store), "train")
    feed = Feed(reader, shared.training, RankFacts(rank, shared.ranks))
    plan = feed.plan(0)[: shared.batches(feed.images)]
    return list(feed.between(plan, 0, None, None))


def rows_of_all(shared: Shared) -> Rows:
    """The same of all ranks. Raises DamagedStoreError."""
    batches = list(zip(*(batches_of(shared, rank) for rank in range(shared.ranks)), strict=True))
    known = [sum(float(known_labels(b.labels, b.weights)) for b in batch) for batch in batches]
    inputs = [one for batch in batches for one in batch]
    return Rows(
        np.stack([one.images.numpy() for one in inputs]),
        np.stack([one.labels.numpy() for one in inputs]),
        np.repeat(np.array(known, np.float32), shared.ranks),
    )


def loss_and_gradients(
    model: keras.Model, images: tf.Tensor, labels: tf.Tensor, known: tf.Tensor
) -> tuple[tf.Tensor, list[tf.Tensor]]:
    """Of some rows, over the `known` labels of the global batch: their part of its loss, and of each gradient."""
    with tf.GradientTape() as tape:
        logits = tf.cast(model(images, training=True), tf.float32)
        loss = tf.reduce_sum(Loss().per_row(labels, logits)) / known
    return loss, tape.gradient(loss, model.trainable_variables)


def flat(variables: Sequence[tf.Variable]) -> np.ndarray:
    """All values, float32 (values,), one variable after the other."""
    return np.concatenate([variable.numpy().ravel() for variable in variables])


class FlatGradients:
    """The network as a function of one vector of weights, (values,). Compiled at its first call."""

    def __init__(self, shared: Shared) -> None:
        self.model, self.rows = build(shared), rows_of_all(shared)
        self.ranks = shared.ranks
        self.variables = self.model.trainable_variables
        self.start = flat(self.variables)
        self._gradient = tf.function(self._compute, autograph=False)
        self._assign = tf.function(self._set, autograph=False)

    def assign(self, weights: np.ndarray) -> None:
        """Give the network its weights, float32 (values,)."""
        self._assign(tf.constant(weights))

    def gradient(self, step: int, rank: int) -> tuple[float, np.ndarray]:
        """The rank's part of the loss of the step's global batch, and of its gradient, float32 (values,)."""
        at = (step * self.ranks + rank) % len(self.rows.images)
        loss, gradient = self._gradient(*(tf.constant(values[at]) for values in self.rows))
        return float(loss), gradient.numpy()

    def _compute(
        self, images: tf.Tensor, labels: tf.Tensor, known: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        loss, gradients = loss_and_gradients(self.model, images, labels, known)
        return loss, tf.concat([tf.reshape(gradient, [-1]) for gradient in gradients], 0)

    def _set(self, weights: tf.Tensor) -> None:
        parts = tf.split(weights, [variable.shape.num_elements() for variable in self.variables])
        for variable, part in zip(self.variables, parts, strict=True):
            variable.assign(tf.reshape(part, variable.shape))
