"""Stores of any findings go the whole way: ingest, train, evaluate, report, predict, explain, export."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from chexspark import evaluate, explain, export, ingest, predict, report, train
from chexspark.errors import UserError
from chexspark.findings import FINDINGS, column_name
from chexspark.ingestion.labels import read_labels
from chexspark.run.folder import run_folder
from chexspark.run.history import read_history
from chexspark.storage import locate

# A name of its own → the sign of the phantoms that stands for it.
OWN = {"Lung Opacity": "Infiltration", "Mass": "Mass", "Line/Tube": "Fibrosis", "Edema": "Edema",
       "Größe": "Cardiomegaly"}  # fmt: skip
FIVE = ("Hernia", "Mass", "Edema", "Effusion", "Nodule")  # NIH's names in another order


def write_labels(release, folder, signs):
    """A plain label file of `release`: a column per name, after the signs that stand for them."""
    lines = [",".join(["image", "patient", *signs])]
    for row in read_labels(locate(str(release / "Data_Entry_2017.csv"))).rows.itertuples():
        has = dict(zip(FINDINGS, map(str, row.labels), strict=True))
        lines.append(",".join([row.image_index, row.patient_id, *(has[s] for s in signs.values())]))
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return str(folder / "labels.csv")


@pytest.fixture(scope="module")
def make_store(spark, release, tmp_path_factory):
    """A function from names and their signs to a store, split as `store` is."""

    def make(signs):
        folder = tmp_path_factory.mktemp("own")
        ingest(
            spark, images=str(release / "images"), labels=write_labels(release, folder, signs),
            findings="columns", boxes=str(release / "BBox_List_2017.csv"), out=str(folder / "store"),
            size=32, rows_per_group=10,
        )  # fmt: skip
        return str(folder / "store")

    return make


@pytest.mark.slow
@pytest.mark.parametrize("signs", [OWN, {"Lung Opacity": "Infiltration"}], ids=["five", "one"])
def test_own_findings_go_the_whole_way(spark, release, make_store, tmp_path, signs):
    store, run, names = make_store(signs), str(tmp_path / "run"), list(signs)
    columns = [column_name(name) for name in names]
    train(spark, data=store, run=run, model="vgg16", epochs=1, batch_size=8, num_proc=2, threads=1)
    lineage = json.loads((tmp_path / "run" / "lineage.json").read_text())
    assert lineage["findings"] == names
    history = read_history(run_folder(run))
    assert [c for c in history if c.startswith("val_auroc_")] == [f"val_auroc_{c}" for c in columns]

    predictions, metrics = evaluate(spark, data=store, run=run, bootstrap=100)
    table = predictions.toPandas()
    found = [c.removeprefix("prob_") for c in table if c.startswith("prob_")]
    assert found == columns == [c.removeprefix("label_") for c in table if c.startswith("label_")]
    assert [r.finding for r in metrics.select("finding").collect()] == [*names, "mean"]
    truth = read_labels(locate(str(release / "Data_Entry_2017.csv"))).rows.set_index("image_index")
    for name, column in zip(names, columns, strict=True):
        expected = truth.loc[table["image_index"], "labels"].str[FINDINGS.index(signs[name])]
        assert table[f"label_{column}"].tolist() == expected.tolist()

    text = Path(report(run=run)).read_text()
    assert all(name in text for name in names), "each finding is told by its name"

    images = str(release / "images" / table["image_index"][0])
    predict(spark, images=images, run=run, out=str(tmp_path / "scores"))
    scored = pd.read_parquet(tmp_path / "scores")
    assert [c for c in scored if c.startswith("prob_")] == [f"prob_{c}" for c in columns]
    first = table.set_index("image_index").loc[table["image_index"][0]]
    np.testing.assert_allclose(scored[[f"prob_{c}" for c in columns]].iloc[0].to_numpy(float),
                               first[[f"prob_{c}" for c in columns]].to_numpy(float), atol=1e-5)  # fmt: skip
    drawn = explain(spark, run=run, data=store, images=table["image_index"][0], findings=names)
    assert drawn["finding"].tolist() == names
    with pytest.raises(UserError, match=r"Lung opasity .*did you mean Lung Opacity"):
        explain(spark, run=run, data=store, images=table["image_index"][0], findings="Lung opasity")

    export(spark, run=run, data=store, formats="onnx", out=str(tmp_path / "out"))
    assert json.loads((tmp_path / "out" / "findings.json").read_text()) == names


@pytest.mark.slow
def test_a_run_is_scored_on_what_a_store_shares_with_it(
    spark, store, make_store, untrained_run, tmp_path, capsys
):
    run = untrained_run(5).path  # of NIH's 14
    five = make_store(dict(zip((*FIVE[:4], "Nodule of mine"), FIVE, strict=True)))
    whole = evaluate(spark, data=store.path, run=run, bootstrap=100, out=str(tmp_path / "whole"))
    capsys.readouterr()
    part = evaluate(spark, data=five, run=run, bootstrap=100, out=str(tmp_path / "part"))
    said = capsys.readouterr().out
    notes = [
        line for line in said.splitlines() if line.startswith("note:") and "Nodule of mine" in line
    ]
    assert len(notes) == 1, said
    first, second = (e.metrics.toPandas().set_index("finding") for e in (whole, part))
    assert second.index.tolist() == [*FIVE[:4], "mean"], "in the store's order"
    columns = ["auroc", "average_precision", "positives", "negatives"]
    pd.testing.assert_frame_equal(
        second.loc[list(FIVE[:4]), columns], first.loc[list(FIVE[:4]), columns]
    )
    one, two = (
        e.predictions.toPandas().set_index("image_index").sort_index() for e in (whole, part)
    )
    names = [f"prob_{name}" for name in FIVE[:4]]
    np.testing.assert_allclose(two[names], one[names], atol=1e-6)
    assert [c for c in two if c.startswith("prob_")] == names


def test_a_run_that_shares_no_finding_is_one_line(make_store, untrained_run):
    strange = make_store({"Fracture": "Mass"})
    with pytest.raises(UserError, match="no finding"):
        evaluate(None, data=strange, run=untrained_run(5).path)


@pytest.mark.slow
def test_a_run_is_not_resumed_on_other_findings(spark, make_store, tmp_path):
    first, renamed = make_store({"Mass": "Mass"}), make_store({"Fracture": "Mass"})
    run = tmp_path / "run"
    given = {"run": str(run), "model": "vgg16", "batch_size": 8, "num_proc": 1, "threads": 1}
    train(spark, data=first, epochs=1, **given)
    assert yaml.safe_load((run / "config.yaml").read_text())["epochs"] == 1
    with pytest.raises(UserError, match="begun on other findings"):
        train(spark, data=renamed, epochs=1, **given)


@pytest.mark.slow
def test_the_head_is_taken_by_name(spark, make_store, untrained_run, tmp_path):
    """Weights of a run on other findings: what both have starts from there."""
    store = make_store({"Lung Opacity": "Infiltration", "Mass": "Mass"})
    source, run = str(tmp_path / "a"), str(tmp_path / "b")
    given = {"model": "vgg16", "batch_size": 8, "num_proc": 1, "threads": 1, "epochs": 1}
    train(spark, data=store, run=source, **given)
    other = make_store({"Mass": "Mass", "Edema": "Edema"})
    train(spark, data=other, run=run, weights=source, learning_rate=1e-9, optimizer="sgd", **given)
    kernels = [head_of(place) for place in (source, run)]
    np.testing.assert_allclose(kernels[1][:, 0], kernels[0][:, 1], atol=1e-5)
    assert np.abs(kernels[1][:, 1] - kernels[0][:, 0]).max() > 1e-3


def head_of(run: str) -> np.ndarray:
    """The kernel (features, findings) of a run's last layer."""
    import tf_keras as keras

    model = keras.models.load_model(run_folder(run).best_model.path)
    return model.get_layer("logits").kernel.numpy()
