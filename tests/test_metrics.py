import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score

from chexspark.auroc import auroc_per_finding, mean_auroc
from chexspark.evaluation.metrics import Metric, fit, metric_records
from chexspark.evaluation.predictions import LabelledScores
from chexspark.evaluation.ranking import bootstrap, interval
from chexspark.evaluation.subgroups import Group, groups_of
from chexspark.evaluation.thresholds import choose_thresholds, operating_point
from chexspark.findings import FINDINGS, MEAN

COLUMNS = tuple(Metric.__annotations__)


def records_of(labels, scores, patients, resamples=100, groups=(), fitted=None, findings=FINDINGS):
    """The records of all rows, and of each group."""
    rows = LabelledScores(findings, labels, scores, patients)
    return metric_records(rows, resamples, groups, fitted)


def whole(*given, **more):
    return records_of(*given, **more).whole


@pytest.fixture
def made():
    random = np.random.default_rng(0)
    labels = (random.random((300, 14)) < 0.2).astype(np.int8)
    scores = np.round(random.random((300, 14)) * 0.7 + labels * 0.2, 2)  # with ties
    patients = random.integers(0, 120, 300).astype(str)
    return labels, scores, patients


def test_agrees_with_scikit_learn(made):
    labels, scores, patients = made
    records = whole(labels, scores, patients)
    assert [r["finding"] for r in records] == [*FINDINGS, MEAN]
    assert all(tuple(r) == COLUMNS for r in records)
    for i, record in enumerate(records[:-1]):
        truth, score = labels[:, i], scores[:, i]
        assert record["auroc"] == pytest.approx(roc_auc_score(truth, score), abs=1e-12)
        expected = average_precision_score(truth, score)
        assert record["average_precision"] == pytest.approx(expected, abs=1e-12)
        assert record["brier"] == pytest.approx(brier_score_loss(truth, score), abs=1e-12)
        assert record["auroc_low"] < record["auroc"] < record["auroc_high"]
        assert record["delong_low"] < record["auroc"] < record["delong_high"]
        assert record["positives"] + record["negatives"] == 300
    assert records[-1]["auroc"] == pytest.approx(np.mean([r["auroc"] for r in records[:-1]]))
    assert records[-1]["auroc_low"] < records[-1]["auroc"] < records[-1]["auroc_high"]


def test_a_resample_is_what_repeating_its_rows_gives(made, monkeypatch):
    labels, scores, _ = made
    labels[::7, 0] = -1
    times = np.random.default_rng(1).integers(0, 4, (300, 5)).astype(np.float32)
    monkeypatch.setattr("chexspark.evaluation.ranking.patient_counts", lambda *_: times)
    found = bootstrap(labels, scores, np.arange(300), 5)
    known = labels[:, 0] >= 0
    for draw, count in enumerate(times.T.astype(int)):
        truth, score = (np.repeat(x[known, 0], count[known]) for x in (labels, scores))
        assert found.aurocs[0, draw, 0] == pytest.approx(roc_auc_score(truth, score), abs=1e-12)
        expected = average_precision_score(truth, score)
        assert found.precisions[0, draw, 0] == pytest.approx(expected, abs=1e-6)


def test_patients_are_resampled_and_not_images():
    labels = np.zeros((40, 14), np.int8)
    labels[:20] = 1
    scores = np.random.default_rng(0).random((40, 14))
    one_each = bootstrap(labels, scores, np.arange(40), 200).aurocs[0, :, 0]
    two_patients = bootstrap(labels, scores, np.repeat([0, 1], 20), 200).aurocs[0, :, 0]
    assert len(np.unique(one_each)) > 50
    whole = roc_auc_score(labels[:, 0], scores[:, 0])
    np.testing.assert_allclose(two_patients[~np.isnan(two_patients)], whole)


def test_the_interval_covers_the_truth_nineteen_times_in_twenty():
    """Patients of three images each, whose scores share a part: 840 intervals."""
    random, inside = np.random.default_rng(0), []
    truth = 0.760249938906523  # Φ(1 / √2): positives score one standard deviation higher
    patients = np.repeat(np.arange(100), 3)
    for _ in range(60):
        labels = np.repeat(random.random((100, 14)) < 0.4, 3, axis=0).astype(np.int8)
        shared = np.repeat(random.normal(0, 0.8, (100, 14)), 3, axis=0)
        scores = labels + shared + random.normal(0, 0.6, (300, 14))
        draws = bootstrap(labels, scores, patients, 300).aurocs[0]
        inside += [low <= truth <= high for low, high in map(interval, draws.T)]
    assert 0.92 < np.mean(inside) < 0.975


@pytest.mark.parametrize(
    "change, column, expected",
    [
        (lambda y, s, p: y[:, 3].fill(0), 3, "no AUROC: there is no positive"),
        (lambda y, s, p: y[:, 3].fill(1), 3, "no AUROC: there is no negative"),
        (lambda y, s, p: s[:, 3].fill(0.5), 3, "all scores are equal: nothing is ranked"),
        (lambda y, s, p: p.fill("1"), 3, "no interval: all images are of one patient"),
        (lambda y, s, p: s.__setitem__((slice(None), 3), y[:, 3]), 3, "part the classes fully"),
        (lambda y, s, p: s.__setitem__((0, 3), -2), 3, "outside 0-1 are no probabilities"),
    ],
)
def test_what_has_no_figure_has_words(made, change, column, expected):
    labels, scores, patients = made
    change(labels, scores, patients)
    record = whole(labels, scores, patients)[column]
    assert expected in record["note"]
    if "no AUROC" in expected:
        assert record["auroc"] is None and record["average_precision"] is None
    elif "probabilities" in expected:
        assert record["brier"] is None and record["auroc_low"] is not None
    else:
        assert record["auroc_low"] is None and record["delong_variance"] is None


