"""The report's pictures: what is drawn where, before it is SVG; and the SVG itself."""

from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import auc

from chexspark import drawing
from chexspark.evaluation import plots
from chexspark.evaluation.calibration import calibration_bins
from chexspark.evaluation.published_aurocs import PUBLISHED, published_beside
from chexspark.findings import FINDINGS
from chexspark.run import history_charts


@pytest.fixture
def figures(monkeypatch):
    """Plots return matplotlib's figures, and not yet their SVG."""
    for module in (plots, history_charts):
        monkeypatch.setattr(module, "svg_of", lambda figure, label: figure)


def lines(axes):
    """The points of each line: [(x, y), …]."""
    return [list(zip(*map(list, line.get_data()), strict=True)) for line in axes.lines]


def record(finding, auroc, low=None, high=None, **more):
    return {"finding": finding, "auroc": auroc, "auroc_low": low, "auroc_high": high, **more}


def test_an_svg_scales_is_read_out_and_takes_the_page_s_colours():
    text = plots.intervals([record("Pleural_Thickening", 0.8, 0.7, 0.9)])
    root = ElementTree.fromstring(text)
    assert root.get("viewBox") and root.get("width") is None and root.get("height") is None
    assert root.get("role") == "img" and "95 % interval" in root.get("aria-label")
    assert "Pleural Thickening" in text and "metadata" not in text
    assert "var(--accent)" in text and "currentColor" in text
    assert not [colour for colour in drawing.VARIABLES if colour in text]
    assert text == plots.intervals([record("Pleural_Thickening", 0.8, 0.7, 0.9)])


def test_intervals_stand_by_auroc_beside_the_published_ones(figures):
    given = [record("Mass", 0.9, 0.8, 0.95), record("Hernia", None), record("Nodule", 0.6)]
    (axes,) = plots.intervals(given, PUBLISHED).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["Nodule", "Mass"]
    drawn = lines(axes)
    assert [(0.6, 0)] in drawn and [(0.9, 1)] in drawn and [(0.8, 1), (0.95, 1)] in drawn
    published = [p.of("Mass") for p in PUBLISHED if p.of("Mass") is not None]
    assert published and [(value, 1) for value in published] in drawn


def test_curves_and_their_thresholds(figures):
    truth, score = np.array([0, 0, 1, 1]), np.array([0.1, 0.4, 0.35, 0.8])
    given = {"finding": "Mass", "threshold_youden": 0.35, "sensitivity_youden": 1.0,
             "specificity_youden": 0.5, "threshold_sens90": None}  # fmt: skip
    (axes,) = plots.curves(truth, score, given).axes
    _, roc, recall, *points = lines(axes)
    assert roc == [(0, 0), (0, 0.5), (0.5, 0.5), (0.5, 1), (1, 1)]
    # Called above 0.8, 0.4, 0.35: precision 1/1, 1/2, 2/3; recall 1/2, 1/2, 2/2; and of all, 2/4.
    assert recall == [(0.5, 1.0), (0.5, 0.5), (1.0, pytest.approx(2 / 3)), (1.0, 0.5)]
    assert points == [[(0.5, 1.0)]]


def test_a_thinned_curve_is_the_same_curve():
    random = np.random.default_rng(0)
    x, y = (np.sort(random.random(20_000)) for _ in range(2))
    few = plots.thinned(x, y)
    assert 100 < len(few[0]) <= 2 * plots.POINTS + 2
    assert (few[0][0], few[1][0], few[0][-1], few[1][-1]) == (x[0], y[0], x[-1], y[-1])
    assert auc(*few) == pytest.approx(auc(x, y), abs=1e-3)
    assert np.abs(np.diff(few[0])).max() < 0.02 and np.abs(np.diff(few[1])).max() < 0.02
    short = plots.thinned(x[:300], y[:300])
    assert short[0] is not None and len(short[0]) == 300


def test_calibration_before_and_after_on_axes_that_are_given(figures):
    truth = np.array([0, 1, 0, 0])
    before, after = np.array([0.30, 0.32, 0.01, 0.03]), np.array([0.2] * 4)
    series = [calibration_bins(truth, score) for score in (before, after)]
    (axes,) = plots.reliability(series, "Mass", 0.6).axes
    first, second, perfect = lines(axes)
    # Bins are a 15th wide: 0.01 and 0.03 in the first, 0.30 and 0.32 in the fifth, 0.2 in the fourth.
    assert first == [pytest.approx((0.02, 0.0)), pytest.approx((0.31, 0.5))]
    assert second == [pytest.approx((0.2, 0.25))]
    assert perfect == [(0, 0), (0.6, 0.6)]
    assert axes.get_xlim() == axes.get_ylim() and axes.get_xlim()[1] == pytest.approx(0.6, abs=0.05)
    (other,) = plots.reliability(series[1:], "Hernia", 0.6).axes
    assert len(other.lines) == 2 and other.get_xlim() == axes.get_xlim()
    assert plots.largest_shown(series) == 0.5, "the share of positives of the fifth bin"
    assert plots.largest_shown([]) == 0.1


