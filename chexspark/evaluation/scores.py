"""Anybody's scores and labels as one table. Runs on the driver.

In: a DataFrame (Spark's or pandas'), a Parquet or CSV file with a key (``image_index`` or ``Image
Index``) and a column per finding, with or without ``prob_``; a label CSV, unless the table has
``label_<Finding>``. Out: a pandas table in the form of ``RUN/predictions``.
"""

import io

import numpy as np
import pandas as pd
import pyarrow as pa

from chexspark.errors import UserError, closest
from chexspark.evaluation.inference import LABEL, PROBABILITY
from chexspark.evaluation.subgroups import COLUMNS as DESCRIPTIONS
from chexspark.findings import ALIASES, FINDINGS
from chexspark.ingestion.labels import DUPLICATE_LABEL, read_labels
from chexspark.storage import Location, locate
from chexspark.text_files import decoded, read_content

KEYS = ("image_index", "Image Index")
PARQUET_MARK = b"PAR1"


def read_scores(given, option: str) -> pd.DataFrame:
    """Read scores: image_index (str), ``prob_<Finding>`` float64, and what else is there.

    `given`: a path, or a DataFrame. Raises UserError naming the column and the first image that are
    wrong.
    """
    name = f"{option} {given}" if isinstance(given, str) else f"the DataFrame given as {option}"
    table = read_table(locate(given), name) if isinstance(given, str) else as_pandas(given)
    if not len(table.columns) or not len(table):
        raise UserError(f"{name} has no rows")
    key = next((column for column in KEYS if column in table), None)
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
    columns = score_columns(table, name)
    scores = {
        PROBABILITY + f: numbers(table[c], keys, f"{name}, column {c}") for f, c in columns.items()
    }
    rest = {c: table[c] for c in table if c not in {key, *columns.values(), *scores}}
    return pd.DataFrame({"image_index": keys, **scores, **rest})


def read_table(place: Location, name: str) -> pd.DataFrame:
    """A Parquet file or folder, or a CSV, by its content. CSV cells stay texts."""
    fault = f"{name} is neither Parquet nor a CSV in UTF-8"
    if not place.exists():
        raise UserError(f"{name}: there is no such file")
    try:
        if place.is_directory() or is_parquet(place):
            return place.read_table().to_pandas()
        text = decoded(read_content(place, name), fault)
        return pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False)
    except pd.errors.EmptyDataError as error:
        raise UserError(f"{name} is empty") from error
    except (pa.ArrowInvalid, pd.errors.ParserError, OSError) as error:
        raise UserError(f"{fault}: {' '.join(str(error).split())[:200]}") from error


def is_parquet(place: Location) -> bool:
    with place.filesystem.open_input_file(place.path) as file:
        return file.read(len(PARQUET_MARK)) == PARQUET_MARK


def as_pandas(frame) -> pd.DataFrame:
    return frame.toPandas() if hasattr(frame, "toPandas") else frame


def score_columns(table: pd.DataFrame, name: str) -> dict[str, str]:
    """Finding → column. One with ``prob_`` goes before one without, which may be a label."""
    spelled = {str(column).strip(): column for column in table.columns}
    columns, missing = {}, []
    for finding in FINDINGS:
        names = [finding, *(alias for alias, of in ALIASES.items() if of == finding)]
        there = [n for n in [PROBABILITY + n for n in names] + names if n in spelled]
        if there:
            columns[finding] = spelled[there[0]]
        else:
            missing.append(finding)
    if missing:
        guess = closest(PROBABILITY + missing[0], spelled)
        raise UserError(
            f"{name} has no scores of {', '.join(missing)}: give a column {PROBABILITY}{missing[0]} or "
            f"{missing[0]}{guess} (it has {shown(table.columns)})"
        )
    return columns


def numbers(column: pd.Series, keys: pd.Series, where: str) -> np.ndarray:
    """A column as float64. Raises UserError for texts, empty cells, NaN and infinity."""
    try:
        values = column.to_numpy(np.float64)
    except (ValueError, TypeError):
        values = np.array([as_float(value) for value in column])
    wrong = ~np.isfinite(values)
    if wrong.any():
        first = int(np.argmax(wrong))
        raise UserError(
            f"{where}: {int(wrong.sum()):,} scores are not numbers, the first {column.iloc[first]!r} of "
            f"{keys.iloc[first]}: mend them, or leave these images out"
        )
    return values


def as_float(value) -> float:
    try:
        return float(value)
    except (ValueError, TypeError):
        return float("nan")


def with_labels(scores: pd.DataFrame, labels: str | None, name: str) -> pd.DataFrame:
    """Join labels, patients and facts from a label CSV, or take those that the table has.

    Raises UserError for images without a label.
    """
    own = [LABEL + finding for finding in FINDINGS]
    if labels is None:
        lacking = [column for column in own if column not in scores]
        if lacking:
            raise UserError(f"{name} has no {lacking[0]}: give --labels CSV")
        truth = scores[own].apply(pd.to_numeric, errors="coerce")
        if not truth.isin([-1, 0, 1]).all(axis=None):
            raise UserError(f"{name}: a label must be 1, 0 or -1")
        table = scores.assign(**{column: truth[column].astype(np.int8) for column in own})
    else:
        table = join_labels(scores, labels, name)
    if "patient_id" not in table:
        print(
            f"note: {name} has no patient_id: intervals take every image for a patient of its own"
        )
        table["patient_id"] = table["image_index"]
    table["patient_id"] = table["patient_id"].astype(str)
    kept = ["image_index", "patient_id", *(c for c in DESCRIPTIONS if c in table)]
    kept += [PROBABILITY + finding for finding in FINDINGS] + own
    return table[kept + (["run"] if "run" in table else [])]


def join_labels(scores: pd.DataFrame, labels: str, name: str) -> pd.DataFrame:
    """Scores with the labels, the patient and the facts of the same image in a label CSV."""
    rows, problems = read_labels(locate(labels))
    scored = set(scores["image_index"])
    duplicates = sorted({key for key, kind in problems if kind == DUPLICATE_LABEL} & scored)
    if duplicates:
        raise UserError(
            f"--labels {labels}: {len(duplicates):,} images have two rows, the first {duplicates[0]}"
        )
    unknown = [key for key, kind in problems if kind != DUPLICATE_LABEL]
    if unknown:
        print(f"note: --labels {labels} has findings that are none of the 14: {', '.join(unknown)}")
    without = sorted(scored - set(rows["image_index"]))
    if without:
        raise UserError(
            f"{name}: {len(without):,} of {len(scored):,} images have no label in {labels}, the first "
            f"{without[0]} (the first label is of {rows['image_index'].iloc[0]}): leave them out, or "
            "complete the labels"
        )
    facts = rows.set_index("image_index").loc[scores["image_index"]]
    truth = np.stack(facts["labels"].to_list())
    columns = {
        c: facts[c].to_numpy() for c in ("patient_id", *DESCRIPTIONS) if facts[c].notna().any()
    }
    columns |= {LABEL + finding: truth[:, i] for i, finding in enumerate(FINDINGS)}
    return scores.assign(**columns)


def shown(columns) -> str:
    """The first columns of a table, for a message."""
    names = [str(column) for column in columns]
    return ", ".join(names[:12]) + (", …" if len(names) > 12 else "")
