"""The columns of a DataFrame that has images, and labels and patients beside them. Runs on the driver.

In: a DataFrame and the names of its columns. Out: expressions of one form, whatever the columns are of. Images
are bytes of files, Spark's image struct, or paths; labels are numbers, a column each or all in one.
"""

import functools
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import (
    ArrayType,
    BinaryType,
    BooleanType,
    DataType,
    IntegralType,
    NumericType,
    StringType,
    StructField,
    StructType,
)

from chexspark.errors import UserError, closest, listed
from chexspark.findings import LABEL, UNKNOWN, names_fault
from chexspark.ingestion.image_errors import BadImageError
from chexspark.ingestion.sources import SourceFile, content_of
from chexspark.session import is_connect

Kind = Literal["file", "struct", "path"]
IMAGE_STRUCT = ("origin", "height", "width", "nChannels", "mode", "data")  # Spark's ImageSchema
VECTOR = "vector"  # the SQL name of Spark ML's vectors


def column(frame: DataFrame, name: str, setting: str) -> tuple[Column, DataType]:
    """A column of a frame, or a field of one (``image.data``), and its type.

    Raises UserError where there is none.
    """
    kind: DataType = frame.schema
    parts = [name] if field_of(kind, name) else name.split(".")
    for part in parts:
        found = field_of(kind, part)
        if found is None:
            raise UserError(
                f"{setting}={name}: there is no such column{closest(name, frame.columns)} "
                f"({listed(frame.columns, 20)})"
            )
        kind = found.dataType
    return F.col(".".join(quoted(part) for part in parts)), kind


def field_of(kind: DataType, name: str) -> StructField | None:
    """The field of a struct that Spark takes for a name, in any case of letters, if there is one."""
    fields = kind.fields if isinstance(kind, StructType) else []
    exact = [field for field in fields if field.name == name]
    return next(iter(exact or [f for f in fields if f.name.lower() == name.lower()]), None)


def quoted(name: str) -> str:
    """A name as SQL has it, with whatever letters."""
    return "`" + name.replace("`", "``") + "`"


def image_kind(kind: DataType, name: str) -> Kind:
    """What the images of a column are, by its type. Raises UserError for one that has none."""
    if isinstance(kind, BinaryType):
        return "file"
    if isinstance(kind, StringType):
        return "path"
    if isinstance(kind, StructType) and set(IMAGE_STRUCT) <= set(kind.names):
        return "struct"
    raise UserError(
        f"--image={name} is of type {kind.simpleString()}, but must be the bytes of image files, Spark's image "
        "struct, or paths"
    )


def image_digest(image: Column, kind: Kind) -> Column:
    """An expression: what tells an image from others, as text; null where there is none."""
    if kind == "file":
        return F.sha2(image, 256)
    if kind == "path":
        return file_digest()(image)
    shape = [image[name].cast("string") for name in ("height", "width", "mode")]
    digest = F.concat_ws("/", *shape, F.sha2(image["data"], 256))
    return F.when(image["data"].isNotNull(), digest)  # `concat_ws` passes over nulls


def image_bytes(image: Column, kind: Kind) -> Column:
    """An expression: how long an image is, bytes; of a path, of the path."""
    return F.length(image["data"] if kind == "struct" else image).cast("long")


@functools.cache
def file_digest() -> Any:
    """A function of Spark from paths to SHA-256 of the files' content, or to why there is none."""

    def digests(parts: Iterator[pd.Series]) -> Iterator[pd.Series]:
        for part in parts:
            yield part.map(digest_of_file)

    return F.pandas_udf(digests, "string")


def digest_of_file(path: str | None) -> str | None:
    """SHA-256 of a file's content, or why it cannot be read."""
    if path is None:
        return None
    content = read_path(path)
    return (
        str(content) if isinstance(content, BadImageError) else hashlib.sha256(content).hexdigest()
    )


def read_path(path: str) -> bytes | BadImageError:
    """The content of an image file at a path, or why there is none."""
    return content_of(SourceFile(path, path, 0, ""))


def patient_column(frame: DataFrame, name: str) -> Column:
    """The patients as texts. Raises UserError for a column of what cannot name a patient."""
    found, kind = column(frame, name, "--patient")
    if not isinstance(kind, (StringType, IntegralType)):
        raise UserError(
            f"--patient={name} is of type {kind.simpleString()}, but must be texts or whole numbers: cast it"
        )
    return found.cast("string")


class Labels(NamedTuple):
    """The labels of a frame."""

    column: Column  # all of a row in an array of doubles
    together: bool  # in the frame too they are in one column


