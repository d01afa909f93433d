import numpy as np
import pandas as pd
import pytest

from chexspark.config import IngestConfig
from chexspark.errors import UserError
from chexspark.findings import FINDINGS
from chexspark.ingestion.box_files import read_boxes
from chexspark.ingestion.label_facts import parse_age, parse_count
from chexspark.ingestion.labels import read_labels
from chexspark.ingestion.splits import assign_splits, random_split, split_hash
from chexspark.storage import locate

HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,"
    "View Position,OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)


def write(folder, text):
    (folder / "labels.csv").write_text(text)
    return locate(str(folder / "labels.csv"))


@pytest.mark.parametrize(
    "text",
    [
        HEADER + "\n00000001_001.png,Cardiomegaly|Emphysema,1,1,58,M,PA,2894,2729,0.143,0.143\n",
        HEADER
        + ",\n00000001_001.png,Cardiomegaly|Emphysema,1,1,058Y,M,PA,2894,2729,0.143,0.143,\n",
        "\ufeff"
        + HEADER
        + "\r\n00000001_001.png,Cardiomegaly|Emphysema,1,1,58,M,PA,2,2,0.1,0.1\r\n",
    ],
    ids=["2020", "2017", "byte order mark and CRLF"],
)
def test_both_of_nih_s_forms_are_read(tmp_path, text):
    row = read_labels(write(tmp_path, text)).rows.iloc[0]
    assert (row.image_index, row.patient_id, row.age, row.sex, row.view_position, row.follow_up) == (
        "00000001_001.png", "1", 58, "M", "PA", 1,
    )  # fmt: skip
    assert [f for f, v in zip(FINDINGS, row.labels, strict=True) if v] == [
        "Cardiomegaly",
        "Emphysema",
    ]


def test_no_finding_is_fourteen_zeros(tmp_path):
    text = "Image Index,Finding Labels,Patient ID\na.png,No Finding,1\n"
    labels = read_labels(write(tmp_path, text)).rows.labels[0]
    assert labels.dtype == np.int8 and labels.tolist() == [0] * 14


def test_unknown_findings_and_duplicate_names_are_listed(tmp_path):
    text = (
        "Image Index,Finding Labels,Patient ID\na.png,Masss|Edema,1\nb.png,Masss,2\na.png,Mass,1\n"
    )
    rows, _, problems, *_ = read_labels(write(tmp_path, text))
    assert problems == [("Masss", "unknown finding"), ("a.png", "duplicate label")]
    assert rows.image_index.tolist() == ["a.png", "b.png"]
    edema = [1 if name == "Edema" else -1 for name in FINDINGS]
    assert rows.labels[0].tolist() == edema, "the first of the duplicates; the rest is not known"
    assert rows.labels[1].tolist() == [-1] * 14


def test_the_plain_form_keeps_what_is_unknown(tmp_path):
    text = (
        "image,patient,Mass,Pleural Thickening,Edema,Nodule,age,Fracture\n"
        "a.dcm,P-7,1,0,,-1,061Y,1\nb.dcm,P-8,0.0,1.0\n"
    )
    rows, findings, problems, left_alone, lacking, *_ = read_labels(write(tmp_path, text))
    assert (findings, problems, left_alone) == (FINDINGS, [], ("Fracture",))
    assert set(lacking) == set(FINDINGS) - {"Mass", "Pleural_Thickening", "Edema", "Nodule"}
    found = [dict(zip(FINDINGS, labels, strict=True)) for labels in rows.labels]
    shown = [
        [labels[n] for n in ("Mass", "Pleural_Thickening", "Edema", "Nodule")] for labels in found
    ]
    assert shown == [[1, 0, -1, -1], [0, 1, -1, -1]]
    assert all(labels["Hernia"] == -1 for labels in found), "a finding without a column"
    assert rows.patient_id.tolist() == ["P-7", "P-8"] and rows.age.tolist() == [61, None]


@pytest.mark.parametrize(
    "text, years",
    [
        ("58", 58),
        ("058Y", 58),
        ("011M", 0),
        ("030M", 2),
        ("003D", 0),
        ("", None),
        ("old", None),
        ("40000", None),
        ("9" * 5000, None),
        ("9999D", 27),
    ],
)
def test_ages(text, years):
    assert parse_age(text) == years


