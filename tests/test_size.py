"""One store for several sizes of network: images are reduced alike in training, evaluation, prediction and exports."""

import json

import cv2
import numpy as np
import pandas as pd
import pytest
import small_network

from chexspark import evaluate, explain, export, ingest, predict, train
from chexspark.cluster.job import check_inputs
from chexspark.cluster.recipe_check import differences
from chexspark.config import TrainConfig
from chexspark.data.plan import RankFacts, fixed_plan
from chexspark.data.reader import Cache, SplitReader
from chexspark.errors import UserError
from chexspark.evaluation import inference
from chexspark.evaluation.inference import Model, Scorer, probabilities_of
from chexspark.evaluation.runs import best_model
from chexspark.findings import FINDINGS
from chexspark.phantom import write_release
from chexspark.preparation import Preparation
from chexspark.reduction import reduced
from chexspark.run.best import model_preparation, save_best
from chexspark.run.folder import run_folder
from chexspark.settings import build


def test_a_pixel_is_the_mean_of_the_area_that_it_covers():
    image = np.array(
        [[[10, 20, 30, 40], [30, 40, 50, 60], [0, 0, 255, 255], [0, 0, 255, 255]]], np.uint8
    )
    assert reduced(image, 2).tolist() == [[[25, 45], [0, 255]]]
    # 3 to 2: each covers a whole pixel and half of its neighbour, down and across.
    third = np.array([[[90, 0, 0], [0, 0, 0], [0, 0, 180]]], np.uint8)
    assert reduced(third, 2).tolist() == [[[40, 0], [0, 80]]]
    assert reduced(image, 4) is image
    with pytest.raises(ValueError, match="images of 4 pixels are smaller than 8"):
        reduced(image, 8)


def test_a_reader_reduces_what_is_stored_and_keeps_it_so(store, manifest):
    plan = fixed_plan(SplitReader(store, manifest, "train").row_groups, 7, RankFacts(0, 1))
    whole = [b.images.copy() for b in SplitReader(store, manifest, "train").batches(plan)]
    reader = SplitReader(store, manifest, "train", Cache(1 << 20), 20)
    for _ in range(2):  # from storage, and from memory
        for batch, stored in zip(reader.batches(plan), whole, strict=True):
            real = batch.weights > 0
            assert batch.images.shape == (7, 20, 20)
            np.testing.assert_array_equal(batch.images[real], reduced(stored, 20)[real])
    assert reader.cache.kept and {p.images.shape[1] for p in reader.cache.kept.values()} == {20}


def test_models_of_several_sizes_see_the_same_images(monkeypatch):
    import tensorflow as tf

    def mean(pixels):
        assert pixels.dtype == tf.uint8
        shown.append(pixels.shape[1])
        return tf.reduce_mean(tf.cast(pixels, tf.float32), (1, 2)) / 100 - 1

    shown = []
    monkeypatch.setattr(inference, "task_device", lambda: "/CPU:0")
    monkeypatch.setattr(inference, "load_models", lambda *_: (mean, mean))
    models = tuple(Model("/m", "digest", ("Mass",), "vgg16", size) for size in (8, 4))
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8)).astype(np.uint8)
    found = probabilities_of(images, Scorer(models, ("Mass",), (), 3))
    assert shown == [8, 4]
    logits = [
        each.mean((1, 2)).astype(np.float64) / 100 - 1 for each in (images, reduced(images, 4))
    ]
    expected = np.mean([1 / (1 + np.exp(-each)) for each in logits], 0)
    np.testing.assert_allclose(found[:, 0], expected, rtol=1e-5)


def config_of(store, tmp_path, **more):
    return build(
        TrainConfig, {"data": store.path, "run": str(tmp_path / "run"), "dry_run": True} | more
    )


def test_more_than_is_stored_is_refused_and_as_much_is_nothing(store, tmp_path):
    with pytest.raises(UserError, match="--size 64 is more than the 32 pixels of the images in"):
        check_inputs(config_of(store, tmp_path, size=64))
    with pytest.raises(UserError, match="--size"):
        config_of(store, tmp_path, size=31)
    assert check_inputs(config_of(store, tmp_path, size=32))[0].size is None


def test_a_recipe_for_smaller_images_names_the_remedy():
    config = build(TrainConfig, {"data": "d", "run": "r", "recipe": "chexnet", "weights": "none"})
    assert differences(config, 224, FINDINGS, 320) == []
    assert differences(config, 320, FINDINGS, 320) == [
        "--recipe=chexnet is for images of 224 pixels, and these have 320 (--size=224 reduces them)"
    ]


