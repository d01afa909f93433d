"""Changes to images: exact where that can be said, and the same for the same seed, epoch and image."""

import numpy as np
import pytest
import tensorflow as tf

from chexspark.data.augmentation import Augmentation, augment, random_numbers
from chexspark.data.pipeline import as_tensors, tensors
from chexspark.data.plan import RankFacts, training_plan
from chexspark.data.reader import SplitReader

NAMES = ("flip", "down", "right", "scale", "rotation", "brightness", "contrast")


def changed(image, settings, **drawn):
    draws = np.zeros((1, 7), np.float32)
    for name, value in drawn.items():
        draws[0, NAMES.index(name)] = value
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
    assert np.abs(np.corrcoef(first.T) - np.eye(7)).max() < 0.05


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
    assert inputs.images.shape == (3, 32, 32, 1) and inputs.draws.shape == (3, 7)
    assert inputs.weights.numpy().tolist() == [1, 0, 0]
