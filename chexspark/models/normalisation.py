"""How a gray pixel becomes what a network's first layer takes. Pure numbers; anywhere.

In: a pixel of 0 to 255. Out: scale × pixel + offset, per channel, as a set of published weights expects.
"""

import numpy as np

# TORCH: ImageNet's mean and standard deviation per channel (RGB, 0–1). CAFFE: ImageNet's mean taken off, blue
# first, without scaling. HALVES: from −1 to 1, nearly. XRAYVISION: one channel, −1024 to 1024 (torchxrayvision's `datasets.normalize`).
MEAN, DEVIATION = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
TORCH = (1 / (255 * DEVIATION), -MEAN / DEVIATION)
HALVES = (np.full(3, 1 / 128), -np.ones(3))
CAFFE = (np.ones(3), -np.array([103.939, 116.779, 123.68]))
XRAYVISION = (2048 / 255, -1024.0)


def shares(channel: tuple[float, float], channels: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """What of each of three `channels` is in a `channel` of another normalisation: float64 (3,).

    Both are (scale, offset) of the same gray pixel. Σ share × (scale, offset) of the three is scale and offset of
    the one, so that ``kernel × share``, a kernel per channel, computes of the three what ``kernel`` does of the one.
    The offset needs no bias, with which it would be missing where a convolution pads with zeros: there all
    channels are 0, in both. Two equations, three shares: the smallest that fulfil them.
    """
    return np.linalg.lstsq(np.stack(channels), np.array(channel), rcond=None)[0]
