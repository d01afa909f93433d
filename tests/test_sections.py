"""What the report says, from small tables."""

import base64

import cv2
import numpy as np
import pandas as pd
import pytest

from chexspark.evaluation import sections
from chexspark.evaluation.sections import Evaluated, Trained

NAN = float("nan")


def evaluated(facts=None, **tables):
    none = dict.fromkeys(("subgroups", "examples", "localisation", "comparison"))
    given = {"predictions": pd.DataFrame(), "metrics": pd.DataFrame(), **none} | tables
    return Evaluated("test", {"bootstrap": 2000, "findings": ["Mass"]} | (facts or {}), **given)


def trained(run="/run", rates=(10.0,), ranks=1, model="vgg16", size=32, **lineage):
    count = len(rates)
    history = pd.DataFrame(
        {"epoch": range(count), "best": [n == count - 1 for n in range(count)],
         "images_per_second": rates, "seconds": [61.0] * count, "val_auroc": [0.5] * count,
         "input_share": [0.25] * count, "allreduce_share": [NAN] * count}
    )  # fmt: skip
    who = [{"rank": n, "host": f"host{n // 2}", "device": "CPU"} for n in range(ranks)]
    lineage = {
        "store": "/store",
        "store_fingerprint": "f",
        "findings": ["Mass"],
        "image_size": size,
        "ranks": who,
    } | lineage
    return Trained(run, history, lineage, {"model": model, "batch_size": 4, "weights": None})


@pytest.mark.parametrize(
    "value, more, text",
    [(0.12345, {}, "0.123"), (0.5, {"digits": 1}, "0.5"), (0.5, {"signed": True}, "+0.500"),
     (-0.5, {"signed": True, "digits": 2}, "-0.50"), (None, {}, "–"), (NAN, {}, "–"),
     (np.float64(0), {}, "0.000")],
)  # fmt: skip
def test_a_figure_in_a_cell(value, more, text):
    assert sections.figure(value, **more) == text


def test_records_have_none_for_what_is_not_there():
    frame = pd.DataFrame({"a": [1.5, NAN], "b": ["x", None]})
    assert sections.records_of(frame) == [{"a": 1.5, "b": "x"}, {"a": None, "b": None}]
    assert sections.records_of(None) == []


def test_the_rate_leaves_out_the_epoch_that_compiles():
    assert trained(rates=(1.0, 10.0, 30.0, 20.0)).rate == 20
    assert trained(rates=(7.0,)).rate == 7


@pytest.mark.parametrize(
    "facts, training, title",
    [({"scores": "/x.csv"}, None, "Chest X-ray scores"),
     ({"runs": ["/a", "/b", "/c"]}, None, "Chest X-ray model: an ensemble of 3"),
     ({"runs": ["/a"]}, trained(), "Chest X-ray model vgg16"),
     ({}, None, "Chest X-ray model")],
)  # fmt: skip
def test_titles(facts, training, title):
    assert sections.title_of(evaluated(facts), training) == title


def test_unknown_labels_are_left_out():
    given = evaluated(
        predictions=pd.DataFrame({"label_Mass": [1, -1, 0], "prob_Mass": [0.9, 0.8, 0.1]})
    )
    truth, score = sections.known(given, "Mass")
    assert truth.tolist() == [1, 0] and score.tolist() == [0.9, 0.1]


def test_of_each_finding_the_threshold_that_fits_best():
    frame = pd.DataFrame(
        [("Mass", 0.2, 0.1), ("Mass", 0.5, 0.4), ("Mass", 0.8, 0.3), ("Nodule", 0.2, 0.6),
         ("Nodule", 0.5, 0.0)],
        columns=["finding", "threshold", "iou"],
    )  # fmt: skip
    found = [(r["finding"], r["threshold"]) for r in sections.localised(frame)]
    assert found == [("Mass", 0.5), ("Nodule", 0.2)]
    assert sections.localised(None) == []


def test_examples_are_pictures_by_finding_and_kind():
    pixels, activation = np.full((32, 32), 100, np.uint8), np.zeros((2, 2), np.float32)
    row = {"finding": "Mass", "kind": "found", "image_index": "a.png", "probability": 0.9,
           "threshold": 0.5, "size": 32, "pixels": pixels.tobytes(), "map_height": 2, "map_width": 2,
           "map": activation.tobytes(), "boxes": []}  # fmt: skip
    boxed = row | {"kind": "missed", "boxes": [[0.25, 0.25, 0.5, 0.5]]}
    other = row | {"finding": "Nodule"}
    mass, nodule = sections.pictured(pd.DataFrame([row, boxed, other]))
    assert (mass["finding"], list(mass["kinds"])) == ("Mass", ["found", "missed"])
    assert (nodule["finding"], list(nodule["kinds"])) == ("Nodule", ["found"])
    pictures = []
    for kind in ("found", "missed"):
        head, data = mass["kinds"][kind]["data"].split(",")
        assert head == "data:image/jpeg;base64"
        content = np.frombuffer(base64.b64decode(data), np.uint8)
        pictures.append(cv2.imdecode(content, cv2.IMREAD_COLOR).astype(int))
    picture, with_box = pictures
    boxed = np.argwhere(np.abs(picture - with_box).max(axis=2) > 40)
    assert boxed.min(axis=0).tolist() == [64, 256 + 64], "the box, on the side with the map"
    assert picture.shape == (256, 2 * 256, 3), "the X-ray, and beside it the X-ray with its map"
    assert np.abs(picture - 100).max() <= 2


