"""Scores of runs, of ensembles and of strangers; and what is refused."""

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from sklearn.metrics import roc_auc_score

from chexspark import evaluate, report
from chexspark.errors import RunFailedError, UserError
from chexspark.evaluation.inference import Model, Scorer, task_count
from chexspark.evaluation.job import Evaluation
from chexspark.evaluation.scoring import Scoring, earlier_scores
from chexspark.evaluation.store_split import StoreSplit
from chexspark.evaluation.tables import read_evaluation, read_predictions, read_split
from chexspark.findings import FINDINGS
from chexspark.run.folder import RunFolder, run_folder
from chexspark.run.lineage import read_lineage
from chexspark.run.seen_patients import SeenPatients, patient_hashes, read_seen_patients
from chexspark.storage import locate
from chexspark.store.row_groups import patients_of_split

PROBABILITIES = [f"prob_{finding}" for finding in FINDINGS]


@pytest.fixture(scope="module")
def runs(untrained_run):
    return [untrained_run(seed) for seed in (0, 1)]


@pytest.fixture(scope="module")
def evaluated(spark, store, runs):
    """Predictions and metrics of each run, collected: a second evaluation writes over them."""
    settings = {"data": store.path, "bootstrap": 100}
    found = [evaluate(spark, run=run.path, **settings) for run in runs]
    return [Evaluation(*(frame.toPandas() for frame in evaluation)) for evaluation in found]


@pytest.mark.parametrize(
    "groups, images, size, slots, tasks",
    [(13, 800, 64, 2, 2),  # 400 images each
     (32, 2_000, 64, 2, 6), (400, 25_596, 64, 2, 32), (400, 25_596, 64, 100, 100),
     (13, 800, 224, 2, 13), (400, 25_596, 224, 2, 32), (400, 25_596, 224, 100, 400),
     (2, 100, 64, 8, 2), (400, 25_596, 64, 2**31 - 1, 400)],
)  # fmt: skip
def test_a_task_that_scores_has_work_for_longer_than_it_costs(groups, images, size, slots, tasks):
    assert task_count(groups, images * size**2, slots) == tasks


def test_predictions_say_whose_they_are(evaluated, runs, manifest):
    table = evaluated[0].predictions
    assert len(table) == table.image_index.nunique() == manifest.splits["test"].images
    assert set(table.run) == {runs[0].path} and set(table.split) == {"test"}
    assert set(table.store_fingerprint) == {manifest.fingerprint}
    assert {"view_position", "sex", "age", "follow_up", "patient_id"} <= set(table.columns)


def test_thresholds_come_from_validation_which_is_scored_once(
    spark, store, evaluated, runs, capsys
):
    metrics = evaluated[0].metrics.set_index("finding")
    validation = read_predictions(RunFolder(runs[0]), "val", FINDINGS)
    for finding in FINDINGS:
        truth, score = validation[f"label_{finding}"], validation[f"prob_{finding}"]
        threshold = metrics.threshold_sens90[finding]
        if 0 < truth.sum() < len(truth):
            assert (score[truth == 1] >= threshold).mean() >= 0.9
            assert threshold in set(score)
        else:
            assert np.isnan(threshold) and "validation has no" in metrics.note[finding]
    evaluate(spark, data=store.path, run=runs[0].path, bootstrap=100)
    assert "/val" not in capsys.readouterr().out.split("thresholds and scaling")[0]
    assert "val split" in read_evaluation(RunFolder(runs[0]))["test"]["fitted_on"]


def test_scores_of_versions_that_did_not_ask_what_is_synthetic_are_still_taken(
    evaluated, runs, store, manifest, tmp_path
):
    shutil.copytree(runs[0].path, tmp_path / "run")
    out = run_folder(str(tmp_path / "run"))
    said = json.loads(out.evaluation.read_text())
    assert said["val"].pop("synthetic") is said["test"]["synthetic"] is True
    out.evaluation.write_text(json.dumps(said))
    models = tuple(Model("", digest, FINDINGS, "vgg16", 32) for digest in said["val"]["models"])
    scoring = Scoring(tuple(said["val"]["runs"]), Scorer(models, FINDINGS, (), 8), out)
    real = dataclasses.replace(manifest, synthetic=0)
    assert earlier_scores(StoreSplit(store, real, "val"), scoring) is not None
    assert earlier_scores(StoreSplit(store, manifest, "val"), scoring) is None


