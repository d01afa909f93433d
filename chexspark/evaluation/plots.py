"""The report's pictures, as SVG text. Pure functions over arrays; runs on the driver.

In: arrays and records. Out: SVG elements to put into HTML, as `drawing` makes them.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from sklearn.metrics import precision_recall_curve, roc_curve

from chexspark.drawing import ACCENT, ALARM, FAINT, INK, SECOND, STYLE, THIRD, short, spoken, svg_of
from chexspark.evaluation.metrics import Metric
from chexspark.evaluation.published_aurocs import Published
from chexspark.evaluation.tables import SubgroupRow
from chexspark.findings import is_mean

POINTS = 160  # of a curve: more could not be seen
LONGEST_TITLE, LONGEST_NAME = 19, 44  # characters of a name over a panel, beside a row


def rows_figure(names: Sequence[str]) -> tuple[Figure, Axes]:
    """A wide figure with a row for each name, from the bottom up."""
    figure = Figure(figsize=(9.6, 0.27 * len(names) + 0.75))
    axes = figure.subplots()
    axes.set_yticks(range(len(names)), [short(name, LONGEST_NAME) for name in names])
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", color=FAINT, lw=0.4, alpha=0.6)
    axes.set_axisbelow(True)
    return figure, axes


def draw_interval(axes: Axes, record: Metric, y: int, colour: str) -> None:
    """The 95 % interval of an AUROC, where there is one."""
    low, high = record["auroc_low"], record["auroc_high"]
    if low is not None and high is not None:
        axes.plot([low, high], [y, y], color=colour, lw=2.6, alpha=0.45)


def intervals(records: Sequence[Metric], published: Sequence[Published] = ()) -> str:
    """AUROC of each finding with its 95 % interval, the lowest at the bottom, and published ones."""
    known = [(r["auroc"], r) for r in records if r["auroc"] is not None]
    shown = sorted(known, key=lambda pair: pair[0])
    with matplotlib.rc_context(STYLE):
        figure, axes = rows_figure([r["finding"] for _, r in shown])
        for y, (auroc, r) in enumerate(shown):
            colour = SECOND if is_mean(r["finding"]) else ACCENT
            others = [v for p in published if (v := p.of(r["finding"])) is not None]
            axes.plot(others, [y] * len(others), "|", color=FAINT, ms=9, mew=1.3, zorder=1)
            draw_interval(axes, r, y, colour)
            axes.plot(auroc, y, "o", color=colour, ms=5.5)
        axes.axvline(0.5, color=INK, lw=0.7, ls=":")
        axes.set_xlabel("AUROC")
        axes.set_xlim(right=1.01)
        return svg_of(figure, "AUROC of each finding with its 95 % interval")


def thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most a few hundred points of a curve (points,), even along both axes, its ends kept."""
    if len(x) <= 2 * POINTS:
        return x, y
    steps = np.linspace(0, 1, POINTS)
    travelled = [np.abs(np.diff(v, prepend=v[0])).cumsum() for v in (x, y)]
    picked = [np.searchsorted(t, steps * t[-1]) for t in travelled]
    kept = np.unique(np.clip(np.concatenate([*picked, [0, len(x) - 1]]), 0, len(x) - 1))
    return x[kept], y[kept]


def panel(title: str) -> tuple[Figure, Axes]:
    """A small square panel from 0 to 1."""
    figure = Figure(figsize=(2.15, 2.15))
    axes = figure.subplots()
    axes.set_title(short(title, LONGEST_TITLE), loc="left")
    axes.set_xticks([0, 0.5, 1], ["0", "½", "1"])
    axes.set_yticks([0, 0.5, 1], ["0", "½", "1"])
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    axes.set_aspect("equal")
    return figure, axes