@pytest.mark.parametrize(
    "text, message",
    [
        ("Image Index,Patient ID\na.png,1\n", "has no column Finding Labels"),
        ("Image Index,Finding Labels,Patient ID\n", "a header and no rows"),
        (
            "image,patient,Mass\na.png,1,yes\n",
            "line 2: Mass is 'yes', but must be 1, 0, -1, or empty",
        ),
        ("image,Mass\na.png,1\n", "has no column patient"),
        ("Image Index,Finding Labels,Patient ID\na.png,Mass\n", "line 2: 2 cells are too few"),
        (
            "Image Index,Finding Labels,Patient ID\na.png,Mass,\n",
            "line 2: image or patient is empty",
        ),
        ("", "is empty"),
    ],
)
def test_a_wrong_label_file_is_one_clear_line(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        read_labels(write(tmp_path, text))


def test_a_label_file_that_is_not_text(tmp_path):
    (tmp_path / "labels.csv").write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(UserError, match="is not a CSV in UTF-8"):
        read_labels(locate(str(tmp_path / "labels.csv")))


@pytest.mark.parametrize(
    "text, number",
    [("7", 7), ("", None), ("²", None), ("40000", None), ("9" * 5000, None), ("1.5", None)],
)
def test_counts(text, number):
    assert parse_count(text) == number


def test_a_line_that_goes_on_past_the_others_may_have_its_cells_in_the_wrong_columns(tmp_path):
    # A comma within 58,0: what is blank at the end of the first row hides that it has one cell too many.
    rows = "image,patient,age,Mass,Edema\na.png,1,58,0,1,\nb.png,2,61,0,1\n"
    with pytest.raises(UserError, match="line 2 has 6 cells, and the header 5: put cells"):
        read_labels(write(tmp_path, rows), ("Mass", "Edema"))
    alike = "image,patient,Mass,Edema\na.png,1,1,,,\nb.png,2,0,1,,\n"
    found = read_labels(write(tmp_path, alike), ("Mass", "Edema"))
    assert [labels.tolist() for labels in found.rows["labels"]] == [[1, -1], [0, 1]]


def test_of_a_cell_that_is_not_there_nothing_is_known(tmp_path):
    rows = "image,patient,No Finding,Mass,Edema\na.png,1,1,0\nb.png,2,1,,\n"
    found = read_labels(write(tmp_path, rows), ("Mass", "Edema"))
    assert [labels.tolist() for labels in found.rows["labels"]] == [[0, -1], [0, 0]]


def test_a_whole_number_that_has_become_a_fraction_names_one_patient_and_study(tmp_path):
    rows = "image,patient,study_id,Mass\na.png,7.0,12.0,1\nb.png,7,12,0\n3.0,x1.0,s,0\n"
    found = read_labels(write(tmp_path, rows), ("Mass",)).rows
    assert found[["image_index", "patient_id", "study_id"]].to_numpy().tolist() == [
        ["3", "x1.0", "s"],
        ["a.png", "7", "12"],
        ["b.png", "7", "12"],
    ]


def test_one_number_of_a_patient_in_two_ways_is_refused(tmp_path):
    rows = "image,patient,Mass\na.png,7,1\nb.png,10,1\nc.png,007,0\n"
    with pytest.raises(
        UserError, match="of line 2 and of line 4 have one number, with leading"
    ) as e:
        read_labels(write(tmp_path, rows), ("Mass",))
    assert "007" not in str(e.value), "who it is, is not said"
    assert len(read_labels(write(tmp_path, rows.replace("007", "A7")), ("Mass",)).rows) == 3


@pytest.mark.parametrize("column", ["image", "patient", "study"])
def test_numbers_that_a_table_program_has_shortened_are_refused(tmp_path, column):
    cells = {"image": "a.png", "patient": "1", "study": "s", column: "1.23457E+12"}
    rows = f"image,patient,study,Mass\n{','.join(cells.values())},1\nb.png,2,1E5,0\n"
    with pytest.raises(UserError, match=f"line 2: the {column} is a number that a table program"):
        read_labels(write(tmp_path, rows), ("Mass",))


def test_lines_are_those_of_the_file(tmp_path):
    rows = "\n\nimage,patient,Mass\n\n\na.png,1,yes\n"
    with pytest.raises(UserError, match="line 6: Mass is 'yes'"):
        read_labels(write(tmp_path, rows))
    rows = 'Image Index,Finding Label,Bbox\n"a\nb",Mass,1,2,3,4\n\na.png,Mass,1,2,3\n'
    with pytest.raises(UserError, match="line 5: not an image"):
        read_boxes(write(tmp_path, rows), FINDINGS)


def test_boxes_with_nih_s_broken_header_and_its_infiltrate(tmp_path):
    place = write(
        tmp_path, "Image Index,Finding Label,Bbox [x,y,w,h],,,\na.png,Infiltrate,1.5,2,3,4\n"
    )
    assert read_boxes(place, FINDINGS).rows.to_dict("records") == [
        {
            "image_index": "a.png",
            "finding": "Infiltration",
            "x": 1.5,
            "y": 2,
            "width": 3,
            "height": 4,
        }
    ]


def test_a_wrong_box_file_is_one_clear_line(tmp_path):
    with pytest.raises(UserError, match="line 2: not an image, a finding and four numbers"):
        read_boxes(write(tmp_path, "Image Index,Finding Label,Bbox\na.png,Mass,1,2,3\n"), FINDINGS)
    with pytest.raises(UserError, match="must begin with the columns Image Index"):
        read_boxes(write(tmp_path, "name,x\na.png,1\n"), FINDINGS)


def test_patients_are_split_70_10_20_and_stay_where_they_are():
    patients = [str(number) for number in range(10_000)]
    splits = [random_split(p, 0) for p in patients]
    shares = [splits.count(name) / len(splits) for name in ("train", "val", "test")]
    np.testing.assert_allclose(shares, [0.7, 0.1, 0.2], atol=0.02)
    assert splits == [random_split(p, 0) for p in patients]
    assert splits != [random_split(p, 1) for p in patients]


def test_the_hash_of_a_split_knows_who_is_where_and_no_order():
    split = {"1": "train", "2": "test"}
    assert split_hash(split) == split_hash({"2": "test", "1": "train"})
    assert split_hash(split) != split_hash({"1": "train", "2": "val"})


def table(*patients):
    names = [f"{patient}_{i}.png" for i, patient in enumerate(patients)]
    return pd.DataFrame({"image_index": names, "patient_id": list(patients)})


def config(**more):
    return IngestConfig(images=("i",), labels="l", out="o", **more)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\n\n"])
def test_split_files_and_lists_of_every_editor(tmp_path, encoding, end):
    lines = {
        "split.csv": ["patient,split", "Ö,test", "2,val"],
        "train_val_list.txt": ["2_1.png", "4_3.png"], "test_list.txt": ["Ö_0.png", " "],
    }  # fmt: skip
    for name, content in lines.items():
        (tmp_path / name).write_bytes(end.join(content).encode(encoding))
    labels = table("Ö", "2", "3", "4")
    given = assign_splits(labels, config(split_file=str(tmp_path / "split.csv")))
    assert given == {"Ö_0.png": "test", "2_1.png": "val"}
    official = assign_splits(labels, config(split="official", split_lists=str(tmp_path)))
    assert official.keys() == {"Ö_0.png", "2_1.png", "4_3.png"} and official["Ö_0.png"] == "test"


def test_a_split_file_or_list_that_is_not_unicode(tmp_path):
    (tmp_path / "split.csv").write_bytes("patient,split\n\nBÖM,train\n".encode("latin-1"))
    with pytest.raises(
        UserError, match=r"split.csv is not a CSV in UTF-8: line 3 has the byte 0xD6"
    ):
        assign_splits(table("1"), config(split_file=str(tmp_path / "split.csv")))
    (tmp_path / "train_val_list.txt").write_bytes(b"a.png\nb\xe9.png\n")
    (tmp_path / "test_list.txt").write_bytes(b"")
    with pytest.raises(UserError, match=r"train_val_list.txt is not text in UTF-8: line 2 has"):
        assign_splits(table("1"), config(split="official", split_lists=str(tmp_path)))


def test_lines_of_a_split_file(tmp_path):
    (tmp_path / "split.csv").write_text("patient,split\n\n1,train\n\n1,test\n")
    with pytest.raises(UserError, match="line 5: this patient is in train, and here in test"):
        assign_splits(table("1"), config(split_file=str(tmp_path / "split.csv")))
    (tmp_path / "split.csv").write_text("patient,split\n1\n")
    with pytest.raises(UserError, match="line 2: '' is not one of train, val, test"):
        assign_splits(table("1"), config(split_file=str(tmp_path / "split.csv")))


def test_an_image_in_both_lists(tmp_path):
    for name in ("train_val_list.txt", "test_list.txt"):
        (tmp_path / name).write_text("1_0.png\n")
    with pytest.raises(UserError, match=r"1_0\.png is in both: keep it in one"):
        assign_splits(table("1"), config(split="official", split_lists=str(tmp_path)))
