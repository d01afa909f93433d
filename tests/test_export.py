"""Exported models take raw images: they fit them as ingest does, and say what their outputs mean."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from chexspark import export, predict
from chexspark.errors import RunFailedError
from chexspark.evaluation import export as exporting
from chexspark.evaluation import tables
from chexspark.evaluation.export_graph import fitted_in_graph, raw_image_function
from chexspark.evaluation.operating_points import operating_points, points_as_json
from chexspark.evaluation.runs import best_model
from chexspark.findings import FINDINGS
from chexspark.ingestion.fitting import fitted
from chexspark.models import build_model
from chexspark.phantom import draw_anatomy, draw_phantom, generator
from chexspark.preparation import FITS, Preparation
from chexspark.run.folder import METRICS, model_and_digest, run_folder

SIZE = 32
# Height, width: of the square's size, tiny, portrait, landscape, larger in one direction, and a radiograph.
SHAPES = [(32, 32), (1, 1), (1, 9), (64, 64), (96, 32), (32, 33), (31, 32), (50, 37), (37, 50), (20, 90),
          (90, 20), (7, 400), (3000, 2500)]  # fmt: skip


def in_graph(pixels, how):
    """Of uint8 (height, width), uint8 (size, size)."""
    return fitted_in_graph(pixels[None, ..., None], how).numpy()[0, ..., 0]


@pytest.mark.parametrize("fit", FITS)
def test_the_graph_fits_images_as_ingest_does(fit):
    draw = np.random.default_rng(FITS.index(fit))
    random = [tuple(np.exp(draw.uniform(0, np.log(600), 2)).astype(int)) for _ in range(60)]
    for number, (height, width) in enumerate(SHAPES + random):
        size = SIZE if number < len(SHAPES) else int(draw.choice([1, 7, 32, 33, 128]))
        pixels = draw.integers(0, 256, (height, width)).astype(np.uint8)
        if number % 2:  # black and white
            pixels = np.uint8(255) * (pixels > 127)
        how = Preparation(size, fit)
        expected = fitted(pixels, how.placing(width, height)).astype(int)
        found = in_graph(pixels, how)
        assert found.shape == (size, size) and found.dtype == np.uint8
        assert np.abs(found - expected).max() <= 1, (height, width, size)
        if height == width == size:
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("fit", FITS)
def test_what_the_fitted_pixels_are(fit):
    """By area they are means, so equal to cv2's, whose sums are whole too; the padding is where it is."""
    pixels = np.random.default_rng(0).integers(1, 256, (96, 160)).astype(np.uint8)
    how = Preparation(SIZE, fit)
    where = how.placing(160, 96)
    found, expected = in_graph(pixels, how), fitted(pixels, where)
    assert (found != expected).mean() < 0.01
    np.testing.assert_array_equal(found == 0, expected == 0)
    assert (found == 0).any() == (fit == "pad")


def test_half_a_pixel_of_padding_goes_as_ingest_puts_it():
    """10 × 4 in 5 is 2 high, and 1.5 from both rims; 8 × 5 in 4 is 2.5, and so 2 high."""
    for height, width, size in ((4, 10, 5), (5, 8, 4), (7, 8, 4), (10, 4, 5), (1, 300, 32)):
        pixels, how = np.full((height, width), 200, np.uint8), Preparation(size, "pad")
        np.testing.assert_array_equal(
            in_graph(pixels, how), fitted(pixels, how.placing(width, height))
        )


FITTED = {
    "Mass": {"threshold_youden": 0.25, "threshold_sens90": 0.125, "slope": 0.5, "intercept": 0.0,
             "scaling": "temperature", "temperature": 2.0},
    "Edema": {"threshold_youden": 0.5, "threshold_sens90": 0.375, "slope": 0.75, "intercept": -1.5,
              "scaling": "platt", "temperature": 1.25},
    "Hernia": {"threshold_sens90": 0.0625},
}  # fmt: skip
EXPECTED = {
    "Mass": {"thresholds": {"youden": 0.25, "sens90": 0.125},
             "calibration": {"slope": 0.5, "intercept": 0.0, "method": "temperature", "temperature": 2.0}},
    "Edema": {"thresholds": {"youden": 0.5, "sens90": 0.375},
              "calibration": {"slope": 0.75, "intercept": -1.5, "method": "platt", "temperature": None}},
    "Hernia": {"thresholds": {"youden": None, "sens90": 0.0625}, "calibration": None},
}  # fmt: skip


@pytest.fixture(scope="module")
def run(untrained_run):
    """A run of three findings, with the metrics that evaluate would have written."""
    run = run_folder(untrained_run(3, list(FITTED)).path)
    rows = [{"finding": finding, **row} for finding, row in reversed(FITTED.items())]
    tables.write_split(run, METRICS, "test", [*rows, {"finding": "mean"}])
    tables.write_evaluation(run, "test", facts_of(run))
    return run


def facts_of(run):
    """What evaluate says of the test split."""
    return {"findings": list(FITTED), "models": [model_and_digest(run)[1]], "fitted_on": "val of S"}


@pytest.fixture(scope="module")
def exported(spark, run, tmp_path_factory):
    """Where both formats are."""
    return export(spark, run=str(run), out=str(tmp_path_factory.mktemp("both") / "out"))


