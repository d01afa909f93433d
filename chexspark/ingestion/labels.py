"""Label and box CSVs. Runs on the driver.

In: NIH's ``Data_Entry_2017.csv`` or ``Data_Entry_2017_v2020.csv``, or a plain CSV with the
columns ``image``, ``patient`` and one per finding; NIH's ``BBox_List_2017.csv``.
Out: pandas tables with plain column names. NIH's headers hold commas inside column names
(``OriginalImage[Width,Height]``), the 2017 file ends each line with one more comma and
writes ages as ``058Y``: columns are therefore found by name from the left, and what trails
is left alone.
"""

import re
from typing import Any, NamedTuple

import pandas as pd

from chexspark.errors import UserError
from chexspark.findings import find, plain_spelling
from chexspark.ingestion.label_findings import (
    NIH_COLUMN,
    UNKNOWN_FINDING,
    Rows,
    is_plain,
    labelled_findings,
    named_findings,
)
from chexspark.storage import Location
from chexspark.text_files import read_csv_rows

LABEL_COLUMNS = {
    "Image Index": "image_index",
    NIH_COLUMN: "labels",
    "Follow-up #": "follow_up",
    "Patient ID": "patient_id",
    "Patient Age": "age",
    "Patient Gender": "sex",
    "View Position": "view_position",
}
NEEDED = ("Image Index", NIH_COLUMN, "Patient ID")
PLAIN_NEEDED = ("image", "patient")
PLAIN_OTHERS = ("age", "sex", "view_position", "follow_up")
DUPLICATE_LABEL = "duplicate label"
LARGEST_NUMBER = 2**15 - 1  # ages and follow-ups are stored as int16


class Labels(NamedTuple):
    """What a label file says."""

    rows: pd.DataFrame  # one row per image, sorted by image name; the first of duplicates
    findings: tuple[str, ...]  # in the order of each row's labels
    problems: list[tuple[str, str]]  # (name, UNKNOWN_FINDING or DUPLICATE_LABEL)
    left_alone: tuple[str, ...]  # columns or words that were not asked for
    lacking: tuple[str, ...]  # of NIH's findings, where none were asked for: those without a column


class Boxes(NamedTuple):
    """What a box file says."""

    rows: pd.DataFrame  # image_index, finding, x, y, width, height
    left_alone: dict[str, int]  # finding that was not asked for → its boxes


def read_rows(place: Location, name: str) -> tuple[list[str], Rows]:
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


def label_findings(place: Location) -> tuple[str, ...]:
    """All findings that a label CSV can speak of: a plain one's columns; else NIH's 14 and all words."""
    header, rows = checked_rows(place)
    return named_findings(header, rows)


def checked_rows(place: Location) -> tuple[list[str], Rows]:
    """Header and rows of a label CSV. Raises UserError where a column or all rows are missing."""
    header, rows = read_rows(place, f"--labels={place}")
    missing = [n for n in (PLAIN_NEEDED if is_plain(header) else NEEDED) if n not in header]
    if missing:
        raise UserError(
            f"--labels={place} has no column {', '.join(missing)}; it has {', '.join(header[:12])}"
        )
    if not rows:
        raise UserError(f"--labels={place} has a header and no rows")
    return header, rows


def read_labels(place: Location, findings: tuple[str, ...] = ()) -> Labels:
    """Read a label CSV of either form.

    `findings`: those to take, in this order; none: NIH's 14; `label_findings.COLUMNS`: all columns of
    a plain file. Columns of the rows: image_index, patient_id (str); labels (int8 array (findings,) of
    1, 0 or −1 for unknown); view_position, sex (str or None); age (years), follow_up (int or None). In
    the plain form an empty cell, −1, or one of NIH's findings without a column is unknown. Raises
    UserError naming the line, or the finding that was asked for and is not there.
    """
    header, rows = checked_rows(place)
    plain = is_plain(header)
    found = labelled_findings(header, rows, findings, f"--labels={place}")
    names = {"image": "image_index", "patient": "patient_id"} | {n: n for n in PLAIN_OTHERS}
    position = {
        column: header.index(name)
        for name, column in (names if plain else LABEL_COLUMNS).items()
        if name in header
    }
    problems = [(word, UNKNOWN_FINDING) for word in found.misspelled]
    fewest = max(header.index(name) for name in (PLAIN_NEEDED if plain else NEEDED)) + 1
    records: dict[str, dict[str, Any]] = {}
    for line, row in rows:
        where = f"--labels={place}, line {line}"
        if len(row) < fewest:
            raise UserError(f"{where}: {len(row)} cells are too few")
        record: dict[str, Any] = {
            column: row[position[column]].strip()
            if position.get(column, len(row)) < len(row)
            else ""
            for column in ("image_index", "patient_id", *PLAIN_OTHERS)
        }
        if not record["image_index"] or not record["patient_id"]:
            raise UserError(f"{where}: image or patient is empty")
        try:
            record["labels"] = found.label_of(row)
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
    table = pd.DataFrame([records[n] for n in sorted(records)], dtype=object)
    return Labels(table, found.findings, problems, found.left_alone, found.lacking)


def read_boxes(place: Location, findings: tuple[str, ...]) -> Boxes:
    """Read the boxes of `findings` in NIH's BBox_List CSV; count those of others.

    Pixels of the original image, x and y of the upper left corner. The box columns are the four
    that follow the finding, whatever the header makes of them. Raises UserError naming the line.
    """
    header, rows = read_rows(place, f"--boxes={place}")
    if header[:2] != ["Image Index", "Finding Label"]:
        raise UserError(
            f"--boxes={place} must begin with the columns Image Index, Finding Label; "
            f"it begins with {', '.join(header[:2])}"
        )
    spelled = {plain_spelling(finding): finding for finding in findings}
    records = []
    left_alone: dict[str, int] = {}
    for line, row in rows:
        where = f"--boxes={place}, line {line}"
        try:
            name, finding = row[1].strip(), find(row[1], findings)
            x, y, width, height = (float(cell) for cell in row[2:6])
        except (ValueError, IndexError):
            raise UserError(f"{where}: not an image, a finding and four numbers") from None
        if finding is None and plain_spelling(name) in spelled:
            raise UserError(f"{where}: {name!r} is no finding; did you mean {spelled[plain_spelling(name)]}?")  # fmt: skip
        if finding is None:
            left_alone[name] = left_alone.get(name, 0) + 1
            continue
        records.append((row[0].strip(), findings[finding], x, y, width, height))
    columns = ["image_index", "finding", "x", "y", "width", "height"]
    return Boxes(pd.DataFrame(records, columns=columns), left_alone)