def label_columns(frame: DataFrame, names: tuple[str, ...]) -> Labels:
    """The columns of labels as one. Raises UserError for columns that have none."""
    columns = [column(frame, name, "--labels") for name in names]
    if len(columns) == 1:
        found, kind = columns[0]
        if kind.simpleString() == VECTOR:
            return Labels(vector_to_array(frame, found), True)
        if isinstance(kind, ArrayType) and is_label(kind.elementType):
            return Labels(found.cast("array<double>"), True)
    for name, (_, kind) in zip(names, columns, strict=True):
        if not is_label(kind):
            raise UserError(
                f"--labels={name} is of type {kind.simpleString()}, but must be numbers or truth values, or one "
                "array or vector of all: cast it"
            )
    return Labels(F.array(*(found.cast("double") for found, _ in columns)), False)


def is_label(kind: DataType) -> bool:
    """Whether values of a type can be labels."""
    return isinstance(kind, (NumericType, BooleanType))


def vector_to_array(frame: DataFrame, vector: Column) -> Column:
    """An array of doubles of one of Spark ML's vectors, on a classic session or through Spark Connect."""
    if is_connect(frame.sparkSession):
        from pyspark.ml.connect.functions import vector_to_array as to_array
    else:
        from pyspark.ml.functions import vector_to_array as to_array
    return to_array(vector)


def array_to_vector(frame: DataFrame, array: Column) -> Column:
    """One of Spark ML's vectors of an array of doubles; null of null."""
    if is_connect(frame.sparkSession):
        from pyspark.ml.connect.functions import array_to_vector as to_vector
    else:
        from pyspark.ml.functions import array_to_vector as to_vector
    return F.when(array.isNotNull(), to_vector(array))


def validation_column(frame: DataFrame, name: str) -> Column:
    """Which rows are for validation, as truth values. Raises UserError for a column of other types."""
    found, kind = column(frame, name, "--validation")
    if not isinstance(kind, (BooleanType, IntegralType)):
        raise UserError(
            f"--validation={name} is of type {kind.simpleString()}, but must be of truth values, or 0 and 1"
        )
    return found.cast("boolean")


def findings_of(names: tuple[str, ...], given: tuple[str, ...], together: bool) -> tuple[str, ...]:
    """The findings of label columns: `given`, else their names without ``label_``, if all begin with it.

    `together`: one column has them all, which must then be given. Raises UserError for names that cannot be.
    """
    if together and not given:
        raise UserError(
            f"--labels={names[0]} has several labels in one column: name the --findings"
        )
    if not together and given and len(names) != len(given):
        raise UserError(
            f"--findings has {len(given)} names, but there are {len(names)} columns of labels"
        )
    findings = given or names
    if not given and all(name.startswith(LABEL) for name in names):
        findings = tuple(name.removeprefix(LABEL) for name in names)
    fault = names_fault(findings)
    if fault:
        raise UserError(
            ("--findings " if given else "--labels ")
            + fault
            + ": name the --findings" * (not given)
        )
    return findings


def label_values(
    rows: pd.Series, rows_names: pd.Series, names: Sequence[str], findings: Sequence[str]
) -> np.ndarray:
    """The labels of rows, int8 (rows, findings): 1, 0, or −1 for unknown.

    `rows`: what `label_columns` has selected, of the columns `names`; `rows_names`: what the rows are called.
    Raises UserError for values that are no labels.
    """
    lengths = rows.map(lambda values: -1 if values is None else len(values))
    wrong = np.flatnonzero(lengths != len(findings))
    if len(wrong):
        number = lengths.iloc[wrong[0]]
        raise UserError(
            f"--labels={names[0]} has {number if number >= 0 else 'no'} values in {len(wrong):,} rows, the first "
            f"{rows_names.iloc[wrong[0]]}, but there are {len(findings)} findings"
        )
    values = np.array([list(row) for row in rows], np.float64).reshape(-1, len(findings))
    values = np.where(np.isnan(values), UNKNOWN, values)
    bad = np.argwhere(~np.isin(values, (0, 1, UNKNOWN)))
    if len(bad):
        row, finding = bad[0]
        together = len(names) < len(findings)
        name = f"{names[0]}, {findings[finding]}," if together else names[finding]
        raise UserError(
            f"--labels={name} has {values[row, finding]:g} in {rows_names.iloc[row]} ({len(bad):,} such values), but a "
            "label is 1, 0, or -1, NaN or null for unknown"
        )
    return values.astype(np.int8)
