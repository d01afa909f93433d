"""Which findings a label file speaks of, and which of them a store takes. Runs on the driver.

In: a label form, the header and rows of a label file, the findings that were asked for. Out: the findings
in the store's order, and a function from a row to what it says of each. What was not asked for is
listed and left alone.
"""

import difflib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from chexspark.errors import UserError, closest, listed
from chexspark.findings import (
    ALIASES,
    FINDINGS,
    UNKNOWN,
    find,
    is_plain_word,
    names_fault,
    plain_spelling,
    word_spelling,
)
from chexspark.ingestion.label_facts import is_empty
from chexspark.ingestion.label_form import BLANK, DEFAULT_VALUES, LabelForm, column_finder
from chexspark.ingestion.label_rows import Rows, cell_of

COLUMNS = ("columns",)  # asked for all columns of a file
UNKNOWN_FINDING = "unknown finding"
SIMILAR = 0.88  # of two spellings: Masss and Mass are, empyema and emphysema are not
NUMBER = re.compile(r"([+-]?[0-9]+)[.,]0*")  # 1.0, as tables write a whole number
BETWEEN = re.compile(r"[;|,/\n]")  # what may stand between words, whatever the form says
AROUND = " \t\r\n[]'\""  # what is around the words of a list as text


@dataclass(frozen=True)
class LabelledFindings:
    """What a label file says of findings."""

    findings: tuple[str, ...]  # in the store's order
    # cells → int8 (findings,) of 1, 0, `UNKNOWN`, `BLANK`, `UNCERTAIN`; ValueError for a value
    says: Callable[[list[str]], np.ndarray]
    misspelled: tuple[
        str, ...
    ] = ()  # words that are no finding: what else their rows have is unknown
    left_alone: tuple[str, ...] = ()  # columns or words that were not asked for
    lacking: tuple[str, ...] = ()  # of the default's findings, those without a column: unknown


@dataclass
class Words:
    """The words of a form with one column of findings."""

    form: LabelForm
    column: int
    findings: tuple[str, ...]
    known: dict[str, tuple[int, ...]] = field(default_factory=dict)  # word → positions of findings

    def split(self, row: list[str]) -> list[str]:
        """The words of a row."""
        text = cell_of(row, self.column)
        words = (word.strip(AROUND) for word in text.split(self.form.separator))
        return [w for w in words if not is_empty(w) or (w and says_nothing_was_found(w, self.form))]

    def positions(self, word: str) -> tuple[int, ...]:
        """The positions of the findings that a word stands for: of its name, and of its synonyms."""
        if word not in self.known:
            names = (self.form.synonyms or {}).get(word_spelling(word), ())
            if is_plain_word(word) or word in self.findings:
                names = (word, *names)
            found = {find(name, self.findings) for name in names}
            self.known[word] = tuple(sorted(p for p in found if p is not None))
        return self.known[word]


def says_nothing_was_found(word: str, form: LabelForm) -> bool:
    """Whether a word or a column is the form's ``no finding``."""
    return word_spelling(word) in map(word_spelling, form.no_finding)


def named_findings(header: list[str], rows: Rows, form: LabelForm, where: str) -> tuple[str, ...]:
    """All findings that a label file can speak of: its columns, or the form's and all further words."""
    if not form.words:
        return tuple(dict.fromkeys(finding_columns(header, form, where).values()))
    words = words_of(rows, Words(form, position_of_words(header, form, where), ()))
    named = tuple(form.findings or FINDINGS)
    skipped = set(map(word_spelling, form.unknown_words))
    others = [
        word
        for word in words
        if find(word, named) is None
        and not says_nothing_was_found(word, form)
        and word_spelling(word) not in skipped
    ]
    return (*named, *others)


def labelled_findings(
    header: list[str],
    rows: Rows,
    form: LabelForm,
    asked: tuple[str, ...],
    where: str,
    partial: bool = False,
) -> LabelledFindings:
    """The findings to take: `asked`; none, the form's; `COLUMNS`, all columns of a file.

    `where`: what a message calls the file. Raises UserError for a finding that was asked for and is
    not there, or that two columns have; with `partial` only where none is there.
    """
    if form.words:
        return from_words(header, rows, form, asked, where, partial)
    return from_columns(header, form, asked, where, partial)


