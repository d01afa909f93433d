"""A label file, or several of one form, as a table of cells. Runs on the driver.

In: the files, and their form, told by the header unless it is named. Out: one header and rows, with those of
the files that the form joins.
"""

import posixpath
from collections.abc import Sequence

from chexspark.errors import UserError, listed
from chexspark.ingestion.label_findings import named_findings
from chexspark.ingestion.label_form import LabelForm, column_finder
from chexspark.ingestion.label_form_file import find_form, told_by_header
from chexspark.ingestion.label_rows import (
    LabelRows,
    cell_of,
    check_whole,
    check_widths,
    joined,
    read_rows,
)
from chexspark.storage import Location


def label_findings(place: Location, form: str | None = None) -> tuple[str, ...]:
    """All findings that a label CSV can speak of: its columns; of one with words, the form's and all words."""
    table, kind = checked_rows(place, form)
    return named_findings(table.header, table.rows, kind, f"--labels={place}")


def label_table(
    places: Sequence[Location], given: str | None = None
) -> tuple[LabelRows, LabelForm]:
    """The rows of label files, one after the other, and their form.

    Of a further file, lines are called ``12 of valid.csv``. Raises UserError where the files differ in form
    or columns, and as `checked_rows` does.
    """
    table, form = checked_rows(places[0], given)
    for place in places[1:]:
        other, its_form = checked_rows(place, given)
        if its_form.name != form.name:
            raise UserError(
                f"--labels={places[0]} is of the form {form.name}, and {place} of {its_form.name}: ingest "
                "one, and then the other with --append"
            )
        differing = sorted(set(table.header) ^ set(other.header))
        if differing or len(table.header) != len(other.header):
            raise UserError(
                f"--labels: {places[0]} and {place} do not have the same columns ({listed(differing)}): "
                "ingest one, and then the other with --append"
            )
        order = [other.header.index(name) for name in table.header]
        if other.header == table.header:
            order = list(range(len(order)))
        name = posixpath.basename(place.path)
        table.rows += [
            (f"{line} of {name}", [cell_of(row, i) for i in order]) for line, row in other.rows
        ]
        table.lacking |= {f"{f} beside {name}": n for f, n in other.lacking.items()}
    return table, form


def checked_rows(place: Location, given: str | None) -> tuple[LabelRows, LabelForm]:
    """The rows of a label CSV and its form. Raises UserError where a column or all rows are missing."""
    where = f"--labels={place}"
    header, rows = read_rows(place, where)
    form = find_form(given) if given else told_by_header(header, where)
    check_widths(header, rows, where)
    check_whole(header, rows, form, where)
    table = joined(place, header, rows, form)
    find_column = column_finder(table.header, where)
    needed = {fact: form.facts[fact].columns for fact in ("image", "patient") if fact in form.facts}
    needed |= {name: (name,) for name in form.boxes}
    missing = [names[0] for names in needed.values() if not any(find_column(n) is not None for n in names)]  # fmt: skip
    if form.words and find_column(form.words) is None:
        missing.append(form.words)
    if missing:
        raise UserError(f"{where} has no column {', '.join(missing)}; it has {listed(header)}")
    if not rows:
        raise UserError(f"{where} has a header and no rows")
    return table, form
