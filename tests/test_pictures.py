"""Maps over X-rays, and which images stand for how a model does."""

import cv2
import numpy as np
import pandas as pd
import pytest

from chexspark.evaluation.examples import KINDS, choose_examples, example_row
from chexspark.evaluation.maps import Mapped
from chexspark.evaluation.pictures import BOX, SHOWN, STRENGTH, encoded, enlarged, overlay
from chexspark.findings import FINDINGS
from chexspark.preparation import placing


def test_a_flat_map_leaves_the_x_ray_as_it_is():
    gray = np.arange(12, dtype=np.uint8).reshape(3, 4)
    picture = overlay(gray, np.full((2, 2), 0.7, np.float32))
    assert picture.dtype == np.uint8
    np.testing.assert_array_equal(picture, np.repeat(gray[..., None], 3, axis=2))


def test_colour_covers_the_x_ray_by_the_height_of_the_map():
    gray = np.full((1, 5), 100, np.uint8)
    activation = np.array([[0, 1, 2, 3, 4]], np.float32)
    picture = overlay(gray, activation).astype(int)
    levels = np.array([[0, 64, 128, 191, 255]], np.uint8)  # a quarter each, of 255, rounded
    colours = cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO).astype(float)
    for x, height in enumerate((0, 0.25, 0.5, 0.75, 1)):
        weight = max(0, (height - SHOWN) / (1 - SHOWN)) * STRENGTH
        expected = 100 * (1 - weight) + colours[0, x] * weight
        assert np.abs(picture[0, x] - expected).max() <= 0.5
    assert picture[0, :2].tolist() == [[100] * 3] * 2, "below SHOWN nothing is covered"


def test_a_box_is_drawn_along_its_own_pixels():
    gray, none = np.zeros((10, 20), np.uint8), np.zeros((1, 1), np.float32)
    picture = overlay(gray, none, [[0.1, 0.2, 0.5, 0.6]])
    drawn = np.argwhere((picture == BOX).all(axis=2))
    # x from 0.1·20 to 0.6·20, y from 0.2·10 to 0.8·10, the ends left out.
    expected = {(y, x) for y in range(2, 8) for x in range(2, 12) if y in (2, 7) or x in (2, 11)}
    assert {tuple(place) for place in drawn.tolist()} == expected


@pytest.mark.parametrize(
    "shape, least, expected",
    [((4, 8), 4, (4, 8)), ((9, 8), 4, (9, 8)), ((4, 8), 10, (10, 20)), ((9, 3), 4, (12, 4))],
)
def test_the_shorter_side_is_made_long_enough(shape, least, expected):
    image = np.full(shape, 7, np.uint8)
    found = enlarged(image, least)
    assert found.shape == expected and (found == 7).all()


def test_png_is_the_picture_itself():
    picture = np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    found = cv2.imdecode(np.frombuffer(encoded(picture, ".png"), np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(found, picture)
    assert encoded(picture, ".jpg").startswith(b"\xff\xd8")


def record(finding, positives, threshold=0.5):
    return {"finding": finding, "positives": positives, "threshold_youden": threshold}


def table_of(**columns):
    names = list("abcdef")
    found = {"image_index": names}
    for finding, (labels, scores) in columns.items():
        found |= {f"label_{finding}": labels, f"prob_{finding}": scores}
    return pd.DataFrame(found)


MASS = ([1, 1, 1, 0, 0, -1], [0.6, 0.9, 0.1, 0.7, 0.5, 1.0])
MEAN = record("mean", None, None)


def test_the_most_certain_image_of_each_kind():
    found = choose_examples(table_of(Mass=MASS), [record("Mass", 3), MEAN])
    assert [(e.kind, e.name, e.probability) for e in found] == [
        ("found", "b", 0.9), ("missed", "c", 0.1), ("false alarm", "d", 0.7),
    ]  # fmt: skip
    assert [e.kind for e in found] == list(KINDS) and {e.threshold for e in found} == {0.5}


def test_ties_go_to_the_first_name_and_the_threshold_itself_is_called():
    labels, scores = [1, 1, 0, 0, 0, 0], [0.5, 0.5, 0.5, 0.5, 0.1, 0.1]
    found = choose_examples(table_of(Mass=(labels, scores)), [record("Mass", 2), MEAN])
    assert [(e.kind, e.name) for e in found] == [("found", "a"), ("false alarm", "c")]


def test_the_most_frequent_findings_that_have_a_threshold():
    names = FINDINGS[:7]
    records = [
        record(name, count) for name, count in zip(names, (5, 9, 2, 7, 3, 8, 0), strict=True)
    ]
    records[1]["threshold_youden"] = None
    found = choose_examples(table_of(**dict.fromkeys(names, MASS)), [*records, MEAN])
    order = list(dict.fromkeys(e.finding for e in found))
    assert order == [names[5], names[3], names[0], names[4]]


def test_a_row_holds_the_finding_s_map_and_its_boxes_as_fractions():
    (example, *_) = choose_examples(table_of(Mass=MASS), [record("Mass", 3), MEAN])
    maps = np.zeros((2, 2, 3))
    maps[1, 1, 2] = 4
    mapped = Mapped(
        "b",
        ("Nodule", "Mass"),
        maps,
        np.zeros(2),
        {},
        placing(200, 100, 5, "stretch"),
        np.eye(5, dtype=np.uint8),
    )
    boxes = pd.DataFrame(
        [
            ("b", "Mass", 20, 10, 100, 50),
            ("b", "Nodule", 0, 0, 1, 1),
            ("a", "Mass", 0, 0, 1, 1),
            ("b", "Mass", 190, 10, 100, 50),
        ],
        columns=["image_index", "finding", "x", "y", "width", "height"],
    )
    row = example_row(example, mapped, boxes)
    assert row["boxes"] == [[0.1, 0.1, 0.5, 0.5]], "the last was drawn on a larger file"
    assert (row["size"], row["map_height"], row["map_width"]) == (5, 2, 3)
    assert np.frombuffer(row["map"], np.float32).tolist() == [0, 0, 0, 0, 0, 4]
    assert np.frombuffer(row["pixels"], np.uint8).reshape(5, 5).trace() == 5
    assert example_row(example, mapped, None)["boxes"] == []


@pytest.mark.parametrize(
    "fit, drawn",
    [  # of 200 × 100 pixels; as fractions of the square
        ("pad", [[0.1, 0.35, 0.5, 0.25], [0, 0.25, 0.1, 0.5]]),  # half a pixel for two
        ("stretch", [[0.1, 0.2, 0.5, 0.5], [0, 0, 0.1, 1]]),
        ("crop", [[0, 0.2, 0.7, 0.5]]),  # columns 50 to 150; the second is cut away
    ],
)
def test_boxes_follow_the_picture_into_its_square(fit, drawn):
    (example, *_) = choose_examples(table_of(Mass=MASS), [record("Mass", 3), MEAN])
    pixels = np.eye(100, dtype=np.uint8)
    where = placing(200, 100, 100, fit)
    mapped = Mapped("b", ("Mass",), np.zeros((1, 2, 2)), np.zeros(1), {}, where, pixels)
    boxes = pd.DataFrame(
        [("b", "Mass", 20, 20, 100, 50), ("b", "Mass", 0, 0, 20, 100)],
        columns=["image_index", "finding", "x", "y", "width", "height"],
    )
    np.testing.assert_allclose(example_row(example, mapped, boxes)["boxes"], drawn, atol=1e-12)
