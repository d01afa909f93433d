"""Decoded pixels into their place in a stored image. Pure functions; runs in Spark tasks."""

import cv2
import numpy as np

from chexspark.preparation import Placing


def fitted(pixels: np.ndarray, where: Placing) -> np.ndarray:
    """Resize uint8 (height, width) into its place in black, uint8 (size, size).

    By area when it becomes smaller, so without aliasing.
    """
    if pixels.shape == (where.size, where.size):
        return np.ascontiguousarray(pixels)
    x, y, width, height = where.part
    across, down = where.place.width, where.place.height
    method = cv2.INTER_AREA if width >= across and height >= down else cv2.INTER_LINEAR
    part = cv2.resize(pixels[y : y + height, x : x + width], (across, down), interpolation=method)
    if part.shape == (where.size, where.size):
        return part
    stored = np.zeros((where.size, where.size), np.uint8)
    picture_in(stored, where)[:] = part
    return stored


def picture_in(stored: np.ndarray, where: Placing) -> np.ndarray:
    """What of stored pixels is picture and not padding: a view of uint8 (size, size)."""
    x, y, width, height = where.place
    return stored[y : y + height, x : x + width]
