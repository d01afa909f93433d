"""The page of a reproduction. Pure functions; run on the driver, and need the report's extra.

In: what ``reproduction.json`` holds. Out: HTML, one file that loads nothing and runs nothing.
"""

from collections.abc import Mapping
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from chexspark.drawing import ACCENT, FAINT, SECOND, STYLE, svg_of
from chexspark.evaluation.published_aurocs import PUBLISHED
from chexspark.experiment.pages import render
from chexspark.findings import FINDINGS


def reproduce_page(found: Mapping[str, Any]) -> str:
    """The page. `found`: as `reproduce.summary` returns it."""
    same = [source for source in PUBLISHED if source.official] if found["official"] else []
    headlines = [headline_of(name, recipe) for name, recipe in found["recipes"].items()]
    best = max(headlines, key=lambda pair: pair[1] or 0.0)
    return render(
        "reproduce.html.jinja",
        {},
        found=found,
        best=best,
        findings=FINDINGS,
        published=same,
        picture=picture(found, same),
        total=sum(found["seconds"].values()),
    )


def headline_of(name: str, recipe: Mapping[str, Any]) -> tuple[str, float | None]:
    """The figure that a recipe stands for: its ensemble's, or its seeds' mean."""
    kind = "seeds" if len(recipe["members"]) == 1 else "trainings"
    if recipe["ensemble"]:
        return f"{name}, {len(recipe['seeds'])} {kind} as an ensemble", recipe["ensemble"]["auroc"]
    return name, recipe["mean"]


def picture(found: Mapping[str, Any], published: list) -> str:
    """Mean AUROC of each seed, and of all together with its interval; published figures of the same images as ticks."""
    recipes = list(found["recipes"].items())
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 0.6 * len(recipes) + 0.9))
        axes = figure.subplots()
        for place, (_, recipe) in enumerate(recipes):
            known = [seed["auroc"] for seed in recipe["seeds"] if seed["auroc"] is not None]
            axes.plot(known, [place] * len(known), "o", ms=5, color=ACCENT, alpha=0.7,
                      label="a training" if place == 0 else None)  # fmt: skip
            together = recipe["ensemble"]
            if together and together["auroc"] is not None:
                if together["low"] is not None:
                    axes.plot(
                        [together["low"], together["high"]],
                        [place + 0.22] * 2,
                        color=SECOND,
                        lw=2.4,
                        alpha=0.5,
                    )
                axes.plot(together["auroc"], place + 0.22, "D", ms=6, color=SECOND,
                          label="all together, 95 % interval" if place == 0 else None)  # fmt: skip
        for number, source in enumerate(published):
            axes.axvline(source.mean, color=FAINT, lw=1, ls=":", zorder=0,
                         label="published, same images" if number == 0 else None)  # fmt: skip
        axes.set_yticks(range(len(recipes)), [name for name, _ in recipes])
        axes.set_ylim(len(recipes) - 0.4, -0.5)
        axes.set_xlabel("mean AUROC, test")
        axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
        return svg_of(figure, "mean AUROC of each recipe's trainings and of their ensemble")
