"""Which way an image was taken, in the words of label files and DICOM. Pure functions; runs on the driver.

Sets name views in their own ways: PA, AP, ``AP supine``, LL, LATERAL, Frontal. The first word tells whether
a view is from the front or from the side.
"""

import re
from collections.abc import Sequence

import pandas as pd

from chexspark.errors import UserError, closest, listed

GROUPS = {
    "frontal": {"pa", "ap", "frontal"},
    "lateral": {"l", "ll", "rl", "lat", "lateral"},
}


def is_view(view: str | None, asked: Sequence[str]) -> bool:
    """Whether a view is one of those asked for: a name of `GROUPS`, or a view's own name in any case."""
    if view is None:
        return False
    first = re.split(r"[^a-z]+", view.strip().casefold())[0]
    return any(
        first in GROUPS[word] if word in GROUPS else view.strip().casefold() == word
        for word in (text.casefold() for text in asked)
    )


def of_views(rows: pd.DataFrame, asked: Sequence[str]) -> pd.Series:
    """Which rows of labels are of the views asked for: bool (rows,).

    Raises UserError for a name that no image has, and where no image is of such a view.
    """
    there = rows["view_position"].dropna().value_counts()
    names = [str(name) for name in there.index]
    for word in asked:
        if word.casefold() not in GROUPS and not any(is_view(name, [word]) for name in names):
            raise UserError(
                f"--views={word}: no image has this view{closest(word, [*GROUPS, *names])} (views there: "
                f"{listed(names) or 'none, in no image is it known'}; {' and '.join(GROUPS)} stand for several)"
            )
    fitting = rows["view_position"].map(lambda view: is_view(view, asked)).astype(bool)
    if not fitting.any():
        raise UserError(
            f"--views={','.join(asked)}: no image is of this view (views there: "
            f"{listed(names) or 'none, in no image is it known'})"
        )
    return fitting
