"""The rows of a label file, one by one: image, patient, facts, what is said of findings. Runs on the driver.

In: a table of cells, its form, and what it says of findings. Out: a dict per row.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable
from typing import Any

from chexspark.errors import UserError
from chexspark.ingestion.label_facts import (
    Unreadable,
    is_empty,
    parse_age,
    parse_count,
    parse_date,
    parse_name,
    parse_sex,
    parse_text,
    years_between,
)
from chexspark.ingestion.label_findings import LabelledFindings
from chexspark.ingestion.label_form import LabelForm, column_finder
from chexspark.ingestion.label_rows import LabelRows, cell_of
from chexspark.store.manifest import SPLITS

NUMBER = re.compile("[0-9]+")  # of a patient
# Fact → the column of the table, which is the store's too, and what reads its text.
PARSED: dict[str, tuple[str, Callable[[str], Any]]] = {
    "view": ("view_position", parse_text),
    "sex": ("sex", parse_sex),
    "age": ("age", parse_age),
    "follow_up": ("follow_up", parse_count),
    "study": ("study_id", parse_text),
    "series": ("series_id", parse_text),
    "institution": ("institution", parse_text),
    "manufacturer": ("manufacturer", parse_text),
    "device": ("device", parse_text),
    "date": ("study_date", parse_date),
    "split": ("split", lambda text: text if text in SPLITS else None),
}
NAMES = ("image", "patient", "study", "series")  # facts by which rows belong together


def read_records(
    table: LabelRows,
    form: LabelForm,
    found: LabelledFindings,
    unreadable: Unreadable,
    where: str,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Each row as a dict: path, patient_id, the facts, what it `says` of findings, line, row and reader.

    And, as ``line 12``, the rows whose image would be in a joined file, and is not. Raises UserError naming
    the line for a row without an image or a patient, and for a wrong value.
    """
    find_column = column_finder(table.header, where)
    positions = {
        name: [p for c in fact.columns if (p := find_column(c)) is not None]
        for name, fact in form.facts.items()
    }
    birth = form.facts["age"].birth if "age" in form.facts else ""
    births = find_column(birth) if birth else None
    reader = find_column(form.readers) if form.readers else None
    needed = [positions["image"][0], *positions.get("patient", [])[:1]]
    needed += [find_column(form.words) or 0] if form.words else []
    fewest = max(needed) + 1
    records, without_image = [], []
    for line, row in table.rows:
        at = f"{where}, line {line}"
        if len(row) < fewest:
            raise UserError(f"{at}: {len(row)} cells are too few")

        def text_of(name: str, row: list[str] = row, at: str = at) -> str:
            if name not in form.facts:
                return ""
            text = form.facts[name].text([cell_of(row, p) for p in positions[name]])
            try:
                return parse_name(text) if name in NAMES else text
            except ValueError as error:
                raise UserError(f"{at}: the {name} is {error}") from error

        image, patient = text_of("image"), unicodedata.normalize("NFC", text_of("patient"))
        if not image and positions["image"][0] >= table.own:
            without_image.append(f"line {line}")  # no joined file has a partner of the row
            continue
        if is_empty(image) or ("patient" in form.facts and is_empty(patient)):
            raise UserError(f"{at}: image or patient is empty")
        wrong = form.facts["patient"].contradicts(patient, image) if patient else False
        record: dict[str, Any] = {"line": line, "row": row, "path": image, "patient_id": patient,
                                  "reader": cell_of(row, reader).strip(), "wrong": wrong}  # fmt: skip
        for name, (column, parse) in PARSED.items():
            text = text_of(name)
            if name == "age" and births is not None:
                born, parse = cell_of(row, births), years_of_dates
                text = f"{born} to {text}" if not is_empty(born) and not is_empty(text) else ""
            record[column] = unreadable.read(name, text, f"line {line}", parse)
        try:
            record["says"] = found.says(row)
        except ValueError as error:
            raise UserError(f"{at}: {error}") from error
        records.append(record)
    if not records:
        raise UserError(f"{where}: no row has an image in the files that are joined to it")
    check_one_spelling((r["patient_id"], f"of line {r['line']}") for r in records)
    return records, without_image


def check_one_spelling(patients: Iterable[tuple[str, str]]) -> None:
    """Raise UserError where a number of a patient is written with leading zeros and without: 1 and 01.

    `patients`: each with where it is. They would be two, and may be one that training and test share.
    """
    spelled: dict[str, tuple[str, str]] = {}
    for patient, at in patients:
        if NUMBER.fullmatch(patient):
            other, there = spelled.setdefault(patient.lstrip("0"), (patient, at))
            if other != patient:
                raise UserError(
                    f"--labels: the patients {there} and {at} have one number, with leading zeros and without: "
                    "write it in one way if they are one, and else give one another name"
                )


def years_of_dates(text: str) -> int | None:
    """The age from ``1950 to 20140915``; None where one is no date."""
    return years_between(*text.split(" to ", 1))