def finding_columns(header: list[str], form: LabelForm, where: str) -> dict[int, str]:
    """Each column that may be a finding, and what the form calls it; those of facts are none."""
    find_column = column_finder(header, where)
    facts = {name for fact in form.facts.values() for name in (*fact.columns, fact.birth)}
    facts |= {form.readers, *form.boxes, *(name for join in form.joins for name in join.key)}
    taken = {find_column(name) for name in facts if name}
    named = {find_column(column): finding for finding, column in (form.findings or {}).items()}
    return {
        i: named.get(i, name)
        for i, name in enumerate(header)
        if name and i not in taken and not says_nothing_was_found(name, form)
    }


def from_columns(
    header: list[str], form: LabelForm, asked: tuple[str, ...], where: str, partial: bool
) -> LabelledFindings:
    """A column per finding. Raises UserError for one that is not there, or is there twice."""
    columns = finding_columns(header, form, where)
    find_column = column_finder(header, where)
    healthy = next((c for c in map(find_column, form.no_finding) if c is not None), None)
    findings = asked or tuple(form.findings or FINDINGS)
    if asked == COLUMNS:
        findings = tuple(form.findings or dict.fromkeys(columns.values()))
        fault = names_fault(findings)
        if fault:
            raise UserError(f"--findings=columns of {where} {fault}: name the findings, A,B,…")
    elif healthy is not None and find(header[healthy], findings) is not None:
        columns[healthy] = header[healthy]  # asked for as a finding of its own
    positions: dict[int, int] = {}
    for column, name in columns.items():
        i = find(name, findings)
        if asked == COLUMNS and i is not None:
            i = min(i, *(j for j, f in enumerate(findings) if find(name, (f,)) is not None))
        if i is None:
            continue
        if i in positions:
            two = f"{header[positions[i]]} and {header[column]}"
            raise UserError(f"{where} has two columns of {findings[i]}, {two}: keep one")
        positions[i] = column
    left_alone = tuple(n for c, n in columns.items() if c not in positions.values())
    lacking = tuple(f for i, f in enumerate(findings) if i not in positions)
    check_lacking(lacking, findings, left_alone, () if partial else asked, form, where)
    read: dict[str, int | None] = {}

    def value_of(row: list[str], column: int) -> int:
        text = cell_of(row, column)
        if text not in read:
            read[text] = cell_value(text, form)
        value = read[text]
        if value is None:
            raise ValueError(
                f"{header[column]} is {text.strip()[:40]!r}, but must be "
                f"{', '.join(form.values or DEFAULT_VALUES)}, or empty"
            )
        return value

    def says(row: list[str]) -> np.ndarray:
        said = np.full(len(findings), UNKNOWN, np.int8)
        blank = 0 if healthy is not None and value_of(row, healthy) == 1 else BLANK
        for i, column in positions.items():
            if column < len(row):  # of a cell that is not there, nothing is known
                value = value_of(row, column)
                said[i] = blank if value == BLANK else value
        return said

    return LabelledFindings(findings, says, left_alone=left_alone, lacking=lacking)


def cell_value(text: str, form: LabelForm) -> int | None:
    """What a cell of a finding says: 1, 0, `UNKNOWN`, `UNCERTAIN`, `BLANK`; None for what it may not."""
    values, word = form.values or DEFAULT_VALUES, text.strip().casefold()
    if word in values:
        return values[word]
    if is_empty(word):
        return BLANK
    number = NUMBER.fullmatch(word)
    return values.get(str(int(number[1]))) if number and len(word) < 20 else None


def check_lacking(
    lacking: tuple[str, ...],
    findings: tuple[str, ...],
    columns: tuple[str, ...],
    asked: tuple[str, ...],
    form: LabelForm,
    where: str,
) -> None:
    """Raise UserError for findings without a column, where they were asked for or are none at all."""
    if lacking == findings == FINDINGS and not asked and not form.findings:
        raise UserError(
            f"{where} has no column of NIH's 14 findings, such as {FINDINGS[0]}: name its findings, "
            "--findings=A,B,…, or take all its columns, --findings=columns"
        )
    if not asked:
        check_speaks(lacking, findings, where)
    for finding in lacking if asked else ():
        rest = f" (columns: {listed(columns)})"
        hint = closest(finding, columns)
        raise UserError(f"--findings={finding}: {where} has no column {finding}{hint or rest}")


