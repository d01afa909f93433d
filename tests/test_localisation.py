"""What a map points at, and whether that is in a box: arrays alone."""

import itertools

import numpy as np
import pytest

from chexspark.evaluation.localisation import enlarge, overlap, pointed_box, points_at

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
