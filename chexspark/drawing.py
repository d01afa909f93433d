"""How pictures are drawn: as SVG that takes its colours from the page. Runs on the driver; needs the report's extra.

In: figures of matplotlib. Out: SVG elements to put into HTML. Colours are the page's own variables
(``currentColor`` for text and axes), so that light, dark and paper all fit.
"""

import html
import io
import re
from typing import Any

from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

# Each stands for a variable of the page until the SVG is written.
INK, ACCENT, SECOND, THIRD, FAINT, ALARM = (
    "#123456", "#2f7ed8", "#d9772b", "#3a9a6b", "#b8c2cc", "#c73a3a"
)  # fmt: skip
VARIABLES = {INK: "currentColor", ACCENT: "var(--accent)", SECOND: "var(--second)",
             THIRD: "var(--third)", FAINT: "var(--faint)", ALARM: "var(--alarm)"}  # fmt: skip
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a name may have a $
    "svg.hashsalt": "chexspark",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "lines.solid_capstyle": "round",
    **{
        k: INK
        for k in ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    },
}


def svg_of(figure: Figure, label: str) -> str:
    """The figure as an SVG element that scales with its column; `label` is read out for it."""
    buffer = io.StringIO()
    figure.savefig(
        buffer, format="svg", transparent=True, bbox_inches="tight", pad_inches=0.04,
        metadata={"Date": None},
    )  # fmt: skip
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, variable)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    head, rest = svg.split(">", 1)
    label = html.escape(label)
    head = re.sub(r' (width|height)="[^"]*"', "", head)
    return f'{head} role="img" aria-label="{label}">{rest}'


def spoken(name: str) -> str:
    """A name as people write it."""
    return name.replace("_", " ")


def short(name: str, most: int) -> str:
    """A name for a picture, of at most `most` characters."""
    name = spoken(name)
    return name if len(name) <= most else name[: most - 1].rstrip() + "…"


class PlainLogarithms(LogFormatter):
    """Labels of a logarithmic axis as plain numbers: `STYLE` shows the usual ones as they are written, ``$10^…$``."""

    def _num_to_string(self, x: float, vmin: float, vmax: float) -> str:
        return f"{x:g}"


def plain_numbers(axis: Axis) -> None:
    """Label a logarithmic axis with plain numbers."""
    axis.set_major_formatter(PlainLogarithms())
    axis.set_minor_formatter(PlainLogarithms(labelOnlyBase=False, minor_thresholds=(1, 0.4)))


COLOURS = {
    "accent": "#2b6cb0",
    "second": "#c8692b",
    "third": "#2f8a62",
    "faint": "#b4bec8",
    "alarm": "#b83232",
}


def in_notebook(svg: str) -> str:
    """A picture for a page that has not our variables, a notebook's: HTML."""
    values = "; ".join(f"--{name}: {value}" for name, value in COLOURS.items())
    return f'<div style="{values}; max-width: 62rem">{svg}</div>'


def framed(page: str) -> str:
    """A whole HTML page for a notebook, in a frame of its own that runs nothing: HTML."""
    style = "width: 100%; height: 44rem; border: 1px solid #b4bec8; border-radius: 8px"
    return f'<iframe sandbox style="{style}" srcdoc="{html.escape(page)}"></iframe>'
