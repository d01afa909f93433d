"""Many tensors as one, and back. Runs on ranks, inside a compiled step.

In: tensors of one type. Out: a tensor of all their values, which travels as one message. A message of some
hundred tensors costs their bookkeeping, and two copies in Horovod's own buffer.
"""

import math
from collections.abc import Sequence

import tensorflow as tf

# Values in a row: 64 bytes of float32, to which TensorFlow aligns. Cut between rows, a tensor is not copied.
WIDTH = 16


def pack(tensors: Sequence[tf.Tensor]) -> tf.Tensor:
    """All values, one tensor after the other, (rows, 16): each begins a row, and zeros fill its last one up."""
    return tf.concat([rows_of(tensor) for tensor in tensors], 0)


def rows_of(tensor: tf.Tensor) -> tf.Tensor:
    """The values of one tensor of a known shape, (rows, 16)."""
    values = tf.reshape(tensor, [-1])
    filler = -values.shape[0] % WIDTH
    return tf.reshape(tf.pad(values, [[0, filler]]) if filler else values, [-1, WIDTH])


def unpack(packed: tf.Tensor, shapes: Sequence[Sequence[int]]) -> list[tf.Tensor]:
    """The tensors of these shapes that `pack` was given."""
    sizes = [math.prod(shape) for shape in shapes]
    parts = tf.split(packed, [-(-size // WIDTH) for size in sizes])
    return [
        tf.reshape(part if size % WIDTH == 0 else tf.reshape(part, [-1])[:size], shape)
        for part, size, shape in zip(parts, sizes, shapes, strict=True)
    ]