def test_subgroups_and_localisation_stand_beside_the_metrics(evaluated, runs):
    subgroups = read_split(RunFolder(runs[0]), "subgroups", "test")
    assert {"sex", "age", "view_position", "follow_up"} >= set(subgroups.subgroup_by) >= {"sex"}
    table = evaluated[0].predictions
    women = subgroups[(subgroups.subgroup == "F") & (subgroups.finding == "mean")].iloc[0]
    assert women.images == (table.sex == "F").sum()
    localisation = read_split(RunFolder(runs[0]), "localisation", "test")
    assert localisation.finding.iloc[-1] == "mean" and localisation.iou.between(0, 1).all()
    examples = read_split(RunFolder(runs[0]), "examples", "test")
    for example in examples.itertuples():
        row = table.set_index("image_index").loc[example.image_index]
        called = row[f"prob_{example.finding}"] >= example.threshold
        expected = {"found": (1, True), "missed": (1, False), "false alarm": (0, True)}
        assert (row[f"label_{example.finding}"], called) == expected[example.kind]


@pytest.mark.slow
def test_a_flip_and_an_ensemble_are_means(spark, store, runs, evaluated, tmp_path):
    settings = {"data": store.path, "bootstrap": 100}
    both = evaluate(spark, run=[r.path for r in runs], out=str(tmp_path / "both"), **settings)
    found = both.predictions.toPandas().sort_values("image_index")
    each = [e.predictions.sort_values("image_index")[PROBABILITIES] for e in evaluated]
    np.testing.assert_allclose(found[PROBABILITIES], (each[0] + each[1]) / 2, atol=1e-6)
    assert set(found.run) == {f"{runs[0].path} + {runs[1].path}"}
    page = Path(report(run=str(tmp_path / "both"))).read_text()
    assert "an ensemble of 2" in page and all(run.path in page for run in runs)
    flipped = evaluate(
        spark, run=runs[0].path, out=str(tmp_path / "flip"), tta=["flip"], **settings
    )
    flipped = flipped.predictions.toPandas().sort_values("image_index")[PROBABILITIES]
    assert 1e-4 < np.abs(flipped.to_numpy() - each[0].to_numpy()).max() < 0.2


def test_two_runs_are_compared_on_the_same_images(spark, store, runs, evaluated, tmp_path):
    evaluate(spark, data=store.path, run=runs[0].path, against=runs[1].path, bootstrap=100,
             out=str(tmp_path / "out"))  # fmt: skip
    found = read_split(run_folder(str(tmp_path / "out")), "comparison", "test").set_index("finding")
    metrics = [e.metrics.set_index("finding") for e in evaluated]
    assert found.auroc["mean"] == pytest.approx(metrics[0].auroc["mean"])
    assert found.auroc_other["mean"] == pytest.approx(metrics[1].auroc["mean"])
    assert set(found.other) == {runs[1].path}


def seen_by(run):
    return read_seen_patients(run, read_lineage(run))


def test_patients_are_found_by_scrypt_of_the_salt_that_the_lineage_has(runs, store, manifest):
    run = RunFolder(runs[0])
    salt = bytes.fromhex(read_lineage(run)["patient_salt"])
    patients = sorted(patients_of_split(store, manifest, "val"))
    expected = {
        hashlib.scrypt(p.encode(), salt=salt, n=1024, r=8, p=1, dklen=32).hex() for p in patients
    }
    seen = seen_by(run)
    assert {h for h, split in seen.splits.items() if split == "val"} == expected
    assert seen.among([*patients, "nobody"]) == ["val"] * len(patients)
    for salt in (5, "xyz", ["00" * 16]):
        with pytest.raises(UserError, match=r"lineage.json is damaged: patient_salt is "):
            read_seen_patients(run, read_lineage(run) | {"patient_salt": salt})
    plain = hashlib.sha256(b"A").hexdigest()  # as runs of before have it
    assert SeenPatients({plain: "train"}, None).among(["A", "B"]) == ["train"]


