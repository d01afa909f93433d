"""Label files of the forms that are declared: small files as the sets have them, and what is read of them."""

import gzip
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from chexspark.config import IngestConfig
from chexspark.errors import UserError
from chexspark.findings import FINDINGS
from chexspark.ingestion.box_files import read_boxes
from chexspark.ingestion.label_form_file import find_form, form_names, form_of_header
from chexspark.ingestion.label_table import label_findings
from chexspark.ingestion.labels import read_labels
from chexspark.ingestion.splits import assign_splits
from chexspark.storage import locate

CHEXPERT = (
    "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema", "Consolidation",
    "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture",
    "Support Devices",
)  # fmt: skip


def write(folder, name, text):
    (folder / name).write_text(text)
    return locate(str(folder / name))


def shown(found, *facts):
    """Image → its labels by finding, but for 0, and `facts`."""
    return {
        row.image_index: (
            {f: int(v) for f, v in zip(found.findings, row.labels, strict=True) if v},
            *(getattr(row, fact) for fact in facts),
        )
        for row in found.rows.itertuples()
    }


def chexpert_cells(rng):
    return [str(rng.choice(["", "", "0.0", "1.0", "-1.0"])) for _ in CHEXPERT]


def test_every_form_is_told_by_the_header_of_its_set():
    headers = {
        "nih": "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age",
        "plain": "image,patient,Mass",
        "chexpert": "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding," + ",".join(CHEXPERT),
        "mimic-cxr-jpg": "subject_id,study_id,No Finding," + ",".join(sorted(CHEXPERT)),
        "padchest": ",ImageID,ImageDir,StudyDate_DICOM,StudyID,PatientID,PatientBirth,Labels",
        "rsna-pneumonia": "patientId,x,y,width,height,Target",
        "vindr-cxr": "image_id,class_name,class_id,rad_id,x_min,y_min,x_max,y_max",
        "vindr-cxr-image-labels": "image_id,rad_ID,Aortic enlargement,Clavicle fracture,Nodule/Mass,"
        "Tuberculosis,No finding",
        "openi": "uid,MeSH,Problems,image,indication,comparison,findings,impression",
    }
    assert sorted(headers) == form_names()
    for name, header in headers.items():
        assert form_of_header(header.split(",")) == find_form(name)
    assert form_of_header(["name", "Mass"]) is None


def test_chexpert(tmp_path):
    rng = np.random.default_rng(0)
    lines = ["Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding," + ",".join(CHEXPERT)]
    for patient in range(1, 41):
        for study in (1, 2):
            path = f"CheXpert-v1.0-small/train/patient{patient:05}/study{study}/view1_frontal.jpg"
            facts = "Female,68,Frontal,AP" if study == 1 else "Male,90,Lateral,"
            lines.append(",".join([path, facts, "", *chexpert_cells(rng)]))
    place = write(tmp_path, "train.csv", "\n".join(lines) + "\n")
    found, table = read_labels(place), pd.read_csv(place.path)
    assert found.findings == CHEXPERT and not found.problems and found.form.name == "CheXpert"
    labels = np.stack(found.rows["labels"])
    for i, finding in enumerate(CHEXPERT):
        cells = table[finding]
        sure = finding in ("Atelectasis", "Edema")
        assert (labels[:, i] == 1).sum() == (cells == 1).sum() + sure * (cells == -1).sum()
        assert (labels[:, i] == 0).sum() == (cells == 0).sum() + cells.isna().sum()
        assert (labels[:, i] == -1).sum() == (not sure) * (cells == -1).sum()
        assert found.cells[i].tolist() == [cells.isna().sum(), (cells == -1).sum()]
    row = found.rows.iloc[1]
    assert row.image_index == "patient00001/study2/view1_frontal.jpg"
    assert (row.patient_id, row.sex, row.age, row.view_position) == ("patient00001", "M", 90, "Lateral")  # fmt: skip
    assert found.rows.iloc[0].view_position == "AP" and found.rows.iloc[0].sex == "F"
    said = found.table().splitlines()
    assert said[0] == "labels of 80 images (CheXpert):"
    of_edema = next(line for line in said if line.startswith("Edema"))
    assert " as negative" in of_edema and of_edema.endswith(" as positive")
    chosen = read_labels(place, ("Effusion", "Atelectasis"))
    assert chosen.findings == ("Effusion", "Atelectasis")
    effusion = np.stack(chosen.rows["labels"])[:, 0]
    np.testing.assert_array_equal(effusion, labels[:, CHEXPERT.index("Pleural Effusion")])


