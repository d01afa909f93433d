"""Anybody's scores and labels as one table. Runs on the driver.

In: a DataFrame (Spark's or pandas'), a Parquet or CSV file with a key (``image_index`` or ``Image
Index``) and a column per finding, with or without ``prob_``; a label CSV, unless the table has
``label_<Finding>``. Out: a pandas table in the form of ``RUN/predictions``, of the findings that have
both labels and scores, and what to say of the others.
"""

import csv
import difflib
import io
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pandas as pd
from pyspark.sql import DataFrame

from chexspark.errors import UserError, listed
from chexspark.evaluation.predictions import (
    label_column,
    probability_column,
)
from chexspark.findings import (
    ALIASES,
    LABEL,
    PROBABILITY,
    UNKNOWN,
    column_name,
    names_fault,
    plain_spelling,
)
from chexspark.ingestion.image_names import label_name
from chexspark.ingestion.label_table import label_findings
from chexspark.ingestion.labels import DUPLICATE_LABEL, read_labels
from chexspark.spark_tables import is_unfinished
from chexspark.storage import Location, locate
from chexspark.store.schema import DAMAGE, FACTS
from chexspark.text_files import decoded, read_content

Scores: TypeAlias = str | pd.DataFrame | DataFrame  # a path, or a table

KEYS = ("image_index", "Image Index")
DESCRIPTIONS = tuple(FACTS)
NO_FINDINGS = ("patient_id", *DESCRIPTIONS, "run", "split", "store_fingerprint")
PARQUET_MARK = b"PAR1"
SIMILAR = 0.75  # of two spellings: Pneumonia and Pnuemonia are, Pneumonia and Pneumothorax are not


class ScoreColumns(NamedTuple):
    """Which columns hold scores."""

    columns: dict[str, Any]  # finding → column
    lacking: tuple[str, ...]  # findings without a column
    others: tuple[str, ...]  # columns of other findings


class GivenScores(NamedTuple):
    """Scores and labels in the form of ``RUN/predictions``."""

    table: pd.DataFrame
    findings: tuple[str, ...]  # those with labels and scores, in the labels' order
    left_out: str | None = None  # findings without labels or without scores, in words
    notes: tuple[str, ...] = ()  # what else is to be said
    # Name → findings, whose mean stands beside that of all.
    means: Mapping[str, tuple[str, ...]] = MappingProxyType({})


def name_of(given: Scores, option: str) -> str:
    """What a message calls scores that are a path or a table."""
    return f"{option}={given}" if isinstance(given, str) else f"the DataFrame given as {option}"


def read_given(
    given: Scores, option: str, labels: str | None, label_form: str | None = None
) -> GivenScores:
    """Scores with their labels, from a label CSV or from the table's own ``label_`` columns.

    Columns: image_index, patient_id (str), ``prob_<Finding>`` float64, ``label_<Finding>`` int8, and
    of sex, age, view_position, follow_up and run what is there. Raises UserError where no finding has
    both, where one seems to be misspelled, and naming the column and the first image that are wrong.
    """
    name = name_of(given, option)
    table, keys = read_keyed(given, option)
    labelled = (
        label_findings(locate(labels), label_form)
        if labels is not None
        else own_findings(table, name)
    )
    found = score_columns(table, labelled, name)
    findings = tuple(found.columns)
    scores = with_scores(table, keys, found.columns, name)
    joined, notes, means = with_labels(scores, findings, labels, name, label_form)
    parts = [f"no scores of {listed(found.lacking)}"] * bool(found.lacking)
    parts += [f"no labels for {listed(found.others)}"] * bool(found.others)
    number = f"{len(findings)} finding{'s' if len(findings) > 1 else ''}"
    left_out = f"scored on {number}: there are {', and '.join(parts)}" if parts else None
    return GivenScores(joined, findings, left_out, notes, means)


