"""What the report says, from small tables."""

import base64

import cv2
import numpy as np
import pandas as pd
import pytest

from chexspark.evaluation import sections, tables, training_sections
from chexspark.evaluation.published_aurocs import OFFICIAL_IMAGES, PUBLISHED
from chexspark.evaluation.sections import Evaluated
from chexspark.evaluation.training_sections import Trained
from chexspark.findings import FINDINGS

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
    assert tables.records_of(frame) == [{"a": 1.5, "b": "x"}, {"a": None, "b": None}]
    assert tables.records_of(None) == []


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
    found = training_sections.training_facts(trained(rates=(1.0, 4.0), ranks=3))
    assert (found["epochs"], found["best_epoch"], found["val_auroc"]) == (2, 2, 0.5)
    assert (found["ranks"], found["hosts"], found["devices"]) == (3, 2, "CPU")
    assert (found["time"], found["rate"]) == ("2:02", 4)
    # An epoch that was resumed after its last step has no rate.
    rates = {(NAN, 4.0): 4, (5.0, NAN): 5, (5.0, NAN, 7.0): 7, (NAN,): None}
    assert {each: trained(rates=each).rate for each in rates} == rates
    assert found["shares"] == [("input", 0.25)], "a share that no epoch tells is not shown"
    assert training_sections.training_facts(None) is None


def test_scaling_compares_runs_of_the_same_kind():
    four = trained("/four", (30.0,), ranks=4)
    two = trained("/two", (20.0,), ranks=2)
    others = [two, four, trained("/net", ranks=8, model="resnet50"), trained("/big", size=64)]
    others.append(trained("/unknown", (NAN,), ranks=1))
    rows = training_sections.scaling_rows(four, others)
    assert [(r["run"], r["ranks"], r["rate"], r["efficiency"]) for r in rows] == [
        ("/two", 2, 20.0, 1.0), ("/four", 4, 30.0, 0.75),
    ]  # fmt: skip
    assert (
        training_sections.scaling_rows(four, []) == []
        and training_sections.scaling_picture(rows[:1]) == ""
    )
    assert training_sections.scaling_picture(rows).startswith("<svg")


def test_lineage_of_a_run_and_of_scores():
    facts = {"runs": ["/run"], "models": ["ab12"], "store": "/store", "fitted_on": "val",
             "tta": ["flip", "scales"], "data": {"train": "800 images", "source": "NIH"}}  # fmt: skip
    rows = sections.lineage_rows(
        "/run", evaluated(facts), trained(packages={"numpy": "1.26"}, trained_patients="cd34")
    )
    for row in (
        ("Run", "/run"), ("Model SHA-256", "ab12"), ("Store scored", "/store"),
        ("Store, train", "800 images"), ("source", "NIH"), ("Averaged with each image", "mirror images, scales"),
        ("Thresholds and scaling", "from val"), ("Bootstrap", "2,000 resamples of the patients"),
        ("Patients seen, SHA-256", "cd34"), ("Packages", "numpy 1.26"), ("Findings", "Mass"),
    ):  # fmt: skip
        assert row in rows
    rows = sections.lineage_rows("/out", evaluated({"scores": "/s.csv", "labels": "/l.csv"}), None)
    assert rows == [
        ("Evaluation", "/out"), ("Scores", "/s.csv"), ("Labels", "/l.csv"), ("Findings", "Mass"),
        ("Averaged with each image", "nothing"),
        ("Thresholds and scaling", "none: no validation split"),
        ("Bootstrap", "2,000 resamples of the patients"),
    ]  # fmt: skip


METRIC = {"threshold_youden": None, "threshold_sens90": None, "ece": None, "auroc_low": None,
          "auroc_high": None, "temperature": None, "scaling": None, "slope": None,
          "intercept": None}  # fmt: skip