def test_patients_that_a_run_has_seen_are_not_scored(spark, store, manifest, runs, tmp_path):
    seen = manifest.splits["train"].patients
    with pytest.raises(UserError, match=rf"was trained on {seen} of its {seen} patients"):
        evaluate(None, data=store.path, run=runs[0].path, split="train")
    run = tmp_path / "run"
    shutil.copytree(runs[0].path, run)
    table = seen_by(run_folder(str(run)))
    assert set(table.splits.values()) == {"train", "val"}
    (run / "trained_patients" / "part-00000.parquet").unlink()
    (run / "trained_patients").rmdir()
    with pytest.raises(UserError, match="trained_patients is missing"):
        evaluate(None, data=store.path, run=str(run))
    lineage = json.loads((run / "lineage.json").read_text())
    older = {name: value for name, value in lineage.items() if name != "trained_patients"}
    (run / "lineage.json").write_text(json.dumps(older | {"store_fingerprint": "another"}))
    with pytest.raises(UserError, match="it cannot be checked that they share none"):
        evaluate(None, data=store.path, run=str(run))
    locate(str(run / "trained_patients")).write_table(
        pa.table({"patient_hash": [*patient_hashes("1", None)], "split": ["train"]})
    )
    (run / "lineage.json").write_text(json.dumps(lineage))
    with pytest.raises(UserError, match="one of the two was changed"):
        evaluate(None, data=store.path, run=str(run))


def test_patients_that_chose_the_best_epoch_are_not_scored_as_test(store, manifest, runs):
    from chexspark.evaluation.seen_patients_check import check_patients

    seen = seen_by(RunFolder(runs[0]))
    val = patients_of_split(store, manifest, "val")
    with pytest.raises(UserError, match=f"was chosen on {len(val)} of its {len(val)} patients"):
        check_patients("run", seen, val, "--data", False)
    check_patients("run", seen, val, "--data", True)


def test_a_damaged_store_is_not_scored(spark, store, manifest, runs, tmp_path):
    shutil.copytree(store.path, tmp_path / "store")
    file = tmp_path / "store" / manifest.splits["test"].files[0].path
    content = bytearray(file.read_bytes())
    content[2000] ^= 1
    file.write_bytes(content)
    with pytest.raises(
        RunFailedError,
        match=rf"scoring test stopped: .*DamagedStoreError: .*{file.name}, row group",
    ):
        evaluate(spark, data=str(tmp_path / "store"), run=runs[0].path, out=str(tmp_path / "out"))


@pytest.fixture
def given(release, tmp_path):
    """Scores in the form of published ones, with labels beside them, in another order."""
    labels = pd.read_csv(release / "Data_Entry_2017.csv", index_col=False)
    random = np.random.default_rng(0)
    table = pd.DataFrame({"Image Index": labels["Image Index"]})
    for finding in reversed(FINDINGS):
        truth = labels["Finding Labels"].str.split("|").map(lambda f, name=finding: name in f)
        table[f"prob_{finding}"] = (random.random(len(table)) + truth) / 2
        table[finding] = truth.astype(int)
    return table.sample(frac=1, random_state=0).reset_index(drop=True)


@pytest.mark.parametrize("form", ["csv", "parquet", "pandas", "spark"])
def test_scores_of_any_form(spark, given, release, tmp_path, form):
    settings = {"labels": str(release / "Data_Entry_2017.csv"), "out": str(tmp_path / "out")}
    path = str(tmp_path / "scores")
    if form == "csv":
        given.to_csv(path)
    elif form == "parquet":
        given.to_parquet(path)
    scores = {"pandas": given, "spark": None}.get(form, path)
    scores = spark.createDataFrame(given) if form == "spark" else scores
    metrics = evaluate(spark, predictions=scores, bootstrap=100, **settings).metrics.toPandas()
    metrics = metrics.set_index("finding")
    for finding in FINDINGS:
        expected = roc_auc_score(given[finding], given[f"prob_{finding}"])
        assert metrics.auroc[finding] == pytest.approx(expected, abs=1e-12)
    assert metrics.threshold_youden.isna().all()
    page = Path(report(run=str(tmp_path / "out"))).read_text()
    assert f"<b>{metrics.auroc['mean']:.3f}</b>" in page and "No thresholds" in page


