"""Images that are not square, and 12-bit ones in 16-bit PNGs: through all commands alike."""

import json
import shutil

import cv2
import numpy as np
import pandas as pd
import pytest

from chexspark import evaluate, explain, export, ingest, predict
from chexspark.config import IngestConfig
from chexspark.errors import UserError
from chexspark.evaluation.runs import best_model
from chexspark.ingestion.job import NIH, with_preparation
from chexspark.ingestion.label_form_file import find_form
from chexspark.run.best import save_best
from chexspark.run.folder import run_folder
from chexspark.run.lineage import preparation_of, read_lineage
from chexspark.storage import locate
from chexspark.store.manifest import read_manifest
from chexspark.text_files import with_checksum
from chexspark.training.rank import lineage_of

FINDINGS = ("Mass", "Nodule")
SIZE = 32
NAMES = [f"{i:02}.png" for i in range(12)]
BLOCK = 2  # an image has 64 × 32 pixels, and their means are those of the stored ones
FAINT = 1000  # the highest value, of 10 bits; the detector has 12


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """12 images of 64 × 32 pixels of 16 bits, of a patient each, with labels, a split and boxes."""
    folder = tmp_path_factory.mktemp("wide")
    (folder / "images").mkdir()
    chance = np.random.Generator(np.random.PCG64(5))
    for name in NAMES:
        values = chance.integers(100, FAINT, (16, 32)).astype(np.uint16)
        values[0, 0] = FAINT - 1
        cv2.imwrite(str(folder / "images" / name), np.kron(values, np.ones((2, 2), np.uint16)))
    patients = [f"w{i:02}" for i in range(12)]
    pd.DataFrame(
        {"image": NAMES, "patient": patients, "Mass": [0, 1] * 6, "Nodule": [1, 0, 0] * 4}
    ).to_csv(folder / "labels.csv", index=False)
    split = ["train"] * 4 + ["val"] * 4 + ["test"] * 4
    pd.DataFrame({"patient": patients, "split": split}).to_csv(folder / "split.csv", index=False)
    boxes = [(name, "Mass", 16, 8, 16, 16) for name in NAMES]
    boxes[9] = (NAMES[9], "Mass", 2, 2, 10, 10)  # a crop has columns 16 to 48
    pd.DataFrame(
        boxes, columns=["Image Index", "Finding Label", "Bbox [x", "y", "w", "h]"]
    ).to_csv(folder / "boxes.csv", index=False)  # fmt: skip
    return folder


def settings(wide, out, **more):
    return {"images": str(wide / "images"), "labels": str(wide / "labels.csv"), "out": str(out),
            "boxes": str(wide / "boxes.csv"), "split_file": str(wide / "split.csv"), "size": SIZE,
            "findings": list(FINDINGS)} | more  # fmt: skip


@pytest.fixture(scope="module")
def stores(spark, wide, tmp_path_factory):
    """Fit → store; padded by default, and all of 12 bits."""
    folder = tmp_path_factory.mktemp("stores")
    for fit in ("pad", "stretch", "crop"):
        given = {} if fit == "pad" else {"fit": fit}
        ingest(spark, **settings(wide, folder / fit, bit_depth=12, **given))
    return {fit: locate(str(folder / fit)) for fit in ("pad", "stretch", "crop")}


@pytest.fixture(scope="module")
def run_of(untrained_run, tmp_path_factory):
    """A function from a preparation's fit and bit depth to a run."""

    def make(**how):
        folder = tmp_path_factory.mktemp("runs") / "run"
        shutil.copytree(made.path, folder)
        lineage = json.loads((folder / "lineage.json").read_text())
        (folder / "lineage.json").write_text(json.dumps(lineage | how))
        return str(folder)

    made = untrained_run(0, FINDINGS)
    return make


def expected(wide, name, fit):
    """Stored pixels by arithmetic: 12 bits to 8, then means."""
    values = cv2.imread(str(wide / "images" / name), cv2.IMREAD_UNCHANGED).astype(float)
    gray = np.floor(values * 255 / 4095 + 0.5)
    small = gray.reshape(16, 2, 32, 2).mean(axis=(1, 3))
    if fit == "pad":
        return np.vstack([np.zeros((8, 32)), small, np.zeros((8, 32))])
    if fit == "stretch":
        return gray.reshape(32, 1, 32, 2).mean(axis=(1, 3))
    return gray[:, 16:48]


