"""Where findings are, from a label file whose rows have boxes. Runs on the driver; `box_files` reads files.

Out: a pandas table of boxes in pixels of the original image, x and y of the upper left corner. A box that
is none is refused with its line.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from chexspark.errors import UserError
from chexspark.ingestion.label_facts import is_empty
from chexspark.ingestion.label_findings import Words, position_of_words
from chexspark.ingestion.label_form import LabelForm, column_finder
from chexspark.ingestion.label_rows import LabelRows, Line, cell_of
from chexspark.preparation import CROP, placing

SIDES = ["x", "y", "width", "height"]
COLUMNS = ["image_index", "finding", *SIDES]
SHOWN = 3  # lines of what is refused


class Boxes(NamedTuple):
    """What a box file says."""

    rows: pd.DataFrame  # image_index, finding, x, y, width, height
    left_alone: dict[
        str, int
    ]  # finding that was not asked for, or what else is left out → its boxes


class BoxFault(ValueError):
    """Four cells are no box; the message says why."""


def box_of(cells: list[str], corners: bool = False) -> tuple[float, float, float, float]:
    """x, y, width and height from four cells, the last two those of the other corner with `corners`.

    Raises BoxFault.
    """
    try:
        numbers = [float(cell) for cell in cells]
    except ValueError:
        numbers = []
    if len(numbers) != 4:
        raise BoxFault("not four numbers")
    if not all(math.isfinite(number) for number in numbers):
        raise BoxFault(f"has {', '.join(cell.strip() for cell in cells)}")
    x, y, third, fourth = numbers
    width, height = (third - x, fourth - y) if corners else (third, fourth)
    if x < 0 or y < 0:
        raise BoxFault(f"begins at {x:g}, {y:g}, outside the image")
    if width <= 0 or height <= 0:
        raise BoxFault(f"is {width:g} wide and {height:g} high")
    return x, y, width, height


def check_faults(faults: Sequence[tuple[Line, str]], where: str) -> None:
    """Raise UserError with the lines of what is no box."""
    if faults:
        lines = ", ".join(f"line {line} {text}" for line, text in faults[:SHOWN])
        more = f", … ({len(faults):,} in all)" if len(faults) > SHOWN else ""
        raise UserError(f"{where}: a box must lie in its image: {lines}{more}; mend or delete them")


def label_boxes(
    table: LabelRows,
    form: LabelForm,
    findings: tuple[str, ...],
    records: list[dict[str, Any]],
    labels: dict[str, np.ndarray],
    where: str,
) -> Boxes:
    """The boxes of a label file whose rows have them, of the findings that their image has by all its rows.

    `labels`: those of each image, int8 (findings,), by name. Raises UserError naming the lines of what is
    no box.
    """
    find_column = column_finder(table.header, where)
    columns = [find_column(name) for name in form.boxes]
    words = Words(form, position_of_words(table.header, form, where), findings) if form.words else None  # fmt: skip
    found: list[tuple] = []
    faults: list[tuple[Line, str]] = []
    left_alone: dict[str, int] = {}
    for record in records:
        cells = [cell_of(record["row"], column) for column in columns]
        if all(map(is_empty, cells)):
            continue
        try:
            box = box_of(cells, form.corners)
        except BoxFault as error:
            faults.append((record["line"], str(error)))
            continue
        image = record["image_index"]
        if words is None:
            positions = [int(i) for i in np.flatnonzero(record["labels"] == 1)]
        else:
            spoken = words.split(record["row"])
            positions = [i for word in spoken for i in words.positions(word)]
            for word in spoken:
                if not words.positions(word):
                    left_alone[word] = left_alone.get(word, 0) + 1
        for i in positions:
            if labels[image][i] == 1:
                found.append((image, findings[i], *box))
            else:
                lost = f"{findings[i]}, which too few readers saw"
                left_alone[lost] = left_alone.get(lost, 0) + 1
    check_faults(faults, where)
    return Boxes(pd.DataFrame(found, columns=COLUMNS), left_alone)


def cut_away(boxes: pd.DataFrame, sizes: dict[str, tuple[int, int]], size: int) -> list[str]:
    """The image of each box that lies wholly in what a crop to `size` cuts away.

    `boxes`: as `Boxes.rows`. `sizes`: name → width and height of the original image.
    """
    drawn = boxes[SIDES].to_numpy(float)
    return [
        name
        for name, box in zip(boxes["image_index"], drawn, strict=True)
        if not placing(*sizes[name], size, CROP).visible(box[None])[0, 2:].all()
    ]
