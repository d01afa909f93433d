"""Random changes to training images, drawn by seed, epoch and image. Runs on ranks.

In: uint8 images in whole batches, and numbers drawn for each image of the split. Out: uint8
images. What is drawn does not depend on batch, rank or step: a resumed run draws the same. The
drawing is pure numpy; `augment` is TensorFlow, for use inside a compiled step.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

# Numbers per image: flip, shift down, shift right, scale, rotation, brightness, contrast; and, drawn after all of
# these, crop's area, its aspect, its place down and right, shear, tone.
FIRST_DRAWS, LATER_DRAWS = 7, 6
DRAWS = FIRST_DRAWS + LATER_DRAWS
LARGEST_ASPECT = 4 / 3  # width over height of what is cut out, and the other way round
STREAM = 1  # keeps these numbers apart from those of the epoch's order


@dataclass(frozen=True)
class Augmentation:
    """How far images are changed; each but `crop` and `tone` is drawn evenly from −x to x. The defaults: not at all.

    `crop` cuts a rectangle out and makes it as large as the image was (Szegedy et al. 2015, section 6): its
    area is drawn evenly from `crop` to 1, the logarithm of its aspect evenly within ¾ to 4/3, or as far as the
    rectangle fits into the image, its place evenly. `tone` takes the gray levels, from 0 to 1, to a power whose
    logarithm is drawn evenly.
    """

    flip: bool = False  # left and right change places, in half of the images
    shift: float = 0.0  # of the image's height and width
    scale: float = 0.0  # 0.1: from 0.9 to 1.1 times the size
    rotation: float = 0.0  # degrees
    brightness: float = 0.0  # of the range from black to white, added
    contrast: float = 0.0  # 0.1: distances from the image's mean times 0.9 to 1.1
    crop: float = 1.0  # least share of the area; 1: all of it
    shear: float = 0.0  # degrees by which vertical lines lean
    tone: float = 0.0  # 0.3: powers from 1/1.3 to 1.3

    @property
    def moves(self) -> bool:
        """Whether pixels change places."""
        moved = self.flip or self.shift or self.scale or self.rotation or self.shear
        return bool(moved or self.crop < 1)

    @property
    def tones(self) -> bool:
        """Whether gray levels change."""
        return bool(self.brightness or self.contrast or self.tone)


NO_AUGMENTATION = Augmentation()


def random_numbers(seed: int, epoch: int, images: int) -> np.ndarray:
    """Numbers evenly from −1 to 1 for every image of the split, float32 (images, `DRAWS`)."""
    random = np.random.Generator(np.random.PCG64([seed, epoch, STREAM]))
    drawn = [random.random((images, draws), np.float32) for draws in (FIRST_DRAWS, LATER_DRAWS)]
    return np.concatenate(drawn, axis=1) * 2 - 1


def cut(draws: Any, least: float) -> tuple[Any, Any, Any, Any]:
    """The rectangle that is cut out of each image, tensors (batch,): width and height as shares of the image's
    side, and its middle's way right and down from the image's, in sides.

    `draws`: float32 (batch, 4), area, aspect, down and right; `least`: the smallest area.
    """
    import tensorflow as tf

    area, aspect, down, right = tf.unstack(draws, axis=1)
    area = least + (1 - least) * (area + 1) / 2
    # Wider than 1 / area, it would be wider than the image; and so for the height.
    widest = tf.minimum(tf.math.log(LARGEST_ASPECT), -tf.math.log(area))
    root = tf.exp(aspect * widest / 2)
    wide, high = tf.sqrt(area) * root, tf.sqrt(area) / root
    return wide, high, right * (1 - wide) / 2, down * (1 - high) / 2


def transforms(draws: Any, settings: Augmentation, size: int) -> Any:
    """Where each pixel of the result is taken from, float32 (batch, 8), as TensorFlow wants it.

    (a0, a1, a2, b0, b1, b2, 0, 0): x of the source is a0 x + a1 y + a2, y is b0 x + b1 y + b2. An image is cut
    out, mirrored, sheared, turned and scaled about the middle, then shifted; all in one, so that a pixel is taken
    between pixels once. `draws`: a tensor (batch, `DRAWS`), or numpy.
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
    wide, across, along, a0, a1 = mirror, centre, centre, cos, sin
    if settings.shear:
        lean = tf.tan(draws[:, FIRST_DRAWS + 4] * (settings.shear * np.pi / 180))
        a0, a1 = cos + lean * sin, sin - lean * cos
    if settings.crop < 1:
        drawn = draws[:, FIRST_DRAWS : FIRST_DRAWS + 4]
        share, high, to_right, to_down = cut(drawn, settings.crop)
        wide, across, along = mirror * share, centre + to_right * size, centre + to_down * size
        cos, sin = high * cos, high * sin
    rows = [
        wide * a0, wide * a1, across - wide * (a0 * x + a1 * y),
        -sin, cos, along + sin * x - cos * y,
        tf.zeros_like(x), tf.zeros_like(x),
    ]  # fmt: skip
    return tf.stack(rows, axis=1)


def moved(pixels: Any, where: Any) -> Any:
    """Images, float32 (batch, size, size, 1), with each pixel taken from `where` (see `transforms`), between the
    four pixels around that; black from outside."""
    import tensorflow as tf

    return tf.raw_ops.ImageProjectiveTransformV3(
        images=pixels, transforms=where, output_shape=pixels.shape[1:3], interpolation="BILINEAR",
        fill_mode="CONSTANT", fill_value=0.0,
    )  # fmt: skip


def toned(pixels: Any, draws: Any, settings: Augmentation) -> Any:
    """Images of gray levels 0 to 255, float32 (batch, size, size, 1), with others; they may go beyond 0 to 255."""
    import tensorflow as tf

    brightness, contrast, tone = (draws[:, i, None, None, None] for i in (5, 6, DRAWS - 1))
    if settings.tone:
        power = tf.exp(tone * np.log1p(settings.tone))
        pixels = 255 * (tf.clip_by_value(pixels, 0, 255) / 255) ** power
    mean = tf.reduce_mean(pixels, axis=(1, 2, 3), keepdims=True)
    pixels = (pixels - mean) * (1 + contrast * settings.contrast) + mean
    return pixels + 255 * brightness * settings.brightness


def as_gray_levels(pixels: Any) -> Any:
    """Float32 to the nearest uint8."""
    import tensorflow as tf

    return tf.cast(tf.round(tf.clip_by_value(pixels, 0, 255)), tf.uint8)


def augment(images: Any, draws: Any, settings: Augmentation) -> Any:
    """Change a batch, tensor uint8 (batch, size, size, 1), by its images' numbers, float32 (batch, `DRAWS`)."""
    import tensorflow as tf

    if not (settings.moves or settings.tones):
        return images
    pixels = tf.cast(images, tf.float32)
    if settings.moves:
        pixels = moved(pixels, transforms(draws, settings, images.shape[1]))
    if settings.tones:
        pixels = toned(pixels, draws, settings)
    return as_gray_levels(pixels)
