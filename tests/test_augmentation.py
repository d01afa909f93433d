"""Changes to images: exact where that can be said, and the same for the same seed, epoch and image."""

import numpy as np
import pytest
import tensorflow as tf

from chexspark.data.augmentation import DRAWS, Augmentation, augment, random_numbers, transforms
from chexspark.data.pipeline import as_tensors, tensors
from chexspark.data.plan import RankFacts, training_plan
from chexspark.data.reader import SplitReader

NAMES = ("flip", "down", "right", "scale", "rotation", "brightness", "contrast",
         "area", "aspect", "crop_down", "crop_right", "shear", "tone")  # fmt: skip


def numbers(**drawn):
    return np.array([[drawn.get(name, 0) for name in NAMES]], np.float32)


def source(x, y, settings, size, **drawn):
    """Where the pixel at x, y of the result is taken from."""
    (a0, a1, a2, b0, b1, b2, *_) = transforms(numbers(**drawn), settings, size).numpy()[0].tolist()
    return [a0 * x + a1 * y + a2, b0 * x + b1 * y + b2]


def changed(image, settings, **drawn):
    draws = numbers(**drawn)
    given = tf.constant(np.asarray(image, np.uint8)[None, ..., None])
    return augment(given, tf.constant(draws), settings).numpy()[0, ..., 0]


IMAGE = np.random.default_rng(0).integers(0, 256, (10, 10)).astype(np.uint8)


def test_nothing_set_changes_nothing():
    np.testing.assert_array_equal(changed(IMAGE, Augmentation(), flip=-1, rotation=1), IMAGE)


def test_flip_is_exact_and_left_to_the_draw():
    flip = Augmentation(flip=True)
    np.testing.assert_array_equal(changed(IMAGE, flip, flip=-0.1), IMAGE[:, ::-1])
    np.testing.assert_array_equal(changed(IMAGE, flip, flip=0.1), IMAGE)


def test_shift_moves_by_a_share_of_the_size():
    down = changed(IMAGE, Augmentation(shift=0.2), down=1)
    np.testing.assert_array_equal(down[2:], IMAGE[:-2])
    assert not down[:2].any()
    left = changed(IMAGE, Augmentation(shift=0.2), right=-0.5)
    np.testing.assert_array_equal(left[:, :-1], IMAGE[:, 1:])


def test_rotation_by_ninety_degrees_is_a_transposition():
    turned = changed(IMAGE, Augmentation(rotation=90), rotation=1)
    np.testing.assert_array_equal(turned, np.rot90(IMAGE, -1))


def test_scale_doubles_what_is_in_the_middle():
    image = np.zeros((11, 11), np.uint8)
    image[4:7, 4:7] = 200
    assert changed(image, Augmentation(scale=0.5), scale=1).sum() / image.sum() == pytest.approx(
        1.5**2, rel=0.1
    )


def test_a_crop_of_a_quarter_is_a_quadrant_enlarged():
    # Area 0.25 at aspect 1: 5 of 10 pixels each way. In the corner above left the window reaches from −0.5 to 4.5: a
    # pixel of the result is half one of the image, and pixel k has its middle at (k + 0.5) / 2 − 0.5.
    crop = Augmentation(crop=0.25)
    for x in (0, 1, 9):
        assert source(x, 9, crop, 10, area=-1, crop_down=-1, crop_right=-1) == pytest.approx(
            [x / 2 - 0.25, 4.25], abs=1e-5
        )
    assert source(0, 9, crop, 10, area=-1, crop_down=-1, crop_right=1) == pytest.approx(
        [4.75, 4.25], abs=1e-5
    )
    assert source(4.5, 4.5, crop, 10, area=-1) == pytest.approx([4.5, 4.5], abs=1e-5)
    image = np.zeros((10, 10), np.uint8)
    image[:5, 5:] = 90
    # The quadrant but its rim, where a pixel lies between the quadrant and what is around it.
    assert (changed(image, crop, area=-1, crop_down=-1, crop_right=1)[1:-1, 1:-1] == 90).all()


