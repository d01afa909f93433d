"""Rates as a bar chart. Pure; runs on the driver.

In: names and rates. Out: SVG text.
"""

import io
from typing import Any

import matplotlib
from matplotlib.figure import Figure

STYLE: Any = {"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10,
         "axes.spines.top": False, "axes.spines.right": False}  # fmt: skip


def rates_chart(rates: dict[str, float], title: str) -> str:
    """Horizontal bars on a logarithmic scale, the first at the top and in its own colour."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 0.4 * len(rates) + 1.1))
        axes = figure.subplots()
        places = range(len(rates))
        colours = ["#2f7ed8"] + ["#9aa5b1"] * (len(rates) - 1)
        axes.barh(places, list(rates.values()), color=colours, height=0.7, log=True)
        axes.set_yticks(places, list(rates))
        axes.invert_yaxis()
        for place, rate in zip(places, rates.values(), strict=True):
            axes.text(rate * 1.06, place, f"{rate:,.0f}", va="center")
        axes.set_title(title, loc="left", fontsize=11)
        axes.set_xlim(right=max(rates.values()) * 2.2)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    return buffer.getvalue()
