"""What a trained run is used for: new images, maps, other formats."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from chexspark import evaluate, explain, export, predict
from chexspark.errors import UserError
from chexspark.evaluation.explain import picture_stem
from chexspark.evaluation.runs import best_model
from chexspark.findings import FINDINGS
from chexspark.ingestion.images import prepare
from chexspark.preparation import Preparation
from chexspark.run.folder import RunFolder, model_and_digest
from chexspark.storage import Location, locate
from chexspark.text_files import with_checksum

PROBABILITIES = [f"prob_{finding}" for finding in FINDINGS]


@pytest.fixture(scope="module")
def run(untrained_run):
    return untrained_run(0)


@pytest.fixture(scope="module")
def model(run):
    import tf_keras as keras

    return keras.models.load_model((run / "best" / "model.keras").path)


def probabilities(model, images):
    return 1 / (1 + np.exp(-model(np.stack(images)[..., None]).numpy().astype(float)))


def test_images_without_labels(spark, release, run, model, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    names = sorted(path.name for path in (release / "images").iterdir())[:5]
    for name in names:
        shutil.copy(release / "images" / name, folder / name)
    (folder / "empty.png").touch()
    (folder / "text.png").write_text("not an image")
    shutil.copy(folder / names[0], folder / "named.jpg")
    (folder / "labels.csv").write_text("image,patient")
    shutil.copy(folder / names[0], folder / "IM000001")
    names = [*names, "IM000001"]
    result = predict(spark, images=str(folder), run=run.path, out=str(tmp_path / "out.parquet"))
    found = pd.read_parquet(tmp_path / "out.parquet").set_index("image_index")
    assert found.index.tolist() == names and set(found.run) == {run.path}
    stored = [prepare((folder / name).read_bytes(), Preparation(32)).pixels for name in names]
    np.testing.assert_allclose(found[PROBABILITIES], probabilities(model, stored), atol=1e-6)
    refused = pd.read_parquet(tmp_path / "out-quarantine.parquet").set_index("path").reason
    assert {Path(path).name: reason.split(":")[0] for path, reason in refused.items()} == {
        "empty.png": "empty file", "text.png": "not a PNG, JPEG or DICOM file",
        "named.jpg": "extension and content disagree", "labels.csv": "passed over",
    }  # fmt: skip
    assert result.predictions.count() == 6
    with pytest.raises(UserError, match="is there already: give a new or empty folder"):
        predict(None, images=str(folder), run=run.path, out=str(tmp_path / "out.parquet"))


def test_a_member_that_an_archive_has_twice_is_scored_once(spark, release, run, tmp_path):
    image = sorted((release / "images").iterdir())[0]
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for _ in range(2):
            tar.add(image, "images/a.png")
    result = predict(spark, images=str(tmp_path / "a.tar"), run=run.path, out=str(tmp_path / "out"))
    member = f"{tmp_path}/a.tar!images/a.png"
    assert [row.path for row in result.predictions.collect()] == [member]
    assert [tuple(row) for row in result.quarantine.select("path", "reason").collect()] == [
        (member, "duplicate: the archive has this member twice")
    ]


def test_an_image_that_cannot_be_read_is_one_line(release, run, monkeypatch):
    image = sorted((release / "images").iterdir())[0]
    read = Location.read_bytes

    def read_or_fail(place, most=None):
        if place.path == str(image):
            raise OSError("Permission denied")
        return read(place, most)

    monkeypatch.setattr(Location, "read_bytes", read_or_fail)
    with pytest.raises(UserError, match="cannot be used: cannot be read: Permission denied"):
        explain(None, run=run.path, images=str(image))


def test_only_bad_images(spark, run, tmp_path):
    (tmp_path / "a.png").touch()
    with pytest.raises(UserError, match=r"none of 1 images can be used \(1 empty file\)"):
        predict(spark, images=str(tmp_path / "a.png"), run=run.path, out=str(tmp_path / "out"))


def test_maps_of_stored_images_and_of_files(spark, release, store, run, model, tmp_path):
    name = sorted(path.name for path in (release / "images").iterdir())[0]
    stored = explain(spark, run=run.path, data=store.path, images=name, out=str(tmp_path / "a"),
                     findings=["Mass", "Hernia"])  # fmt: skip
    filed = explain(spark, run=run.path, images=str(release / "images" / name),
                    out=str(tmp_path / "b"), findings=["Mass", "Hernia"])  # fmt: skip
    pixels = prepare((release / "images" / name).read_bytes(), Preparation(32)).pixels
    expected = probabilities(model, [pixels])[0]
    for table in (stored, filed):
        assert table.finding.tolist() == ["Mass", "Hernia"]
        np.testing.assert_allclose(table.probability, [expected[4], expected[13]], atol=1e-6)
        for picture in table.picture:
            height, width, _ = cv2.imread(picture).shape
            assert height >= 512 and width == 2 * height
    assert stored.label.notna().all() and filed.label.isna().all()
    with pytest.raises(UserError, match=r"1 of 1 are not in .*, the first x.png"):
        explain(None, run=run.path, data=store.path, images="x.png")


def spoiled(run, folder, change):
    """A copy of a run whose model.keras has another config.json, by `change` of the old one."""
    shutil.copytree(run.path, folder)
    path = folder / "best" / "model.keras"
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(content["config.json"])
    change(config)
    content["config.json"] = json.dumps(config).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, value in content.items():
            archive.writestr(name, value)
    return str(folder)


def test_a_model_with_code_runs_nothing(store, run, tmp_path):
    marker = tmp_path / "marker"
    evil = {"class_name": "Lambda", "module": "keras.layers", "name": "evil", "inbound_nodes": [],
            "config": {"name": "evil", "arguments": {"command": f"touch {marker}"},
                       "function": {"class_name": "function", "module": "os", "config": "system"}}}  # fmt: skip
    place = spoiled(run, tmp_path / "run", lambda config: config["config"]["layers"].append(evil))
    image = str(tmp_path / "x.png")
    (tmp_path / "x.png").write_bytes(cv2.imencode(".png", np.eye(32, dtype=np.uint8) * 255)[1])
    for call in (
        lambda: evaluate(None, data=store.path, run=place),
        lambda: predict(None, images=image, run=place, out=str(tmp_path / "scores")),
        lambda: explain(None, images=image, run=place),
        lambda: export(None, run=place, data=store.path),
    ):
        with pytest.raises(UserError, match="layer evil is a Lambda, which carries code"):
            call()
    assert not marker.exists()


def test_what_a_model_names_is_not_imported(spark, run, tmp_path, monkeypatch):
    marker = tmp_path / "marker"
    (tmp_path / "foreign.py").write_text(f"open({str(marker)!r}, 'w')\nclass Build: pass\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")

    def change(config):
        config.update({"module": "foreign", "class_name": "Build", "registered_name": None})

    place = spoiled(run, tmp_path / "run", change)
    (tmp_path / "x.png").write_bytes(cv2.imencode(".png", np.eye(32, dtype=np.uint8) * 255)[1])
    found = predict(spark, images=str(tmp_path / "x.png"), run=place, out=str(tmp_path / "scores"))
    assert found.predictions.count() == 1 and not marker.exists()


def test_a_best_model_that_training_replaces_meanwhile(run, tmp_path, monkeypatch):
    """Of its two files the first is new already when it is looked at."""
    shutil.copytree(run.path, tmp_path / "run")
    folder = RunFolder(locate(str(tmp_path / "run")))
    _, digest = model_and_digest(folder)
    folder.best_figures.write_text(json.dumps(with_checksum({"model_sha256": "0" * 64})))

    def end_promotion(seconds):
        if seconds:
            folder.best_figures.write_text(json.dumps(with_checksum({"model_sha256": digest})))

    monkeypatch.setattr(time, "sleep", end_promotion)
    assert best_model(folder).digest == digest


def test_a_model_that_is_not_the_one_that_was_trained(run, tmp_path):
    shutil.copytree(run.path, tmp_path / "run")
    (tmp_path / "run" / "best" / "best.json").write_text(json.dumps({"model_sha256": "0" * 64}))
    with pytest.raises(UserError, match="is not the file that training wrote"):
        export(None, run=str(tmp_path / "run"))
    settings = tmp_path / "run" / "config.yaml"
    settings.write_text("layout_version: 2\nmodel: somebody:network\n")
    (tmp_path / "run" / "best" / "best.json").unlink()
    with pytest.raises(UserError, match=r"was trained with somebody:network, .*name it again"):
        export(None, run=str(tmp_path / "run"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["savedmodel", "onnx"])
def test_other_formats_give_the_same_logits(spark, store, run, model, tmp_path, name):
    places = export(spark, run=run.path, data=store.path, formats=name, out=str(tmp_path / "out"))
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 1)).astype(np.uint8)
    if name == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(places[name].path)
        found = session.run(None, {"image": images})[0]
        told = session.get_modelmeta().custom_metadata_map["findings"]
        assert json.loads(told) == list(FINDINGS)
    else:
        import tensorflow as tf

        loaded = tf.saved_model.load(places[name].path).signatures["serving_default"]
        found = loaded(image=tf.constant(images))["logits"].numpy()
    np.testing.assert_allclose(found, model(images).numpy(), atol=1e-4)
    assert json.loads((tmp_path / "out" / "findings.json").read_text()) == list(FINDINGS)


def test_the_best_model_loads_without_chexspark(run):
    code = (
        "import sys, tf_keras; model = tf_keras.models.load_model(sys.argv[1]); "
        "print(model.output_shape, 'chexspark' in sys.modules)"
    )
    command = [sys.executable, "-c", code, (run / "best" / "model.keras").path]
    result = subprocess.run(command, capture_output=True, text=True, cwd="/")
    assert result.stdout.strip() == "(None, 14) False", result.stderr[-1000:]


@pytest.mark.parametrize(
    "name, stem",
    [("a b.png", "a b"), ("../x.png", ".._x-"), ("p1/s1/v.jpg", "p1_s1_v-"), ("a\\b\0.png", "a_b_-"),
     ("x" * 300, "x" * 120 + "-")],
)  # fmt: skip
def test_a_picture_stays_in_its_folder(name, stem):
    found = picture_stem(name)
    assert found.startswith(stem) and "/" not in found and len(found) < 140
    assert (found == stem) == (name == "a b.png")
    assert picture_stem("p1/v.png") != picture_stem("p1_v.png") != picture_stem("p1\\v.png")