def mimic(folder, packed=False):
    """Two studies of patient 10, one of patient 11, and one that the metadata lacks."""
    findings = sorted([*CHEXPERT, "No Finding"])
    rows = {("10", "50"): {"Edema": "1.0", "Pneumonia": "-1.0"}, ("10", "51"): {"No Finding": "1.0"},
            ("11", "52"): {"Edema": "-1.0", "Pneumonia": "0.0"}, ("12", "53"): {}}  # fmt: skip
    labels = ["subject_id,study_id," + ",".join(findings)]
    labels += [",".join([*key, *(said.get(f, "") for f in findings)]) for key, said in rows.items()]
    files = {
        "mimic-cxr-2.0.0-chexpert.csv": "\n".join(labels) + "\n",
        "mimic-cxr-2.0.0-metadata.csv": "dicom_id,subject_id,study_id,ViewPosition,Rows\n"
        "aa,10,50,PA,3000\nbb,10,50,LATERAL,3000\ncc,10,51,AP,3000\ndd,11,52,,2000\n",
        "mimic-cxr-2.0.0-split.csv": "dicom_id,study_id,subject_id,split\n"
        "aa,50,10,train\nbb,50,10,train\ncc,51,10,train\ndd,52,11,validate\n",
    }
    for name, text in files.items():
        if packed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(text.encode()))
        else:
            (folder / name).write_text(text)
    return locate(str(folder / f"mimic-cxr-2.0.0-chexpert.csv{'.gz' if packed else ''}"))


@pytest.mark.parametrize("packed", [False, True])
def test_mimic_cxr_jpg(tmp_path, packed):
    place = mimic(tmp_path, packed)
    found = read_labels(place)
    assert shown(found, "patient_id", "view_position", "split") == {
        "aa": ({"Edema": 1, "Pneumonia": -1}, "10", "PA", "train"),
        "bb": ({"Edema": 1, "Pneumonia": -1}, "10", "LATERAL", "train"),
        "cc": ({}, "10", "AP", "train"),
        "dd": ({"Edema": 1}, "11", None, "val"),
    }
    assert any("metadata.csv" in note and "1 of 4 rows" in note for note in found.notes)
    assert found.problems == [
        ("line 5", "label without an image in the files that are joined to it")
    ]
    config = IngestConfig(images=("x",), labels=place.path, out="y", split="official")
    assert assign_splits(found.rows, config) == {"aa": "train", "bb": "train", "cc": "train", "dd": "val"}  # fmt: skip


def test_a_file_that_belongs_to_the_labels_and_is_not_there(tmp_path):
    place = mimic(tmp_path)
    (tmp_path / "mimic-cxr-2.0.0-split.csv").unlink()
    with pytest.raises(UserError, match=r"needs mimic-cxr-\*-split.csv\* beside it; put it there"):
        read_labels(place)
    (tmp_path / "mimic-cxr-2.0.0-split.csv").write_text("dicom,split\naa,train\n")
    with pytest.raises(UserError, match="has no column dicom_id, by which"):
        read_labels(place)


def test_padchest(tmp_path):
    text = (
        ",ImageID,ImageDir,StudyDate_DICOM,StudyID,PatientID,PatientBirth,PatientSex_DICOM,Projection,Labels\n"
        "0,a_1.png,0,20140915,s1,p1,1926.0,F,PA,\"['laminar atelectasis', ' pleural effusion', 'scoliosis']\"\n"
        "1,a_2.png,0,20100101,s2,p2,1950.0,M,L,['normal']\n"
        "2,a_3.png,1,20100101,s3,p3,,M,AP,\"['hydropneumothorax', '']\"\n"
        "3,a_4.png,1,20100101,s4,p4,2050.0,M,AP,\"['infiltrates', 'unchanged']\"\n"
        "4,a_5.png,1,20100101,s5,p5,1990.0,M,AP,\n"
        "5,a_6.png,1,20100101,s6,p6,1990.0,M,AP,\"['empyema', 'hiatal hernia']\"\n"
    )
    found = read_labels(write(tmp_path, "padchest.csv", text))
    assert found.findings == FINDINGS and not found.problems
    unknown = dict.fromkeys(FINDINGS, -1)
    assert shown(found, "age") == {
        "a_1.png": ({"Atelectasis": 1, "Effusion": 1}, 88),
        "a_2.png": ({}, 60),
        "a_3.png": ({"Effusion": 1, "Pneumothorax": 1}, None),
        "a_4.png": ({**unknown, "Infiltration": 1}, None),
        "a_5.png": (unknown, 20),
        "a_6.png": ({"Hernia": 1}, 20),
    }
    assert found.left_alone == ("scoliosis", "empyema")
    assert any("1 cell of age" in note and "2050.0 to 20100101" in note for note in found.notes)
    asked = read_labels(write(tmp_path, "padchest.csv", text), ("scoliosis", "Empyema"))
    assert shown(asked)["a_1.png"] == ({"scoliosis": 1},)
    assert shown(asked)["a_4.png"] == ({"scoliosis": -1, "Empyema": -1},)


