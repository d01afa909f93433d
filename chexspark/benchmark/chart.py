"""Rates as bar charts. Pure; runs on the driver.

In: names and rates. Out: SVG text.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

STYLE: Any = {"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10,
         "axes.spines.top": False, "axes.spines.right": False}  # fmt: skip
OURS, THEIRS, PUBLISHED, INK = "#2f7ed8", "#9aa5b1", "#d9772b", "#333c46"
COLOURS = (OURS, PUBLISHED, "#3a9a6b")  # of groups
WAITING = 0.35  # opacity of what waiting costs


@dataclass(frozen=True)
class FedBar:
    """A way to feed a training."""

    name: str
    rate: float  # images per second
    idle_share: float  # of the time, for which the step waits for input
    published_rate: float | None = None  # what it would be with a published gain
    ours: bool = False


@dataclass(frozen=True)
class FedPanel:
    """A network, the ways that feed it, and the rate of its step by itself."""

    title: str
    bars: Sequence[FedBar]
    ceiling: float  # images per second


def rates_chart(rates: dict[str, float], title: str) -> str:
    """Horizontal bars on a logarithmic scale, the first at the top and in its own colour."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 0.4 * len(rates) + 1.1))
        axes = figure.subplots()
        places = range(len(rates))
        colours = [OURS] + [THEIRS] * (len(rates) - 1)
        axes.barh(places, list(rates.values()), color=colours, height=0.7, log=True)
        axes.set_yticks(places, list(rates))
        axes.invert_yaxis()
        for place, rate in zip(places, rates.values(), strict=True):
            axes.text(rate * 1.06, place, f"{rate:,.0f}", va="center")
        axes.set_title(title, loc="left", fontsize=11)
        axes.set_xlim(right=max(rates.values()) * 2.2)
        return svg_of(figure)


def grouped_chart(rates: dict[str, dict[int, float]], title: str, of: str) -> str:
    """Upright bars in groups, one per number. `rates`: by a bar's name, then by number; `of`: what is numbered."""
    numbers = sorted({number for each in rates.values() for number in each})
    width = 0.8 / len(rates)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(max(5.0, 1.2 + 0.8 * len(rates) * len(numbers)), 3.6))
        axes = figure.subplots()
        for index, ((name, each), colour) in enumerate(zip(rates.items(), COLOURS, strict=False)):
            shift = width * (index - (len(rates) - 1) / 2)
            places = [numbers.index(number) + shift for number in each]
            bars = axes.bar(places, list(each.values()), width * 0.92, color=colour, label=name)
            axes.bar_label(bars, fmt="{:,.1f}", padding=2, fontsize=9)
        axes.set_xticks(range(len(numbers)), [f"{number}" for number in numbers])
        axes.set_xlabel(of)
        axes.margins(y=0.12)
        axes.set_title(title, loc="left", fontsize=11)
        axes.legend(frameon=False, ncols=len(rates), loc="upper left", bbox_to_anchor=(0, -0.18))
        return svg_of(figure)


def svg_of(figure: Figure) -> str:
    """The figure as a file's content."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    return buffer.getvalue()


def fed_chart(panels: Sequence[FedPanel], title: str, published: str) -> str:
    """Horizontal bars of images per second, a panel per network; faint beyond them what waiting for input costs.

    `published`: what the marks of published gains are.
    """
    with matplotlib.rc_context(STYLE):
        rows = len(panels[0].bars)
        figure = Figure(
            figsize=(10, len(panels) * (0.36 * rows + 0.75) + 0.9), layout="constrained"
        )
        every = figure.subplots(len(panels), squeeze=False)[:, 0]
        for axes, panel in zip(every, panels, strict=True):
            draw_panel(axes, panel)
        every[-1].set_xlabel("images per second")
        figure.suptitle(title, x=0.01, ha="left", fontsize=11)
        figure.legend(handles=[
            Patch(color=THEIRS, label="trained"),
            Patch(color=THEIRS, alpha=WAITING, label="lost to waiting for input"),
            Line2D([], [], color=INK, linestyle="--", label="the step by itself, on a batch in memory"),
            Line2D([], [], color=PUBLISHED, marker="D", linestyle="", label=published),
        ], loc="outside lower left", ncols=2, frameon=False)  # fmt: skip
        return svg_of(figure)


def draw_panel(axes: Axes, panel: FedPanel) -> None:
    """One network's bars, with figures to the right of them."""
    right, beside = 1.02, axes.get_yaxis_transform()
    for place, bar in enumerate(panel.bars):
        colour = OURS if bar.ours else THEIRS
        unhindered = bar.rate / (1 - bar.idle_share)
        axes.barh(place, bar.rate, color=colour, height=0.7)
        axes.barh(place, unhindered - bar.rate, left=bar.rate, color=colour, height=0.7, alpha=WAITING)  # fmt: skip
        text = f"{bar.rate:,.1f}, waits {bar.idle_share:.1%}"
        axes.text(right, place, text, va="center", transform=beside)
        if bar.published_rate:
            axes.plot(bar.published_rate, place, "D", color=PUBLISHED, markeredgecolor="white")
    axes.axvline(panel.ceiling, color=INK, linestyle="--", linewidth=1)
    axes.text(right, -0.75, f"{panel.ceiling:,.1f} by itself", va="center", color=INK, transform=beside)  # fmt: skip
    axes.set_yticks(range(len(panel.bars)), [bar.name for bar in panel.bars])
    axes.invert_yaxis()
    axes.set_title(panel.title, loc="left", fontsize=10)