def tables_of(positives, groups=()):
    """Tables of an evaluation: finding → AUROC and number of positive patients, of 40 in all."""
    metrics = [{"finding": f, "auroc": auroc, **METRIC} for f, (auroc, _) in positives.items()]
    mean = np.nanmean([auroc for auroc, _ in positives.values()])
    predictions = {"patient_id": [str(n // 2) for n in range(80)]}
    for finding, (_, number) in positives.items():
        labels = [int(n // 2 < number) for n in range(80)]
        predictions |= {f"label_{finding}": labels, f"prob_{finding}": [0.5] * 80}
    group = {"subgroup_by": "sex", "subgroup": "F", "auroc": 0.5, "auroc_low": 0.4, "auroc_high": 0.6,
             "behind": False, "p_behind": NAN, "detectable": NAN, "auroc_others": NAN}  # fmt: skip
    return {
        "metrics": pd.DataFrame([*metrics, {"finding": "mean", "auroc": mean, **METRIC}]),
        "subgroups": pd.DataFrame([group | each for each in groups], columns=[*group, "finding"]),
        "predictions": pd.DataFrame(predictions),
    }  # fmt: skip


def test_all_of_it_from_the_tables_of_an_evaluation():
    mass = {
        "finding": "Mass",
        "behind": True,
        "p_behind": 0.01,
        "detectable": 0.1,
        "auroc_others": 0.9,
    }
    given = tables_of(
        {"Mass": (1.0, 20), "Nodule": (0.5, 10), "Hernia": (NAN, 0)}, [mass, {"finding": "mean"}]
    )
    found = sections.contents("/run", evaluated(**given), None, [])
    assert (found["images"], found["patients"], found["tests"]) == (80, 40, 1)
    assert (found["best"]["finding"], found["worst"]["finding"]) == ("Mass", "Nodule")
    assert found["mean"]["auroc"] == 0.75 and not found["fitted"] and not found["calibrated"]
    assert [r["finding"] for r in found["subgroups"]] == ["mean"]
    assert [r["finding"] for r in found["behind"]] == ["Mass"]
    assert len(found["curves"]) == 2 and found["reliability"] == []
    assert found["forest"].startswith("<svg") and found["pictures"]["training"] == ""
    assert not found["of_nih"] and found["published"] == ()
    assert found["on_others"] and all(p.of("Mass") and p.mean is None for p in found["on_others"])


def test_best_and_weakest_are_of_findings_with_enough_patients():
    given = tables_of(
        {"Mass": (0.8, 20), "Nodule": (0.7, 10), "Edema": (0.99, 9), "Hernia": (0.2, 31)}
    )
    found = sections.contents("/run", evaluated(**given), None, [])
    assert (found["best"]["finding"], found["worst"]["finding"]) == ("Mass", "Nodule")
    assert [r["finding"] for r in found["enough"]] == ["Mass", "Nodule"] and found["rough"] == 2
    none = sections.contents("/run", evaluated(**tables_of({"Edema": (0.9, 1)})), None, [])
    assert none["best"] is none["worst"] is None and none["rough"] == 1


def test_beside_phantoms_stands_nothing_that_was_published():
    names = {finding: (0.9, 20) for finding in FINDINGS}
    official = {"official_split": True, "images": OFFICIAL_IMAGES}
    found = sections.contents(
        "/run", evaluated(official | {"synthetic": True}, **tables_of(names)), None, []
    )
    assert (
        found["synthetic"]
        and found["published"] == found["on_others"] == ()
        and not found["of_nih"]
    )
    patients = sections.contents("/run", evaluated(official, **tables_of(names)), None, [])
    assert patients["published"] and patients["of_nih"] and not patients["synthetic"]
    ticks = patients["intervals"].count("<use"), found["intervals"].count("<use")
    assert ticks[0] > ticks[1], "ticks of published results in the chart"


def test_only_what_was_published_of_the_same_images_stands_beside_the_figures():
    names = {finding: (0.9, 20) for finding in FINDINGS}
    official = {"official_split": True, "images": OFFICIAL_IMAGES}
    found = sections.contents("/run", evaluated(official, **tables_of(names)), None, [])
    assert all(p.official for p in found["published"]) and not any(
        p.official for p in found["on_others"]
    )
    assert {p.mean for p in found["published"]} >= {0.738, 0.811, 0.818, 0.822}
    for other in ({}, official | {"images": 25_595}, official | {"official_split": False}):
        found = sections.contents("/run", evaluated(other, **tables_of(names)), None, [])
        assert found["published"] == () and found["on_others"] == PUBLISHED


def test_how_large_a_gap_could_have_been_seen():
    rows = [{"finding": f"{n}", "p_behind": 1.0, "detectable": gap, "auroc_others": 0.8}
            for n, gap in enumerate((0.1, 0.3, 0.2))]  # fmt: skip
    found = sections.contents("/run", evaluated(**tables_of({"Mass": (0.8, 20)}, rows)), None, [])
    assert found["gaps"] == {"median": 0.2, "largest": 0.3} and found["tests"] == 3
    assert found["others"].startswith("the other images")
    earlier = [{"finding": "Mass", "p_behind": 0.2}]
    found = sections.contents(
        "/run", evaluated(**tables_of({"Mass": (0.8, 20)}, earlier)), None, []
    )
    assert found["gaps"] is None and found["others"] == "all images"


def test_all_axes_of_calibration_are_the_same(monkeypatch):
    tops = []
    monkeypatch.setattr(
        "chexspark.evaluation.plots.reliability",
        lambda series, name, top: tops.append((len(series), top)),
    )
    given = tables_of({"Mass": (0.8, 20), "Nodule": (0.7, 4), "Edema": (0.7, 30)})
    given["metrics"]["ece"] = [0.1, 0.1, None, 0.1]
    given["metrics"].loc[0, ["slope", "intercept"]] = 2.0, -1.0
    sections.contents("/run", evaluated(**given), None, [])
    assert tops == [(2, 0.5), (1, 0.5)], "half are positive; of the third there is no probability"


def test_what_a_training_was():
    one = trained(ranks=1)
    assert training_sections.recipe_lines(one) == [], "settings that do not tell"
    told = {"optimizer": "adam", "learning_rate": 1e-3, "batch_size": 16, "loss": "weighted",
            "schedule": "plateau", "weights": None, "scale_learning_rate": "linear"}  # fmt: skip
    four = Trained("/run", one.history, trained(ranks=4).lineage, told)
    assert training_sections.recipe_lines(four) == [
        "Start: random weights.",
        "Optimizer: adam, learning rate 0.001, scaled with the 4 ranks (linear); schedule plateau.",
        "Batch: 64 images (4 ranks of 16).",
        "Loss: cross entropy, rare classes weighted.",
    ]
    more = told | {"weights": "/imagenet.h5", "loss": "focal", "focal_gamma": 2.0,
                   "label_smoothing": 0.1, "warmup_epochs": 2.0}  # fmt: skip
    start, optimizer, batch, loss = training_sections.recipe_lines(
        Trained("/r", one.history, one.lineage, more)
    )
    assert start == "Start: /imagenet.h5." and "warm-up of 2 epochs" in optimizer
    assert "scaled" not in optimizer and batch == "Batch: 16 images (1 rank of 16)."
    assert loss == "Loss: focal, gamma 2.0, labels smoothed by 0.1."
    more = told | {"loss": "asymmetric", "gamma_negative": 4.0, "gamma_positive": 0.0, "clip": 0.05, "head_rate": 10.0}  # fmt: skip
    _, optimizer, _, loss = training_sections.recipe_lines(
        Trained("/r", one.history, one.lineage, more)
    )
    assert optimizer.endswith("schedule plateau; the last layer's 10 times that.")
    assert loss == "Loss: asymmetric, gamma 4.0, of positives 0.0, margin 0.05."
