import numpy as np
import pytest

from chexspark.evaluation.comparison import comparison_records
from chexspark.evaluation.delong import delong_covariance, delong_variance, paired_test
from chexspark.evaluation.metrics import metric_records
from chexspark.evaluation.predictions import LabelledScores
from chexspark.findings import FINDINGS

# DeLong, DeLong and Clarke-Pearson 1988, table 1 (the 43 patients with all three tests): albumin,
# total protein, K-G score, whether surgery helped.
OVARIAN = """
3.0 5.8 10 0  3.2 6.3 5 1  3.9 6.8 3 1  2.8 4.8 6 0  3.2 5.8 3 1  0.9 4.0 5 0  2.5 5.7 8 0
1.6 5.6 5 1  3.8 5.7 5 1  3.7 6.7 6 1  3.2 5.4 4 1  3.8 6.6 6 1  4.1 6.6 5 1  3.6 5.7 5 1
4.3 7.0 4 1  3.6 6.7 4 0  2.3 4.4 6 1  4.2 7.6 4 0  4.0 6.6 6 0  3.5 5.8 6 1  3.8 6.8 7 1
3.0 4.7 8 0  4.5 7.4 5 1  3.7 7.4 5 1  3.1 6.6 6 1  4.1 8.2 6 1  4.3 7.0 5 1  4.3 6.5 4 1
3.2 5.1 5 1  2.6 4.7 6 1  3.3 6.8 6 0  1.7 4.0 7 0  3.7 6.1 5 1  3.3 6.3 7 1  4.2 7.7 6 1
3.5 6.2 5 1  2.9 5.7 9 0  2.1 4.8 7 1  2.8 6.2 8 0  4.0 7.0 7 1  3.3 5.7 6 1  3.7 6.9 5 1
3.6 6.6 5 1
"""


@pytest.fixture
def ovarian():
    rows = np.array(OVARIAN.split(), float).reshape(-1, 4)
    return rows[:, 3].astype(int), np.stack([rows[:, 0], rows[:, 1], 10 - rows[:, 2]])


def test_delong_against_r_s_proc():
    """Figures as pROC 1.18.0 prints them (var, cov, ci.auc and roc.test with method="delong")."""
    i = np.arange(60)
    labels = ((i * 7 + 3) % 10 < 3).astype(int)
    first = (i * 37 + 11) % 50 / 50 + 0.35 * labels
    second = (i * 23 + 5) % 30 / 30 + 0.15 * labels
    aurocs, covariance = delong_covariance(labels, np.stack([first, second]))
    np.testing.assert_allclose(aurocs, [0.808201058201058, 0.730158730158730], rtol=1e-12)
    np.testing.assert_allclose(np.diag(covariance), [0.003557133984779298, 0.004883856583886189])
    assert covariance[0, 1] == pytest.approx(0.000378260307435229)
    test = paired_test(labels, first, second)
    assert test.difference / test.variance**0.5 == pytest.approx(0.890273113415973)
    assert test.p == pytest.approx(0.373319254337215)
    for scores, low, high in ((first, 0.691305447837703, 0.925096668564413),
                              (second, 0.593187441367339, 0.867130018950121)):  # fmt: skip
        rows = LabelledScores(("Mass",), labels[:, None], scores[:, None], i)
        record, _ = metric_records(rows, resamples=100).whole
        assert (record["delong_low"], record["delong_high"]) == pytest.approx((low, high))


def test_delong_against_the_published_example(ovarian):
    """Figures as SAS prints them: SAS/STAT user's guide, LOGISTIC, Comparing ROC Curves."""
    labels, scores = ovarian
    aurocs, covariance = delong_covariance(labels, scores)
    np.testing.assert_allclose(aurocs, [0.7366, 0.6478, 0.7258], atol=5e-5)
    np.testing.assert_allclose(np.sqrt(np.diag(covariance)), [0.0927, 0.1000, 0.1028], atol=5e-5)
    albumin, protein, kg = scores
    against = paired_test(labels, albumin, kg)
    assert against.difference == pytest.approx(0.0108, abs=5e-5)
    assert against.variance**0.5 == pytest.approx(0.0953, abs=5e-5)
    assert against.p == pytest.approx(0.9102, abs=5e-5)
    against = paired_test(labels, protein, kg)
    assert against.difference == pytest.approx(-0.0780, abs=5e-5)
    assert against.variance**0.5 == pytest.approx(0.1046, abs=5e-5)
    assert against.p == pytest.approx(0.4561, abs=5e-5)


