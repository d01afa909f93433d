"""Batch normalisation over the batches of all ranks together. Runs on ranks.

In: a model. Out: the same with every batch normalisation synchronised, and its backward pass. Horovod's
own layer is of a Keras that this project does not use.
"""

from typing import Any

import tensorflow as tf
import tf_keras as keras

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
        (pooled,) = self.ring.sum_tensors([pooled], f"normalisation_{self.name}")
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
