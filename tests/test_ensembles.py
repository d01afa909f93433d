"""Ensembles whose weights are fitted on validation images."""

import numpy as np
import pandas as pd
import pytest

from chexspark import evaluate
from chexspark.errors import UserError
from chexspark.evaluation.ensembles import blended, fit_weights
from chexspark.evaluation.tables import read_evaluation
from chexspark.findings import FINDINGS
from chexspark.run.folder import run_folder


def mixture_by_em(labels, scores, rounds=20_000):
    """The same minimum by expectation and maximisation, of mixture proportions."""
    right = np.stack([np.where(labels == 1, each, 1 - each)[labels >= 0] for each in scores])
    weights = np.full(len(scores), 1 / len(scores))
    for _ in range(rounds):
        shares = weights[:, None] * right
        weights = (shares / shares.sum(0)).mean(1)
    return weights


@pytest.mark.parametrize("seed", range(4))
def test_weights_are_at_the_one_minimum(seed):
    random = np.random.default_rng(seed)
    truth = random.uniform(0.02, 0.9, (400, 5))
    labels = (random.random((400, 5)) < truth).astype(np.int8)
    labels[random.random((400, 5)) < 0.1] = -1
    noise = (0.3, 0.8, 1.5)
    scores = [
        1 / (1 + np.exp(-(np.log(truth / (1 - truth)) + random.normal(0, by, truth.shape))))
        for by in noise
    ]
    found = fit_weights(labels, scores)
    assert found.sum() == pytest.approx(1) and (found >= 0).all() and found.argmax() == 0
    np.testing.assert_allclose(found, mixture_by_em(labels, scores), atol=2e-3)


def test_a_model_that_is_always_right_has_all_the_weight_and_equal_ones_share_it():
    labels = np.array([[1, 0], [0, 1]], np.int8)
    assert fit_weights(labels, [labels * 0.98 + 0.01, 1.0 - labels]).round(6).tolist() == [1, 0]
    same = np.full((2, 2), 0.4)
    assert fit_weights(labels, [same, same]).tolist() == [0.5, 0.5]


def test_the_blend_is_the_weighted_mean_of_the_same_images():
    tables = [
        pd.DataFrame({"image_index": ["a", "b"], "prob_Mass": p, "label_Mass": [1, 0]})
        for p in ([0.2, 0.4], [0.6, 0.8])
    ]
    made = blended(tables, (0.25, 0.75), ("Mass",))
    assert made["prob_Mass"].tolist() == pytest.approx([0.5, 0.7]) and made[
        "label_Mass"
    ].tolist() == [1, 0]
    with pytest.raises(ValueError, match="different images"):
        blended([tables[0], tables[1].assign(image_index=["b", "a"])], (0.5, 0.5), ("Mass",))


def test_what_weights_cannot_be_fitted_of_is_said(store, untrained_run, tmp_path):
    run = str(untrained_run(1))
    with pytest.raises(UserError, match="--fit-weights is for an ensemble"):
        evaluate(None, data=store.path, run=run, fit_weights=True)
    with pytest.raises(UserError, match="leave out --fit-weights"):
        evaluate(None, predictions="p.csv", out=str(tmp_path), fit_weights=True)


def test_an_ensemble_is_the_weighted_mean_of_its_runs_tables(spark, store, untrained_run, tmp_path):
    runs = [str(untrained_run(seed)) for seed in (1, 2)]
    given = {"data": store.path, "bootstrap": 100, "batch_size": 16}
    alone = evaluate(spark, run=runs[0], **given).predictions.toPandas()
    before = run_folder(runs[0]).evaluation.read_text()
    out = run_folder(str(tmp_path / "both"))
    found = evaluate(
        spark, run=runs, out=str(out), fit_weights=True, **given
    ).predictions.toPandas()
    assert run_folder(runs[0]).evaluation.read_text() == before, "a run's own figures stay"
    facts = read_evaluation(out)
    first, second = facts["test"]["weights"]
    assert facts["val"]["weights"] == [first, second] and first + second == pytest.approx(
        1, abs=1e-4
    )
    assert not (tmp_path / "both" / "members" / "0").exists(), (
        "the first run's table was taken as it is"
    )
    other = pd.read_parquet(next((tmp_path / "both" / "members" / "1").glob("predictions/*test")))
    columns = [f"prob_{name}" for name in FINDINGS]
    tables = [each.sort_values("image_index")[columns].to_numpy() for each in (alone, other, found)]
    np.testing.assert_allclose(tables[2], first * tables[0] + second * tables[1], atol=1e-12)
    # Without weights, nothing that was weighed is taken for what is asked for.
    plain = evaluate(spark, run=runs, out=str(out), **given).predictions.toPandas()
    np.testing.assert_allclose(
        plain.sort_values("image_index")[columns], (tables[0] + tables[1]) / 2, atol=1e-6
    )
    assert read_evaluation(out)["val"]["weights"] == []
