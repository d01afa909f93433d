"""Maps over X-rays. Pure; runs on the driver.

In: gray pixels, a map, boxes. Out: colour pictures, and PNG or JPEG bytes of them.
"""

from collections.abc import Iterable, Sequence

import cv2
import numpy as np

from chexspark.evaluation.localisation import enlarge

STRENGTH = 0.55  # how much of the colour covers the X-ray where the map is highest
SHOWN = 0.25  # below this part of the map's range the X-ray stays as it is
BOX = (96, 255, 128)  # BGR


def overlay(
    gray: np.ndarray, activation: np.ndarray, boxes: Iterable[Sequence[float]] = ()
) -> np.ndarray:
    """Draw a map (h, w) and boxes over uint8 (height, width): BGR uint8 (height, width, 3).

    `boxes`: x, y, width, height as fractions of the image.
    """
    height, width = gray.shape
    large = enlarge(activation, width, height)
    colours = cv2.applyColorMap(np.round(large * 255).astype(np.uint8), cv2.COLORMAP_INFERNO)
    weight = (np.clip((large - SHOWN) / (1 - SHOWN), 0, 1) * STRENGTH)[..., None]
    picture = cv2.cvtColor(gray, cv2.COLOR_GRAY2BGR) * (1 - weight) + colours * weight
    picture = np.ascontiguousarray(np.round(picture).astype(np.uint8))
    line = max(1, width // 200)
    for x, y, w, h in boxes:
        first = round(x * width), round(y * height)
        last = round((x + w) * width) - 1, round((y + h) * height) - 1
        cv2.rectangle(picture, first, last, BOX, line)
    return picture


def enlarged(gray: np.ndarray, least: int) -> np.ndarray:
    """The image with its shorter side `least` pixels or more."""
    factor = least / min(gray.shape)
    if factor <= 1:
        return gray
    size = (round(gray.shape[1] * factor), round(gray.shape[0] * factor))
    return cv2.resize(gray, size, interpolation=cv2.INTER_CUBIC)


def encoded(picture: np.ndarray, extension: str) -> bytes:
    """The picture as ``.png`` or ``.jpg`` bytes."""
    return cv2.imencode(extension, picture)[1].tobytes()
