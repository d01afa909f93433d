"""Where an original lies in its square: numbers by hand, and what must hold of any."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chexspark.preparation import CROP, FITS, PAD, STRETCH, Preparation, placing

BOXES = np.array([(50.0, 20, 40, 30), (30, 20, 40, 30), (0, 0, 50, 100)])  # of 200 × 100 pixels


@pytest.mark.parametrize(
    "fit, part, place, stored",
    [
        (PAD, (0, 0, 200, 100), (0, 16, 64, 32), [(16, 22.4, 12.8, 9.6), (9.6, 22.4, 12.8, 9.6), (0, 16, 16, 32)]),
        (STRETCH, (0, 0, 200, 100), (0, 0, 64, 64), [(16, 12.8, 12.8, 19.2), (9.6, 12.8, 12.8, 19.2), (0, 0, 16, 64)]),
        (CROP, (50, 0, 100, 100), (0, 0, 64, 64), [(0, 12.8, 25.6, 19.2), (0, 12.8, 12.8, 19.2), (0, 0, 0, 64)]),
    ],
)  # fmt: skip
def test_an_image_twice_as_wide_as_high(fit, part, place, stored):
    found = placing(200, 100, 64, fit)
    assert (found.part, found.place) == (part, place)
    np.testing.assert_allclose(found.stored(BOXES), stored, atol=1e-12)
    upright = placing(100, 200, 64, fit)
    swap = [1, 0, 3, 2]
    assert [upright.part[i] for i in swap] == list(part)
    np.testing.assert_allclose(
        upright.stored(BOXES[:, swap])[:, swap], found.stored(BOXES), atol=1e-12
    )


def test_what_cannot_be_halved():
    assert placing(90, 61, 33, PAD).place == (0, 5, 33, 22), (
        "61 · 33 / 90 is 22.4; 11 rows are left"
    )
    assert placing(90, 61, 33, CROP).part == (14, 0, 61, 61), "29 columns are left"
    assert placing(5000, 10, 320, PAD).place == (0, 159, 320, 1), "a row is left of it"


def test_a_crop_clips_boxes_to_what_stays():
    seen = placing(200, 100, 64, CROP).visible(BOXES)
    assert seen.tolist() == [[50, 20, 40, 30], [50, 20, 20, 30], [50, 0, 0, 100]]
    assert BOXES[0].tolist() == [50, 20, 40, 30], "what was given is as it was"


sides = st.integers(10, 3000)


@given(sides, sides, st.integers(32, 512), st.sampled_from(FITS))
def test_part_and_place_lie_in_the_middle_of_their_images(width, height, size, fit):
    where = placing(width, height, size, fit)
    for (x, y, w, h), (wide, high) in (
        (where.part, (width, height)),
        (where.place, (size, size)),
    ):
        assert min(w, h) >= 1
        assert 0 <= wide - w - 2 * x <= 1 and 0 <= high - h - 2 * y <= 1
    if fit != STRETCH:
        across, down = (where.place[i] / where.part[i] for i in (2, 3))
        longest = max(where.part[2:])
        assert abs(across - down) * longest <= max(1, longest / min(where.part[2:])), (
            "its shape stays"
        )
    if width == height:
        assert where.part[2:] == (width, height) and where.place == (0, 0, size, size)


@pytest.mark.parametrize(
    "facts, fault",
    [
        ({"size": 0}, "image size is 0"),
        ({"size": True}, "image size is True"),
        ({"size": 32, "fit": "fill"}, "fit is 'fill', not one of pad, stretch, crop"),
        ({"size": 32, "bit_depth": 17}, "bit depth is 17"),
        ({"size": 32, "bit_depth": "12"}, "bit depth is '12'"),
        ({"fit": "pad"}, "is {'fit': 'pad'}"),
        ([320], r"is \[320\]"),
    ],
)
def test_what_a_file_says_of_a_preparation_is_checked(facts, fault):
    with pytest.raises(ValueError, match=fault):
        Preparation.of(facts)