def check_speaks(lacking: tuple[str, ...], findings: tuple[str, ...], where: str) -> None:
    """Raise UserError where a file speaks of none of the findings."""
    if lacking == findings:
        raise UserError(f"{where} speaks of none of the store's findings: {listed(findings)}")


def position_of_words(header: list[str], form: LabelForm, where: str) -> int:
    """The column of findings as words. Raises UserError where there is none."""
    column = column_finder(header, where)(form.words)
    if column is None:
        raise UserError(f"{where} has no column {form.words}; it has {listed(header)}")
    return column


def words_of(rows: Rows, words: Words) -> list[str]:
    """The words of the column of findings, in the order in which they come."""
    return list(dict.fromkeys(word for _, row in rows for word in words.split(row)))


def from_words(
    header: list[str],
    rows: Rows,
    form: LabelForm,
    asked: tuple[str, ...],
    where: str,
    partial: bool,
) -> LabelledFindings:
    """One column with the findings that an image has, as words.

    Raises UserError for a finding that was asked for, and that neither an image has nor the form knows;
    with `partial` it is unknown in all images.
    """
    findings = asked or tuple(form.findings or FINDINGS)
    words = Words(form, position_of_words(header, form, where), findings)
    every = words_of(rows, words)
    if asked == COLUMNS:
        raise UserError(
            f"--findings=columns: {where} has one column of findings and not one for each: name them, "
            f"{','.join(every[:2])},…"
        )
    known = (*(form.findings or FINDINGS), *form.other_findings)
    # One that the set knows may be rare; another that no image has is likely a slip, or not the set's.
    lacking = tuple(
        finding
        for i, finding in enumerate(asked)
        if find(finding, known) is None and not any(i in words.positions(w) for w in every)
    )
    if lacking and not partial:
        raise UserError(
            f"--findings={lacking[0]}: no image of {where} has it{closest(lacking[0], every)}"
        )
    check_speaks(lacking, findings, where)
    without = [findings.index(finding) for finding in lacking]
    healthy = {w for w in every if says_nothing_was_found(w, form)}
    silent = {w for w in every if word_spelling(w) in map(word_spelling, form.unknown_words)}
    others = [w for w in every if not words.positions(w) and w not in healthy | silent]
    # One that nobody knows may be one that is misspelled, or a synonym that the form forgot: where the form
    # says that any word is a finding, only if it is nearly one that is known, or has no letters. And one that
    # a sign says not to be there, or doubts, is not that finding.
    synonyms = form.synonyms or {}
    others_of_findings = (
        name for name, finding in ALIASES.items() if find(finding, findings) is not None
    )
    near = (*findings, *others_of_findings, *synonyms, *form.no_finding, *form.unknown_words)
    wrong = tuple(
        w
        for w in others
        if (find(w, known) is None or not is_plain_word(w))
        and word_spelling(w) not in synonyms
        and (not form.any_words or may_be_near(w, near))
    )
    left_alone = tuple(w for w in others if w not in wrong)
    doubtful = silent | set(wrong)

    def says(row: list[str]) -> np.ndarray:
        found = words.split(row)
        if not found:
            said = np.full(len(findings), BLANK, np.int8)
            said[without] = UNKNOWN
            return said
        rest = UNKNOWN if any(word in doubtful for word in found) else 0
        said = np.full(len(findings), rest, np.int8)
        for word in found:
            said[list(words.positions(word))] = 1
        said[without] = UNKNOWN
        return said

    return LabelledFindings(findings, says, wrong, left_alone, lacking)


def may_be_near(word: str, near: Iterable[str]) -> bool:
    """Whether a word, where any may be a finding, is likely one of `near`, or several of them, or none at all."""
    near = list(near)
    spellings = set(map(plain_spelling, near))
    several = [part for part in BETWEEN.split(word) if part != word]
    return (
        is_similar(word, near)
        or any(plain_spelling(part) in spellings for part in several)
        or not any(map(str.isalpha, word))
    )


def is_similar(word: str, names: Iterable[str]) -> bool:
    """Whether a word is nearly the name of a finding, so that it is likely misspelled, or that name with a doubt.

    The name of one of NIH's is not: it is that finding, where nobody asked for it.
    """
    names, spelling = list(names), plain_spelling(word)
    if find(word, FINDINGS) is not None:
        return not is_plain_word(word) and spelling in map(plain_spelling, names)
    return any(
        difflib.SequenceMatcher(None, spelling, plain_spelling(name)).ratio() >= SIMILAR
        for name in names
    )
