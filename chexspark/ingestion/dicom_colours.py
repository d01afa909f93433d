"""The colours of DICOM pixels as gray. Pure functions; runs in Spark tasks.

In: words of pixels, and a function that paints them in red, green and blue. Out: 8-bit gray.
"""

from collections.abc import Callable

import numpy as np

MOST_OF_BYTE = 255
STRIP = 64  # rows whose colours are calculated at a time: in floats, they take some eight times the memory
LUMA = np.array([0.299, 0.587, 0.114])  # of red, green, blue: ITU-R BT.601, as PNG and JPEG here


def palette_bits(looked_up: Callable[[np.ndarray], np.ndarray], stored: int) -> int:
    """The bits of the colours that a palette gives: 8 of one that has 16-bit words for no more than 255.

    `looked_up`: words (height, width) of `stored` bits → colours. PS3.3, C.7.6.3.1.6: entries of 8 bits are found in words of 16, whatever the descriptor says.
    """
    colours = looked_up(np.arange(2 ** min(stored, 16)).astype(np.uint16)[None])
    return 8 if colours.max() <= MOST_OF_BYTE else 16


def painted(words: np.ndarray, paint: Callable[[np.ndarray], np.ndarray], bits: int) -> np.ndarray:
    """Words (height, width, …), painted strip by strip in red, green, blue of `bits`, as gray.

    Returns uint8 (height, width). Raises what `paint` raises.
    """
    strips = (words[top : top + STRIP] for top in range(0, len(words), STRIP))
    return np.concatenate([gray_of_colours(paint(strip), 2**bits - 1) for strip in strips])


def gray_of_colours(colours: np.ndarray, most: int) -> np.ndarray:
    """Red, green, blue (height, width, 3) of 0 to `most` as gray: uint8 (height, width)."""
    gray = np.empty(colours.shape[:2], np.uint8)
    for row, out in zip(colours, gray, strict=True):  # by rows: floats take eight times the memory
        out[:] = np.clip(np.round(row @ (LUMA * (255 / most))), 0, 255)
    return gray
