"""Label and box CSVs. Runs on the driver.

In: NIH's ``Data_Entry_2017.csv`` or ``Data_Entry_2017_v2020.csv``, or a plain CSV with the
columns ``image``, ``patient`` and one per finding; NIH's ``BBox_List_2017.csv``.
Out: pandas tables with plain column names. NIH's headers hold commas inside column names
(``OriginalImage[Width,Height]``), the 2017 file ends each line with one more comma and
writes ages as ``058Y``: columns are therefore found by name from the left, and what trails
is left alone.
"""

import re
from typing import NamedTuple

import numpy as np
import pandas as pd

from chexspark.errors import UserError
from chexspark.findings import FINDINGS, NO_FINDING, UNKNOWN, finding_position
from chexspark.storage import Location
from chexspark.text_files import read_csv_rows

LABEL_COLUMNS = {
    "Image Index": "image_index",
    "Finding Labels": "labels",
    "Follow-up #": "follow_up",
    "Patient ID": "patient_id",
    "Patient Age": "age",
    "Patient Gender": "sex",
    "View Position": "view_position",
}
NEEDED = ("Image Index", "Finding Labels", "Patient ID")
PLAIN_NEEDED = ("image", "patient")
PLAIN_OTHERS = ("age", "sex", "view_position", "follow_up")
PLAIN_VALUES = {"": UNKNOWN, "-1": UNKNOWN, "-1.0": UNKNOWN, "0": 0, "0.0": 0, "1": 1, "1.0": 1}
UNKNOWN_FINDING, DUPLICATE_LABEL = "unknown finding", "duplicate label"
LARGEST_NUMBER = 2**15 - 1  # ages and follow-ups are stored as int16


class Labels(NamedTuple):
    """What a label file says."""

    rows: pd.DataFrame  # one row per image, sorted by image name; the first of duplicates
    problems: list[tuple[str, str]]  # (name, UNKNOWN_FINDING or DUPLICATE_LABEL)


def read_rows(place: Location, name: str) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The header and the rows of a CSV, each with its line in the file. Raises UserError."""
    rows = list(read_csv_rows(place, name))
    if not rows:
        raise UserError(f"{name} is empty")
    return [cell.strip() for cell in rows[0][1]], rows[1:]


def parse_age(text: str) -> int | None:
    """Years from ``58``, ``058Y``, ``011M`` (months) or ``003D`` (days); None when unreadable."""
    match = re.fullmatch(r"\s*([0-9]{1,5})\s*([YMD]?)\s*", text)
    if not match:
        return None
    return stored_number(int(match[1]) / {"": 1, "Y": 1, "M": 12, "D": 365.25}[match[2]])


def parse_count(text: str) -> int | None:
    """A whole number of 0 or more; None when the text is none, or it is larger than is stored."""
    return stored_number(int(text)) if re.fullmatch(r"\s*[0-9]{1,9}\s*", text) else None


def stored_number(value: float) -> int | None:
    """The whole number that the store's int16 columns can hold, or None."""
    return int(value) if value <= LARGEST_NUMBER else None