@pytest.mark.parametrize("fit", ["pad", "stretch", "crop"])
def test_a_store_holds_its_images_so_and_says_it(spark, wide, stores, fit):
    store, manifest = stores[fit], read_manifest(stores[fit])
    assert (manifest.fit, manifest.bit_depth, manifest.not_square) == (fit, 12, 12)
    assert (manifest.settings["fit"], manifest.settings["bit_depth"]) == (fit, 12)
    assert manifest.original_modes == {"I;16 of 12 bits": 12}
    rows = [r for s in ("train", "val", "test") for r in spark.read.parquet((store / s).spark_uri).collect()]  # fmt: skip
    assert sorted(row.image_index for row in rows) == NAMES
    for row in rows:
        pixels = np.frombuffer(row.image[-SIZE * SIZE :], np.uint8).reshape(SIZE, SIZE)
        right = expected(wide, row.image_index, fit)
        np.testing.assert_allclose(pixels, right, atol=0.51)
        picture = right[8:24] if fit == "pad" else right
        assert abs(row.pixel_mean - picture.mean()) < 0.1 > abs(row.pixel_std - picture.std())
    cut = manifest.unmatched.get("box outside the middle that a crop keeps", 0)
    assert manifest.boxes == 12 and cut == (1 if fit == "crop" else 0)


def test_padding_makes_no_pictures_alike_or_blank(wide, stores):
    assert read_manifest(stores["pad"]).duplicates == {} and not read_manifest(stores["pad"]).quarantined  # fmt: skip


@pytest.mark.parametrize(
    "fit", ["pad", *(pytest.param(fit, marks=pytest.mark.slow) for fit in ("stretch", "crop"))]
)
def test_the_same_file_gives_the_same_probability_by_every_way(spark, wide, stores, run_of, fit, tmp_path):  # fmt: skip
    run = run_of(fit=fit, bit_depth=12)
    columns = ["prob_Mass", "prob_Nodule"]
    table = evaluate(spark, data=stores[fit].path, run=run, out=str(tmp_path / "e"), bootstrap=100).predictions.toPandas()  # fmt: skip
    filed = predict(spark, images=str(wide / "images"), run=run, out=str(tmp_path / "p")).predictions.toPandas()  # fmt: skip
    table, filed = (each.set_index("image_index")[columns] for each in (table, filed))
    assert len(table) == 4 and len(filed) == 12
    np.testing.assert_allclose(filed.loc[table.index], table, atol=1e-6)
    name = table.index[0]
    drawn = [
        explain(
            spark, run=run, images=images, findings=["Mass"], out=str(tmp_path / str(n)), **more
        )
        for n, (images, more) in enumerate(
            [(name, {"data": stores[fit].path}), (str(wide / "images" / name), {})]
        )
    ]
    for found in drawn:
        np.testing.assert_allclose(found.probability, table.prob_Mass[name], atol=1e-6)
    shapes = [cv2.imread(found.picture[0]).shape[:2] for found in drawn]
    assert shapes == [(512, 1024), (512, 2048)], "of a file the picture is the original"
    others = predict(spark, images=str(wide / "images" / name), run=run_of(fit=fit), out=str(tmp_path / "q"))  # fmt: skip
    brighter = others.predictions.toPandas()[columns].to_numpy()
    assert np.abs(brighter - table.loc[[name]]).to_numpy().max() > 1e-4, "by the bits in use"
    localisation = pd.read_parquet(tmp_path / "e" / "localisation")
    assert localisation.groupby("finding").boxes.max()["Mass"] == (3 if fit == "crop" else 4)


def test_a_store_of_another_fit_is_refused_where_it_makes_a_difference(stores, store, run_of, tmp_path):  # fmt: skip
    with pytest.raises(UserError, match=r"12 images that were not square.*by --fit pad, but .* was trained with --fit crop: ingest with --fit crop"):  # fmt: skip
        evaluate(None, data=stores["pad"].path, run=run_of(fit="crop"), out=str(tmp_path))
    with pytest.raises(UserError, match="--fit stretch: ingest with"):  # a run that does not say it
        evaluate(None, data=stores["pad"].path, run=run_of(), out=str(tmp_path))
    assert read_manifest(store).fit == "stretch" and read_manifest(store).not_square == 0
    with pytest.raises(UserError, match="seen"):  # which is checked later: squares are alike in all
        evaluate(None, data=store.path, run=run_of(fit="crop"), split="train")


def test_runs_of_several_preparations_are_no_ensemble(wide, run_of, tmp_path):
    def score(*runs, **more):
        predict(None, images=str(wide / "images"), run=runs, out=str(tmp_path / "x"), **more)

    with pytest.raises(UserError, match=r"an ensemble needs one fit, but .* has pad, .* has crop"):
        score(run_of(fit="pad"), run_of(fit="crop"))
    with pytest.raises(
        UserError, match=r"one bit depth, but .* has none, .* has 12; give --bit-depth"
    ):
        score(run_of(), run_of(bit_depth=12))


