"""The page of the suite ``scaling``. Pure functions; run on the driver, and need the report's extra.

In: what the study measured. Out: HTML, one file that loads nothing and runs nothing; its pictures as SVG.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from jinja2 import ChoiceLoader, Environment, PackageLoader
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from chexspark.benchmark.scaling_rows import ScalingRow
from chexspark.drawing import (
    ACCENT,
    ALARM,
    FAINT,
    INK,
    SECOND,
    STYLE,
    THIRD,
    plain_numbers,
    svg_of,
)
from chexspark.progress import duration

COLOURS = (ACCENT, SECOND, THIRD, ALARM, INK)  # by number of ranks, fewest first
PARTS = {"compute_share": ("compute", ACCENT), "allreduce_share": ("waiting for allreduce", SECOND),
         "input_share": ("waiting for input", ALARM)}  # fmt: skip
PANELS = {
    "none": "learning rate as it is",
    "linear": "scaled with the ranks, after an epoch of warm-up",
}


def scaling_page(
    about: Mapping[str, Any], rows: Sequence[ScalingRow], table: pd.DataFrame,
    forecast: Sequence[Mapping[str, Any]],
) -> str:  # fmt: skip
    """The page. `about`: the study's facts; `table`: its curves; `forecast`: of `forecast.Forecast`, before."""
    pages = Environment(
        loader=ChoiceLoader(
            [PackageLoader("chexspark.benchmark", "."), PackageLoader("chexspark.evaluation", ".")]
        ),
        autoescape=True, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    pages.filters["duration"] = lambda seconds: "–" if seconds is None else duration(seconds)
    numbers = [row.ranks for row in rows]
    last = table[table["epoch"] == table["epoch"].max()]
    return pages.get_template("scaling.html.jinja").render(
        about=about, rows=rows, first=rows[0], most=rows[-1],
        beyond=[each for each in forecast if each["ranks"] > rows[-1].ranks],
        rates=rates_picture(rows, forecast), shares=shares_picture(rows),
        learning=learning_picture(table, numbers),
        ends=last.sort_values(["ranks", "scaling"], ascending=[True, False]).to_dict("records"), panels=PANELS,
    )  # fmt: skip


def rates_picture(rows: Sequence[ScalingRow], forecast: Sequence[Mapping[str, Any]]) -> str:
    """Images per second and efficiency over ranks: measured, forecast, and without loss."""
    ranks = np.array([row.ranks for row in rows])
    rates = np.array([row.images_per_second for row in rows])
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 3))
        rate, share = figure.subplots(1, 2)
        said = sorted(forecast, key=lambda each: each["ranks"])
        at = np.array([each["ranks"] for each in said] or ranks)
        whole = np.unique(np.concatenate([ranks, at]))
        rate.plot(whole, whole * rates[0] / ranks[0], ls=":", color=FAINT, label="without loss")
        if said:
            rate.plot(
                at,
                [each["images_per_second"] for each in said],
                "--",
                color=SECOND,
                label="forecast",
            )
            share.plot(at, [100 * each["efficiency"] for each in said], "--", color=SECOND)
        span = [rates - [row.slowest for row in rows], [row.fastest for row in rows] - rates]
        rate.errorbar(ranks, rates, span, fmt="o", ms=5, color=ACCENT, label="measured")
        share.plot(ranks, [100 * row.efficiency for row in rows], "o-", ms=5, color=ACCENT)
        for row in rows:
            share.annotate(f"{row.efficiency:.0%}", (row.ranks, 100 * row.efficiency), (5, 6),
                           textcoords="offset points", fontsize=8)  # fmt: skip
        rate.set_title("Images per second", loc="left")
        rate.legend(frameon=False, fontsize=8)
        share.set_title("Efficiency, %", loc="left")
        share.set_ylim(0, 112)
        for axes in (rate, share):
            axes.set_xscale("log", base=2)
            axes.minorticks_off()
            axes.set_xticks(whole, [str(number) for number in whole])
            axes.set_xlabel("ranks")
        rate.set_yscale("log", base=2)
        plain_numbers(rate.yaxis)
        figure.tight_layout()
        return svg_of(figure, "images per second and efficiency over ranks, measured and forecast")


def shares_picture(rows: Sequence[ScalingRow]) -> str:
    """How the time of a step is spent, a bar for each number of ranks."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 0.35 * len(rows) + 0.9))
        axes = figure.subplots()
        places, left = range(len(rows)), np.zeros(len(rows))
        for share, (name, colour) in PARTS.items():
            values = np.array([100 * getattr(row, share) for row in rows])
            axes.barh(places, values, 0.65, left, color=colour, label=name)
            left += values
        axes.set_yticks(places, [f"{row.ranks} rank{'s' * (row.ranks > 1)}" for row in rows])
        axes.invert_yaxis()
        axes.set_xlim(0, 100)
        axes.set_xlabel("share of the step time, %")
        axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
        return svg_of(figure, "share of compute, allreduce and input by number of ranks")


def learning_picture(table: pd.DataFrame, numbers: Sequence[int]) -> str:
    """Loss and AUROC by images seen, a line per number of ranks: with the rate as it is, and scaled."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 5))
        panels = figure.subplots(2, len(PANELS), sharex=True, sharey="row", squeeze=False)
        for column, (scaling, title) in enumerate(PANELS.items()):
            loss, auroc = panels[:, column]
            for ranks, colour in zip(numbers, cycled(len(numbers)), strict=True):
                way = "none" if ranks == 1 else scaling  # at one rank there is nothing to scale
                part = table[(table["ranks"] == ranks) & (table["scaling"] == way)]
                name = f"{ranks} rank{'s' * (ranks > 1)}"
                loss.plot(
                    part["images_seen"], part["val_loss"], "o-", ms=3, color=colour, label=name
                )
                auroc.plot(
                    part["images_seen"], part["val_auroc"].astype(float), "o-", ms=3, color=colour
                )
            loss.set_title(title[0].upper() + title[1:], loc="left")
            auroc.set_xlabel("images seen")
            auroc.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        label(panels[0][0], "validation loss")
        label(panels[1][0], "mean validation AUROC")
        panels[0][0].legend(frameon=False, fontsize=8)
        figure.tight_layout()
        return svg_of(figure, "validation loss and AUROC by images seen, for each number of ranks")


def label(axes: Axes, text: str) -> None:
    """Name the vertical axis."""
    axes.set_ylabel(text)


def cycled(number: int) -> list[str]:
    """So many colours."""
    return [COLOURS[place % len(COLOURS)] for place in range(number)]
