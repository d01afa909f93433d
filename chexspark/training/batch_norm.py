"""Batch normalisation over the batches of all ranks together. Runs on ranks.

In: a model. Out: the same with every batch normalisation synchronised, and its backward pass (Horovod's
own layer is of a Keras that this project does not use); statistics that are of the weights as they
are, for validation and for the model that is saved.
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from chexspark.data.pipeline import StepInputs
from chexspark.training.faults import StoppedByUserError
from chexspark.training.ring import Alone, Ring


class SynchronisedBatchNormalization(keras.layers.BatchNormalization):
    """Mean and variance of the global batch: sums, squares and counts are reduced, then divided.

    `ring`: over which ranks; set by `synchronised`.
    """

    ring: Ring = Alone()

    def _calculate_mean_and_var(
        self, inputs: Any, reduction_axes: list[int], keep_dims: bool, mask: Any = None
    ) -> tuple[Any, Any]:
        values = tf.cast(inputs, tf.float32)
        sums = tf.reduce_sum(values, reduction_axes)
        squares = tf.reduce_sum(tf.square(values), reduction_axes)
        count = tf.cast(tf.size(values), tf.float32) / tf.cast(tf.size(sums), tf.float32)
        pooled = tf.concat([sums, squares, count[None]], 0)
        pooled = self.ring.sum_tensor(pooled, f"normalisation_{self.name}")
        channels = sums.shape[0]
        mean = pooled[:channels] / pooled[-1]
        variance = tf.maximum(pooled[channels:-1] / pooled[-1] - tf.square(mean), 0.0)
        if keep_dims:
            shape = [1 if axis in reduction_axes else -1 for axis in range(inputs.shape.rank)]
            mean, variance = tf.reshape(mean, shape), tf.reshape(variance, shape)
        return tf.cast(mean, inputs.dtype), tf.cast(variance, inputs.dtype)


def synchronised(model: keras.Model, ring: Ring) -> keras.Model:
    """A copy of `model` whose batch normalisation looks at all ranks; weights in the same order."""

    def copy(layer: keras.layers.Layer) -> keras.layers.Layer:
        if not isinstance(layer, keras.layers.BatchNormalization):
            return layer.__class__.from_config(layer.get_config())
        settings = layer.get_config() | {"fused": False}
        settings.pop("synchronized", None)
        synchronised_layer = SynchronisedBatchNormalization.from_config(settings)
        synchronised_layer.ring = ring
        return synchronised_layer

    twin = keras.models.clone_model(model, clone_function=copy)
    twin.set_weights(model.get_weights())
    return twin


class Statistics:
    """The mean and variance that each batch normalisation of a model has when it does not train.

    Keras keeps running averages of them, which lag behind the weights: of n steps at momentum 0.99,
    0.99ⁿ of the initial values are left. Here they are computed anew for the weights of the moment:
    precise batch normalisation (Wu and Johnson 2021, "Rethinking 'Batch' in BatchNorm", section 3).

    `parts`: how many parts a batch is worked through in, as in training.
    """

    def __init__(self, model: keras.Model, parts: int = 1) -> None:
        self.model, self.parts = model, parts
        kind = keras.layers.BatchNormalization
        self.layers = [layer for layer in model.submodules if isinstance(layer, kind)]
        self.moments = tf.function(self._moments, autograph=False)

    @property
    def are_synchronised(self) -> bool:
        """Whether ranks wait for each other in every batch."""
        return any(isinstance(layer, SynchronisedBatchNormalization) for layer in self.layers)

    @property
    def follow_batches(self) -> bool:
        """Whether training changes any: not without normalisation, nor while the trunk is frozen."""
        return any(layer.trainable for layer in self.layers)

    def _moments(self, images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Mean and variance of what each channel gets of some images, float32 (channels,) each."""
        for layer in self.layers:
            for variable in (layer.moving_mean, layer.moving_variance):
                variable.assign(tf.zeros_like(variable))
        self.model(images, training=True)  # adds (1 - momentum) times the batch's to each
        means, variances = [], []
        for layer in self.layers:
            share = 1 - layer.momentum
            means.append(layer.moving_mean / share)
            variances.append(layer.moving_variance / share * whole_variance(layer, images.shape[0]))
        return tf.concat(means, 0), tf.concat(variances, 0)

    def recompute(
        self, batches: Iterable[StepInputs], ring: Ring,
        after_batch: Callable[[], None] = lambda: None,
        is_stopping: Callable[[], bool] = lambda: False,
    ) -> None:  # fmt: skip
        """Take the statistics of training batches of all ranks; as many on each.

        Every batch is normalised by itself, as in training. Its moments count as much as it has rows
        that are no filler, are summed over batches and ranks, and divided once. Raises StoppedByUserError
        on all ranks where one `is_stopping`, which is asked after each batch.
        """
        channels = sum(int(layer.moving_mean.shape[0]) for layer in self.layers)
        sums, count, stopped = np.zeros((3, channels)), 0.0, False
        for inputs in batches:
            weights = np.split(inputs.weights.numpy(), self.parts)
            for images, rows in zip(tf.split(inputs.images, self.parts), weights, strict=True):
                mean, variance = (part.numpy().astype(np.float64) for part in self.moments(images))
                sums += rows.sum() * np.stack([mean, np.square(mean), variance])
                count += float(rows.sum())
            after_batch()
            stopped = is_stopping()
            if stopped and not self.are_synchronised:
                break
        *found, count, stops = ring.sum([*sums.ravel(), count, float(stopped)], "statistics")
        if stops:
            raise StoppedByUserError("stopped while validating")
        mean, square, variance = np.reshape(found, sums.shape) / count
        variance += np.maximum(square - np.square(mean), 0.0)  # of the batches' means
        start = 0
        for layer in self.layers:
            mine = slice(start, start + int(layer.moving_mean.shape[0]))
            layer.moving_mean.assign(mean[mine])
            layer.moving_variance.assign(variance[mine])
            start = mine.stop


def whole_variance(layer: keras.layers.BatchNormalization, images: int) -> float:
    """What makes the variance that a layer's running average is told of that of the batch itself.

    TensorFlow's fused operation tells n / (n − 1) times the variance of the n values of a channel.
    """
    values = images * np.prod(layer.input_shape[1:-1])
    return float((values - 1) / values) if layer.fused else 1.0
