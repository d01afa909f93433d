"""Studies: what a store knows of them, and evaluation with a row per study."""

import numpy as np
import pandas as pd
import pytest

from chexspark.errors import UserError
from chexspark.evaluation.metrics import metric_records
from chexspark.evaluation.predictions import labelled_scores
from chexspark.evaluation.studies import by_study, scored_rows

TABLE = pd.DataFrame(
    [("b", "1", "s1", 0.2, 1, "PA"), ("a", "1", "s1", 0.6, 0, "PA"), ("c", "2", "s1", 0.3, -1, "AP"),
     ("d", "2", "s1", 0.5, 0, "PA"), ("e", "2", None, 0.9, 1, None)],
    columns=["image_index", "patient_id", "study_id", "prob_Mass", "label_Mass", "view_position"],
)  # fmt: skip


@pytest.mark.parametrize("aggregate, scores", [("mean", [0.4, 0.9, 0.4]), ("max", [0.6, 0.9, 0.5])])
def test_a_row_per_study_of_a_patient(aggregate, scores):
    found = by_study(TABLE, ["Mass"], aggregate)
    assert list(zip(found.patient_id, found.study_id, strict=True)) == [("1", "s1"), ("2", "e"), ("2", "s1")]  # fmt: skip
    np.testing.assert_allclose(found["prob_Mass"], scores)
    assert found["label_Mass"].tolist() == [1, 1, 0], "1 before 0 before unknown"
    assert found["images"].tolist() == [2, 1, 2]
    assert found["view_position"].tolist() == ["PA", None, None], "where its images agree"
    assert found["image_index"].tolist() == ["a", "e", "c"]


def test_without_studies_nothing_is_put_together():
    with pytest.raises(UserError, match="--by study: no image has a study"):
        by_study(TABLE.assign(study_id=None), ["Mass"], "mean")
    assert scored_rows(TABLE, {"by": "image"}) is TABLE and scored_rows(TABLE, {}) is TABLE
    assert len(scored_rows(TABLE, {"by": "study", "aggregate": "max", "findings": ["Mass"]})) == 3


def test_a_mean_of_some_findings_stands_beside_that_of_all():
    rng = np.random.default_rng(0)
    findings = ("Mass", "Edema", "Hernia")
    table = pd.DataFrame({"patient_id": [str(i) for i in range(60)]})
    for finding in findings:
        table[f"label_{finding}"] = rng.integers(0, 2, 60)
        table[f"prob_{finding}"] = rng.random(60)
    rows = labelled_scores(table, findings)
    whole = metric_records(rows, 100, means={"two": ["Mass", "Hernia"]}).whole
    assert [r["finding"] for r in whole] == [*findings, "mean", "mean of two"]
    by_name = {r["finding"]: r for r in whole}
    expected = (by_name["Mass"]["auroc"] + by_name["Hernia"]["auroc"]) / 2
    assert by_name["mean of two"]["auroc"] == pytest.approx(expected)
    assert by_name["mean of two"]["auroc_low"] < expected < by_name["mean of two"]["auroc_high"]
    two = metric_records(labelled_scores(table, ("Mass", "Hernia")), 100).whole[-1]
    assert by_name["mean of two"]["brier"] == pytest.approx(two["brier"])