def test_lineage_and_model_must_tell_of_one_size(untrained_run):
    import tf_keras as keras

    run = run_folder(str(untrained_run(3)))
    model = keras.models.load_model(run.best_model.path)
    lineage = json.loads(run.lineage.read_text())
    save_best(model, run, {"epoch": 0}, FINDINGS, Preparation(64), 32)
    run.waiting_model.move_to(run.best_model)
    assert model_preparation(run.best_model) == (Preparation(64), 32)
    run.lineage.write_text(json.dumps(lineage | {"image_size": 64, "network_size": 32}))
    assert best_model(run).size == 32
    run.lineage.write_text(json.dumps(lineage | {"image_size": 64}))
    with pytest.raises(UserError, match="images of 64 pixels, fit stretch, and its best model of 64 pixels, fit stretch, reduced to 32"):  # fmt: skip
        best_model(run)
    for wrong in (65, 0, "32", True):
        run.lineage.write_text(json.dumps(lineage | {"image_size": 64, "network_size": wrong}))
        with pytest.raises(UserError, match="is damaged"):
            best_model(run)


@pytest.mark.slow
def test_a_run_of_a_smaller_size_is_scored_shown_and_exported_alike(spark, tmp_path, monkeypatch):
    folder, store = tmp_path / "nih", tmp_path / "store"
    write_release(out=str(folder), images=80, size=96, seed=2)
    ingest(spark, images=str(folder / "images"), labels=str(folder / "Data_Entry_2017.csv"),
           boxes=str(folder / "BBox_List_2017.csv"), split_lists=str(folder), split="official", out=str(store), size=64)  # fmt: skip
    runs = [str(tmp_path / "small"), str(tmp_path / "whole")]
    network = small_network.written(tmp_path, monkeypatch)
    common = {
        "data": str(store),
        "model": network,
        "epochs": 1,
        "batch_size": 8,
        "num_proc": 1,
        "threads": 1,
    }
    train(spark, run=runs[0], size=40, **common)
    train(spark, run=runs[1], **common)
    assert json.loads((tmp_path / "small" / "lineage.json").read_text())["network_size"] == 40
    with pytest.raises(UserError, match="size"):
        train(spark, run=runs[0], **(common | {"epochs": 2}))

    import tf_keras as keras

    stored = (
        spark.read.parquet(str(store / "test"))
        .select("image_index", "image")
        .toPandas()
        .set_index("image_index")
    )
    images = np.stack(
        [np.frombuffer(image[-64 * 64 :], np.uint8).reshape(64, 64) for image in stored["image"]]
    )
    small = np.stack(
        [cv2.resize(image, (40, 40), interpolation=cv2.INTER_AREA) for image in images]
    )
    logits = [
        keras.models.load_model(f"{run}/best/model.keras")(shown[..., None])
        .numpy()
        .astype(np.float64)
        for run, shown in zip(runs, (small, images), strict=True)
    ]
    expected = [pd.DataFrame(1 / (1 + np.exp(-each)), stored.index, FINDINGS) for each in logits]
    columns = [f"prob_{name}" for name in FINDINGS]
    for given, out, wanted in (
        ((runs[0],), None, expected[0]),
        (tuple(runs), str(tmp_path / "both"), (expected[0] + expected[1]) / 2),
    ):
        found = evaluate(spark, data=str(store), run=given, out=out, model=network)
        table = found.predictions.toPandas().set_index("image_index")[columns]
        np.testing.assert_allclose(table.loc[wanted.index], wanted, atol=1e-6)
    predict(
        spark,
        images=str(folder / "images"),
        run=runs[0],
        model=network,
        out=str(tmp_path / "scores"),
    )
    scores = pd.read_parquet(tmp_path / "scores").set_index("image_index")[columns]
    np.testing.assert_allclose(scores.loc[expected[0].index], expected[0], atol=1e-6)
    made = export(spark, run=runs[0], model=network, formats=["onnx"])
    assert (
        json.loads((tmp_path / "small" / "export" / "image.json").read_text())["network_size"] == 40
    )
    import onnxruntime

    session = onnxruntime.InferenceSession(made["onnx"].path)
    name = stored.index[0]
    original = cv2.imread(str(folder / "images" / name), cv2.IMREAD_GRAYSCALE)
    (shown,) = session.run(["probabilities"], {"image": original[None, ..., None]})
    np.testing.assert_allclose(
        shown[0], expected[0].loc[name], atol=2e-3
    )  # a gray level at most, here and there
    made = explain(
        spark,
        run=runs[0],
        model=network,
        data=str(store),
        images=[name],
        out=str(tmp_path / "maps"),
    )
    assert list((tmp_path / "maps").rglob("*.png"))