def test_columns_without_a_prefix_and_validation_scores(spark, given, release, tmp_path):
    plain = given.drop(columns=list(FINDINGS)).rename(columns=lambda c: c.removeprefix("prob_"))
    first = plain["Image Index"].str[:8].isin(sorted(set(plain["Image Index"].str[:8]))[:15])
    settings = {"labels": str(release / "Data_Entry_2017.csv"), "out": str(tmp_path / "out")}
    found = evaluate(spark, predictions=plain[~first], validation_predictions=plain[first],
                     bootstrap=100, **settings).metrics.toPandas()  # fmt: skip
    assert found.threshold_sens90.notna().sum() > 7
    with pytest.raises(UserError, match=r"share \d+ patients"):
        evaluate(None, predictions=plain, validation_predictions=plain[first], **settings)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t.rename(columns={"prob_Mass": "prob_Maas"}), "no scores of Mass, but a column prob_Maas"),
        (lambda t: t[["Image Index"]], "has no scores of Atelectasis, .*: give a column prob_Atelectasis"),
        (lambda t: t.rename(columns={"Image Index": "image"}), "has no column image_index or Image Index"),
        (lambda t: t[:0], "has no rows"),
        (lambda t: pd.concat([t, t[:2]]), "2 images are there more than once"),
        (lambda t: t.assign(prob_Mass=np.nan), "96 scores are not numbers, the first nan"),
        (lambda t: t.assign(prob_Mass="high"), "96 scores are not numbers, the first 'high'"),
        (lambda t: t.assign(prob_Mass=np.inf), "scores are not numbers"),
        (lambda t: t.assign(**{"Image Index": "x" + t["Image Index"]}), "96 of 96 images have no label in"),
        (lambda t: t.assign(**{"Image Index": None}), "96 rows have no Image Index"),
    ],
)  # fmt: skip
def test_bad_scores_are_refused_in_words(given, release, tmp_path, change, message):
    settings = {"labels": str(release / "Data_Entry_2017.csv"), "out": str(tmp_path / "out")}
    with pytest.raises(UserError, match=message):
        evaluate(None, predictions=change(given), **settings)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content, message", [(b"", "is empty"), (b"\x00\xff\x01", "neither"), (b"PAR1", "neither")])  # fmt: skip
def test_files_that_are_no_scores(tmp_path, content, message):
    (tmp_path / "scores").write_bytes(content)
    with pytest.raises(UserError, match=message):
        evaluate(None, predictions=str(tmp_path / "scores"), labels="x", out=str(tmp_path / "out"))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"predictions": "f", "data": "d", "out": "o"}, "leave out --data"),
        ({"predictions": "f"}, "--out is missing"),
        ({"run": "r"}, "--data is missing"),
        ({"data": "d", "run": ["a", "b"]}, "an ensemble of 2 runs needs a folder of its own"),
        ({"data": "d", "run": ["a", "a"], "out": "o"}, "names a run twice"),
        ({"data": "d", "run": "r", "labels": "l"}, "--labels goes with --predictions only"),
    ],
)
def test_settings_that_do_not_go_together(settings, message):
    with pytest.raises(UserError, match=message):
        evaluate(None, **settings)


def test_a_map_and_its_logit_agree(spark, store, manifest, runs):
    import tf_keras as keras

    from chexspark.evaluation.maps import Mapper, StoredImages, map_stored
    from chexspark.evaluation.runs import best_model
    from chexspark.store.row_groups import image_names, row_groups

    groups = row_groups(store, manifest, "test")
    names = frozenset(image_names(groups[0])[:3])
    run = RunFolder(runs[0])
    wanted = StoredImages(names, names, manifest.preparation, manifest.findings)
    found = map_stored(spark, groups, wanted, Mapper(best_model(run), 2))
    model = keras.models.load_model(run.best_model.path, compile=False)
    bias = model.get_layer("logits").bias.numpy()
    assert set(found) == names
    for image in found.values():
        logits = model(image.pixels[None, ..., None]).numpy()[0]
        np.testing.assert_allclose(image.maps.mean((1, 2)) + bias, logits, atol=1e-4)
        assert image.maps.shape[0] == 14 and image.placing.width == manifest.image_size
        assert (image.map_of("Mass") == image.maps[4]).all() and set(image.labels) == set(FINDINGS)
