"""The page of a search, one HTML file that loads nothing. Pure but for writing it; runs on the driver.

In: the records of its trials. Out: ``OUT/search.html``: a table of trials, and pictures of AUROC by trial, by
setting, and by epoch.
"""

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from jinja2 import ChoiceLoader, Environment, PackageLoader
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from chexspark.drawing import (
    ACCENT,
    ALARM,
    FAINT,
    SECOND,
    STYLE,
    plain_numbers,
    short,
    svg_of,
)
from chexspark.progress import duration
from chexspark.tuning.records import SearchFolder, SearchRecord, TrialRecord, best_trial
from chexspark.tuning.space import Range, Space
from chexspark.tuning.study import values_of

COLOURS = {"done": ACCENT, "pruned": SECOND, "running": FAINT, "failed": ALARM, "refused": ALARM}
PANELS = 3  # in a row


def write_page(
    folder: SearchFolder, record: SearchRecord, space: Space, table: pd.DataFrame
) -> None:
    """Write the page. `table`: a row per trial, as `search` returns it."""
    trials = record["trials"]
    best = best_trial(trials)
    pages = Environment(
        loader=ChoiceLoader(
            [PackageLoader("chexspark.tuning", "."), PackageLoader("chexspark.evaluation", ".")]
        ),
        autoescape=True, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    scored = table[table["val_auroc"].notna()]
    order = table.sort_values(["val_auroc"], ascending=False, na_position="last")
    content = pages.get_template("search.html.jinja").render(
        name=str(folder), store=record["store"], best=best["number"] if best else None,
        best_auroc=None if best is None else max(values_of(best).values()),
        counts={s: int((table["state"] == s).sum()) for s in COLOURS},
        time=duration(sum(trial["seconds"] for trial in trials)),
        settings=list(space.searched), fixed=space.fixed, rows=order.to_dict("records"), shown=shown,
        by_trial=by_trial(scored), by_setting=by_setting(scored, space), by_epoch=by_epoch(trials),
    )  # fmt: skip
    folder.page.write_text(content)


def shown(value: Any) -> str:
    """A cell of the table."""
    if value is None or value != value or value is pd.NA:
        return "–"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def draw(axes: Axes, x: Any, table: pd.DataFrame) -> None:
    """Points of trials, by their states."""
    axes.scatter(x, table["val_auroc"], 22, [COLOURS[state] for state in table["state"]], linewidths=0)  # fmt: skip


def by_trial(table: pd.DataFrame) -> str:
    """Validation AUROC of each trial, and the best of those so far; empty without any."""
    if table.empty:
        return ""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 2.4))
        axes = figure.subplots()
        done = table[table["state"] == "done"]
        axes.step(done["trial"], done["val_auroc"].cummax(), where="post", color=FAINT, lw=1.2)
        draw(axes, table["trial"], table)
        axes.set(xlabel="trial", ylabel="validation AUROC")
        axes.xaxis.set_major_locator(MaxNLocator(12, integer=True))
        return svg_of(figure, "validation AUROC by trial, and the best so far")


def by_setting(table: pd.DataFrame, space: Space) -> str:
    """Validation AUROC over each setting that is searched; empty without any trial."""
    names = list(space.searched)
    if table.empty:
        return ""
    with matplotlib.rc_context(STYLE):
        rows = -(-len(names) // PANELS)
        figure = Figure(figsize=(9.6, 2.3 * rows))
        panels = np.ravel(figure.subplots(rows, PANELS, sharey=True, squeeze=False))
        for axes, name in zip(panels, names, strict=False):
            found, known = space.searched[name], table[table[name].notna()]
            if isinstance(found, Range):
                draw(axes, known[name].astype(float), known)
                if found.log:
                    axes.set_xscale("log")
                    plain_numbers(axes.xaxis)
            else:
                places = [list(map(str, found.values)).index(str(v)) for v in known[name]]
                draw(axes, places, known)
                labels = [short(str(value), 14) for value in found.values]
                axes.set_xticks(range(len(labels)), labels, rotation=20 if len(labels) > 3 else 0)
                axes.set_xlim(-0.5, len(labels) - 0.5)
            axes.set_title(short(name, 30), loc="left")
        for axes in panels[len(names) :]:
            axes.set_visible(False)
        panels[0].set_ylabel("validation AUROC")
        figure.tight_layout()
        return svg_of(figure, "validation AUROC by setting")


def by_epoch(trials: Sequence[TrialRecord]) -> str:
    """Validation AUROC of each trial over its epochs; empty without any."""
    curves = [(trial["state"], values_of(trial)) for trial in trials]
    if not any(values for _, values in curves):
        return ""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 2.6))
        axes = figure.subplots()
        for state, values in curves:
            axes.plot(list(values), list(values.values()), "o-", ms=2.5, lw=1, color=COLOURS[state], alpha=0.8)  # fmt: skip
        axes.set(xlabel="epoch", ylabel="validation AUROC")
        axes.xaxis.set_major_locator(MaxNLocator(12, integer=True))
        return svg_of(figure, "validation AUROC of each trial by epoch")
