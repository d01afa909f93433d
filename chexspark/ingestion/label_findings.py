"""Which findings a label file speaks of, and which of them a store takes. Runs on the driver.

In: the header and rows of a label CSV, the findings that were asked for. Out: the findings in the
store's order, and a function from a row to its labels. What was not asked for is listed and left alone.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from chexspark.errors import UserError, closest, listed
from chexspark.findings import (
    FINDINGS,
    NO_FINDING,
    UNKNOWN,
    find,
    names_fault,
    plain_spelling,
)

Rows = list[tuple[int, list[str]]]  # line in the file, cells
COLUMNS = ("columns",)  # asked for all columns of a plain file
NIH_COLUMN = "Finding Labels"
PLAIN_FACTS = ("image", "patient", "age", "sex", "view_position", "follow_up")
PLAIN_VALUES = {"": UNKNOWN, "-1": UNKNOWN, "-1.0": UNKNOWN, "0": 0, "0.0": 0, "1": 1, "1.0": 1}
UNKNOWN_FINDING = "unknown finding"


@dataclass(frozen=True)
class LabelledFindings:
    """What a label file says of findings."""

    findings: tuple[str, ...]  # in the store's order
    label_of: Callable[[list[str]], np.ndarray]  # cells → int8 (findings,); ValueError for a value
    misspelled: tuple[str, ...] = ()  # words that are likely findings, spelled in another way
    left_alone: tuple[str, ...] = ()  # columns or words that were not asked for
    lacking: tuple[str, ...] = ()  # of the default's findings, those without a column: unknown


def is_plain(header: list[str]) -> bool:
    """Whether a label file has a column per finding, and not NIH's one column of words."""
    return "Image Index" not in header and "image" in header


def named_findings(header: list[str], rows: Rows) -> tuple[str, ...]:
    """All findings that a label file can speak of: its columns, or NIH's 14 and its other words."""
    if is_plain(header):
        return tuple(plain_columns(header))
    others = [w for w in words_of(header, rows) if w != NO_FINDING and find(w, FINDINGS) is None]
    return (*FINDINGS, *others)


def labelled_findings(
    header: list[str], rows: Rows, asked: tuple[str, ...], where: str
) -> LabelledFindings:
    """The findings to take: `asked`; none, NIH's 14; `COLUMNS`, all columns of a plain file.

    `where`: what a message calls the file. Raises UserError for a finding that was asked for and is
    not there.
    """
    if is_plain(header):
        return from_columns(header, asked, where)
    return from_words(header, rows, asked, where)


def plain_columns(header: list[str]) -> dict[str, int]:
    """Each column of a plain label file that may be a finding, and its position."""
    return {
        name: position for position, name in enumerate(header) if name and name not in PLAIN_FACTS
    }


def from_columns(header: list[str], asked: tuple[str, ...], where: str) -> LabelledFindings:
    """A column per finding, of 1, 0, or nothing or −1 for unknown. Raises UserError for one that is not there."""
    columns = plain_columns(header)
    findings = asked or FINDINGS
    if asked == COLUMNS:
        findings = tuple(columns)
        fault = names_fault(findings)
        if fault:
            raise UserError(f"--findings=columns of {where} {fault}: name the findings, A,B,…")
    positions = {}
    for i, finding in enumerate(findings):
        name = finding if finding in columns else other_spelling(finding, columns)
        if name is not None:
            positions[i] = columns[name]
    taken = {header[position] for position in positions.values()}
    for name in taken:
        if header.count(name) > 1:
            raise UserError(f"{where} has the column {name} {header.count(name)} times: keep one")
    left_alone = tuple(name for name in columns if name not in taken)
    lacking = tuple(f for i, f in enumerate(findings) if i not in positions)
    check_lacking(lacking, left_alone, asked, where)

    def label_of(row: list[str]) -> np.ndarray:
        labels = np.full(len(findings), UNKNOWN, np.int8)
        for i, position in positions.items():
            text = row[position].strip() if position < len(row) else ""
            if text not in PLAIN_VALUES:
                raise ValueError(f"{findings[i]} is {text!r}, but must be 1, 0, empty or -1")
            labels[i] = PLAIN_VALUES[text]
        return labels

    return LabelledFindings(findings, label_of, left_alone=left_alone, lacking=lacking)


def other_spelling(finding: str, columns: dict[str, int]) -> str | None:
    """The column that has a finding under NIH's other spelling of it."""
    return next((name for name in columns if find(name, (finding,)) is not None), None)


def check_lacking(
    lacking: tuple[str, ...], columns: tuple[str, ...], asked: tuple[str, ...], where: str
) -> None:
    """Raise UserError for findings without a column, where they were asked for or are misspelled."""
    if len(lacking) == len(FINDINGS) and not asked:
        raise UserError(
            f"{where} has no column of NIH's 14 findings, such as {FINDINGS[0]}: name its findings, "
            "--findings=A,B,…, or take all its columns, --findings=columns"
        )
    spelled = {plain_spelling(name): name for name in columns}
    for finding in lacking:
        similar = spelled.get(plain_spelling(finding))
        hint = f"; did you mean {similar}?" if similar else closest(finding, columns)
        if asked or similar:
            rest = f" (columns: {listed(columns)})"
            what = f"--findings={finding}: " if asked else ""
            raise UserError(f"{what}{where} has no column {finding}{hint or rest}")


def words_of(header: list[str], rows: Rows) -> list[str]:
    """The words of NIH's column of findings, in the order in which they come."""
    column = header.index(NIH_COLUMN)
    words = (
        word.strip() for _, row in rows if len(row) > column for word in row[column].split("|")
    )
    return list(dict.fromkeys(filter(None, words)))


def from_words(
    header: list[str], rows: Rows, asked: tuple[str, ...], where: str
) -> LabelledFindings:
    """NIH's form: one column with the findings that an image has, between bars.

    Raises UserError for a finding that was asked for, and that neither an image has nor NIH knows.
    """
    words = words_of(header, rows)
    if asked == COLUMNS:
        raise UserError(
            f"--findings=columns: {where} has one column of findings and not one for each: name them, "
            f"{','.join(words[:2])},…"
        )
    findings = asked or FINDINGS
    for finding in asked:
        # One of NIH's may be rare; another that no image has is likely a slip.
        if find(finding, FINDINGS) is None and find(finding, words) is None:
            raise UserError(
                f"--findings={finding}: no image of {where} has it{closest(finding, words)}"
            )
    positions = {word: find(word, findings) for word in words}
    others = [w for w, i in positions.items() if i is None and w != NO_FINDING]
    spelled = {plain_spelling(finding) for finding in findings}
    # Unless findings were asked for, one that is not known may be one that is misspelled.
    wrong = [word for word in others if not asked or plain_spelling(word) in spelled]
    column = header.index(NIH_COLUMN)

    def label_of(row: list[str]) -> np.ndarray:
        labels = np.zeros(len(findings), np.int8)
        for word in row[column].split("|"):
            position = positions.get(word.strip())
            if position is not None:
                labels[position] = 1
        return labels

    left_alone = tuple(word for word in others if word not in wrong)
    return LabelledFindings(findings, label_of, tuple(wrong), left_alone)
