"""The page of an ablation, and its table as text. Pure functions; run on the driver, and need the report's extra.

In: what ``ablation.json`` holds. Out: HTML, one file that loads nothing and runs nothing; lines.
"""

from collections.abc import Mapping
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from chexspark.drawing import ACCENT, ALARM, FAINT, STYLE, spoken, svg_of
from chexspark.experiment.pages import auroc_text, render

NOTHING = "no difference seen"


def verdict(lever: Mapping[str, Any]) -> str:
    """What an interval says, in words."""
    if lever["low"] is None:
        return "not known"
    return "higher" if lever["low"] > 0 else "lower" if lever["high"] < 0 else NOTHING


def changes_text(changes: Mapping[str, Any]) -> str:
    """``crop 0.6``."""
    return ", ".join(f"{spoken(name)} {value}" for name, value in changes.items())


def signed(value: float | None) -> str:
    """A difference of AUROCs, for people."""
    return "–" if value is None else f"{value:+.4f}".replace("-", "−")


def ablation_text(found: Mapping[str, Any]) -> str:
    """A line per lever."""
    width = max(4, *(len(name) for name in found["levers"])) + 2
    base = found["base"]
    lines = [
        f"{'lever':<{width}}{'AUROC':>8}{'difference':>12}{'95 % interval':>19}  {found['split']}, {found['seeds']} seeds",
        f"{'base':<{width}}{auroc_text(base['mean']):>8}",
    ]
    for name, lever in found["levers"].items():
        between = "–" if lever["low"] is None else f"{signed(lever['low'])} {signed(lever['high'])}"
        mean, difference = auroc_text(lever["mean"]), signed(lever["difference"])
        lines.append(f"{name:<{width}}{mean:>8}{difference:>12}{between:>19}  {verdict(lever)}")
    return "\n".join(lines)


def ablation_page(found: Mapping[str, Any]) -> str:
    """The page. `found`: as `ablation.summary` returns it."""
    levers = found["levers"].values()
    findings = list(next(iter(levers))["findings"])
    filters = {"signed": signed, "verdict": verdict, "changes": changes_text}
    return render(
        "ablation.html.jinja", filters, found=found, findings=findings, picture=picture(found),
        helping=sum(verdict(lever) == "higher" for lever in levers),
        nothing=[name for name, lever in found["levers"].items() if verdict(lever) == NOTHING],
    )  # fmt: skip


def picture(found: Mapping[str, Any]) -> str:
    """Each lever's difference with its interval, and that of every seed."""
    levers = list(found["levers"].items())
    base = found["base"]["aurocs"]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 0.32 * len(levers) + 0.9))
        axes = figure.subplots()
        axes.axvline(0, color=FAINT, lw=1)
        for place, (_, lever) in enumerate(levers):
            colour = {"higher": ACCENT, "lower": ALARM}.get(verdict(lever), FAINT)
            seeds = [
                a - b for a, b in zip(lever["aurocs"], base, strict=True) if None not in (a, b)
            ]
            axes.plot(seeds, [place] * len(seeds), "o", ms=3, color=colour, alpha=0.5)
            if lever["low"] is not None:
                axes.plot([lever["low"], lever["high"]], [place] * 2, color=colour, lw=2.4)
            if lever["difference"] is not None:
                axes.plot(lever["difference"], place, "D", ms=6, color=colour)
        axes.set_yticks(range(len(levers)), [name for name, _ in levers])
        axes.set_ylim(len(levers) - 0.4, -0.6)
        axes.set_xlabel(f"difference of mean AUROC, {found['split']}: with the lever − without")
        return svg_of(figure, "what each lever does to mean AUROC, with 95 % intervals")
