"""What an exported model does beside its network: any gray image fitted, probabilities. Runs in Spark tasks.

In: a tensor of gray images of any height and width. Out: the same images as ingest would have stored them,
within a gray level, and what the network makes of them. ONNX and TensorFlow have no cv2: resizing is two products with matrices, of the shares
that the pixels of a row or column have. All is in whole numbers until one division, so that every runtime
rounds alike.
"""

from typing import Any, NamedTuple, TypeAlias

from chexspark.models import LOGITS
from chexspark.preparation import CROP, PAD, Preparation

PROBABILITIES = "probabilities"  # the name of that output

Tensor: TypeAlias = Any  # of TensorFlow, which is loaded inside functions


class Side(NamedTuple):
    """Where a height, or a width, lies in the square: int64 scalars, pixels. Compare `preparation.Placing`."""

    whole: Tensor  # of the original
    start: Tensor  # of the part of the original that is stored
    length: Tensor
    place: Tensor  # where in the square that part begins
    across: Tensor  # how much of the square it fills


def raw_image_function(model: Any, how: Preparation, size: int) -> Any:
    """A TensorFlow function of uint8 (batch, height, width, 1), ``image``, with the Keras `model` in it, which takes
    images of `size`.

    Returns ``logits`` and ``probabilities``, float32 (batch, findings) each, by their names.
    """
    import tensorflow as tf

    def scores(image: Tensor) -> dict[str, Tensor]:
        logits = model(reduced_in_graph(fitted_in_graph(image, how), size), training=False)
        return {LOGITS: logits, PROBABILITIES: tf.sigmoid(logits)}

    return tf.function(scores, [tf.TensorSpec((None, None, None, 1), tf.uint8, name="image")])


def fitted_in_graph(images: Tensor, how: Preparation) -> Tensor:
    """Fit uint8 (batch, height, width, 1) into uint8 (batch, size, size, 1), as `ingestion.fitting.fitted`.

    Pixels differ from those of cv2 by one gray level at most. Images of the square's size stay as they are.
    `how`: its bit depth does not matter, images are as shown.
    """
    import tensorflow as tf

    shape = tf.shape(images, tf.int64)
    down, across = sides(shape[1], shape[2], how)
    smaller = tf.logical_and(down.length >= down.across, across.length >= across.across)
    rows, row_parts = shares(down, how.size, smaller)
    columns, column_parts = shares(across, how.size, smaller)
    pixels = tf.cast(images[..., 0], tf.float64)
    sums = tf.matmul(tf.matmul(rows, pixels), columns, transpose_b=True)
    stored = tf.round(sums / tf.cast(row_parts * column_parts, tf.float64))
    return tf.ensure_shape(
        tf.cast(stored, tf.uint8)[..., None], (images.shape[0], how.size, how.size, 1)
    )


def reduced_in_graph(images: Tensor, size: int) -> Tensor:
    """Images, uint8 (batch, side, side, 1), as uint8 (batch, size, size, 1), as `reduction.reduced`.

    Pixels differ from those of cv2 by one gray level at most.
    """
    return images if images.shape[1] == size else fitted_in_graph(images, Preparation(size))


def sides(height: Tensor, width: Tensor, how: Preparation) -> tuple[Side, Side]:
    """`preparation.placing` of int64 scalars: how the height lies, and the width."""
    import tensorflow as tf

    size = tf.constant(how.size, tf.int64)
    none = tf.zeros_like(size)
    shorter, longer = tf.minimum(height, width), tf.maximum(height, width)

    def side(whole: Tensor) -> Side:
        if how.fit == CROP:
            return Side(whole, (whole - shorter) // 2, shorter, none, size)
        if how.fit == PAD:
            filled = tf.maximum(nearest(whole * size, longer), 1)
            return Side(whole, none, whole, (size - filled) // 2, filled)
        return Side(whole, none, whole, none, size)

    return side(height), side(width)


def nearest(number: Tensor, divisor: Tensor) -> Tensor:
    """The whole number nearest to number / divisor, of int64 that are not negative; of two, the even one."""
    import tensorflow as tf

    below = number // divisor
    twice = 2 * (number - below * divisor)
    up = tf.logical_or(twice > divisor, tf.logical_and(tf.equal(twice, divisor), below % 2 > 0))
    return below + tf.cast(up, tf.int64)


def shares(side: Side, size: int, smaller: Tensor) -> tuple[Tensor, Tensor]:
    """The share of each pixel of the original in each of the square: whole numbers, float64 (size, whole).

    Also their sum, int64, the same for each pixel of the square but those of the padding, which have none.
    `smaller`: whether both sides become smaller. Then a pixel is the mean of the area that it covers, with
    the parts of pixels at its rims; else it lies between the two pixels whose centres are nearest.
    """
    import tensorflow as tf

    stored = tf.range(size, dtype=tf.int64)[:, None] - side.place
    original = tf.range(side.whole)[None, :] - side.start
    length, across = side.length, side.across
    # Of a length × across in one unit: stored pixels are `length` of it wide, those of the original `across`.
    first = tf.maximum(stored * length, original * across)
    last = tf.minimum((stored + 1) * length, (original + 1) * across)
    area = tf.maximum(last - first, 0)
    # In half units, from the centre of the first pixel of the original.
    centre = tf.clip_by_value((2 * stored + 1) * length - across, 0, 2 * across * (length - 1))
    between = tf.maximum(2 * across - tf.abs(centre - 2 * across * original), 0)
    found = tf.where(smaller, area, between)
    picture = tf.logical_and(stored >= 0, stored < across)
    found = tf.where(picture, found, tf.zeros_like(found))
    return tf.cast(found, tf.float64), tf.where(smaller, length, 2 * across)
