"""Label CSVs. Runs on the driver.

In: a label file, its form (told by its header unless it is named) and the findings that were asked for.
Out: a pandas table with plain column names, a row per image, and what is to be said of it. NIH's headers
hold commas inside column names (``OriginalImage[Width,Height]``), and the 2017 file ends each line with one
more comma: columns are therefore found by name, and what trails is left alone.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from chexspark.errors import UserError, listed
from chexspark.findings import UNKNOWN, find
from chexspark.ingestion.boxes import Boxes, label_boxes
from chexspark.ingestion.image_names import label_names
from chexspark.ingestion.label_facts import (
    Unreadable,
)
from chexspark.ingestion.label_findings import (
    UNKNOWN_FINDING,
    LabelledFindings,
    labelled_findings,
)
from chexspark.ingestion.label_form import (
    ANY,
    BLANK,
    DEFAULT,
    UNCERTAIN,
    LabelForm,
)
from chexspark.ingestion.label_records import read_records
from chexspark.ingestion.label_rows import LabelRows
from chexspark.ingestion.label_table import label_table
from chexspark.storage import Location

DUPLICATE_LABEL, OTHER_PATIENT, UNJOINED = (
    "duplicate label",
    "label of another patient than in the image's name",
    "label without an image in the files that are joined to it",
)


class Labels(NamedTuple):
    """What a label file says."""

    rows: pd.DataFrame  # one row per image, sorted by image name; the first of duplicates
    findings: tuple[str, ...]  # in the order of each row's labels
    problems: list[tuple[str, str]]  # (name or line, which kind of the above, or UNKNOWN_FINDING)
    left_alone: tuple[str, ...]  # columns or words that were not asked for
    lacking: tuple[str, ...]  # of the default's findings, those without a column
    form: LabelForm
    cells: np.ndarray  # (findings, 2): cells that were blank, and that were uncertain
    boxes: Boxes | None  # of a form whose label file has them
    notes: tuple[str, ...]  # what could not be read or known, a line each

    def means(self) -> dict[str, tuple[str, ...]]:
        """The form's means, by name, of which all findings are taken."""
        groups = {
            name: tuple(f for f in self.findings if find(f, group) is not None)
            for name, group in self.form.means.items()
        }
        return {n: group for n, group in groups.items() if len(group) == len(self.form.means[n])}

    def table(self, taken_images: int | None = None) -> str:
        """How many images have each finding, and what blank and uncertain cells were taken for, for people.

        `taken_images`: how many of them are of the views that were asked for.
        """
        views = "" if taken_images is None else f", of which --views takes {taken_images:,}"
        labels = np.stack(self.rows["labels"].to_list())
        taken = {0: "negative", 1: "positive", UNKNOWN: "unknown"}
        lines = [["finding", "positive", "negative", "unknown", "blank", "uncertain"]]
        for i, finding in enumerate(self.findings):
            counts = [f"{int((labels[:, i] == value).sum()):,}" for value in (1, 0, UNKNOWN)]
            policies = (policy(self.form.blank, finding), policy(self.form.uncertain, finding))
            cells = [f"{int(n):,} as {taken[p]}" if n else "" for n, p in zip(self.cells[i], policies, strict=True)]  # fmt: skip
            lines.append([finding, *counts, *cells])
        width = max(len(line[0]) for line in lines)
        rows = [
            f"{line[0]:<{width}}" + "".join(f"{c:>12}" for c in line[1:4])
            + "".join(f"{c:>22}" for c in line[4:])
            for line in lines
        ]  # fmt: skip
        return "\n".join(
            [f"labels of {len(labels):,} images ({self.form.name}){views}:", *map(str.rstrip, rows)]
        )


def policy(given: Mapping[str, int], finding: str) -> int:
    """What a form takes a blank or an uncertain cell of a finding for, however the finding is written."""
    names = [name for name in given if name != DEFAULT]
    position = find(finding, names)
    return given[DEFAULT if position is None else names[position]]