def test_a_training_in_figures():
    found = sections.training_facts(trained(rates=(1.0, 4.0), ranks=3))
    assert (found["epochs"], found["best_epoch"], found["val_auroc"]) == (2, 2, 0.5)
    assert (found["ranks"], found["hosts"], found["devices"]) == (3, 2, "CPU")
    assert (found["time"], found["rate"]) == ("2:02", 4)
    assert found["shares"] == [("input", 0.25)], "a share that no epoch tells is not shown"
    assert sections.training_facts(None) is None


def test_scaling_compares_runs_of_the_same_kind():
    four = trained("/four", (30.0,), ranks=4)
    two = trained("/two", (20.0,), ranks=2)
    others = [two, four, trained("/net", ranks=8, model="resnet50"), trained("/big", size=64)]
    rows = sections.scaling_rows(four, others)
    assert [(r["run"], r["ranks"], r["rate"], r["efficiency"]) for r in rows] == [
        ("/two", 2, 20.0, 1.0), ("/four", 4, 30.0, 0.75),
    ]  # fmt: skip
    assert sections.scaling_rows(four, []) == [] and sections.scaling_picture(rows[:1]) == ""
    assert sections.scaling_picture(rows).startswith("<svg")


def test_lineage_of_a_run_and_of_scores():
    facts = {"runs": ["/run"], "models": ["ab12"], "store": "/store", "fitted_on": "val",
             "flip": True, "data": {"train": "800 images", "source": "NIH"}}  # fmt: skip
    rows = sections.lineage_rows(
        "/run", evaluated(facts), trained(packages={"numpy": "1.26"}, trained_patients="cd34")
    )
    for row in (
        ("Run", "/run"), ("Model SHA-256", "ab12"), ("Store scored", "/store"),
        ("Store, train", "800 images"), ("source", "NIH"), ("Mirror images averaged", "yes"),
        ("Thresholds and temperature", "from val"), ("Bootstrap", "2,000 resamples of the patients"),
        ("Patients seen, SHA-256", "cd34"), ("Packages", "numpy 1.26"), ("Findings", "Mass"),
    ):  # fmt: skip
        assert row in rows
    rows = sections.lineage_rows("/out", evaluated({"scores": "/s.csv", "labels": "/l.csv"}), None)
    assert rows == [
        ("Evaluation", "/out"), ("Scores", "/s.csv"), ("Labels", "/l.csv"), ("Findings", "Mass"),
        ("Mirror images averaged", "no"),
        ("Thresholds and temperature", "none: no validation split"),
        ("Bootstrap", "2,000 resamples of the patients"),
    ]  # fmt: skip


def test_all_of_it_from_the_tables_of_an_evaluation():
    metric = {"threshold_youden": None, "threshold_sens90": None, "ece": None, "auroc_low": None,
              "auroc_high": None, "temperature": None}  # fmt: skip
    metrics = pd.DataFrame(
        [{"finding": "Mass", "auroc": 1.0, **metric}, {"finding": "Nodule", "auroc": 0.5, **metric},
         {"finding": "Hernia", "auroc": NAN, **metric}, {"finding": "mean", "auroc": 0.75, **metric}]
    )  # fmt: skip
    group = {"subgroup_by": "sex", "auroc": 0.5, "auroc_low": 0.4, "auroc_high": 0.6}
    subgroups = pd.DataFrame(
        [{"finding": "Mass", "subgroup": "F", "behind": True, "p_behind": 0.01, **group},
         {"finding": "mean", "subgroup": "F", "behind": False, "p_behind": NAN, **group}]
    )  # fmt: skip
    predictions = pd.DataFrame(
        {"patient_id": ["1", "1", "2"], "label_Mass": [1, 0, 0], "prob_Mass": [0.9, 0.2, 0.1],
         "label_Nodule": [1, 0, -1], "prob_Nodule": [0.5, 0.5, 0.5]}
    )  # fmt: skip
    given = evaluated(metrics=metrics, subgroups=subgroups, predictions=predictions)
    found = sections.contents("/run", given, None, [])
    assert (found["images"], found["patients"], found["tests"]) == (3, 2, 1)
    assert (found["best"]["finding"], found["worst"]["finding"]) == ("Mass", "Nodule")
    assert found["mean"]["auroc"] == 0.75 and not found["fitted"] and not found["calibrated"]
    assert [r["finding"] for r in found["subgroups"]] == ["mean"]
    assert [r["finding"] for r in found["behind"]] == ["Mass"]
    assert len(found["curves"]) == 2 and found["reliability"] == []
    assert found["forest"].startswith("<svg") and found["pictures"]["training"] == ""
    assert not found["of_nih"] and all(p.of("Mass") and p.mean is None for p in found["published"])
