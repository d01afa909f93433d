"""The rows of a label file, with those of the files that its form joins to them. Runs on the driver.

In: the file and its form. Out: one header and rows, each with its line in the label file.
"""

import fnmatch
import posixpath
from dataclasses import dataclass

from pyarrow import fs

from chexspark.errors import UserError, listed
from chexspark.ingestion.label_form import Join, LabelForm, column_finder
from chexspark.storage import Location
from chexspark.text_files import read_csv_rows

Line = int | str  # 12, or ``12 of valid.csv``
Rows = list[tuple[Line, list[str]]]  # line in the file, cells


@dataclass
class LabelRows:
    """A label file as a table. Rows may be shorter than the header."""

    header: list[str]
    rows: Rows
    own: int  # columns of the label file itself; those after them are joined
    lacking: dict[
        str, tuple[int, int]
    ]  # file that was joined → rows without a partner there, of all


def read_rows(place: Location, name: str) -> tuple[list[str], Rows]:
    """The header and the rows of a CSV, each with its line in the file. Raises UserError."""
    rows: Rows = list(read_csv_rows(place, name))
    if not rows:
        raise UserError(f"{name} is empty")
    return [cell.strip() for cell in rows[0][1]], rows[1:]


def check_widths(header: list[str], rows: Rows, name: str) -> None:
    """Raise UserError for a row that goes on past the header: its cells may be of other columns.

    Unless all rows do so, as far, and say nothing there.
    """
    widths = {len(row) for _, row in rows}
    for line, row in rows:
        if len(row) > len(header) and (len(widths) > 1 or any(map(str.strip, row[len(header) :]))):
            raise UserError(
                f"{name}, line {line} has {len(row)} cells, and the header {len(header)}: put cells "
                "that hold the separator in quotes, and end all lines alike"
            )


def check_whole(header: list[str], rows: Rows, form: LabelForm, name: str) -> None:
    """Raise UserError for a row that breaks off before the header's end, where a blank cell is a negative."""
    if 0 not in form.blank.values():
        return
    for line, row in rows:
        if len(row) < len(header):
            raise UserError(
                f"{name}, line {line} has {len(row)} cells, and the header {len(header)}: it breaks off, and what "
                f"is blank is negative in the form {form.name}; get a whole copy of the file"
            )


def joined(place: Location, header: list[str], rows: Rows, form: LabelForm) -> LabelRows:
    """The rows with those of the form's other files. Raises UserError where a file or a column is not there."""
    table = LabelRows(header, rows, len(header), {})
    used = {name for fact in form.facts.values() for name in (*fact.columns, fact.birth)}
    used |= {name for join in form.joins for name in join.key}
    for join in form.joins:
        add_file(table, join, joined_place(place, join), used)
    return table


def joined_place(labels: Location, join: Join) -> Location:
    """The file of a join, in the folder of the labels. Raises UserError unless there is one."""
    folder = posixpath.dirname(labels.path)
    found = labels.filesystem.get_file_info(fs.FileSelector(folder))
    names = [i.base_name for i in found if i.type == fs.FileType.File]
    fitting = sorted(n for n in names if fnmatch.fnmatchcase(n, join.file))
    # Beside the packed file there may be the unpacked one.
    fitting = [n for n in fitting if n.removesuffix(".gz") not in fitting or not n.endswith(".gz")]
    if len(fitting) != 1:
        there = f"there are {listed(fitting)}: keep one" if fitting else "put it there"
        raise UserError(f"--labels={labels} needs {join.file} beside it; {there}")
    return Location(
        labels.filesystem,
        posixpath.join(folder, fitting[0]),
        posixpath.join(posixpath.dirname(labels.uri), fitting[0]),
    )


def add_file(table: LabelRows, join: Join, place: Location, used: set[str]) -> None:
    """Put the columns `used` of a file beside the table's; a row with several partners becomes several.

    Raises UserError where a column of the key is missing.
    """
    where = f"{place}, which belongs to --labels,"
    header, rows = read_rows(place, where)
    check_widths(header, rows, where)
    keys = []
    for columns, name in ((table.header, "--labels"), (header, where)):
        found = column_finder(columns, name)
        positions = [found(key) for key in join.key]
        if None in positions:
            raise UserError(f"{name} has no column {join.key[positions.index(None)]}, by which {join.file} is joined")  # fmt: skip
        keys.append([p for p in positions if p is not None])
    taken = [i for i, name in enumerate(header) if name in used and name not in table.header]
    partners: dict[tuple[str, ...], list[list[str]]] = {}
    for _, row in rows:
        partners.setdefault(key_of(row, keys[1]), []).append([cell_of(row, i) for i in taken])
    width, lacking, result = len(table.header), 0, []
    for line, row in table.rows:
        key = key_of(row, keys[0])
        others = partners.get(key, []) if all(key) else []  # two that say nothing are not the same
        lacking += not others
        whole = row[:width] + [""] * (width - len(row))
        result += [(line, whole + other) for other in others or [[""] * len(taken)]]
    table.lacking[posixpath.basename(place.path)] = lacking, len(table.rows)
    table.rows = result
    table.header = table.header + [header[i] for i in taken]


def key_of(row: list[str], positions: list[int]) -> tuple[str, ...]:
    """The cells by which a row is joined; a whole number that has become ``12.0`` is 12."""
    return tuple(cell_of(row, i).strip().removesuffix(".0") for i in positions)


def cell_of(row: list[str], position: int | None) -> str:
    """A cell of a row that may be short, or of a column that may not be there."""
    return row[position] if position is not None and position < len(row) else ""