RSNA = (
    "patientId,x,y,width,height,Target\n0004,,,,,0\n"
    "0009,264.0,152.0,213.0,379.0,1\n0009,562.0,152.0,256.0,453.0,1\n"
)


def test_rsna(tmp_path):
    place = write(tmp_path, "stage_2_train_labels.csv", RSNA)
    found = read_labels(place)
    assert found.findings == ("Pneumonia",) and not found.problems
    assert shown(found, "patient_id") == {"0004": ({}, "0004"), "0009": ({"Pneumonia": 1}, "0009")}
    assert found.boxes.rows.to_numpy().tolist() == [
        ["0009", "Pneumonia", 264, 152, 213, 379],
        ["0009", "Pneumonia", 562, 152, 256, 453],
    ]
    assert any("whether a run has seen a patient cannot be checked" in n for n in found.notes)
    boxes = read_boxes(place, ("Pneumonia",), {"0009"})
    assert boxes.rows.equals(found.boxes.rows) and not boxes.left_alone


VINDR = (
    "image_id,class_name,class_id,rad_id,x_min,y_min,x_max,y_max\n"
    "a,Nodule/Mass,8,R1,10,20,110,70\na,Nodule/Mass,8,R1,300,20,310,70\n"
    "a,Nodule/Mass,8,R2,12,22,112,72\na,Cardiomegaly,3,R2,1,2,3,4\na,No finding,14,R3,,,,\n"
    "b,No finding,14,R1,,,,\nb,No finding,14,R2,,,,\nb,Rib fracture,15,R3,5,5,9,9\n"
)


def test_vindr_by_votes_of_its_readers(tmp_path):
    place = write(tmp_path, "train.csv", VINDR)
    found = read_labels(place)
    assert shown(found) == {"a": ({"Nodule/Mass": 1},), "b": ({},)}, "one of three is no majority"
    assert found.boxes.rows.to_numpy().tolist() == [
        ["a", "Nodule/Mass", 10, 20, 100, 50],
        ["a", "Nodule/Mass", 300, 20, 10, 50],
        ["a", "Nodule/Mass", 12, 22, 100, 50],
    ]
    assert found.boxes.left_alone == {"Cardiomegaly, which too few readers saw": 1, "Rib fracture": 1}  # fmt: skip
    assert found.left_alone == ("Rib fracture",) and not found.problems
    form = write(
        tmp_path, "any.yaml", "extends: vindr-cxr\nreaders: {column: rad_id, votes: any}\n"
    )
    voted = read_labels(place, ("Cardiomegaly", "Rib fracture"), form.path)
    assert shown(voted) == {"a": ({"Cardiomegaly": 1},), "b": ({"Rib fracture": 1},)}


def test_vindr_s_labels_of_images(tmp_path):
    text = (
        "image_id,rad_ID,Aortic enlargement,Clavicle fracture,Nodule/Mass,Tuberculosis,No finding\n"
        "a,R1,1,0,0,0,0\na,R2,1,0,1,0,0\na,R3,0,0,0,0,1\n"
    )
    found = read_labels(write(tmp_path, "image_labels_train.csv", text), ("Aortic enlargement", "Nodule/Mass"))  # fmt: skip
    assert shown(found) == {"a": ({"Aortic enlargement": 1},)} and found.boxes is None


def test_openi(tmp_path):
    place = write(
        tmp_path,
        "indiana_reports.csv",
        "uid,MeSH,Problems,image,indication,comparison,findings,impression\n"
        "1,normal,normal,x,,,,\n2,Cardiomegaly/borderline,Cardiomegaly;Pulmonary Atelectasis,x,,,,\n"
        '3,No Indexing,No Indexing,x,,,,\n4,Hernia,"Hernia, Hiatal;Scoliosis",x,,,,\n',
    )
    write(tmp_path, "indiana_projections.csv", "uid,filename,projection\n1,1_IM-1.dcm.png,Frontal\n"
          "1,1_IM-2.dcm.png,Lateral\n2,2_IM-1.dcm.png,Frontal\n3,3_IM-1.dcm.png,Frontal\n"
          "4,4_IM-1.dcm.png,Frontal\n")  # fmt: skip
    found = read_labels(place)
    assert shown(found, "patient_id", "view_position") == {
        "1_IM-1.dcm.png": ({}, "1", "Frontal"),
        "1_IM-2.dcm.png": ({}, "1", "Lateral"),
        "2_IM-1.dcm.png": ({"Cardiomegaly": 1, "Atelectasis": 1}, "2", "Frontal"),
        "3_IM-1.dcm.png": (dict.fromkeys(FINDINGS, -1), "3", "Frontal"),
        "4_IM-1.dcm.png": ({"Hernia": 1}, "4", "Frontal"),
    }