def read_scores(given: Scores, option: str, findings: Sequence[str]) -> GivenScores:
    """The scores of those of `findings` that are there: image_index and ``prob_<Finding>`` float64.

    Raises UserError where none is there, where one seems to be misspelled, and for what are no scores.
    """
    name = name_of(given, option)
    table, keys = read_keyed(given, option)
    found = score_columns(table, findings, name)
    return GivenScores(with_scores(table, keys, found.columns, name), tuple(found.columns))


def read_keyed(given: Scores, option: str) -> tuple[pd.DataFrame, pd.Series]:
    """A table as it is given, and the name of each row's image. Raises UserError for doubtful names."""
    name = name_of(given, option)
    table = read_table(locate(given), name) if isinstance(given, str) else as_pandas(given)
    if not len(table.columns) or not len(table):
        raise UserError(f"{name} has no rows")
    keyed = [column for column in KEYS if column in table]
    if len(keyed) > 1:
        raise UserError(f"{name} has two columns of an image's name, {listed(keyed)}: keep one")
    key = next(iter(keyed), None)
    if key is None:
        raise UserError(f"{name} has no column {' or '.join(KEYS)}; it has {shown(table.columns)}")
    keys = table[key].astype(str).str.strip()
    if table[key].isna().any() or (keys == "").any():
        raise UserError(
            f"{name}: {int((table[key].isna() | (keys == '')).sum()):,} rows have no {key}"
        )
    if keys.duplicated().any():
        again = keys[keys.duplicated()]
        raise UserError(
            f"{name}: {again.nunique():,} images are there more than once, the first {again.iloc[0]}: "
            "give each once"
        )
    return table, keys


def with_scores(
    table: pd.DataFrame, keys: pd.Series, columns: dict[str, Any], name: str
) -> pd.DataFrame:
    """The table with the scores of `columns`, finding → column, as ``prob_<Finding>`` float64."""
    scores = {
        probability_column(f): numbers(table[c], keys, f"{name}, column {c}")
        for f, c in columns.items()
    }
    taken = {*KEYS, *columns.values(), *scores}
    rest = {c: table[c] for c in table if c not in taken}
    return pd.DataFrame({"image_index": keys, **scores, **rest})


def read_table(place: Location, name: str) -> pd.DataFrame:
    """A Parquet file or folder, or a CSV, by its content. CSV cells stay texts. Raises UserError."""
    fault = f"{name} is neither Parquet nor a CSV in UTF-8"
    if not place.exists():
        raise UserError(f"{name}: there is no such file")
    if place.is_directory() and is_unfinished(place):
        raise UserError(f"{name}: what writes there has not finished, or was ended: predict again")
    try:
        if place.is_directory() or is_parquet(place):
            return place.read_table().to_pandas()
        text = decoded(read_content(place, name), fault)
        check_columns_once(next(csv.reader(io.StringIO(text, newline=None)), []), name)
        table = pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False)
        if not isinstance(table.index, pd.RangeIndex):  # pandas takes their first cells for names
            raise UserError(
                f"{name}: its rows have more cells than its header: end all lines alike"
            )
        return table
    except pd.errors.EmptyDataError as error:
        raise UserError(f"{name} is empty") from error
    except (pd.errors.ParserError, csv.Error, *DAMAGE) as error:
        raise UserError(f"{fault}: {' '.join(str(error).split())[:200]}") from error


def check_columns_once(header: Sequence[str], name: str) -> None:
    """Raise UserError for a column that a CSV has twice: which of them holds, nobody knows."""
    spelled = [cell.strip() for cell in header]
    again = next((cell for cell in spelled if cell and spelled.count(cell) > 1), None)
    if again is not None:
        raise UserError(f"{name} has {spelled.count(again)} columns {again}: keep one")


def is_parquet(place: Location) -> bool:
    """Whether a file begins as Parquet does."""
    with place.filesystem.open_input_file(place.path) as file:
        return file.read(len(PARQUET_MARK)) == PARQUET_MARK


def as_pandas(frame: pd.DataFrame | DataFrame) -> pd.DataFrame:
    """A table of Spark's or of pandas' as pandas'."""
    return frame if isinstance(frame, pd.DataFrame) else frame.toPandas()