@pytest.fixture(scope="module")
def raw_images(tmp_path_factory):
    """A folder of PNGs of a phantom: name → pixels. One becomes smaller, the others larger or both."""
    drawn, _ = draw_phantom(120, FINDINGS[:1], generator(5), draw_anatomy(generator(6)))
    shapes = {"high.png": (120, 90), "small.png": (27, 20), "wide.png": (25, 110)}
    pixels = {
        name: cv2.resize(drawn, (width, height), interpolation=cv2.INTER_AREA)
        for name, (height, width) in shapes.items()
    }
    folder = tmp_path_factory.mktemp("raw")
    for name, image in pixels.items():
        assert cv2.imwrite(str(folder / name), image)
    return folder, pixels


def with_onnx(place, images):
    """Outputs by name, and the metadata."""
    import onnxruntime

    session = onnxruntime.InferenceSession(place)
    names = [output.name for output in session.get_outputs()]
    metadata = session.get_modelmeta().custom_metadata_map
    outputs = dict(zip(names, session.run(None, {"image": images}), strict=True))
    return outputs, {name: json.loads(text) for name, text in metadata.items()}


def with_saved_model(place, images):
    """See `with_onnx`."""
    import tensorflow as tf

    loaded = tf.saved_model.load(place)
    outputs = loaded.signatures["serving_default"](image=tf.constant(images))
    metadata = json.loads((Path(place) / "assets.extra" / "chexspark.json").read_text())
    return {name: values.numpy() for name, values in outputs.items()}, metadata


READERS = {"onnx": with_onnx, "savedmodel": with_saved_model}


def test_raw_images_get_the_probabilities_of_predict(spark, run, exported, raw_images, tmp_path):
    folder, pixels = raw_images
    scores = predict(spark, images=str(folder), run=str(run), out=str(tmp_path / "scores"))
    rows = {row["image_index"]: row for row in scores.predictions.collect()}
    for name, image in pixels.items():
        found = {}
        for form, reader in READERS.items():
            outputs, _ = reader(exported[form].path, image[None, ..., None])
            assert set(outputs) == {"logits", "probabilities"}
            assert all(a.dtype == np.float32 and a.shape == (1, 3) for a in outputs.values())
            found[form] = outputs["probabilities"][0]
            logits = outputs["logits"][0].astype(float)
            np.testing.assert_allclose(found[form], 1 / (1 + np.exp(-logits)), atol=1e-6)
            expected = [rows[name][f"prob_{finding}"] for finding in FITTED]
            # Some pixels of small.png and wide.png differ by a gray level: 0.002 of a probability.
            np.testing.assert_allclose(found[form], expected, atol=0.005, err_msg=f"{name} {form}")
        np.testing.assert_allclose(found["onnx"], found["savedmodel"], atol=1e-5)


@pytest.mark.parametrize("form", READERS)
def test_what_the_outputs_mean_travels_with_them(exported, form):
    out = Path(exported[form].path).parent
    outputs, metadata = READERS[form](exported[form].path, np.zeros((2, 40, 50, 1), np.uint8))
    assert outputs["logits"].shape == (2, 3)
    assert metadata == {
        "findings": list(FITTED),
        "image": {"size": SIZE, "fit": "stretch", "bit_depth": None},
        "operating_points": EXPECTED,
    }
    for name, value in metadata.items():
        assert json.loads((out / f"{name}.json").read_text()) == value


def test_where_thresholds_come_from(run, tmp_path):
    shutil.copytree(str(run), tmp_path / "run")
    run = run_folder(str(tmp_path / "run"))
    model = best_model(run)
    found = operating_points(run, model)
    assert found.words == "val of S" and len(found.fitted) == len(FITTED)
    tables.write_evaluation(run, "test", facts_of(run) | {"tta": ["flip", "crops"], "by": "study"})
    words = operating_points(run, model).words
    assert words == "val of S, scored with mirror images, crops, of whole studies"
    tables.write_evaluation(run, "test", facts_of(run) | {"models": ["another"]})
    assert operating_points(run, model) is None
    assert points_as_json(None, model.findings) == dict.fromkeys(FITTED)


def test_what_differs_is_refused(run, monkeypatch, tmp_path):
    raw, how = np.full((1, 40, 50, 1), 100, np.uint8), Preparation(SIZE)
    shown = exporting.as_ingested(raw, how)
    assert shown.shape == (1, SIZE, SIZE, 1) and (shown == 100).all()
    monkeypatch.setattr(exporting, "fitted_in_graph", lambda images, how: fitted_in_graph(images, how) + 2)  # fmt: skip
    with pytest.raises(
        RunFailedError, match=r"50 × 40 pixels are fitted otherwise .* 2 gray levels"
    ):
        exporting.as_ingested(raw, how)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["convnext_tiny", "efficientnetv2_s"])
def test_networks_of_other_layers_are_the_same_in_onnx(name, tmp_path):
    import tf_keras as keras

    keras.utils.set_random_seed(0)
    model = build_model(name, 64, 3)
    how = Preparation(64)
    names = {"findings": ["A", "B", "C"]}
    _, scores = exporting.write_onnx(raw_image_function(model, how), names, tmp_path)
    images = exporting.phantoms(64)[..., None]
    difference = exporting.difference_of(scores(images), model(images, training=False).numpy())
    assert difference < exporting.TOLERANCE