OWN = """\
name: Our hospital
image: file
patient: {column: file, pattern: '^([^/]+)/'}
sex: {column: gender, values: {weiblich: F, männlich: M}}
age: {birth: born, date: taken}
findings: {Effusion: pleura, Mass: tumour}
values: {yes: 1, no: 0, maybe: uncertain, not read: unknown}
blank: {default: unknown, Mass: negative}
uncertain: {default: ignore, Mass: ones}
"""
OWN_LABELS = (
    "file;gender;born;taken;pleura;tumour;remarks\np1/a.png;weiblich;1950-03-01;2010-01-01;Yes;no;\n"
    "p1/b.png;weiblich;1950;2010;maybe;maybe;x\np2/a.png;männlich;1980;2010;;;\np3/c.png;;;;not read;YES;\n"
)


def test_a_form_of_one_s_own(tmp_path):
    form, place = write(tmp_path, "form.yaml", OWN), write(tmp_path, "l.csv", OWN_LABELS)
    found = read_labels(place, given_form=form.path)
    assert shown(found, "patient_id", "sex", "age") == {
        "p1/a.png": ({"Effusion": 1}, "p1", "F", 59),
        "b.png": ({"Effusion": -1, "Mass": 1}, "p1", "F", 60),
        "p2/a.png": ({"Effusion": -1}, "p2", "M", 30),
        "c.png": ({"Effusion": -1, "Mass": 1}, "p3", None, None),
    }
    assert found.left_alone == ("remarks",) and found.cells.tolist() == [[1, 1], [1, 1]]
    assert label_findings(place, form.path) == ("Effusion", "Mass", "remarks")
    # A policy is a finding's, however who asks for it writes it.
    again = read_labels(place, ("mass", "Pleural effusion"), form.path)
    assert again.findings == ("mass", "Pleural effusion")
    for ours, theirs in zip(again.rows["labels"], found.rows["labels"], strict=True):
        assert ours.tolist() == theirs.tolist()[::-1]
    with pytest.raises(UserError, match="of no form that is known"):
        read_labels(place)
    with pytest.raises(UserError, match="line 2: pleura is 'ja', but must be yes"):
        read_labels(write(tmp_path, "l.csv", OWN_LABELS.replace("Yes", "ja")), (), form.path)


@pytest.mark.parametrize(
    "text, message",
    [
        (OWN.replace("image: file\n", ""), "lacks image"),
        (OWN.replace("patient:", "patients:"), "unknown key 'patients'; did you mean patient"),
        (OWN.replace("'^([^/]+)/'", "'('"), "patient: pattern is no regular expression"),
        (OWN.replace("maybe: uncertain", "maybe: 2"), "values has maybe: 2, but a text may stand for"),
        (OWN.replace("Mass: ones", "Mass: two"), "uncertain is 'two' for Mass"),
        (OWN.replace("{birth: born, date: taken}", "{birth: born}"), "age needs both birth and date"),
        (OWN + "boxes: {x: a, y: b}\n", "boxes is .* but must have columns of x, y, width, height"),
        (OWN + "readers: {column: r, votes: most}\n", "votes is 'most', but must be any or majority"),
        (OWN + "joins: [{file: a.csv}]\n", "each must have file and key"),
        (OWN + "extends: chexprt\n", "extends is 'chexprt', but must be one of chexpert"),
        (OWN + "words: {separator: ','}\n", "words lacks column"),
        ("- 1\n", "must hold lines"),
    ],
)  # fmt: skip
def test_a_wrong_form_is_one_clear_line(tmp_path, text, message):
    form = write(tmp_path, "form.yaml", text)
    with pytest.raises(UserError, match=message) as caught:
        find_form(form.path)
    assert "\n" not in str(caught.value) and "--label-form" in str(caught.value)


def test_a_form_that_is_not_there():
    with pytest.raises(UserError, match="no form of that name; did you mean chexpert"):
        find_form("chexprt")