def curves(truth: np.ndarray, score: np.ndarray, record: Metric) -> str:
    """ROC and precision–recall curve of one finding, with its two thresholds.

    `truth` 1 or 0, `score`: (rows,) of known rows.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = panel(record["finding"])
        false, true, _ = roc_curve(truth, score)
        precision, recall, _ = precision_recall_curve(truth, score)
        axes.plot([0, 1], [0, 1], color=FAINT, lw=0.7, ls=":")
        axes.plot(*thinned(false, true), color=ACCENT, lw=1.7)
        # Its last point, precision 1 at recall 0, is a convention and not an observation.
        axes.plot(*thinned(recall[-2::-1], precision[-2::-1]), color=SECOND, lw=1.1)
        figures: Mapping[str, Any] = record
        for rule, marker in (("youden", "o"), ("sens90", "s")):
            if figures[f"threshold_{rule}"] is not None:
                axes.plot(1 - figures[f"specificity_{rule}"], figures[f"sensitivity_{rule}"], marker,
                          color=ACCENT, ms=4.5)  # fmt: skip
        return svg_of(figure, f"ROC and precision-recall of {spoken(record['finding'])}")


Bins = tuple[np.ndarray, np.ndarray, np.ndarray]  # as `calibration_bins` returns them


def largest_shown(series: Iterable[Bins]) -> float:
    """Where axes must end to show all bins, a tenth of 1 or more."""
    most = [np.nanmax(values) for _, *both in series for values in both]
    return float(np.ceil(max([0.1, *most]) * 10 - 1e-9) / 10)


def reliability(series: Sequence[Bins], finding: str, top: float) -> str:
    """Share of positives over probability by bin; `series`: before scaling, and after it if there is one.

    Both axes go from 0 to `top`, with squares at even distances, since most probabilities are small.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = panel(finding)
        for (rows, mean, positive), colour in zip(series, (SECOND, THIRD), strict=False):
            there = rows > 0
            axes.plot(mean[there], positive[there], color=colour, lw=1)
            axes.scatter(mean[there], positive[there], 4 + 26 * np.sqrt(rows[there] / rows.sum()),
                         color=colour, linewidths=0)  # fmt: skip
        axes.plot([0, top], [0, top], color=FAINT, lw=0.7, ls=":")
        ticks = [0, top / 4, top]
        limits = square(np.array([-0.03, 1.02])) * top
        names = [f"{tick:g}" for tick in ticks]
        axes.set_xscale("function", functions=(root, square))
        axes.set_yscale("function", functions=(root, square))
        axes.set_xticks(ticks, names)
        axes.set_yticks(ticks, names)
        axes.set(xlim=limits, ylim=limits)
        return svg_of(figure, f"calibration of {spoken(finding)}")


def root(values: np.ndarray) -> np.ndarray:
    """The square root (points,), of what is below 0 too, so that an axis may begin there."""
    return np.sign(values) * np.sqrt(np.abs(values))


def square(values: np.ndarray) -> np.ndarray:
    """The inverse of `root`, (points,)."""
    return np.sign(values) * np.square(values)


def forest(rows: Sequence[SubgroupRow], whole: Metric) -> str:
    """Mean AUROC of each group with its interval, beside that of all images."""
    named = [("all images", whole, SECOND, "D")] + [
        (f"{spoken(r['subgroup_by'])}: {r['subgroup']}", r, ALARM if r["behind"] else ACCENT, "o")
        for r in rows
    ]
    with matplotlib.rc_context(STYLE):
        figure, axes = rows_figure([name for name, *_ in reversed(named)])
        if whole["auroc"] is not None:
            axes.axvline(whole["auroc"], color=INK, lw=0.7, ls=":")
        for y, (_, r, colour, marker) in enumerate(reversed(named)):
            if r["auroc"] is None:
                continue
            draw_interval(axes, r, y, colour)
            axes.plot(r["auroc"], y, marker, color=colour, ms=5)
        axes.set_xlabel("mean AUROC")
        return svg_of(figure, "mean AUROC by subgroup")


def scaling(points: Sequence[tuple[int, float]]) -> str:
    """Images per second over ranks, (ranks, rate) in order, beside the perfect line."""
    ranks, rates = (np.array(v, float) for v in zip(*points, strict=True))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5, 3.2))
        axes = figure.subplots()
        most = ranks.max() * 1.05
        axes.plot([0, most], [0, most * rates[0] / ranks[0]], color=FAINT, lw=1, ls="--", label="perfect")  # fmt: skip
        axes.plot(ranks, rates, "o-", color=ACCENT, lw=1.7, label="measured")
        for n, rate in points:
            share = rate / n / (rates[0] / ranks[0])
            axes.annotate(
                f"{share:.0%}", (n, rate), (4, -11), textcoords="offset points", fontsize=8
            )
        axes.set_xlabel("ranks")
        axes.set_ylabel("images per second")
        axes.set_xlim(0, most)
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
        axes.legend(frameon=False)
        return svg_of(figure, "images per second over ranks")