def test_a_crop_has_the_drawn_area_and_aspect_and_lies_in_the_image():
    # Area 0.48, aspect 4/3: 0.8 by 0.6 of 10 pixels; a pixel of the result is 0.8 wide and 0.6 high.
    crop = Augmentation(crop=0.48)
    left, right = (source(x, 0, crop, 10, area=-1, aspect=1, crop_right=1) for x in (0, 9))
    assert [left[0], right[0]] == pytest.approx([2 - 0.5 + 0.4, 9.5 - 0.4], abs=1e-5)
    assert left[1] == pytest.approx(2 - 0.5 + 0.3, abs=1e-5)
    # Of 0.9 of the area no aspect of 4/3 fits: 1.0 wide and 0.9 high is the widest.
    wide = [
        source(x, y, Augmentation(crop=0.9), 10, area=-1, aspect=1) for x, y in ((0, 0), (9, 9))
    ]
    assert wide[0] == pytest.approx([0, 0.5 - 0.5 + 0.45], abs=1e-5)
    assert wide[1] == pytest.approx([9, 9.5 - 0.5 - 0.45], abs=1e-5)
    draws = random_numbers(0, 0, 2000)
    where = transforms(draws, Augmentation(crop=0.1), 10).numpy()
    area, aspect = where[:, 0] * where[:, 4], where[:, 0] / where[:, 4]
    assert 0.1 <= area.min() < 0.11 and 0.99 < area.max() <= 1 + 1e-5
    assert area.mean() == pytest.approx(0.55, abs=0.02) and np.log(aspect).mean() == pytest.approx(
        0, abs=0.01
    )
    assert 3 / 4 - 1e-5 < aspect.min() < 0.76 and 1.32 < aspect.max() < 4 / 3 + 1e-5
    for scale, offset in ((where[:, 0], where[:, 2]), (where[:, 4], where[:, 5])):
        first, last = offset - scale / 2, offset + 9.5 * scale
        assert first.min() > -0.5 - 1e-4 and last.max() < 9.5 + 1e-4
    whole = Augmentation(crop=1.0)
    assert not whole.moves
    np.testing.assert_array_equal(changed(IMAGE, whole, area=-1, crop_down=1, tone=1), IMAGE)


def test_a_shear_moves_rows_by_their_distance_from_the_middle():
    # tan 45° = 1: the row k below the middle moves k to the right, and is taken from k to the left.
    image = np.zeros((11, 11), np.uint8)
    image[:, 5] = 200  # an upright line through the middle
    np.testing.assert_array_equal(changed(image, Augmentation(shear=45), shear=1), 200 * np.eye(11))
    assert source(5, 8, Augmentation(shear=45), 11, shear=-1) == pytest.approx([8, 8], abs=1e-5)


def test_turned_and_shifted_in_one():
    # A quarter turn about (4.5, 4.5), then 2 down and 1 to the left. The pixel (x 3, y 6) of the result was at
    # (4, 4) before the shift, (−.5, −.5) from the middle; before the turn at (−.5, .5) from it.
    both = Augmentation(rotation=90, shift=0.2)
    assert source(3, 6, both, 10, rotation=1, down=1, right=-0.5) == pytest.approx([4, 5], abs=1e-5)
    np.testing.assert_array_equal(
        changed(IMAGE, both, rotation=1, down=1, right=-0.5)[2:, :-1], np.rot90(IMAGE, -1)[:-2, 1:]
    )


def test_all_moves_are_one_transform():
    # Size 11, middle 5. Back from (x 8, y 6): 2 to the left of the shift, (1, 1) from the middle; turned back by a
    # quarter (1, −1), and by 1/2 of the scale (.5, −.5) × 4/3; leaning, x − tan 45° y: (4/3, −2/3); mirrored (−4/3,
    # −2/3); of a quarter of the area, half as far: (−2/3, −1/3); and its middle, 11/4 to the right and down.
    settings = Augmentation(flip=True, shift=2 / 11, scale=0.5, rotation=90, crop=0.25, shear=45)
    drawn = {
        "flip": -1,
        "right": 1,
        "scale": 1,
        "rotation": 1,
        "area": -1,
        "crop_down": 1,
        "crop_right": 1,
        "shear": 1,
    }
    expected = [5 - 2 / 3 + 2.75, 5 - 1 / 3 + 2.75]
    assert source(8, 6, settings, 11, **drawn) == pytest.approx(expected, abs=1e-5)