def read_labels(place: Location) -> Labels:
    """Read a label CSV of either form.

    Columns: image_index, patient_id (str); labels (14 × int8 array of 1, 0 or −1 for unknown);
    view_position, sex (str or None); age (years), follow_up (int or None). In the plain form an
    empty cell, −1, or a finding without a column is unknown. Raises UserError naming the line.
    """
    header, rows = read_rows(place, f"--labels {place}")
    plain = "Image Index" not in header and "image" in header
    needed = PLAIN_NEEDED if plain else NEEDED
    missing = [name for name in needed if name not in header]
    if missing:
        raise UserError(
            f"--labels {place} has no column {', '.join(missing)}; it has {', '.join(header[:12])}"
        )
    if not rows:
        raise UserError(f"--labels {place} has a header and no rows")
    names = {"image": "image_index", "patient": "patient_id"} | {n: n for n in PLAIN_OTHERS}
    position = {
        column: header.index(name)
        for name, column in (names if plain else LABEL_COLUMNS).items()
        if name in header
    }
    problems, label_of = (plain_labels if plain else nih_labels)(header)
    fewest = max(header.index(name) for name in needed) + 1
    records = {}
    for line, row in rows:
        where = f"--labels {place}, line {line}"
        if len(row) < fewest:
            raise UserError(f"{where}: {len(row)} cells are too few")
        record = {
            column: row[position[column]].strip()
            if position.get(column, len(row)) < len(row)
            else ""
            for column in ("image_index", "patient_id", *PLAIN_OTHERS)
        }
        if not record["image_index"] or not record["patient_id"]:
            raise UserError(f"{where}: image or patient is empty")
        try:
            record["labels"] = label_of(row)
        except ValueError as error:
            raise UserError(f"{where}: {error}") from error
        record["age"] = parse_age(record["age"])
        record["follow_up"] = parse_count(record["follow_up"])
        record["sex"] = record["sex"] or None
        record["view_position"] = record["view_position"] or None
        if record["image_index"] in records:
            problems.append((record["image_index"], DUPLICATE_LABEL))
        records.setdefault(record["image_index"], record)
    # As objects: pandas would turn a missing age into a number that is none.
    return Labels(pd.DataFrame([records[n] for n in sorted(records)], dtype=object), problems)


def nih_labels(header: list[str]):
    """Return the list of problems, which grows while rows are read, and the function from a row to its labels: NIH's form."""
    problems, column, seen = [], header.index("Finding Labels"), set()

    def label_of(row: list[str]) -> np.ndarray:
        labels = np.zeros(len(FINDINGS), np.int8)
        for word in (word.strip() for word in row[column].split("|")):
            if word == NO_FINDING:
                continue
            try:
                labels[finding_position(word)] = 1
            except KeyError:
                if word not in seen:
                    seen.add(word)
                    problems.append((word, UNKNOWN_FINDING))
        return labels

    return problems, label_of


def plain_labels(header: list[str]):
    """The same for the plain form: one column per finding, of 1, 0, or nothing or −1 for unknown."""
    problems, columns = [], {}
    for position, name in enumerate(header):
        if name in (*PLAIN_NEEDED, *PLAIN_OTHERS) or not name:
            continue
        try:
            columns[finding_position(name)] = position
        except KeyError:
            problems.append((name, UNKNOWN_FINDING))

    def label_of(row: list[str]) -> np.ndarray:
        labels = np.full(len(FINDINGS), UNKNOWN, np.int8)
        for finding, position in columns.items():
            text = row[position].strip() if position < len(row) else ""
            if text not in PLAIN_VALUES:
                raise ValueError(f"{FINDINGS[finding]} is {text!r}, but must be 1, 0, empty or -1")
            labels[finding] = PLAIN_VALUES[text]
        return labels

    return problems, label_of


def read_boxes(place: Location) -> pd.DataFrame:
    """Read NIH's BBox_List CSV: image_index, finding, x, y, width, height.

    Pixels of the original image, x and y of the upper left corner. The box columns are the four
    that follow the finding, whatever the header makes of them.
    """
    header, rows = read_rows(place, f"--boxes {place}")
    if header[:2] != ["Image Index", "Finding Label"]:
        raise UserError(
            f"--boxes {place} must begin with the columns Image Index, Finding Label; "
            f"it begins with {', '.join(header[:2])}"
        )
    records = []
    for line, row in rows:
        try:
            finding = FINDINGS[finding_position(row[1])]
            x, y, width, height = (float(cell) for cell in row[2:6])
        except (KeyError, ValueError, IndexError):
            raise UserError(
                f"--boxes {place}, line {line}: not an image, a finding and four numbers"
            ) from None
        records.append((row[0].strip(), finding, x, y, width, height))
    columns = ["image_index", "finding", "x", "y", "width", "height"]
    return pd.DataFrame(records, columns=columns)
