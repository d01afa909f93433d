"""Box CSVs: NIH's ``BBox_List_2017.csv``, or a label file whose rows have boxes. Runs on the driver."""

from collections.abc import Collection

import pandas as pd

from chexspark.errors import UserError
from chexspark.findings import find, is_plain_word, plain_spelling
from chexspark.ingestion.boxes import COLUMNS, Boxes, BoxFault, box_of, check_faults
from chexspark.ingestion.image_names import label_name, plain_path
from chexspark.ingestion.label_findings import is_similar
from chexspark.ingestion.label_form_file import form_of_header
from chexspark.ingestion.label_rows import Rows, read_rows
from chexspark.ingestion.labels import read_labels
from chexspark.storage import Location

HEADER = ("Image Index", "Finding Label")
# Of the columns after these, in plain spelling; all in one, and without a name.
SPELLED = (("x", "xywh", ""), ("y", ""), ("w", "width", ""), ("h", "height", ""))
STRANGE = "of images without a label"


def read_boxes(
    place: Location, findings: tuple[str, ...], names: Collection[str] | None = None
) -> Boxes:
    """Read the boxes of `findings`; count those of others.

    `names`: the names of the images that have labels; boxes of others are counted too. Pixels of the
    original image, x and y of the upper left corner. Raises UserError naming the lines of what is no box.
    """
    where = f"--boxes={place}"
    header, rows = read_rows(place, where)
    if list(map(plain_spelling, header[:2])) == list(map(plain_spelling, HEADER)):
        check_sides(header, where)
        found = nih_boxes(rows, findings, where)
    elif not (form := form_of_header(header)) or not form.boxes:
        raise UserError(
            f"{where} must begin with the columns {', '.join(HEADER)}, or be a label file with boxes; it "
            f"begins with {', '.join(header[:2])}"
        )
    else:
        found = read_labels(place, findings).boxes or Boxes(pd.DataFrame(columns=COLUMNS), {})
    if names is None:
        return found
    images = {image: label_name(image, names) for image in found.rows["image_index"].unique()}
    boxes = found.rows.assign(image_index=found.rows["image_index"].map(images))
    strange = int(boxes["image_index"].isna().sum())
    return Boxes(boxes.dropna(), found.left_alone | ({STRANGE: strange} if strange else {}))


def check_sides(header: list[str], where: str) -> None:
    """Raise UserError unless the columns after the finding are x, y, width and height, as far as they are named.

    NIH's own are called ``Bbox [x``, ``y``, ``w`` and ``h]``.
    """
    named = [plain_spelling(cell).removeprefix("bbox") for cell in header[2:6]]
    if any(name not in known for name, known in zip(named, SPELLED, strict=False)):
        raise UserError(
            f"{where}: after {HEADER[1]} there must be the columns x, y, w, h; there are {', '.join(header[2:6])}"
        )


def nih_boxes(rows: Rows, findings: tuple[str, ...], where: str) -> Boxes:
    """The boxes of NIH's file: the four columns that follow the finding.

    Raises UserError naming the lines of what is no box.
    """
    records, faults = [], []
    left_alone: dict[str, int] = {}
    for line, row in rows:
        cells = row[2:6]
        if len(cells) < 4 or not row[0].strip():
            raise UserError(f"{where}, line {line}: not an image, a finding and four numbers")
        name, finding = row[1].strip(), find(row[1], findings)
        if not is_plain_word(name) or (finding is None and is_similar(name, findings)):
            raise UserError(f"{where}, line {line}: {name!r} is no finding: mend it")
        try:
            box = box_of(cells)
        except BoxFault as error:
            faults.append((line, str(error)))
            continue
        if finding is None:
            left_alone[name] = left_alone.get(name, 0) + 1
            continue
        records.append((plain_path(row[0]), findings[finding], *box))
    check_faults(faults, where)
    return Boxes(pd.DataFrame(records, columns=COLUMNS), left_alone)