def test_values_beyond_the_bit_depth_are_refused(spark, wide, run_of, tmp_path):
    predict(spark, images=str(wide / "images" / NAMES[0]), run=run_of(), out=str(tmp_path / "a"), bit_depth=10)  # fmt: skip
    with pytest.raises(UserError, match=r"none of 1 images can be used \(1 beyond the bit depth\)"):
        predict(spark, images=str(wide / "images" / NAMES[0]), run=run_of(), out=str(tmp_path / "b"),
                bit_depth=9)  # fmt: skip
    with pytest.raises(UserError, match=r"values up to 999, and 9 bits end at 511"):
        explain(None, run=run_of(bit_depth=9), images=str(wide / "images" / NAMES[0]))
    with pytest.raises(UserError, match="--bit-depth is 17, but must be at most 16"):
        ingest(None, **settings(wide, tmp_path / "c", bit_depth=17))


def test_what_is_not_given_is_that_of_the_store(wide, stores, spark, tmp_path, caplog):
    copy = tmp_path / "store"
    shutil.copytree(stores["crop"].path, copy)
    ingest(None, **settings(wide, copy, append=True))
    assert "nothing to do" in caplog.text
    for given, fault in (({"fit": "pad"}, "fit crop there, pad here"), ({"bit_depth": 11}, "bit_depth 12 there, 11 here")):  # fmt: skip
        with pytest.raises(UserError, match=fault):
            ingest(None, **settings(wide, copy, append=True, **given))
    with pytest.raises(UserError, match="bit_depth 12 there, None here"):
        ingest(None, **settings(wide, copy))
    facts = json.loads((copy / "dataset.json").read_text())
    for name in ("fit", "bit_depth", "not_square", "burned_in"):
        facts.pop(name)
    facts["settings"] = {
        n: v for n, v in facts["settings"].items() if n not in ("fit", "bit_depth")
    }
    (copy / "dataset.json").write_text(json.dumps(with_checksum(facts)))
    assert read_manifest(locate(str(copy))).fit == "stretch", "a store of before"
    ingest(None, **settings(wide, copy, append=True))
    (copy / "dataset.json").write_text(json.dumps(with_checksum(facts | {"fit": "fill"})))
    with pytest.raises(UserError, match=r"is damaged .*fit is 'fill'"):
        read_manifest(locate(str(copy)))


def test_nih_s_images_are_stretched_and_others_padded():
    config = IngestConfig(images=("a",), labels="b", out="c")
    assert with_preparation(config, None, NIH).fit == "stretch"
    assert with_preparation(config, None, "CheXpert").fit == "pad"
    assert find_form("nih").name == NIH


@pytest.mark.slow
def test_a_run_and_its_model_tell_how_images_are_made(spark, stores, run_of, tmp_path, capsys):
    manifest = read_manifest(stores["pad"])
    run = run_folder(run_of())
    lineage = lineage_of(stores["pad"].path, manifest, ("", ""), [])
    run.lineage.write_text(json.dumps(lineage))
    assert preparation_of(read_lineage(run)) == manifest.preparation
    import tf_keras as keras

    save_best(keras.models.load_model(run.best_model.path), run, {"epoch": 0}, FINDINGS, manifest.preparation)  # fmt: skip
    run.waiting_model.move_to(run.best_model)
    best_model(run)
    export(spark, run=str(run), formats=["onnx"], out=str(tmp_path))
    said = {"size": SIZE, "fit": "pad", "bit_depth": 12}
    assert json.loads((tmp_path / "image.json").read_text()) == said
    told = capsys.readouterr().out
    assert "thresholds and calibration: none: run chexspark evaluate first" in told
    points = json.loads((tmp_path / "operating_points.json").read_text())
    assert points == dict.fromkeys(FINDINGS)
    import onnx

    properties = {p.key: p.value for p in onnx.load(tmp_path / "model.onnx").metadata_props}
    assert json.loads(properties["image"]) == said
    run.lineage.write_text(json.dumps(lineage | {"fit": "crop"}))
    with pytest.raises(UserError, match="32 pixels, fit crop, bit depth 12, and its best model of 32 pixels, fit pad"):  # fmt: skip
        best_model(run)
    run.lineage.write_text(json.dumps(lineage | {"bit_depth": 99}))
    with pytest.raises(UserError, match="is damaged: bit depth is 99"):
        read_lineage(run)
