"""Pixels into their square: blocks whose means are known."""

import numpy as np
import pytest

from chexspark.ingestion.fitting import fitted, picture_in
from chexspark.preparation import CROP, PAD, STRETCH, placing

WIDE = np.random.Generator(np.random.PCG64(0)).integers(1, 256, (64, 128)).astype(np.uint8)


def means(pixels, rows, columns):
    """The mean of each block of so many rows and columns."""
    height, width = pixels.shape
    return pixels.reshape(height // rows, rows, width // columns, columns).mean(axis=(1, 3))


def test_shrinking_by_area_is_the_mean_of_each_block():
    checks = np.indices((64, 64)).sum(0) % 2 * 255
    small = fitted(checks.astype(np.uint8), placing(64, 64, 32, STRETCH))
    np.testing.assert_allclose(small, 127.5, atol=0.5)


@pytest.mark.parametrize("turned", [False, True])
def test_each_fit_of_a_wide_and_of_a_high_image(turned):
    pixels = WIDE.T if turned else WIDE

    def fit(how):
        found = fitted(pixels, placing(*pixels.shape[::-1], 32, how))
        assert found.shape == (32, 32) and found.dtype == np.uint8
        return found.T if turned else found

    padded = fit(PAD)
    assert not padded[:8].any() and not padded[24:].any(), "black"
    np.testing.assert_allclose(padded[8:24], means(WIDE, 4, 4), atol=0.51)
    np.testing.assert_allclose(fit(STRETCH), means(WIDE, 2, 4), atol=0.51)
    np.testing.assert_allclose(fit(CROP), means(WIDE[:, 32:96], 2, 2), atol=0.51)


@pytest.mark.parametrize("how", [PAD, STRETCH, CROP])
def test_a_square_is_the_same_in_every_fit(how):
    square = WIDE[:, :64]
    np.testing.assert_array_equal(fitted(square, placing(64, 64, 64, how)), square)
    np.testing.assert_allclose(
        fitted(square, placing(64, 64, 16, how)), means(square, 4, 4), atol=0.51
    )


def test_the_picture_is_what_is_not_padding():
    where = placing(128, 64, 32, PAD)
    picture = picture_in(fitted(WIDE, where), where)
    assert picture.shape == (16, 32) and picture.all()