def test_positives_of_one_patient_have_no_interval(made):
    labels, scores, patients = made
    labels[:, 0] = patients == patients[0]
    record = whole(labels, scores, patients)[0]
    assert record["note"] == "no interval: all positives are of one patient"
    assert record["auroc"] is not None and record["auroc_low"] is None


def test_the_mean_names_what_it_leaves_out(made):
    labels, scores, patients = made
    labels[:, 3], labels[:, 5] = 0, 1
    records = whole(labels, scores, patients)
    assert records[-1]["note"] == "without Infiltration, Nodule"
    defined = [r["auroc"] for r in records[:-1] if r["auroc"] is not None]
    assert len(defined) == 12 and records[-1]["auroc"] == pytest.approx(np.mean(defined))


def test_unknown_labels_are_left_out_everywhere(made):
    labels, scores, patients = made
    labels[:50, 0] = -1
    fitted = fit(labels, scores, patients)
    record = whole(labels, scores, patients, fitted=fitted)[0]
    short = labels[50:], scores[50:], patients[50:]
    expected = whole(*short, fitted=fit(*short))[0]
    resampled = {"auroc_low", "auroc_high", "average_precision_low", "average_precision_high"}
    assert record["unknown"] == 50
    for name in set(COLUMNS) - resampled - {"unknown"}:
        assert record[name] == expected[name], name


def test_nothing_to_score_is_no_number():
    labels = np.zeros((4, 14), np.int8)
    assert np.isnan(auroc_per_finding(labels, np.zeros((4, 14)))).all()
    assert np.isnan(mean_auroc(np.full(14, np.nan)))
    mean = whole(labels, np.zeros((4, 14)), np.arange(4))[-1]
    assert mean["auroc"] is None and mean["auroc_low"] is None


def test_scores_that_are_no_numbers_are_refused(made):
    labels, scores, patients = made
    scores[3, 3] = np.nan
    with pytest.raises(ValueError, match="1 scores are not numbers"):
        whole(labels, scores, patients)


def test_thresholds_by_hand():
    labels = np.array([0, 0, 1, 0, 0, 1, 1])
    scores = np.array([0.1, 0.2, 0.3, 0.35, 0.4, 0.5, 0.6])
    assert choose_thresholds(labels, scores) == {"youden": 0.5, "sens90": 0.3}
    assert operating_point(labels, scores, 0.5) == {
        "sensitivity": 2 / 3, "specificity": 1.0, "ppv": 1.0, "npv": 0.8,
    }  # fmt: skip
    assert operating_point(labels, scores, 0.7)["ppv"] is None
    assert choose_thresholds(labels, -scores)["youden"] is None


def test_thresholds_and_scaling_are_of_the_validation_split(made):
    labels, scores, patients = made
    val, test = slice(0, 150), slice(150, 300)
    fitted = fit(labels[val], scores[val], patients[val])
    for changed in (scores[test], np.clip(scores[test] * 0.5, 0, 1)):
        records = whole(labels[test], changed, patients[test], fitted=fitted)
        for i, record in enumerate(records[:-1]):
            assert record["threshold_youden"] == fitted[i].thresholds["youden"]
            chosen = fitted[i].chosen
            assert (record["temperature"], record["scaling"]) == chosen[:2]
            slope_and_intercept = chosen.scaling or (None, None)
            assert (record["slope"], record["intercept"]) == slope_and_intercept
    labels[val, 2] = 0
    assert "validation has no positive" in fit(labels[val], scores[val], patients[val])[2].note


@pytest.mark.parametrize("number", [1, 200])
def test_any_number_of_findings(number):
    random = np.random.default_rng(0)
    labels = (random.random((200, number)) < 0.3).astype(np.int8)
    scores, patients = random.random(labels.shape) / 2 + labels * 0.2, np.arange(200)
    names = tuple(f"Finding {n}" for n in range(number))
    groups = groups_of(pd.DataFrame({"sex": np.tile(["F", "M"], 100)}))
    found = records_of(labels, scores, patients, 100, groups, fit(labels, scores, patients), names)
    for records in (found.whole, *found.groups):
        assert [r["finding"] for r in records] == [*names, MEAN]
    aurocs = [r["auroc"] for r in found.whole]
    assert aurocs[-1] == pytest.approx(np.mean(aurocs[:-1]))
    if number == 1:
        mean, only = found.whole[-1], found.whole[0]
        assert (mean["auroc_low"], mean["auroc_high"]) == (only["auroc_low"], only["auroc_high"])
    assert all(records[-1]["difference"] is not None for records in found.groups)


def test_few_patients_make_a_rough_interval_and_no_test(made):
    labels, scores, patients = made
    labels[:, 0] = np.isin(patients, np.unique(patients)[:9])
    women = np.arange(300) % 2 == 0
    found = records_of(labels, scores, patients, 100, [Group("sex", "F", women, ~women)])
    assert found.whole[0]["rough"] and "only 9 patients are positive" in found.whole[0]["note"]
    assert not any(record["rough"] for record in found.whole[1:-1])
    mean = found.whole[-1]
    assert mean["rough"] and mean["note"] == (
        "rough: 1 of its 14 findings has fewer than 10 positive or negative patients"
    )
    few, *others, mean = found.groups[0]
    assert few["rough"] and few["difference"] is None and few["p_behind"] is None
    assert all(r["difference"] is not None and r["compared"] == 1 for r in others)
    assert mean["compared"] == 13
    expected = np.mean([r["difference"] for r in others])
    assert mean["difference"] == pytest.approx(expected)


def test_positives_of_one_patient_are_few(made):
    labels, scores, patients = made
    labels[:, 0] = patients == patients[0]
    assert whole(labels, scores, patients)[0]["rough"]