def test_no_finding_says_that_blanks_are_negative(tmp_path):
    text = "image,patient,No Finding,Mass,Edema\na.png,1,1,,\nb.png,2,0,,1\nc.png,3,,,0\n"
    place = write(tmp_path, "l.csv", text)
    found = read_labels(place, ("Mass", "Edema"))
    assert [labels.tolist() for labels in found.rows["labels"]] == [[0, 0], [-1, 1], [-1, 0]]
    assert found.left_alone == () and found.cells.tolist() == [[2, 0], [0, 0]]
    assert read_labels(place, ("No Finding",)).rows["labels"].iloc[0].tolist() == [1]
    assert read_labels(place, ("columns",)).findings == ("Mass", "Edema")


@pytest.mark.parametrize("cell", ["nan", "NA", "None", "NULL", " "])
def test_what_tables_write_for_nothing_is_blank(tmp_path, cell):
    place = write(tmp_path, "l.csv", f"image,patient,age,Mass\na.png,1,{cell},{cell}\n")
    found = read_labels(place, ("Mass",))
    assert shown(found, "age") == {"a.png": ({"Mass": -1}, None)} and not found.notes
    with pytest.raises(UserError, match="line 2: image or patient is empty"):
        read_labels(write(tmp_path, "l.csv", f"image,patient,Mass\na.png,{cell},1\n"), ("Mass",))


def test_what_cannot_be_read_is_counted_with_examples(tmp_path):
    rows = "".join(f"{i}.png,{i},{age},{count},1\n" for i, (age, count) in enumerate(
        [("411Y", "1.0"), ("58.0", "20230115"), ("old", ""), ("058Y", "-1"), ("-5", "3"), ("130", "")]))  # fmt: skip
    place = write(tmp_path, "l.csv", "image,patient,age,follow_up,Mass\n" + rows)
    found = read_labels(place, ("Mass",))
    assert found.rows["age"].tolist() == [None, 58, None, 58, None, None]
    assert found.rows["follow_up"].tolist() == [1, None, None, None, 3, None]
    ages, counts = found.notes
    assert ages.startswith("4 cells of age cannot be read") and "'411Y' in line 2" in ages
    assert ages.endswith(", …") and counts.startswith("2 cells of follow_up") and "'20230115'" in counts  # fmt: skip


@pytest.mark.parametrize("text", ["9" * 400, "²", "1" + " " * 60_000 + "x"])
def test_hostile_cells_are_unknown_and_told_in_short(tmp_path, text):
    found = read_labels(write(tmp_path, "l.csv", f"image,patient,age,Mass\na.png,1,{text},1\n"), ("Mass",))  # fmt: skip
    assert found.rows["age"].tolist() == [None] and len(found.notes[0]) < 200


@pytest.mark.parametrize(
    "header, message",
    [
        ("image,patient,Effusion,effusion", "two columns of Effusion, Effusion and effusion"),
        ("image,patient,Effusion,Pleural Effusion", "Effusion and Pleural Effusion"),
        ("image,patient,patient,Effusion", "2 columns of patient, patient and patient"),
        ("image,Patient,PATIENT,Effusion", "2 columns of patient, Patient and PATIENT"),
    ],
)
def test_two_columns_for_one_thing_are_refused(tmp_path, header, message):
    place = write(tmp_path, "l.csv", f"{header}\na.png,1,1,0\n")
    with pytest.raises(UserError, match=message):
        read_labels(place, ("Effusion",))


def test_all_columns_with_two_names_of_one_finding_are_refused(tmp_path):
    place = write(tmp_path, "l.csv", "image,patient,Infiltrate,Infiltration\na.png,1,1,0\n")
    with pytest.raises(UserError, match="two columns of Infiltrate, Infiltrate and Infiltration"):
        read_labels(place, ("columns",))
    assert shown(read_labels(place, ("Infiltration", "Infiltrate"))) == {"a.png": ({"Infiltrate": 1},)}  # fmt: skip


def test_a_row_that_goes_on_past_the_header_is_refused(tmp_path):
    place = write(tmp_path, "l.csv", "image,patient,Mass\na.png,Doe, Jane,1\n")
    with pytest.raises(UserError, match="line 2 has 4 cells, and the header 3"):
        read_labels(place, ("Mass",))


