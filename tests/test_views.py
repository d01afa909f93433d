"""What is scored beside an image: the right pixels, each of them once, and the mean of what they are given."""

import json

import numpy as np
import pytest

from chexspark.config import EvaluateConfig, PredictConfig
from chexspark.errors import UserError
from chexspark.evaluation import inference, tables
from chexspark.evaluation.inference import Model, Scorer, probabilities_of
from chexspark.evaluation.views import in_order, number_of_views, views, views_text, windows
from chexspark.run.folder import run_folder
from chexspark.settings import build

RAMP = np.tile(np.arange(0, 160, 10, np.uint8), (16, 1))[None]  # 16×16, ten gray levels a column


def test_nothing_is_the_image_itself_and_flip_its_mirror_image():
    (alone,) = views(RAMP, ())
    assert alone is RAMP
    image, mirrored = views(RAMP, ("flip",))
    np.testing.assert_array_equal(image, RAMP)
    assert mirrored[0, 3].tolist() == RAMP[0, 3].tolist()[::-1]


def test_crops_are_the_corners_and_the_middle_enlarged():
    whole, *crops = views(RAMP, ("crops",))
    assert whole is RAMP and len(crops) == 5 and crops[0].shape == RAMP.shape
    # Pixel 8 has its middle at 8.5 · 7/8 of the 14 pixels of a crop, that is at 7.4375 − 0.5 of the image where the
    # crop begins at its left border, two pixels on where it ends at its right one, one on in the middle.
    assert [crop[0, 8, 8] for crop in crops] == [69, 89, 69, 89, 79]
    upright = [crop[0, :, 8] for crop in views(RAMP.transpose(0, 2, 1), ("crops",))][1:]
    assert [column[8] for column in upright] == [69, 69, 89, 89, 79], "above, then below"


def test_scales_are_a_smaller_and_a_larger_image():
    _, smaller, larger = views(np.full((1, 20, 20), 200, np.uint8), ("scales",))
    # 0.9 of 20 pixels are 18: black for a pixel around.
    assert (
        (smaller[0, 1:-1, 1:-1] == 200).all()
        and not smaller[0, 0].any()
        and not smaller[0, :, -1].any()
    )
    assert (larger[0, 1:-1, 1:-1] == 200).all()
    _, smaller, larger = views(RAMP, ("scales",))
    # Pixel 9 is 1.5 from the middle, where the gray level is 75: 1.5 / 0.9 and 1.5 / 1.1 columns of ten from it.
    assert (smaller[0, 8, 9], larger[0, 8, 9]) == (92, 89)


@pytest.mark.parametrize("names, number", [((), 1), (("flip",), 2), (("crops",), 6), (("scales",), 3),
                                           (("flip", "crops", "scales"), 16)])  # fmt: skip
def test_each_view_once(names, number):
    images = np.random.default_rng(0).integers(0, 256, (2, 24, 24)).astype(np.uint8)
    found = [view.tobytes() for view in views(images, names)]
    assert len(found) == len(set(found)) == number_of_views(names) == number
    assert len(set(windows(names))) == len(windows(names))


def test_probabilities_are_the_mean_over_models_and_views(monkeypatch):
    import tensorflow as tf

    def left_half(pixels):  # one finding: how bright the left half is
        assert pixels.dtype == tf.uint8 and pixels.shape[1:] == (8, 8, 1)
        return tf.reduce_mean(tf.cast(pixels[:, :, :4], tf.float32), (1, 2)) / 100 - 1

    monkeypatch.setattr(inference, "task_device", lambda: "/CPU:0")
    monkeypatch.setattr(
        inference, "load_models", lambda *_: (left_half, lambda p: 2 * left_half(p))
    )
    model = Model("/m", "digest", ("Mass",), "vgg16", 8)
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8)).astype(np.uint8)
    for names in ((), ("flip",), ("flip", "crops", "scales")):
        found = probabilities_of(images, Scorer((model, model), ("Mass",), names, 2))
        logits = np.stack([left_half(view[..., None]).numpy() for view in views(images, names)])
        both = np.concatenate([logits, 2 * logits]).astype(np.float64)
        np.testing.assert_allclose(found, (1 / (1 + np.exp(-both))).mean(axis=0), rtol=1e-6)


def test_what_the_user_may_ask_for():
    asked = {"images": "i", "run": "r", "out": "o"}
    assert build(PredictConfig, asked | {"tta": "crops,flip"}).tta == ("crops", "flip")
    assert in_order(("scales", "flip", "flip")) == ("flip", "scales")
    with pytest.raises(UserError, match="--tta has 'mirror', but must be of flip, crops, scales"):
        build(PredictConfig, asked | {"tta": "mirror"})
    with pytest.raises(UserError, match="setting 'flip' is now called --tta"):
        build(EvaluateConfig, {"run": "r", "data": "d", "flip": True})


def test_what_was_scored_with_mirror_images_before_is_told_so(tmp_path):
    out = run_folder(str(tmp_path))
    facts = {"findings": ["Mass"], "flip": True}
    out.evaluation.write_text(json.dumps({"test": facts, "val": facts | {"flip": False}}))
    found = tables.read_evaluation(out)
    assert [found[split]["tta"] for split in ("test", "val")] == [["flip"], []]
    assert not any("flip" in each for each in found.values())
    assert views_text(["crops", "flip"]) == "mirror images, crops" and views_text([]) == ""