def own_findings(table: pd.DataFrame, name: str) -> tuple[str, ...]:
    """The findings that a table has ``label_`` columns of. Raises UserError where there are none."""
    spelled = [str(column).strip() for column in table.columns]
    found = tuple(c.removeprefix(LABEL) for c in spelled if c.startswith(LABEL))
    if not found:
        raise UserError(f"{name} has no {LABEL} columns: give --labels=CSV")
    return found


def score_columns(table: pd.DataFrame, labelled: Sequence[str], name: str) -> ScoreColumns:
    """The columns that hold the scores of the findings `labelled`.

    Where a column has ``prob_``, those without are no scores, but labels or facts. Raises UserError
    where no finding has scores, and where one has none and another column has nearly its name.
    """
    spelled = {str(column).strip(): column for column in table.columns}
    names = {finding: spellings(finding) for finding in labelled}
    for prefix in (PROBABILITY, ""):
        fitting = {f: [prefix + n for n in names[f] if prefix + n in spelled] for f in names}
        found = {f: next(iter(each), None) for f, each in fitting.items()}
        for finding, each in fitting.items():
            if len(each) > 1:
                raise UserError(f"{name} has two columns of {finding}, {listed(each)}: keep one")
        if any(found.values()):
            break
    columns = {finding: spelled[column] for finding, column in found.items() if column}
    lacking = tuple(finding for finding, column in found.items() if not column)
    known = {*KEYS, *NO_FINDINGS, *found.values(), *(n for each in names.values() for n in each)}
    left = [c for c in spelled if c not in known and not c.startswith(LABEL)]
    for finding in lacking:
        similar = similar_column(finding, left)
        if similar:
            raise UserError(
                f"{name} has no scores of {finding}, but a column {similar}: call it "
                f"{probability_column(finding)} if it is meant, or leave it out"
            )
    if not columns:
        raise UserError(
            f"{name} has no scores of {listed(labelled)}: give a column "
            f"{probability_column(labelled[0])} or {labelled[0]} (it has {shown(table.columns)})"
        )
    fault = names_fault(tuple(columns))
    if fault:
        raise UserError(f"{name} {fault}")
    others = [c for c in left if c.startswith(prefix) and is_score(table[spelled[c]])]
    return ScoreColumns(columns, lacking, tuple(others))


def spellings(finding: str) -> list[str]:
    """How a column may call a finding: by its name, or by NIH's other one."""
    same = ALIASES.get(finding, finding)
    names = [finding, same, *(alias for alias, of in ALIASES.items() if of == same)]
    return list(dict.fromkeys(s for name in names for s in (column_name(name), name)))


def is_score(column: pd.Series) -> bool:
    """Whether all of a column are numbers."""
    return bool(np.isfinite([as_float(value) for value in column]).all())


def similar_column(finding: str, columns: Iterable[str]) -> str | None:
    """The column whose name is nearly that of a finding, so that it is likely misspelled."""
    name = plain_spelling(finding)
    for column in columns:
        other = plain_spelling(column.removeprefix(PROBABILITY))
        if name == other or difflib.SequenceMatcher(None, name, other).ratio() >= SIMILAR:
            return column
    return None


def numbers(column: pd.Series, keys: pd.Series, where: str) -> np.ndarray:
    """A column as float64 (rows,). Raises UserError for texts, empty cells, NaN and infinity."""
    try:
        values = column.to_numpy(np.float64)
    except (ValueError, TypeError):
        values = np.array([as_float(value) for value in column])
    wrong = ~np.isfinite(values)
    if wrong.any():
        first = int(np.argmax(wrong))
        raise UserError(
            f"{where}: {int(wrong.sum()):,} scores are not numbers, the first {plain(column.iloc[first])!r} of "
            f"{keys.iloc[first]}: mend them, or leave these images out"
        )
    return values


def plain(cell: Any) -> Any:
    """A cell as Python's own value: numpy's own say their type where they are shown."""
    return cell.item() if isinstance(cell, np.generic) else cell


