"""Scaling of probabilities, beside scikit-learn's own."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from chexspark.evaluation.calibration import (
    NOT_SCALED,
    Scaling,
    calibration_error,
    choose_scaling,
    fit_platt,
    fit_temperature,
    scale,
    to_logits,
)


def drawn(number, a=1, b=3, seed=0):
    """Labels drawn from probabilities, which are honest; and the probabilities."""
    random = np.random.default_rng(seed)
    honest = random.beta(a, b, number)
    return (random.random(number) < honest).astype(int), honest


def test_a_temperature_is_found_again_and_mends_calibration():
    labels, honest = drawn(20000)
    sure = scale(honest, Scaling(2.5))
    temperature = fit_temperature(labels, sure)
    assert temperature == pytest.approx(2.5, rel=0.05)
    mended = calibration_error(labels, scale(sure, Scaling(1 / temperature)))
    assert calibration_error(labels, sure) > 5 * mended
    assert calibration_error(labels, labels.astype(float)) == 0
    assert fit_temperature(labels, np.where(labels, 0.9, 0.1)) is None  # the smaller the better
    assert fit_temperature(labels, np.where(labels, 0.1, 0.9)) is None  # the larger the better


@pytest.mark.parametrize(
    "number, a, b, distortion",
    [(500, 1, 3, (2.0, 0.0)), (2000, 1, 30, (0.3, 2.0)), (300, 2, 2, (1.0, -3.0)), (40, 1, 3, (5.0, 8.0))],
)  # fmt: skip
def test_platt_s_scaling_is_scikit_learn_s_logistic_regression(number, a, b, distortion):
    labels, honest = drawn(number, a, b)
    shifted = scale(honest, Scaling(*distortion))
    found = fit_platt(labels, shifted)
    other = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000)
    other.fit(to_logits(shifted)[:, None], labels)
    assert found.slope == pytest.approx(other.coef_[0, 0], rel=1e-4)
    assert found.intercept == pytest.approx(other.intercept_[0], rel=1e-4, abs=1e-4)
    expected = other.predict_proba(to_logits(shifted)[:, None])[:, 1]
    np.testing.assert_allclose(scale(shifted, found), expected, atol=1e-5)


def test_platt_s_scaling_mends_a_shift_that_no_temperature_can():
    labels, honest = drawn(20000, 1, 20)
    shifted = scale(honest, Scaling(0.5, 2.0))
    chosen = choose_scaling(labels, shifted, np.arange(20000) // 3)
    assert chosen.method == "platt"
    assert chosen.scaling == pytest.approx((2.0, -4.0), rel=0.1)
    mended = calibration_error(labels, scale(shifted, chosen.scaling))
    assert mended < 0.01 < 0.3 < calibration_error(labels, shifted)


def test_a_temperature_is_chosen_where_a_shift_would_fit_chance_alone():
    """On the rows it is fitted on Platt's is never worse: it would always be chosen there."""
    methods = []
    for seed in range(40):
        labels, honest = drawn(120, seed=seed)
        chosen = choose_scaling(labels, scale(honest, Scaling(2.0)), np.arange(120) // 2)
        methods.append(chosen.method)
        if chosen.method == "temperature":
            assert chosen.scaling == (1 / chosen.temperature, 0)
    assert methods.count("temperature") > 25


@pytest.mark.parametrize(
    "labels, probabilities, given",
    [([0, 0, 1, 1], [0.1, 0.2, 0.3, 0.4], "parted: the steeper the better"),
     ([0, 0, 1, 1], [0.1, 0.3, 0.3, 0.4], "parted but for a tie"),
     ([0, 1, 0, 1], [0.3, 0.3, 0.3, 0.3], "all equal"),
     ([1, 1, 0, 1, 0, 0], [0.1, 0.2, 0.3, 0.35, 0.4, 0.5], "the order turned round")],
)  # fmt: skip
def test_what_has_no_scaling_by_platt(labels, probabilities, given):
    assert fit_platt(np.array(labels), np.array(probabilities)) is None, given


def test_what_is_parted_fully_is_not_scaled():
    labels = np.tile([0, 1], 50)
    assert choose_scaling(labels, np.where(labels, 0.9, 0.1), np.arange(100)) == NOT_SCALED
    with pytest.raises(ValueError, match="both classes"):
        choose_scaling(np.zeros(4, int), np.full(4, 0.1), np.arange(4))


def test_a_positive_patient_alone_makes_no_scaling_by_platt():
    """Of the folds without it the others say nothing."""
    labels, probabilities = np.zeros(100, int), np.linspace(0.01, 0.9, 100)
    labels[60] = 1
    assert choose_scaling(labels, probabilities, np.arange(100)).method != "platt"
