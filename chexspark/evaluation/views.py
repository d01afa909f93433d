"""What of an image is scored beside itself, and averaged: its mirror image, parts of it, other sizes. In Spark tasks.

In: stored images, and names of `config.VIEWS`. Out: images of the same size, one after the other.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from chexspark.config import VIEWS
from chexspark.data.augmentation import as_gray_levels, moved
from chexspark.errors import listed

WORDS = {"flip": "mirror images", "crops": "crops", "scales": "scales"}


class Window(NamedTuple):
    """A square of an image, made as large as the image. `right`, `down`: how far its middle is from the image's, from
    −1 at one border to 1 at the other."""

    side: float  # of the image's side; more than 1: with black around the image
    right: float = 0.0
    down: float = 0.0


WHOLE = Window(1.0)
WINDOWS = {
    # The corners and the middle (Krizhevsky et al. 2012, section 4.1: 224 of 256 pixels).
    "crops": [*(Window(7 / 8, right, down) for down in (-1, 1) for right in (-1, 1)), Window(7 / 8)],
    "scales": [Window(1 / 0.9), Window(1 / 1.1)],  # 0.9 and 1.1 times the size
}  # fmt: skip


def windows(names: Sequence[str]) -> list[Window]:
    """The squares that are scored: the whole image first."""
    return [WHOLE, *(window for name in WINDOWS if name in names for window in WINDOWS[name])]


def in_order(names: Sequence[str]) -> tuple[str, ...]:
    """Names of views, each once, in one order: so that the same scores are told in the same words."""
    return tuple(name for name in VIEWS if name in names)


def number_of_views(names: Sequence[str]) -> int:
    """How many images are scored for one."""
    return len(windows(names)) * (2 if "flip" in names else 1)


def views(images: np.ndarray, names: Sequence[str]) -> Iterator[np.ndarray]:
    """The images themselves and their other views, each uint8 (rows, size, size), as `images` are."""
    for window in windows(names):
        shown = images if window == WHOLE else seen(images, window)
        yield shown
        if "flip" in names:
            yield shown[:, :, ::-1]


def seen(images: np.ndarray, window: Window) -> np.ndarray:
    """What a window shows of uint8 (rows, size, size): as many of the same size."""
    import tensorflow as tf

    size, side = images.shape[1], window.side
    left = (1 - side) / 2  # of the image's side, on each side of the middle window
    x, y = (left * (size - 1) + way * left * size for way in (window.right, window.down))
    where = tf.constant([[side, 0.0, x, 0.0, side, y, 0.0, 0.0]], tf.float32)
    pixels = tf.constant(np.ascontiguousarray(images[..., None]), tf.float32)
    found: np.ndarray = as_gray_levels(moved(pixels, where)).numpy()[..., 0]
    return found


def views_text(names: Sequence[str]) -> str:
    """``mirror images, crops``; nothing where each image is scored as it is."""
    return listed([words for name, words in WORDS.items() if name in names]) if names else ""
