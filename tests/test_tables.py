"""The tables of an evaluation, as text and as they are read."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from chexspark.errors import UserError
from chexspark.evaluation import tables
from chexspark.evaluation.measuring import Scored, write_metrics
from chexspark.evaluation.metrics import metric_records
from chexspark.evaluation.predictions import LabelledScores
from chexspark.evaluation.subgroups import NO_DIFFERENCE, Group
from chexspark.run.folder import METRICS, SUBGROUPS, RunFolder
from chexspark.run.history import history_schema, read_history, write_history
from chexspark.storage import locate


@pytest.mark.parametrize(
    "value, text",
    [(0.00043, "0.00043"), (0.0123, "0.012"), (0.5, "0.500"), (0.998, "0.9980"), (0.99957, "0.99957"),
     (0.0, "0"), (1.0, "1"), (None, "–"), (float("nan"), "–"), (3.2e-9, "3.2e-09"),
     (1 - 1e-12, "1.0000000"), (-2.345, "-2.35"), (12.0, "12"), (0.0999, "0.100")],
)  # fmt: skip
def test_a_probability_has_enough_digits(value, text):
    assert tables.probability_text(value) == text


def test_thresholds_that_differ_look_different():
    shown = {tables.probability_text(10**-n) for n in range(1, 12)}
    shown |= {tables.probability_text(1 - 10**-n) for n in range(1, 7)}
    assert len(shown) == 17


@pytest.fixture
def records():
    labels = [[1, 0], [0, 1], [0, 0], [1, 0], [0, 0], [0, 0]]
    scores = [[0.9, 0.1], [0.2, 0.3], [0.4, 0.2], [0.3, 0.4], [0.1, 0.5], [0.2, 0.1]]
    rows = LabelledScores(
        ("Mass", "Edema"), np.array(labels, np.int8), np.array(scores), np.arange(6)
    )
    return metric_records(rows, 50).whole


def test_a_mean_says_of_what_it_is(records):
    last = tables.metrics_text(records, "test").splitlines()[-1]
    assert last.startswith("mean ")
    assert "of 2 findings; rough: 2 of its 2 findings have fewer than 10" in last


def test_a_warning_says_whom_a_group_is_compared_with():
    women, mean = ({"finding": name, "auroc": 0.75, **NO_DIFFERENCE} for name in ("Mass", "mean"))
    women |= {
        "auroc_others": 0.8,
        "difference": -0.05,
        "p_behind": 0.0123,
        "behind": True,
        "compared": 1,
    }
    mean |= {
        "auroc_others": 0.9,
        "difference": -0.1,
        "p_behind": 0.001,
        "behind": True,
        "compared": 9,
    }
    group = Group("view_position", "AP", None, None)
    found = tables.warnings_text([group, group], [[women], [mean, women | {"behind": False}]])
    assert found == [
        "warning: view position AP: AUROC of Mass is 0.750, 0.050 below the 0.800 of the other images whose "
        "view position is known (p 0.012, corrected for all tests)",
        "warning: view position AP: mean AUROC of the 9 findings tested is 0.800, 0.100 below the 0.900 of "
        "the other images whose view position is known (p 0.001, corrected for all tests)",
    ]


def test_tables_of_before_are_read(records, tmp_path):
    """Without the columns that later versions brought, where a temperature was the only scaling."""
    out = RunFolder(locate(str(tmp_path)))
    later = {"rough", "scaling", "slope", "intercept", "brier_temperature", "ece_temperature",
             "auroc_others", "compared", "detectable"}  # fmt: skip
    scaled = {"temperature": 2.0, "brier_scaled": 0.25, "ece_scaled": 0.125}
    rows = [records[0] | scaled, *records[1:]]
    group = {"subgroup_by": "sex", "subgroup": "F", "images": 6, **NO_DIFFERENCE}
    for name, written in ((METRICS, rows), (SUBGROUPS, [group | row for row in rows])):
        kept = [{k: v for k, v in row.items() if k not in later} for row in written]
        out.table(name, "test").write_table(pa.Table.from_pylist(kept))
        found = tables.read_split(out, name, "test")
        assert list(found.columns) == list(tables.schema_of(tables.ROWS[name]).names)
        first, last = found.iloc[0], found.iloc[-1]
        assert (first.scaling, first.slope, first.intercept) == ("temperature", 0.5, 0.0)
        assert (first.brier_temperature, first.ece_temperature) == (0.25, 0.125)
        assert last.scaling is None and last.slope != last.slope and not first.rough
    assert (found.compared == 0).all() and found.auroc_others.isna().all()


@pytest.mark.parametrize("synthetic", [True, False])
def test_figures_of_phantoms_are_called_so(synthetic, tmp_path, caplog):
    random = np.random.default_rng(0)
    table = pd.DataFrame({"patient_id": list("abcdefgh"), "label_Mass": [1, 0] * 4,
                          "prob_Mass": random.random(8)})  # fmt: skip
    out = RunFolder(locate(str(tmp_path)))
    tables.write_evaluation(out, "test", {"findings": ["Mass"], "synthetic": synthetic})
    with caplog.at_level("INFO"):
        write_metrics(Scored("test", table, ("Mass",), None), 50, out)
    assert ("say nothing about patients" in caplog.text) == synthetic
    assert tables.read_evaluation(out)["test"]["synthetic"] == synthetic, "kept for the report"


@pytest.mark.parametrize(
    "column, values",
    [
        ("epoch", ["<b>"]),
        ("best", [None]),
        ("learning_rate", [float("nan")]),
        ("val_auroc", [1e300]),
    ],
)
def test_a_history_that_is_none_is_refused(tmp_path, column, values):
    run = RunFolder(locate(str(tmp_path)))
    row = {name: 0.5 for name in history_schema(()).names} | {"epoch": 0, "steps": 1, "best": True}
    write_history(run, [row], ())
    table = run.history.read_table()
    place = table.schema.get_field_index(column)
    run.history.write_table(table.set_column(place, column, pa.array(values)))
    with pytest.raises(UserError, match="is damaged"):
        read_history(run)