def test_subgroups_below_all_images(figures):
    rows = [record("mean", 0.7, 0.6, 0.8, subgroup_by="view_position", subgroup="AP", behind=True),
            record("mean", None, subgroup_by="sex", subgroup="F", behind=False)]  # fmt: skip
    (axes,) = plots.forest(rows, record("mean", 0.75, 0.7, 0.8)).axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["sex: F", "view position: AP", "all images"]
    drawn = lines(axes)
    assert [(0.75, 2)] in drawn and [(0.7, 1)] in drawn
    assert not [line for line in drawn[1:] if line[0][1] == 0], "nothing for a group without AUROC"
    colours = {tuple(point): line.get_color() for line in axes.lines for point in line.get_xydata()}
    assert colours[0.7, 1.0] == plots.ALARM, "one that is behind"


HISTORY = pd.DataFrame(
    {"epoch": [0, 1], "train_loss": [0.6, 0.4], "val_loss": [0.7, 0.5], "val_auroc": [0.5, None],
     "learning_rate": [1e-3, 1e-4], "best": [True, False], "images_per_second": [10.0, 20.0],
     "input_share": [0.25, None], "compute_share": [0.75, 1.0]}
)  # fmt: skip


def test_a_learning_rate_is_written_as_a_number():
    text = history_charts.training(HISTORY.assign(learning_rate=[1e-3, 1e-4]))
    assert "mathdefault" not in text and "$" not in text and ">0.001<" in text
    within = history_charts.training(HISTORY.assign(learning_rate=[2e-3, 6e-3]))
    assert ">0.002<" in within


def test_a_training_by_epochs_counted_from_one(figures):
    loss, auroc, rate = history_charts.training(HISTORY).axes
    assert lines(loss) == [[(1, 0.6), (2, 0.4)], [(1, 0.7), (2, 0.5)]]
    curve, best = lines(auroc)
    assert curve[0] == (1, 0.5) and np.isnan(curve[1][1]) and best == [(1, 0.5)]
    assert lines(rate) == [[(1, 1e-3), (2, 1e-4)]] and rate.get_yscale() == "log"


def test_shares_of_the_time_stand_on_each_other(figures):
    shares = {"input_share": "input", "compute_share": "compute"}
    rate, parts = history_charts.throughput(HISTORY, shares).axes
    assert [bar.get_height() for bar in rate.patches] == [10, 20]
    bars = [(bar.get_y(), bar.get_height()) for bar in parts.patches]
    assert bars == [(0, 25), (0, 0), (25, 75), (0, 100)]
    assert [text.get_text() for text in parts.get_legend().get_texts()] == ["input", "compute"]


def test_scaling_beside_the_perfect_line(figures):
    (axes,) = plots.scaling([(2, 10.0), (4, 15.0)]).axes
    perfect, measured = lines(axes)
    assert measured == [(2, 10), (4, 15)]
    assert perfect == [(0, 0), (pytest.approx(4.2), pytest.approx(21))]
    assert [text.get_text() for text in axes.texts] == ["100%", "75%"]


def test_published_figures_stand_only_beside_findings_of_the_same_name(figures):
    assert published_beside(["Fracture", "Pleural Effusion"]) == ()
    some = published_beside(["Mass", "Fracture"])
    assert some and all(p.aurocs and p.mean is None and p.interval is None for p in some)
    assert [p.of("Mass") for p in some] == [p.of("Mass") for p in PUBLISHED if p.aurocs]
    assert {p.of("Fracture") for p in some} == {p.of("mean") for p in some} == {None}
    assert published_beside(reversed(FINDINGS)) == PUBLISHED, "in any order, means and all"
    given = [record("Fracture", 0.9, 0.8, 0.95), record("mean", 0.9, 0.8, 0.95)]
    (axes,) = plots.intervals(given, published_beside(["Fracture"])).axes
    assert [
        line.get_marker()
        for line in axes.lines
        if line.get_marker() == "|" and len(line.get_xdata())
    ] == []


def test_a_name_of_a_finding_is_only_a_name():
    name = 'a$b$ <script>"&'
    text = plots.curves(np.array([0, 1]), np.array([0.1, 0.2]),
                        record(name, 1.0, threshold_youden=None, threshold_sens90=None))  # fmt: skip
    root = ElementTree.fromstring(text)
    assert root.get("aria-label").endswith(name)
    assert name in [element.text for element in root.iter() if element.text]


@pytest.mark.parametrize("number", [1, 200])
def test_a_row_for_each_of_any_number_of_findings(figures, number):
    names = [
        f"Finding {n} with a name that is much longer than any picture has room"
        for n in range(number)
    ]
    figure = plots.intervals([record(name, 0.5, 0.4, 0.6) for name in names])
    (axes,) = figure.axes
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert len(labels) == number and all(len(text) <= plots.LONGEST_NAME for text in labels)
    assert labels[0].startswith("Finding 0 ") and labels[0].endswith("…")
    assert axes.get_ylim() == (-0.6, number - 0.4)
    assert figure.get_size_inches()[1] / number >= 0.25, "inches: rows do not touch"
