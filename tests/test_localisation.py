"""What a map points at, and whether that is in a box: arrays alone."""

import itertools

import cv2
import numpy as np
import pandas as pd
import pytest

from chexspark.evaluation.localisation import (
    enlarge,
    localisation_records,
    over_original,
    overlap,
    pointed_box,
    points_at,
    usable_boxes,
)
from chexspark.evaluation.maps import Mapped
from chexspark.preparation import placing

ORIGINALS = ((80, 40), (97, 131), (256, 224), (40, 40))  # width, height


def test_what_a_map_points_at():
    activation = np.zeros((4, 4), np.float32)
    activation[1, 2] = 2
    large = enlarge(activation, 80, 40)
    assert large.shape == (40, 80) and large.max() == 1
    x, y, width, height = pointed_box(large, 0.5)
    assert abs(x + width / 2 - 50) <= 1 and abs(y + height / 2 - 15) <= 1
    assert points_at(large, [(40, 10, 20, 10)]) and not points_at(large, [(0, 0, 20, 10)])
    assert overlap((0, 0, 2, 2), (1, 1, 2, 2)) == 1 / 7 and overlap((0, 0, 1, 1), (1, 0, 1, 1)) == 0
    assert pointed_box(enlarge(np.ones((2, 2)), 8, 8), 0.5) is None


@pytest.mark.parametrize("width, height", ORIGINALS)
def test_every_cell_of_every_map_points_into_its_inner_part(width, height):
    """A map with one lit cell, enlarged, against the inner 60 % of that cell."""
    missed = []
    for rows, columns in itertools.product(range(2, 9), repeat=2):
        across, down = width / columns, height / rows
        for row, column in itertools.product(range(rows), range(columns)):
            activation = np.zeros((rows, columns), np.float32)
            activation[row, column] = 0.7
            inner = ((column + 0.2) * across, (row + 0.2) * down, 0.6 * across, 0.6 * down)
            if not points_at(enlarge(activation, width, height), [inner]):
                missed.append((rows, columns, row, column))
    assert not missed


def test_of_tied_places_the_centre_of_the_largest_region():
    activation = np.zeros((10, 20))
    activation[1, 1], activation[4:8, 10:16] = 3, 3 - 1e-9  # as rounding leaves it
    assert points_at(activation, [(12.9, 5.9, 0.2, 0.2)]), "its centre is at 13, 6"
    assert not points_at(activation, [(1, 1, 1, 1)])
    activation[4:8, 10:16] = 2.9
    assert points_at(activation, [(1.4, 1.4, 0.2, 0.2)]), "what is only nearly as high is not tied"


@pytest.mark.parametrize("width, height", ORIGINALS)
def test_a_map_over_a_whole_image_is_opencv_s(width, height):
    activation = np.random.Generator(np.random.PCG64(3)).normal(size=(7, 5)).astype(np.float32)
    theirs = cv2.resize(activation, (width, height), interpolation=cv2.INTER_LINEAR)
    theirs = (theirs - theirs.min()) / np.ptp(theirs)
    np.testing.assert_allclose(enlarge(activation, width, height), theirs, atol=1e-5)


@pytest.mark.parametrize(
    "fit, box",
    [  # of 200 × 100 pixels, of which one of 4 × 4 cells of the square is lit: the second of the first column
        ("pad", (0, 0, 50, 50)),  # rows 16 to 32 of 64, of which 16 to 48 are the picture
        ("stretch", (0, 25, 50, 25)),
        ("crop", (50, 25, 25, 25)),  # columns 50 to 150 are the square
    ],
)
def test_a_map_finds_its_box_in_the_original(fit, box):
    activation = np.zeros((4, 4), np.float32)
    activation[1, 0] = 3
    over = over_original(activation, placing(200, 100, 64, fit))
    assert over.shape == (100, 200) and over.max() == 1 and over.min() == 0
    assert overlap(pointed_box(over, 0.5), box) > 0.9
    assert points_at(over, [box]) and not points_at(over, [(100, 50, 100, 50)])


def test_a_crop_s_map_is_zero_beside_it_and_boxes_are_clipped_to_it():
    names = ("Mass", "Nodule")
    maps = np.zeros((2, 4, 4), np.float32)
    maps[:, 1, 0] = 1
    maps[1] = -1 - maps[1]  # all below zero
    image = Mapped("a", names, maps, np.zeros(2), {}, placing(200, 100, 64, "crop"), None)
    over = over_original(maps[1], image.placing)
    assert not over[:, :50].any() and not over[:, 150:].any() and over[:, 50:150].max() == 1
    boxes = pd.DataFrame(
        [("a", "Mass", 0, 25, 75, 25), ("a", "Mass", 0, 0, 40, 40), ("a", "Nodule", 150, 0, 9, 9)],
        columns=["image_index", "finding", "x", "y", "width", "height"],
    )
    usable, notes = usable_boxes(boxes, {"a": image})
    assert usable[["finding", "x", "y", "width", "height"]].values.tolist() == [
        ["Mass", 50, 25, 25, 25]
    ]
    assert notes == ["2 boxes lie in what was cropped and are left out"]
    best = max(row["iou"] for row in localisation_records(usable, {"a": image}, names))
    assert best > 0.9, "against the whole box it could be a third"


def test_no_boxes_are_left_out_of_what_is_padded():
    image = Mapped(
        "a", ("Mass",), np.zeros((1, 2, 2)), np.zeros(1), {}, placing(99, 200, 64, "pad"), None
    )
    boxes = pd.DataFrame(
        [("a", "Mass", 0, 0, 99, 200)],
        columns=["image_index", "finding", "x", "y", "width", "height"],
    )
    usable, notes = usable_boxes(boxes, {"a": image})
    assert usable.values.tolist() == boxes.values.tolist() and notes == []