def read_labels(
    place: Location | Sequence[Location],
    findings: tuple[str, ...] = (),
    given_form: str | None = None,
    partial: bool = False,
) -> Labels:
    """Read a label CSV, or several of one form.

    `findings`: those to take, in this order; none: the form's, or NIH's 14; `label_findings.COLUMNS`: all
    columns. `given_form`: a name or a path; none: told by the header. `partial`: findings that the file
    does not speak of are unknown in all images, as long as it speaks of one. Columns of the rows:
    image_index, path (as the file has it), patient_id (str); labels (int8 array (findings,) of 1, 0 or −1
    for unknown); split (str or None); and what `label_records.PARSED` names, age (years) and follow_up as
    int or None, others as str or None. Raises UserError naming the line, or the finding that was asked for
    and is not there.
    """
    places = [place] if isinstance(place, Location) else list(place)
    where = f"--labels={' '.join(map(str, places))}"
    table, form = label_table(places, given_form)
    found = labelled_findings(table.header, table.rows, form, findings, where, partial)
    unreadable = Unreadable()
    records, without_image = read_records(table, form, found, unreadable, where)
    wrong = [record["path"] for record in records if record["wrong"]]
    records = [record for record in records if not record["wrong"]]
    if not records:
        raise UserError(f"{where}: in no row is the patient the one in the image's name")
    names = label_names(record["path"] for record in records)
    for record in records:
        record["image_index"] = names[record["path"]]
        record["patient_id"] = record["patient_id"] or record["image_index"]
    said = np.stack([record.pop("says") for record in records])
    cells = np.stack([(said == BLANK).sum(0), (said == UNCERTAIN).sum(0)], axis=1)
    settled = settle(said, found.findings, form)
    for record, labels in zip(records, settled, strict=True):
        record["labels"] = labels
    by_name: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        by_name.setdefault(record["image_index"], []).append(record)
    problems = [(word, UNKNOWN_FINDING) for word in found.misspelled]
    problems += [(path, OTHER_PATIENT) for path in wrong]
    problems += [(line, UNJOINED) for line in without_image]
    if form.several_rows:
        labels_of = {name: voted(same, form.votes) for name, same in by_name.items()}
        check_one_patient(by_name, where)
    else:
        labels_of = {name: same[0]["labels"] for name, same in by_name.items()}
        problems += [(n, DUPLICATE_LABEL) for n, same in by_name.items() for _ in same[1:]]
    boxes = label_boxes(table, form, found.findings, records, labels_of, where) if form.boxes else None  # fmt: skip
    firsts = [{**by_name[n][0], "labels": labels_of[n]} for n in sorted(by_name)]
    # As objects: pandas would turn a missing age into a number that is none.
    rows = pd.DataFrame(firsts, dtype=object).drop(columns=["line", "row", "reader", "wrong"])
    notes = notes_of(table, form, found, records, unreadable)
    return Labels(
        rows, found.findings, problems, found.left_alone, found.lacking, form, cells, boxes, notes
    )


def settle(said: np.ndarray, findings: tuple[str, ...], form: LabelForm) -> np.ndarray:
    """What cells say (rows, findings) as labels of 1, 0 or −1: blank and uncertain by the form's policies."""
    labels = said.copy()
    for i, finding in enumerate(findings):
        labels[said[:, i] == BLANK, i] = policy(form.blank, finding)
        labels[said[:, i] == UNCERTAIN, i] = policy(form.uncertain, finding)
    return labels


def voted(same: list[dict[str, Any]], votes: str) -> np.ndarray:
    """The labels (findings,) of an image with several rows: what any of its readers, or most, saw.

    A reader saw what one of their rows has. A finding that no reader knows of is unknown.
    """
    by_reader: dict[str, list[np.ndarray]] = {}
    for record in same:
        by_reader.setdefault(record["reader"], []).append(record["labels"])
    each = np.stack([np.max(rows, axis=0) for rows in by_reader.values()])
    if votes == ANY:
        return each.max(axis=0)
    positive, known = (each == 1).sum(0), (each != UNKNOWN).sum(0)
    return np.where(known == 0, UNKNOWN, 2 * positive > known).astype(np.int8)


def check_one_patient(by_name: dict[str, list[dict[str, Any]]], where: str) -> None:
    """Raise UserError where rows of one image name two patients."""
    for name, same in by_name.items():
        patients = {record["patient_id"] for record in same}
        if len(patients) > 1:
            raise UserError(
                f"{where}, line {same[1]['line']}: {name} is of another patient than on line "
                f"{same[0]['line']}: give each image one"
            )


def notes_of(
    table: LabelRows,
    form: LabelForm,
    found: LabelledFindings,
    records: list[dict[str, Any]],
    unreadable: Unreadable,
) -> tuple[str, ...]:
    """What is to be said of a label file, a line each."""
    notes = unreadable.notes()
    if "patient" not in form.facts:
        notes.append(
            f"{form.name} does not say which images are one patient's: each is taken for a patient of its "
            "own, and whether a run has seen a patient cannot be checked"
        )
    for file, (number, rows) in table.lacking.items():
        if number:
            notes.append(f"{file} has no partner for {number:,} of {rows:,} rows")
    if "split" in form.facts and any(record["split"] for record in records):
        notes.append(f"{form.name} has a split of its own, which --split=official takes")
    if found.misspelled:
        notes.append(
            f"no finding, and the others of their images are unknown: {listed(found.misspelled)}"
        )
    return tuple(notes)