@pytest.mark.parametrize(
    "cells, fault",
    [
        ("nan,1,2,2", "has nan, 1, 2, 2"),
        ("-1,1,2,2", "begins at -1, 1, outside the image"),
        ("1,1,0,2", "is 0 wide"),
        ("1,1,2,-2", "is 2 wide and -2 high"),
        ("1,1,x,2", "not four numbers"),
        ("1,inf,2,2", "has 1, inf"),
        ("1,,2,2", "not four numbers"),
    ],
)
def test_boxes_that_are_none_are_refused_with_their_lines(tmp_path, cells, fault):
    header = "Image Index,Finding Label,Bbox [x,y,w,h]"
    place = write(tmp_path, "b.csv", f"{header}\nb.png,Mass,1,1,2,2\na.png,Mass,{cells}\n")
    with pytest.raises(UserError, match=f"line 3 {fault}"):
        read_boxes(place, FINDINGS)
    place = write(tmp_path, "r.csv", RSNA + f"0010,{cells},1\n")
    with pytest.raises(UserError, match=f"line 5 {fault}"):
        read_labels(place)


@pytest.mark.parametrize("sides", ["w,h,x,y", "x_min,y_min,x_max,y_max", "id,x,y,w,h"])
def test_boxes_whose_columns_are_others_than_nih_s_are_refused(tmp_path, sides):
    place = write(tmp_path, "b.csv", f"Image Index,Finding Label,{sides}\na.png,Mass,1,2,3,4\n")
    with pytest.raises(UserError, match="after Finding Label there must be the columns x, y, w, h"):
        read_boxes(place, FINDINGS)
    for named in ("x,y,w,h", "Bbox [x,y,w,h],,,", "X,Y,Width,Height", '"Bbox [x,y,w,h]",,,'):
        text = f"Image Index,Finding Label,{named}\na.png,Mass,1,2,3,4\nb.png,Mass,5,6,7,8\n"
        found = read_boxes(write(tmp_path, "b.csv", text), FINDINGS).rows
        assert found.to_numpy().tolist() == [["a.png", "Mass", 1, 2, 3, 4], ["b.png", "Mass", 5, 6, 7, 8]]  # fmt: skip


def test_a_box_with_a_sign_of_doubt_is_refused(tmp_path):
    text = "Image Index,Finding Label,Bbox\na.png,Mass?,1,2,3,4\n"
    with pytest.raises(UserError, match=r"line 2: 'Mass[?]' is no finding"):
        read_boxes(write(tmp_path, "b.csv", text), FINDINGS)


def test_a_row_that_breaks_off_is_refused_where_blank_is_negative(tmp_path):
    header = f"Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,{','.join(CHEXPERT)}\n"
    whole = "train/patient1/study1/v.jpg,Male,60,Frontal,AP,," + "1," * (len(CHEXPERT) - 1) + "\n"
    found = read_labels(write(tmp_path, "l.csv", header + whole))
    assert found.rows["labels"].iloc[0].tolist() == [1] * (len(CHEXPERT) - 1) + [0]
    with pytest.raises(UserError, match="line 3 has 7 cells, and the header 19: it breaks off"):
        read_labels(
            write(tmp_path, "l.csv", header + whole + whole[:46].replace("1/v", "2/v") + ",0,1")
        )


def test_keys_of_a_join_that_say_nothing_have_no_partner(tmp_path):
    form = write(tmp_path, "f.yaml", "name: H\nimage: file\npatient: p\nfindings: [Mass]\n"
                 "joins: [{file: '*meta.csv', key: [p, s]}]\n")  # fmt: skip
    write(tmp_path, "meta.csv", "p,s,file\n1,5,a.png\n2,,b.png\n,,c.png\n")
    found = read_labels(write(tmp_path, "l.csv", "p,s,Mass\n1,5,1\n2,,1\n3,,0\n"), (), form.path)
    assert found.rows["image_index"].tolist() == ["a.png"]
    assert [name for name, _ in found.problems] == ["line 3", "line 4"]
    assert found.notes == ("meta.csv has no partner for 2 of 3 rows",)


def test_boxes_of_images_without_a_label_are_counted(tmp_path):
    text = "Image Index,Finding Label,Bbox\nx/a.png,Mass,1,1,2,2\nb.png,Mass,1,1,2,2\n"
    found = read_boxes(write(tmp_path, "b.csv", text), FINDINGS, {"a.png"})
    assert found.rows["image_index"].tolist() == ["a.png"]
    assert found.left_alone == {"of images without a label": 1}


def test_a_form_is_as_yaml_says():
    """The keys of the forms that come with chexspark, so that a slip in one is seen."""
    said = {name: find_form(name) for name in form_names()}
    assert json.dumps(sorted(n for n, f in said.items() if f.several_rows)) == (
        '["rsna-pneumonia", "vindr-cxr", "vindr-cxr-image-labels"]'
    )
    assert all(set(f.findings) == set(CHEXPERT) for n, f in said.items() if n in ("chexpert", "mimic-cxr-jpg"))  # fmt: skip


