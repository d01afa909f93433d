"""Random changes to training images, drawn by seed, epoch and image. Runs on ranks.

In: uint8 images in whole batches, and numbers drawn for each image of the split. Out: uint8
images. What is drawn does not depend on batch, rank or step: a resumed run draws the same. The
drawing is pure numpy; `augment` is TensorFlow, for use inside a compiled step.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

DRAWS = 7  # numbers per image: flip, shift down, shift right, scale, rotation, brightness, contrast
STREAM = 1  # keeps these numbers apart from those of the epoch's order


@dataclass(frozen=True)
class Augmentation:
    """How far images are changed; each is drawn evenly from −x to x. All 0: not at all."""

    flip: bool = False  # left and right change places, in half of the images
    shift: float = 0.0  # of the image's height and width
    scale: float = 0.0  # 0.1: from 0.9 to 1.1 times the size
    rotation: float = 0.0  # degrees
    brightness: float = 0.0  # of the range from black to white, added
    contrast: float = 0.0  # 0.1: distances from the image's mean times 0.9 to 1.1

    @property
    def moves(self) -> bool:
        """Whether pixels change places."""
        return bool(self.flip or self.shift or self.scale or self.rotation)

    @property
    def tones(self) -> bool:
        """Whether brightness or contrast change."""
        return bool(self.brightness or self.contrast)


NO_AUGMENTATION = Augmentation()


def random_numbers(seed: int, epoch: int, images: int) -> np.ndarray:
    """Numbers evenly from −1 to 1 for every image of the split, float32 (images, 7)."""
    random = np.random.Generator(np.random.PCG64([seed, epoch, STREAM]))
    return random.random((images, DRAWS), np.float32) * 2 - 1


def transforms(draws: Any, settings: Augmentation, size: int) -> Any:
    """Where each pixel of the result is taken from, float32 (batch, 8), as TensorFlow wants it.

    (a0, a1, a2, b0, b1, b2, 0, 0): x of the source is a0 x + a1 y + a2, y is b0 x + b1 y + b2.
    `draws`: a tensor (batch, 7), or numpy.
    """
    import tensorflow as tf

    flip, down, right, scale, rotation = tf.unstack(draws[:, :5], axis=1)
    mirror = tf.where(flip < 0, -1.0, 1.0) if settings.flip else tf.ones_like(flip)
    angle = rotation * (settings.rotation * np.pi / 180)
    shrink = 1 / (1 + scale * settings.scale)
    cos, sin = tf.cos(angle) * shrink, tf.sin(angle) * shrink
    centre = (size - 1) / 2
    x = centre + right * settings.shift * size
    y = centre + down * settings.shift * size
    rows = [
        mirror * cos, mirror * sin, centre - mirror * (cos * x + sin * y),
        -sin, cos, centre + sin * x - cos * y,
        tf.zeros_like(x), tf.zeros_like(x),
    ]  # fmt: skip
    return tf.stack(rows, axis=1)


def augment(images: Any, draws: Any, settings: Augmentation) -> Any:
    """Change a batch, tensor uint8 (batch, size, size, 1), by its images' numbers, float32 (batch, 7)."""
    import tensorflow as tf

    if not (settings.moves or settings.tones):
        return images
    size = images.shape[1]
    pixels = tf.cast(images, tf.float32)
    if settings.moves:
        pixels = tf.raw_ops.ImageProjectiveTransformV3(
            images=pixels, transforms=transforms(draws, settings, size), output_shape=[size, size],
            interpolation="BILINEAR", fill_mode="CONSTANT", fill_value=0.0,
        )  # fmt: skip
    if settings.tones:
        brightness, contrast = (draws[:, i, None, None, None] for i in (5, 6))
        mean = tf.reduce_mean(pixels, axis=(1, 2, 3), keepdims=True)
        pixels = (pixels - mean) * (1 + contrast * settings.contrast) + mean
        pixels += 255 * brightness * settings.brightness
    return tf.cast(tf.round(tf.clip_by_value(pixels, 0, 255)), tf.uint8)