def test_midranks_give_the_definition():
    """DeLong 1988, equations 3 to 6, in O(m n) placement values."""
    random = np.random.default_rng(0)
    labels = (random.random(60) < 0.3).astype(int)
    scores = np.round(random.random((3, 60)) + labels * 0.3, 1)
    positive, negative = scores[:, labels == 1], scores[:, labels == 0]
    higher = positive[:, :, None] > negative[:, None, :]
    placed = higher + 0.5 * (positive[:, :, None] == negative[:, None, :])
    expected = (
        np.cov(placed.mean(2)) / positive.shape[1] + np.cov(placed.mean(1)) / negative.shape[1]
    )
    aurocs, covariance = delong_covariance(labels, scores)
    np.testing.assert_allclose(aurocs, placed.mean((1, 2)), atol=1e-12)
    np.testing.assert_allclose(covariance, expected, atol=1e-12)


def test_one_row_of_a_class_has_no_variance():
    assert delong_variance(np.array([1, 0, 0]), np.array([0.3, 0.1, 0.2])) is None


@pytest.fixture
def two_models():
    random = np.random.default_rng(0)
    labels = (random.random((600, 14)) < 0.3).astype(np.int8)
    first = random.random((600, 14)) + labels * 0.5
    second = first + random.normal(0, 0.3, (600, 14))
    second[:, 1] = first[:, 1]
    return labels, first, second, random.integers(0, 250, 600).astype(str)


def compared(labels, first, second, patients, resamples, findings=FINDINGS):
    rows = LabelledScores(findings, labels, first, patients)
    return comparison_records(rows, second, resamples)


def test_two_models_on_the_same_images(two_models):
    labels, first, second, patients = two_models
    records = compared(labels, first, second, patients, 500)
    assert len(records) == 15 and records[-1]["finding"] == "mean"
    for i in (0, 5, 14):
        assert records[i]["difference_low"] > 0 and records[i]["p_bootstrap"] < 0.05
        assert records[i]["difference"] == records[i]["auroc"] - records[i]["auroc_other"]
    assert records[0]["p_delong"] < 0.05
    same = records[1]
    assert (same["difference"], same["p_delong"], same["p_bootstrap"]) == (0, 1, 1)
    back = compared(labels, second, first, patients, 500)
    assert back[0]["difference_low"] == -records[0]["difference_high"]
    assert back[0]["p_bootstrap"] == records[0]["p_bootstrap"]


def test_what_cannot_be_compared_says_why(two_models):
    labels, first, second, patients = two_models
    labels[:, 2] = 0
    records = compared(labels, first, second, patients, 100)
    assert records[2]["note"] == "no AUROC: there is no positive"
    assert records[2]["difference"] is None and records[-1]["note"] == "without Effusion"
    alone = compared(labels, first, second, np.zeros(600), 100)
    assert "one patient" in alone[0]["note"] and alone[0]["p_delong"] is None


@pytest.mark.parametrize("findings", [("Asbestosis",), tuple(f"F{n}" for n in range(20))])
def test_any_number_of_findings_is_compared(findings):
    random = np.random.default_rng(0)
    labels = (random.random((300, len(findings))) < 0.3).astype(np.int8)
    first, second = (random.random(labels.shape) + gain * labels for gain in (0.6, 0.1))
    records = compared(labels, first, second, np.arange(300), 100, findings)
    assert [r["finding"] for r in records] == [*findings, "mean"]
    assert records[-1]["difference"] == pytest.approx(
        np.mean([r["difference"] for r in records[:-1]])
    )