def test_tone_is_a_power_of_the_gray_level():
    # 255 · (64/255)² = 16.06, and its root 127.75; black and white stay.
    image = [[0, 64], [128, 255]]
    assert changed(image, Augmentation(tone=1), tone=1).tolist() == [[0, 16], [64, 255]]
    assert changed(image, Augmentation(tone=1), tone=-1).tolist() == [[0, 128], [181, 255]]


def test_brightness_and_contrast_keep_to_the_range():
    brighter = changed(IMAGE, Augmentation(brightness=0.2), brightness=1).astype(int)
    np.testing.assert_array_equal(brighter, np.minimum(IMAGE.astype(int) + 51, 255))
    gray = np.full((4, 4), 100)
    gray[0, 0], gray[3, 3] = 50, 150
    assert changed(gray, Augmentation(contrast=0.5), contrast=1)[[0, 3, 1], [0, 3, 1]].tolist() == [
        25, 175, 100,
    ]  # fmt: skip


def test_draws_depend_on_seed_and_epoch_and_are_even():
    first = random_numbers(3, 5, 10_000)
    np.testing.assert_array_equal(first, random_numbers(3, 5, 10_000))
    for other in (random_numbers(3, 6, 10_000), random_numbers(4, 5, 10_000)):
        assert abs(np.corrcoef(first.ravel(), other.ravel())[0, 1]) < 0.05
    assert first.min() >= -1 and first.max() < 1 and np.abs(first.mean(axis=0)).max() < 0.05
    assert np.abs(np.corrcoef(first.T) - np.eye(DRAWS)).max() < 0.05


def test_the_first_seven_numbers_are_those_of_runs_before_the_others_were_drawn():
    random = np.random.Generator(np.random.PCG64([3, 5, 1]))
    np.testing.assert_array_equal(
        random_numbers(3, 5, 10)[:, :7], random.random((10, 7), np.float32) * 2 - 1
    )
    assert random_numbers(0, 0, 2)[:, :2].ravel().tolist() == pytest.approx(
        [0.77956438, -0.10152245, -0.42100215, 0.89939809]
    )


@pytest.mark.parametrize("world_size", [1, 2])
def test_an_image_is_changed_alike_at_any_world_size_and_after_a_resume(
    store, manifest, world_size
):
    settings = Augmentation(
        flip=True, shift=0.1, scale=0.1, rotation=10, brightness=0.1, contrast=0.1
    )

    def seen(world_size, batch, first_step):
        found = {}
        for rank in range(world_size):
            reader = SplitReader(store, manifest, "train")
            plan = training_plan(reader.row_groups, 12, RankFacts(rank, world_size), 0, 2)
            draws = random_numbers(0, 2, sum(reader.row_groups))
            for inputs in tensors(reader.batches(plan[first_step:]), draws):
                images = augment(inputs.images, inputs.draws, settings).numpy()
                found |= {
                    int(r): i.tobytes() for r, i in zip(inputs.rows, images, strict=True) if r >= 0
                }
        return found

    whole, again = seen(1, 12, 0), seen(world_size, 12 // world_size, 3)
    assert 0 < len(again) < len(whole)
    assert again == {row: whole[row] for row in again}


def test_filler_reaches_tensorflow_with_its_shape(store, manifest):
    reader = SplitReader(store, manifest, "train")
    (batch,) = reader.batches(np.array([[0, -1, -1]]))
    inputs = as_tensors(batch, random_numbers(0, 0, sum(reader.row_groups)))
    assert inputs.images.shape == (3, 32, 32, 1) and inputs.draws.shape == (3, DRAWS)
    assert inputs.weights.numpy().tolist() == [1, 0, 0]