def test_readme_s_form_is_one(tmp_path):
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    form = write(tmp_path, "form.yaml", re.search(r"```yaml\n(.*?)```", readme, re.S)[1])
    text = OWN_LABELS.replace("remarks", "healthy").replace(";x\n", ";\n").replace("not read", "")
    found = read_labels(write(tmp_path, "l.csv", text), given_form=form.path)
    assert shown(found, "patient_id", "sex", "age")["p1/a.png"] == ({"Effusion": 1}, "p1", "F", 59)
    listed = set(re.findall(r"^\| `([a-z-]+)` \|", readme, re.M))
    assert listed == set(form_names())


def test_a_row_of_nih_s_whose_patient_is_another_than_in_the_name(tmp_path):
    header = "Image Index,Finding Labels,Follow-up #,Patient ID\n"
    rows = "00000012_003.png,Mass,0,12\n00000012_004.png,Mass,1,13\n00012345_000.png,Edema,0,12345\nx.png,Mass,0,7\n"
    found = read_labels(write(tmp_path, "l.csv", header + rows))
    assert found.problems == [
        ("00000012_004.png", "label of another patient than in the image's name")
    ]
    assert found.rows["patient_id"].tolist() == ["12", "12345", "7"]
    with pytest.raises(UserError, match="in no row is the patient the one in the image's name"):
        read_labels(write(tmp_path, "l.csv", header + "00000012_003.png,Mass,0,120\n"))
    form = write(tmp_path, "f.yaml", "name: x\nimage: i\npatient: {column: p, in_image: 'a'}\n")
    with pytest.raises(UserError, match="in_image must have the number in one pair of brackets"):
        find_form(form.path)


GERMAN = """\
name: Klinik
image: bild
patient: fall
words: {column: befund, separator: ","}
findings: [Effusion, Nodule]
synonyms: {Effusion: [Erguss, Pleuraerguss], Nodule: Rundherd}
no_finding: [o.B., unauffällig]
unknown_words: nicht beurteilbar
"""


@pytest.mark.parametrize("asked", [(), ("Effusion", "Nodule"), ("Nodule",)])
@pytest.mark.parametrize(
    "word",
    ["Plueraerguss", "V.a. Erguss", "Skoliose", "unaufällig", "kein Befund", "Pneumothoraxx"],
)
def test_a_word_that_a_form_does_not_know_is_never_a_negative(tmp_path, asked, word):
    form = write(tmp_path, "form.yaml", GERMAN)
    rows = f'bild,fall,befund\na.png,1,{word}\nb.png,2,o.B.\nc.png,3,"Rundherd,{word}"\nd.png,4,Erguss\n'
    found = read_labels(write(tmp_path, "l.csv", rows), asked, form.path)
    assert found.problems == [(word, "unknown finding")] and word not in found.left_alone
    labels = {row.image_index: dict(zip(found.findings, row.labels.tolist(), strict=True)) for row in found.rows.itertuples()}  # fmt: skip
    assert set(labels["a.png"].values()) == {-1} and set(labels["b.png"].values()) == {0}
    assert labels["c.png"]["Nodule"] == 1 and labels["d.png"]["Nodule"] == 0
    assert asked == ("Nodule",) or (labels["c.png"]["Effusion"], labels["d.png"]["Effusion"]) == (
        -1,
        1,
    )


@pytest.mark.parametrize(
    "word",
    ["Erguss?", "(?) Erguss", "Effusion -", "-Erguss", "¬Effusion", "Effusion (-)", "Effusion (+/-)", "o.B.?",
     "nicht beurteilbar?", "-", "0", "Effusion/Nodule", "Erguss;Rundherd"],
)  # fmt: skip
@pytest.mark.parametrize("more", ["", "other_findings: any\n"])
def test_a_word_with_a_sign_of_doubt_or_denial_is_neither_a_finding_nor_its_absence(
    tmp_path, word, more
):
    form = write(tmp_path, "form.yaml", GERMAN + more)
    rows = f"bild,fall,befund\na.png,1,{word}\nb.png,2,Erguss!\nc.png,3,Pleura-Erguss (+)\n"
    found = read_labels(write(tmp_path, "l.csv", rows), ("Effusion", "Nodule"), form.path)
    assert found.problems == [(word, "unknown finding")]
    assert [labels.tolist() for labels in found.rows["labels"]] == [[-1, -1], [1, 0], [1, 0]]


