"""Spoiled label files: each is refused in one line, or read, and nothing of it is believed that cannot be."""

import csv
import io
import re

import numpy as np
from spoiling import Tally, flipped, mutants

from chexspark.findings import FINDINGS, find, plain_spelling
from chexspark.ingestion.label_findings import cell_value, finding_columns, says_nothing_was_found
from chexspark.ingestion.label_form import column_finder
from chexspark.ingestion.label_table import label_table
from chexspark.ingestion.labels import Labels, read_labels
from chexspark.storage import locate

ROWS = 40
CHEXPERT = (
    "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema", "Consolidation",
    "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture",
    "Support Devices",
)  # fmt: skip
CUSTOM = """name: St. Elsewhere
image: file
patient: {column: file, pattern: '^([^/]+)/'}
sex: {column: gender, values: {weiblich: F, männlich: M}}
age: {birth: born, date: taken}
view: [projection, position]
findings: {Effusion: pleura, Mass: tumour, Nodule: knot}
values: {yes: 1, no: 0, maybe: uncertain}
uncertain: {default: ignore, Mass: ones}
no_finding: healthy
"""


def nih(rng, header, end):
    rows = [header]
    for i in range(ROWS):
        n = int(rng.integers(4))
        words = "|".join(rng.choice(FINDINGS, n, replace=False)) or "No Finding"
        rows.append([f"{i // 2 + 1:08}_{i % 2:03}.png", words, str(i % 2), str(i // 2 + 1),
                     str(rng.integers(1, 95)), "MF"[i % 2], "PA", "2500", "2048", "0.168", "0.168", *end])  # fmt: skip
    return rows


def nih_2017(rng):
    header = ["Image Index", "Finding Labels", "Follow-up #", "Patient ID", "Patient Age", "Patient Gender",
              "View Position", "OriginalImage[Width", "Height]", "OriginalImagePixelSpacing[x", "y]", ""]  # fmt: skip
    return nih(rng, header, [""])


def nih_2020(rng):
    header = ["Image Index", "Finding Labels", "Follow-up #", "Patient ID", "Patient Age", "Patient Sex",
              "View Position", "OriginalImage[Width", "Height]", "OriginalImagePixelSpacing[x", "y]"]  # fmt: skip
    return nih(rng, header, [])


def plain(rng):
    rows = [["image", "patient", "sex", "age", "follow_up", *FINDINGS[:5]]]
    for i in range(ROWS):
        cells = rng.choice(["0", "1", "", "-1"], 5)
        rows.append([f"x{i}.png", f"p{i // 3}", "M", str(20 + i), str(i % 3), *map(str, cells)])
    return rows


def chexpert(rng):
    rows = [["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", "No Finding", *CHEXPERT]]
    for i in range(ROWS):
        path = (
            f"CheXpert-v1.0-small/train/patient{i // 2 + 1:05}/study{i % 2 + 1}/view1_frontal.jpg"
        )
        cells = rng.choice(["", "0.0", "1.0", "1.0", "-1.0"], len(CHEXPERT))
        rows.append([path, "Female", "68", "Frontal", "AP", "", *map(str, cells)])
    return rows


def padchest(rng):
    rows = [["", "ImageID", "ImageDir", "StudyDate_DICOM", "StudyID", "PatientID", "PatientBirth",
             "PatientSex_DICOM", "Projection", "Labels"]]  # fmt: skip
    words = ["pleural effusion", "pneumonia", "nodule", "mass", "scoliosis", "cardiomegaly",
             "laminar atelectasis", "infiltrates", "pulmonary fibrosis", "hydropneumothorax"]  # fmt: skip
    for i in range(ROWS):
        found = ", ".join(f"'{w}'" for w in rng.choice(words, rng.integers(1, 4), replace=False))
        rows.append([str(i), f"{i}.png", "0", "20140915", f"s{i}", f"p{i // 2}", "1950.0", "M", "PA",
                     f"[{found}]"])  # fmt: skip
    return rows


def custom(rng):
    rows = [["file", "gender", "born", "taken", "projection", "position", "pleura", "tumour", "knot",
             "healthy"]]  # fmt: skip
    for i in range(ROWS):
        cells = rng.choice(["yes", "no", "maybe", "yes"], 3)
        rows.append([f"p{i // 2}/{i}.png", "weiblich", "22.01.1940", "07.01.2019", "PA", "",
                     *map(str, cells), ""])  # fmt: skip
    return rows


FORMS = {"nih 2017": nih_2017, "nih 2020": nih_2020, "plain": plain, "chexpert": chexpert,
         "padchest": padchest, "custom": custom}  # fmt: skip


def text_of(rows) -> str:
    """Rows as a CSV, none of them quoted but where it must be."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue()


def any_cell(rows, rng, first=1):
    """A row, not the header unless `first` is 0, and the number of one of its cells."""
    row = rows[int(rng.integers(first, len(rows)))]
    return row, int(rng.integers(len(row)))


def bit_flip(rows, rng):
    return flipped(text_of(rows).encode(), rng)


def two_bits(rows, rng):
    return flipped(flipped(text_of(rows).encode(), rng), rng)


def cell_deleted(rows, rng):
    row, i = any_cell(rows, rng, 0)
    del row[i]


def cell_doubled(rows, rng):
    row, i = any_cell(rows, rng, 0)
    row.insert(i, row[i])


def cells_swapped(rows, rng):
    row, i = any_cell(rows, rng, 0)
    j = int(rng.integers(len(row)))
    row[i], row[j] = row[j], row[i]


def cells_of_rows_swapped(rows, rng):
    one, i = any_cell(rows, rng)
    other, _ = any_cell(rows, rng)
    i = min(i, len(other) - 1)
    one[i], other[i] = other[i], one[i]


def row_doubled(rows, rng):
    row, _ = any_cell(rows, rng, 0)
    rows.insert(int(rng.integers(len(rows))), list(row))


def digit_changed(rows, rng):
    text = text_of(rows)
    places = [found.start() for found in re.finditer("[0-9]", text)]
    i = int(rng.choice(places))
    return text[:i] + str(rng.integers(10)) + text[i + 1 :]


def letter_changed(rows, rng):
    text = text_of(rows)
    i = int(rng.integers(len(text)))
    return text[:i] + str(rng.choice(list("aXö_ '|;,\t\r\n\"0"))) + text[i + 1 :]


def cell_set(*values):
    def mutate(rows, rng):
        row, i = any_cell(rows, rng, 0)
        row[i] = str(rng.choice(values)) if len(values) > 1 else values[0]

    return mutate


def part_put_in(part):
    def mutate(rows, rng):
        text = text_of(rows)
        i = int(rng.integers(len(text)))
        return text[:i] + part + text[i:]

    return mutate


def other_encoding(rows, rng):
    text = text_of(rows).replace("a", "ä")
    return text.encode(
        str(rng.choice(["latin-1", "utf-16", "utf-16-le", "utf-32", "cp037", "utf-8-sig"]))
    )


def truncated(rows, rng):
    content = text_of(rows).encode()
    return content[: int(rng.integers(len(content)))]


def bytes_put_in(rows, rng):
    content = text_of(rows).encode()
    i = int(rng.integers(len(content)))
    return content[:i] + rng.bytes(int(rng.integers(1, 20))) + content[i:]


MUTATIONS = {
    "bit flip": bit_flip, "two bits": two_bits, "cell deleted": cell_deleted, "cell doubled": cell_doubled,
    "cells swapped": cells_swapped, "cells of rows swapped": cells_of_rows_swapped,
    "row doubled": row_doubled, "digit changed": digit_changed, "letter changed": letter_changed,
    "huge number": cell_set("1e308", "9" * 18, "99999999999999999999999", "-1e999", "inf", "0x1F", "1_0"),
    "superscript": cell_set("²", "1²", "١", "Ⅷ", "½"),
    "5,000 digits": cell_set("1" * 5000), "60,000 blanks": cell_set(" " * 60_000 + "1"),
    "huge cell": cell_set("x" * 200_000), "NUL": part_put_in("\0"),
    "quote": part_put_in('"'), "open quote in a cell": part_put_in(',"'),
    "odd word": cell_set("nan", "None", "TRUE", "ja", "1.0.0", "=1+1", "<b>", "../../x", "-0", "+1", "1,0"),
    "other encoding": other_encoding, "truncated": truncated, "bytes put in": bytes_put_in,
}  # fmt: skip


def by_image(labels: Labels):
    """Image → its patient, its labels by finding, and its path."""
    return {
        row.image_index: (
            row.patient_id,
            dict(zip(labels.findings, row.labels, strict=True)),
            row.path,
        )
        for row in labels.rows.itertuples()
    }


def odd_cells(place, given) -> dict[str, set[str]]:
    """The path of an image → words or values of its findings that mean nothing to its form."""
    table, form = label_table([place], given)
    find_column = column_finder(table.header, "")
    image = find_column(form.facts["image"].columns[0])
    odd: dict[str, set[str]] = {}
    for _, row in table.rows:
        cells = row + [""] * (len(table.header) - len(row))
        said = odd.setdefault(cells[image].strip(), set())
        if form.words:
            known = (*(form.findings or FINDINGS), *form.other_findings, *(form.synonyms or {}))
            words = cells[find_column(form.words)].split(form.separator)
            for word in (w.strip(" \t\r\n[]'\"") for w in words):
                nothing = not word or says_nothing_was_found(word, form)
                known_one = find(word, known) is not None
                silent = plain_spelling(word) in map(plain_spelling, form.unknown_words)
                if not (
                    nothing or known_one or silent or plain_spelling(word) in (form.synonyms or {})
                ):
                    said.add(word)
        else:
            columns = finding_columns(table.header, form, "")
            said |= {cells[c] for c in columns if cell_value(cells[c], form) is None}
    return odd


def judge(clean, place, given, form):
    """What came of a mutant that was read: an outcome, and what is wrong with it."""

    def of(labels: Labels) -> tuple[str, str]:
        found, outcome, odd = by_image(labels), "as the clean file", None
        for name, (patient, said, path) in found.items():
            number = re.match(r"([0-9]{8})_[0-9]{3}|([0-9]+)_[0-9]+\.png$", name)
            taken_for = int(number[1] or number[2]) if number else None
            if form.startswith("nih") and number and taken_for != as_number(patient):
                return "believed", f"{name[:40]} is of patient {patient[:40]!r}"
            was = clean.get(name)
            if was is None or (was[0], was[1]) == (patient, said):
                continue
            outcome = "other values" if outcome == "as the clean file" else outcome
            for finding in said.keys() & was[1].keys():
                if said[finding] == 0 and was[1][finding] == 1:
                    odd = odd_cells(place, given) if odd is None else odd
                    if odd.get(path):
                        return "believed", f"{finding} of {name[:40]} became 0 by {odd[path]}"
                    outcome = "1 is 0 by a valid word"
        if outcome == "as the clean file" and found.keys() != clean.keys():
            outcome = "other images"
        return outcome, ""

    return of


def as_number(patient: str) -> int | None:
    return int(patient) if re.fullmatch("[0-9]{1,20}", patient) else None


def test_spoiled_label_files(tmp_path):
    rng, tally = np.random.default_rng(1), Tally("label files")
    (tmp_path / "form.yaml").write_text(CUSTOM)
    clean = {}
    for form, make in FORMS.items():
        given = str(tmp_path / "form.yaml") if form == "custom" else None
        (tmp_path / "clean.csv").write_text(text_of(make(np.random.default_rng(7))))
        clean[form] = by_image(read_labels(locate(str(tmp_path / "clean.csv")), (), given))
    for number in range(mutants(240)):
        form = list(FORMS)[number % len(FORMS)]
        kind = list(MUTATIONS)[number // len(FORMS) % len(MUTATIONS)]
        rows = FORMS[form](np.random.default_rng(7))
        content = MUTATIONS[kind](rows, rng)
        content = text_of(rows) if content is None else content
        path = tmp_path / "labels.csv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        given = str(tmp_path / "form.yaml") if form == "custom" else None
        place = locate(str(path))
        tally.attempt(
            kind,
            lambda place=place, given=given: read_labels(place, (), given),
            judge(clean[form], place, given, form),
            note=f"{form}, number {number}",
        )
    tally.finish()
