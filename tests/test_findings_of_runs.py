"""Stores and runs with findings of their own: evaluated, reported, predicted, explained, exported."""

import json
import shutil
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from chexspark import evaluate, explain, export, ingest, predict, report
from chexspark.errors import UserError
from chexspark.evaluation.runs import best_model, shared_findings
from chexspark.evaluation.tables import read_evaluation, read_split, write_evaluation
from chexspark.findings import FINDINGS
from chexspark.run.folder import RunFolder, run_folder
from chexspark.storage import locate

OWN = ("Rib fracture", "Mass", "Effusion", "Pleural Thickening, mild", "Infiltration")
BOTH = ("Mass", "Effusion", "Infiltration")


def ingested(spark, release, folder, findings):
    """A store of the release's images with a plain label file: of `findings`, each of NIH's true."""
    nih = pd.read_csv(release / "Data_Entry_2017.csv", index_col=False)
    named = nih["Finding Labels"].str.split("|")
    labels = pd.DataFrame({"image": nih["Image Index"], "patient": nih["Patient ID"]})
    for number, finding in enumerate(findings):
        true = named.map(lambda f, name=finding: name in f).astype(int)
        labels[finding] = true if finding in FINDINGS else (np.arange(len(nih)) // 3 + number) % 2
    labels.to_csv(folder / "labels.csv", index=False)
    ingest(spark, images=str(release / "images"), labels=str(folder / "labels.csv"),
           boxes=str(release / "BBox_List_2017.csv"), findings="columns", out=str(folder / "store"),
           size=32, rows_per_group=10)  # fmt: skip
    return locate(str(folder / "store"))


@pytest.fixture(scope="module")
def own_store(spark, release, tmp_path_factory):
    return ingested(spark, release, tmp_path_factory.mktemp("own"), OWN)


@pytest.fixture(scope="module")
def nih_run(untrained_run):
    return untrained_run(0)


@pytest.fixture(scope="module")
def own_run(untrained_run):
    return untrained_run(1, tuple(reversed(OWN)))


@pytest.mark.slow
def test_a_run_is_scored_on_the_findings_that_the_store_has_too(
    spark, store, own_store, nih_run, tmp_path, capsys
):
    out = run_folder(str(tmp_path / "out"))
    settings = {"run": nih_run.path, "bootstrap": 100}
    found = evaluate(spark, data=own_store.path, out=str(out), **settings)
    shown = capsys.readouterr().out
    note = next(line for line in shown.splitlines() if "findings that all have" in line)
    assert note.startswith("note: scored on the 3 findings that all have: ")
    assert f"the run {nih_run.path} lacks Rib fracture, Pleural Thickening, mild" in note
    assert f"the store {own_store.path} lacks Atelectasis, " in note
    table = found.predictions.toPandas().set_index("image_index").sort_index()
    assert [c for c in table if c.startswith(("prob_", "label_"))] == [
        *(f"prob_{f}" for f in BOTH), *(f"label_{f}" for f in BOTH),
    ]  # fmt: skip
    assert found.metrics.toPandas()["finding"].tolist() == [*BOTH, "mean"]
    assert read_evaluation(out)["test"]["findings"] == list(BOTH)
    whole = evaluate(spark, data=store.path, out=str(tmp_path / "all"), **settings)
    whole = whole.predictions.toPandas().set_index("image_index").sort_index()
    for finding in BOTH:
        assert (table[f"label_{finding}"] == whole[f"label_{finding}"]).all()
        np.testing.assert_allclose(table[f"prob_{finding}"], whole[f"prob_{finding}"], atol=1e-6)
    boxed = read_split(out, "localisation", "test")
    assert set(boxed["finding"]) <= {*BOTH, "mean"} and len(boxed)
    facts = read_evaluation(out)["test"]
    write_evaluation(out, "test", facts | {"synthetic": False})  # published results are of patients
    page = Path(report(run=str(out))).read_text()
    assert "CheXNet v3" in page and "Means only" not in page and "Rib fracture" in page
    assert "Evaluated on 3 findings: Mass, Effusion, Infiltration." in out.model_card.read_text()
    # Scored again, on the store that has all 14: what was said of three is not taken for it.
    again = evaluate(spark, data=store.path, out=str(out), **settings)
    assert again.metrics.count() == 15 and read_evaluation(out)["val"]["findings"] == list(FINDINGS)


@pytest.mark.slow
def test_models_of_an_ensemble_may_differ_in_number_and_order(
    spark, own_store, nih_run, own_run, tmp_path
):
    settings = {"data": own_store.path, "bootstrap": 100}
    runs = [own_run.path, nih_run.path]
    both = evaluate(spark, run=runs, out=str(tmp_path / "both"), **settings)
    tables = [both.predictions.toPandas().sort_values("image_index")]
    for number, run in enumerate(runs):
        one = evaluate(spark, run=run, out=str(tmp_path / str(number)), **settings)
        tables.append(one.predictions.toPandas().sort_values("image_index"))
    assert [c for c in tables[0] if c.startswith("prob_")] == [f"prob_{f}" for f in BOTH]
    assert "prob_Pleural_Thickening__mild" in tables[1] and "label_Rib_fracture" in tables[1]
    for finding in BOTH:
        mean, first, second = (table[f"prob_{finding}"].to_numpy() for table in tables)
        np.testing.assert_allclose(mean, (first + second) / 2, atol=1e-6)


@pytest.mark.slow
def test_two_runs_are_compared_on_what_both_have(spark, own_store, nih_run, own_run, tmp_path):
    settings = {"data": own_store.path, "bootstrap": 100}
    evaluate(spark, run=nih_run.path, out=str(tmp_path / "nih"), **settings)
    out = str(tmp_path / "own")
    evaluate(spark, run=own_run.path, against=str(tmp_path / "nih"), out=out, **settings)
    found = read_split(run_folder(out), "comparison", "test")
    assert found["finding"].tolist() == [*BOTH, "mean"]
    assert read_split(run_folder(out), "metrics", "test")["finding"].tolist() == [*OWN, "mean"]
    strange = pd.DataFrame({"image_index": ["a.png"], "prob_Cyst": [0.5]})
    with pytest.raises(UserError, match="has no scores of Rib fracture, Mass"):
        evaluate(None, run=own_run.path, against=strange, out=out, **settings)


def test_nothing_in_common_is_said_before_spark_starts(own_store, untrained_run, tmp_path):
    run = untrained_run(0, ("Cyst",))
    with pytest.raises(UserError, match=r"no finding is shared .*Rib fracture, .* has Cyst$"):
        evaluate(None, data=own_store.path, run=run.path, out=str(tmp_path / "out"))
    other = untrained_run(0, ("Scar",))
    with pytest.raises(UserError, match=r"no finding is shared .* has Cyst; .* has Scar$"):
        predict(None, images=str(tmp_path), run=[run.path, other.path], out=str(tmp_path / "out"))


def test_what_is_shared_and_who_lacks_what():
    assert shared_findings({"a": ["X", "Y"], "b": ["X", "Y"]}) == (("X", "Y"), None)
    found = shared_findings({"a": ["Y", "X"], "b": ["X", "Z"], "c": ["X", "Y", "Z"]})
    assert found.findings == ("X",)
    assert found.note == "scored on the 1 finding that all have: a lacks Z; b lacks Y"
    many = shared_findings({"a": ["X"], "b": ["X", *(f"F{n}" for n in range(199))]})
    assert many.note.endswith("F11, … (199 in all)") and len(many.note) < 200


def test_a_model_of_another_number_of_outputs_is_one_line(spark, own_store, own_run, tmp_path):
    shutil.copytree(own_run.path, tmp_path / "run")
    lineage = json.loads((tmp_path / "run" / "lineage.json").read_text())
    (tmp_path / "run" / "lineage.json").write_text(
        json.dumps(lineage | {"findings": ["Mass", "Cyst"]})
    )
    with pytest.raises(
        UserError, match=r"has 5 outputs, but the lineage .* names 2 find"
    ) as raised:
        evaluate(spark, data=own_store.path, run=str(tmp_path / "run"), bootstrap=100)
    assert "\n" not in str(raised.value)


@pytest.fixture(scope="module")
def single(spark, release, untrained_run, tmp_path_factory):
    """A store and a run of one finding."""
    folder = tmp_path_factory.mktemp("single")
    return ingested(spark, release, folder, ("Lung/Opacity",)), untrained_run(3, ("Lung/Opacity",))


@pytest.mark.slow
def test_one_finding_goes_all_the_way(spark, release, single, tmp_path):
    store, run = single
    metrics = evaluate(spark, data=store.path, run=run.path, bootstrap=100).metrics.toPandas()
    assert metrics["finding"].tolist() == ["Lung/Opacity", "mean"]
    assert metrics["auroc"][0] == metrics["auroc"][1]
    page = Path(report(run=run.path)).read_text()
    assert "AUROC of Lung/Opacity" in page and "mean AUROC of" not in page
    assert "Beside published results" not in page and "CheXNet v3" not in page
    images = str(release / "images")
    scores = predict(spark, images=images, run=run.path, out=str(tmp_path / "scores"))
    assert [c for c in scores.predictions.columns if c.startswith("prob_")] == ["prob_Lung_Opacity"]
    name = sorted(path.name for path in (release / "images").iterdir())[0]
    drawn = explain(spark, run=run.path, data=store.path, images=name, out=str(tmp_path / "maps"))
    assert drawn["finding"].tolist() == ["Lung/Opacity"] and drawn["label"].isin([0, 1]).all()
    picture = drawn["picture"][0]
    assert picture == str(tmp_path / "maps" / f"{Path(name).stem}-Lung_Opacity.png")
    assert cv2.imread(picture) is not None
    export(spark, run=run.path, data=store.path, formats="savedmodel", out=str(tmp_path / "export"))
    assert json.loads((tmp_path / "export" / "findings.json").read_text()) == ["Lung/Opacity"]


def test_findings_to_draw_are_the_run_s(spark, own_store, nih_run, own_run, release, tmp_path):
    name = sorted(path.name for path in (release / "images").iterdir())[0]
    with pytest.raises(
        UserError, match=r"--findings Rib fractur is none .*; did you mean Rib fracture\?"
    ):
        explain(None, run=own_run.path, images=name, data=own_store.path, findings=["Rib fractur"])
    # A run of 14 on a store of five: a finding that the store has not has no label.
    drawn = explain(spark, run=nih_run.path, images=name, data=own_store.path,
                    findings=["Infiltrate", "Hernia"], out=str(tmp_path))  # fmt: skip
    assert drawn["finding"].tolist() == ["Infiltration", "Hernia"]
    assert drawn["label"][0] in (0, 1) and pd.isna(drawn["label"][1])


@pytest.fixture
def reported(spark, single, tmp_path):
    """An evaluated run, to be damaged."""
    store, run = single
    if not RunFolder(run).evaluation.is_file():
        evaluate(spark, data=store.path, run=run.path, bootstrap=100)
    return run_folder(str(shutil.copytree(run.path, tmp_path / "run")))


@pytest.mark.parametrize("name", ["predictions", "metrics", "subgroups", "examples"])
def test_a_damaged_table_of_an_evaluation_is_one_line(reported, name):
    (file,) = [f for f in reported.table(name, "test").list_files() if f.path.endswith(".parquet")]
    Path(file.path).write_bytes(b"PAR1 no more")
    with pytest.raises(UserError, match=rf"{name}/split=test is damaged \(.*again") as raised:
        report(run=str(reported))
    assert "\n" not in str(raised.value)


def test_a_table_of_other_rows_or_columns_is_one_line(reported):
    metrics = reported.table("metrics", "test")
    table = metrics.read_table()
    metrics.write_table(table.drop(["auroc"]))
    with pytest.raises(UserError, match=r"metrics/split=test is damaged .*auroc.*again"):
        report(run=str(reported))
    metrics.write_table(table.slice(1))
    with pytest.raises(UserError, match="damaged: it has not a row for each finding"):
        report(run=str(reported))
    metrics.write_table(table.drop(["rough"]))
    assert report(run=str(reported)), "an evaluation from before that column"
    text = reported.evaluation.read_text().replace("Lung/Opacity", "Cyst")
    reported.evaluation.write_text(text)
    with pytest.raises(
        UserError, match="predictions/split=test is damaged: it has no column prob_Cyst"
    ):
        report(run=str(reported))


def test_an_evaluation_from_before_findings_were_named_is_of_nih_s(tmp_path):
    run = run_folder(str(tmp_path))
    run.evaluation.write_text(json.dumps({"test": {"runs": ["/r"]}}))
    assert read_evaluation(run)["test"]["findings"] == list(FINDINGS)
    for facts in ([], {"findings": "Mass"}, {"findings": ["Mass", "Mass"]}):
        run.evaluation.write_text(json.dumps({"test": facts}))
        with pytest.raises(UserError, match=r"evaluation\.json is damaged: "):
            read_evaluation(run)


def test_a_model_that_says_other_findings_than_its_run_is_refused(untrained_run, tmp_path):
    """Or what is Mass to the one would be scored as Edema."""
    run = tmp_path / "run"
    shutil.copytree(untrained_run(0, ("Mass", "Edema")).path, run)
    assert best_model(run_folder(str(run))).findings == ("Mass", "Edema"), "it says none"
    with zipfile.ZipFile(run / "best" / "model.keras", "a") as archive:
        archive.writestr("findings.json", json.dumps(["Edema", "Mass"]))
    with pytest.raises(
        UserError, match="lineage names the findings Mass, Edema, and its best model"
    ):
        best_model(run_folder(str(run)))