def test_a_form_may_say_what_a_word_with_a_sign_means(tmp_path):
    more = GERMAN.replace("nicht beurteilbar", "['Erguss?', '?']")
    more = more.replace("no_finding: [o.B., unauffällig]", "no_finding: ['Erguss -']")
    form = write(tmp_path, "form.yaml", more)
    rows = "bild,fall,befund\na.png,1,Erguss ?\nb.png,2,Erguss (-)\nc.png,3,Erguss\nd.png,4,?\n"
    found = read_labels(write(tmp_path, "l.csv", rows), (), form.path)
    assert not found.problems
    assert [labels.tolist() for labels in found.rows["labels"]] == [[-1, -1], [0, 0], [1, 0], [-1, -1]]  # fmt: skip


def test_where_any_word_is_a_finding_a_misspelled_synonym_is_none(tmp_path):
    form = write(tmp_path, "form.yaml", GERMAN + "other_findings: any\n")
    rows = "bild,fall,befund\na.png,1,Plueraerguss\nb.png,2,Skoliose\nc.png,3,unaufällig\n"
    found = read_labels(write(tmp_path, "l.csv", rows), ("Effusion",), form.path)
    assert {name for name, _ in found.problems} == {"Plueraerguss", "unaufällig"}
    assert [labels.tolist() for labels in found.rows["labels"]] == [[-1], [0], [-1]]
    assert found.left_alone == ("Skoliose",)


PADCHEST_WORDS = [
    "pulmonary fibrosis",
    "chronic changes",
    "kyphosis",
    "pseudonodule",
    "ground glass pattern",
    "alveolar pattern",
    "interstitial pattern",
    "reticular interstitial pattern",
    "miliary opacities",
    "minor fissure thickening",
    "major fissure thickening",
    "vascular hilar enlargement",
    "hilar enlargement",
    "tracheal shift",
    "lung metastasis",
    "tuberculosis sequelae",
    "emphysema",
    "bullas",
    "volume loss",
    "infiltrates",
    "mass",
    "mediastinal mass",
    "pleural mass",
    "breast mass",
    "soft tissue mass",
    "granuloma",
    "calcified granuloma",
    "cardiomegaly",
    "costophrenic angle blunting",
    "atelectasis basal",
    "consolidation",
    "pulmonary edema",
    "heart insufficiency",
    "hiatal hernia",
    "COPD signs",
    "air trapping",
    "flattened diaphragm",
    "subcutaneous emphysema",
    "pneumomediastinum",
    "pneumoperitoneo",
    "empyema",
    "abscess",
    "cavitation",
    "bronchiectasis",
    "rib fracture",
    "vertebral fracture",
    "scoliosis",
    "pacemaker",
    "hyperinflated lung",
    "diaphragmatic eventration",
    "mediastinic lipomatosis",
    "pulmonary hypertension",
]


def test_none_of_padchest_s_own_words_is_taken_for_a_misspelled_one(tmp_path):
    lines = [",ImageID,ImageDir,PatientID,PatientBirth,Labels"]
    lines += [f"{i},{i}.png,0,p{i},1950,['{word}']" for i, word in enumerate(PADCHEST_WORDS)]
    for asked in ((), ("Effusion", "Mass"), ("scoliosis",)):
        assert not read_labels(write(tmp_path, "l.csv", "\n".join(lines) + "\n"), asked).problems


def test_words_need_the_findings_that_they_can_say(tmp_path):
    form = write(tmp_path, "form.yaml", "name: x\nimage: i\npatient: p\nwords: w\n")
    with pytest.raises(
        UserError, match="has words, and lacks findings: those that its words can say"
    ):
        find_form(form.path)


def test_a_word_that_padchest_does_not_have_is_no_negative(tmp_path):
    rows = ",ImageID,ImageDir,PatientID,PatientBirth,Labels\n0,0.png,0,p0,1950,['qqq']\n"
    rows += "1,1.png,0,p1,1950,\"['infmltrates', 'mass']\"\n2,2.png,0,p2,1950,['scoliosis']\n"
    found = read_labels(write(tmp_path, "l.csv", rows), ("Infiltration", "Mass"))
    assert [word for word, _ in found.problems] == ["qqq", "infmltrates"]
    assert [labels.tolist() for labels in found.rows["labels"]] == [[-1, -1], [-1, 1], [0, 0]]


def test_nih_s_number_of_a_patient_is_looked_at_in_a_damaged_name_too(tmp_path):
    rows = (
        "Image Index,Finding Labels,Patient ID\n00000010_000.pngX,Mass,1\n00000002_000.png,Mass,2\n"
    )
    found = read_labels(write(tmp_path, "l.csv", rows))
    assert found.rows["image_index"].tolist() == ["00000002_000.png"] and len(found.problems) == 1