def as_float(value: Any) -> float:
    """The number that a cell holds, or NaN."""
    try:
        return float(value)
    except (ValueError, TypeError):
        return float("nan")


def with_labels(
    scores: pd.DataFrame,
    findings: Sequence[str],
    labels: str | None,
    name: str,
    label_form: str | None,
) -> tuple[pd.DataFrame, tuple[str, ...], dict[str, tuple[str, ...]]]:
    """Join labels, patients and facts from a label CSV, or take those that the table has.

    Returns the table, what to say of it, and the label form's means. Raises UserError for images without a label.
    """
    own, notes = [label_column(finding) for finding in findings], []
    if labels is None:
        table = scores.assign(**{c: own_label(scores, c, name) for c in own})
        means: dict[str, tuple[str, ...]] = {}
    else:
        table, means = join_labels(scores, findings, labels, name, label_form)
    if "patient_id" not in table:
        notes.append(f"{name} has no patient_id: intervals take every image for a patient of its own")  # fmt: skip
        table["patient_id"] = table["image_index"]
    table["patient_id"] = table["patient_id"].astype(str)
    kept = ["image_index", "patient_id", *(c for c in DESCRIPTIONS if c in table)]
    kept += [probability_column(finding) for finding in findings] + own
    return table[kept + (["run"] if "run" in table else [])], tuple(notes), means


def own_label(table: pd.DataFrame, column: str, name: str) -> np.ndarray:
    """A ``label_`` column as int8 (rows,); an empty cell is −1, unknown. Raises UserError."""
    column = next(c for c in table if str(c).strip() == column)
    cells = table[column]
    empty = cells.isna() | (cells.astype(str).str.strip() == "")
    truth = pd.to_numeric(cells.where(~empty, UNKNOWN), errors="coerce")
    wrong = ~truth.isin([UNKNOWN, 0, 1])
    if wrong.any():
        raise UserError(
            f"{name}, column {column}: a label must be 1, 0, or -1 or nothing where it is not known; "
            f"there is {plain(cells[wrong].iloc[0])!r}"
        )
    return truth.to_numpy(np.int8)


def join_labels(
    scores: pd.DataFrame, findings: Sequence[str], labels: str, name: str, label_form: str | None
) -> tuple[pd.DataFrame, dict[str, tuple[str, ...]]]:
    """Scores with the labels, the patient and the facts of the same image in a label CSV; the form's means.

    Raises UserError for images without a label, or with two.
    """
    found = read_labels(locate(labels), tuple(findings), label_form)
    rows = found.rows
    names = set(rows["image_index"])
    keys = {key: label_name(key, names) or key for key in scores["image_index"]}
    scores = scores.assign(image_index=scores["image_index"].map(keys))
    scored = set(keys.values())
    duplicates = sorted({key for key, kind in found.problems if kind == DUPLICATE_LABEL} & scored)
    if duplicates:
        raise UserError(
            f"--labels={labels}: {len(duplicates):,} images have two rows, the first {duplicates[0]}"
        )
    again = scores.loc[scores["image_index"].duplicated(), "image_index"]
    if len(again):
        raise UserError(f"{name}: two images have the label of {again.iloc[0]}: give each once")
    without = sorted(scored - names)
    if without:
        raise UserError(
            f"{name}: {len(without):,} of {len(scored):,} images have no label in {labels}, the first "
            f"{without[0]} (the first label is of {rows['image_index'].iloc[0]}): leave them out, or "
            "complete the labels"
        )
    facts = rows.set_index("image_index").loc[scores["image_index"]]
    truth = np.stack(facts["labels"].to_list())
    columns = {
        c: facts[c].to_numpy()
        for c in ("patient_id", *DESCRIPTIONS)
        if c in facts and facts[c].notna().any()
    }
    columns |= {label_column(finding): truth[:, i] for i, finding in enumerate(findings)}
    return scores.assign(**columns), found.means()


def shown(columns: Iterable[Any]) -> str:
    """The first columns of a table, for a message."""
    names = [str(column) for column in columns]
    return ", ".join(names[:12]) + (", …" if len(names) > 12 else "")
