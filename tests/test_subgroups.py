"""Groups of patients against the others: which, by how much, and how often chance says so."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from chexspark.auroc import auroc_per_finding
from chexspark.evaluation.metrics import metric_records
from chexspark.evaluation.predictions import LabelledScores
from chexspark.evaluation.ranking import bootstrap
from chexspark.evaluation.subgroups import (
    Contrast,
    Ranked,
    detectable_gap,
    differences,
    falls_behind,
    groups_of,
    rarer_patients,
)
from chexspark.findings import FINDINGS


def contrast(difference, error=1.0, freedom=1e6):
    return Contrast(0.8, difference, np.array([]), error, freedom, 1)


def ranked(labels, scores, patients, rows, resamples):
    draws = bootstrap(labels, scores, patients, resamples, rows).aurocs
    return [Ranked(auroc_per_finding(labels[mask], scores[mask]), draws[i],
                   rarer_patients(labels[mask], patients[mask])) for i, mask in enumerate(rows)]  # fmt: skip


def test_groups_and_who_falls_behind():
    random = np.random.default_rng(0)
    labels = (random.random((3000, 14)) < 0.3).astype(np.int8)
    table = pd.DataFrame({
        "sex": np.tile(["F", "M", None], 1000), "age": np.tile([8, 45, 200], 1000),
        "view_position": "PA", "follow_up": np.tile([0, 3, 1], 1000),
    })  # fmt: skip
    scores = random.random((3000, 14)) + labels * 0.4
    scores[(table.sex == "F").to_numpy(), 4] -= 0.4 * labels[(table.sex == "F").to_numpy(), 4]
    groups = groups_of(table)
    assert [str(g) for g in groups] == [
        "sex F", "sex M", "age 0-19", "age 40-59",
        "follow up first image", "follow up later images",
    ]  # fmt: skip
    assert [int(g.rows.sum()) for g in groups] == [1000, 1000, 1000, 1000, 1000, 2000]
    for group in groups:
        known = np.isin(np.arange(3000) % 3, [0, 1] if group.by in ("sex", "age") else [0, 1, 2])
        assert (group.others == known & ~group.rows).all(), "unknown values are of no group"
    rows = LabelledScores(FINDINGS, labels, scores, np.arange(3000).astype(str))
    tables = metric_records(rows, 200, groups).groups
    behind = {(str(g), r["finding"]) for g, t in zip(groups, tables, strict=True)
              for r in t if r["behind"]}  # fmt: skip
    assert behind >= {("sex F", "Mass")}
    assert {finding for _, finding in behind} <= {"Mass", "mean"}
    women = tables[0][4]
    f, m = ((table.sex == sex).to_numpy() for sex in "FM")
    assert women["auroc"] == pytest.approx(roc_auc_score(labels[f, 4], scores[f, 4]))
    assert women["auroc_others"] == pytest.approx(roc_auc_score(labels[m, 4], scores[m, 4]))
    assert women["difference"] == pytest.approx(women["auroc"] - women["auroc_others"])
    assert women["difference_high"] < 0 < women["detectable"]


def test_halves_that_are_both_below_the_whole_are_not_behind():
    """Women are ill more often and score higher: pairs of a woman and a man are easy."""
    random = np.random.default_rng(0)
    women = np.arange(2000) % 2 == 0
    labels = (random.random((2000, 1)) < np.where(women, 0.6, 0.1)[:, None]).astype(np.int8)
    scores = random.normal(0, 1, (2000, 1)) + labels + 2 * women[:, None]
    patients = np.arange(2000)
    both = ranked(labels, scores, patients, [women, ~women], 200)
    whole = auroc_per_finding(labels, scores)[0]
    assert whole > max(part.aurocs[0] for part in both) + 0.05
    found = differences([(both[0], both[1]), (both[1], both[0])])
    assert not any(record["behind"] for records in found for record in records)
    assert found[0][0]["difference"] == pytest.approx(-found[1][0]["difference"])


def test_many_tests_are_corrected_for():
    given = [contrast(-2.2), contrast(-0.1), contrast(0.5)]
    p = falls_behind(given)
    assert p[0] == pytest.approx(norm.cdf(-2.2) * 3, rel=1e-3)
    assert p[1] == p[2] == pytest.approx(norm.cdf(-0.1) * 2, rel=1e-3)
    assert len(falls_behind([])) == 0


def test_few_patients_make_longer_tails():
    p = [falls_behind([contrast(-3, freedom=n)])[0] for n in (1e6, 30, 9)]
    assert p == pytest.approx([0.00135, 0.0027, 0.0075], rel=0.02)


def test_what_a_test_can_see():
    """A gap is found as often as said: eight of ten at the smallest p that correction asks for."""
    gap = detectable_gap(contrast(0, 0.05, 20), 10)
    random = np.random.default_rng(0)
    errors = 0.05 * np.sqrt(random.chisquare(20, 4000) / 20)
    seen = [falls_behind([contrast(d, e, 20)])[0] * 10 < 0.05
            for d, e in zip(random.normal(-gap, 0.05, 4000), errors, strict=True)]  # fmt: skip
    assert np.mean(seen) == pytest.approx(0.8, abs=0.025)
    assert detectable_gap(contrast(0, 0.1, 20), 10) == pytest.approx(2 * gap)


def test_chance_warns_in_one_run_of_twenty():
    """20 tests of 10 against 30 positives, where nothing is behind; errors as few patients give them."""
    random, wrong = np.random.default_rng(0), 0
    runs, patients, variances = 2000, np.array([10, 30]), np.array([1 / 10, 1 / 30])
    for _ in range(runs):
        guessed = variances * random.chisquare(patients - 1, (20, 2)) / (patients - 1)
        freedom = guessed.sum(1) ** 2 / (guessed**2 / (patients - 1)).sum(1)
        found = random.normal(0, np.sqrt(variances.sum()), 20)
        tests = map(contrast, found, np.sqrt(guessed.sum(1)), freedom)
        wrong += falls_behind(list(tests)).min() < 0.05
    # Binomial, four standard deviations: a normal distribution's tails would make it 0.15.
    assert 0.03 < wrong / runs < 0.07


def test_labels_that_are_chance_warn_in_one_run_of_twenty():
    """300 patients of two images, 4 findings with some 20 positive patients: women against men."""
    warned, runs = 0, 100
    for run in range(runs):
        random = np.random.default_rng(run)
        patients = np.repeat(np.arange(300), 2)
        labels = np.repeat(random.random((300, 4)) < 0.08, 2, axis=0).astype(np.int8)
        scores = random.normal(0, 1, (600, 4)) + random.normal(0, 1, (300, 4))[patients]
        women = (random.random(300) < 0.5)[patients]
        f, m = ranked(labels, scores, patients, [women, ~women], 200)
        warned += any(r["behind"] for records in differences([(f, m), (m, f)]) for r in records)
    assert warned <= 12, "5 expected, and more than 12 once in 600 times"


def test_few_patients_on_either_side_are_not_tested():
    random = np.random.default_rng(0)
    labels = np.zeros((400, 2), np.int8)
    labels[:60:3, 0] = 1  # 20 in the first half, of which 5 patients
    labels[::10, 1] = 1
    scores, patients = random.random((400, 2)), np.arange(400)
    patients[:60] //= 12
    first = np.arange(400) < 200
    labels[200:, 0] = random.random(200) < 0.2
    assert rarer_patients(labels[first], patients[first]).tolist() == [5, 19]
    (found,) = differences([tuple(ranked(labels, scores, patients, [first, ~first], 50))])
    assert found[0]["difference"] is None and found[0]["compared"] == 0
    assert found[1]["difference"] is not None
    assert found[2]["compared"] == 1 and found[2]["difference"] == found[1]["difference"]
