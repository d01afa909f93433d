"""Stored images made smaller for a network that was trained at less than their size. Pure numpy; runs anywhere."""

import numpy as np


def reduced(images: np.ndarray, size: int) -> np.ndarray:
    """Images, uint8 (images, side, side), as uint8 (images, size, size): each pixel the mean of the area that it covers.

    It is what ingest does to a larger original. Those of that size already are returned as they are. Raises ValueError
    for smaller ones, of which nothing larger can be made without inventing it.
    """
    side = images.shape[1]
    if side == size:
        return images
    if side < size:
        raise ValueError(f"images of {side} pixels are smaller than {size}")
    import cv2  # loaded where images are reduced: a rank that takes them as they are starts without it

    made = np.empty((len(images), size, size), np.uint8)
    for image, place in zip(images, made, strict=True):
        cv2.resize(
            np.ascontiguousarray(image), (size, size), dst=place, interpolation=cv2.INTER_AREA
        )
    return made
