"""Several label files, several sets in one store, views, splits by what is known of patients."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from chexspark.errors import UserError
from chexspark.ingestion.label_facts import parse_date, years_between
from chexspark.ingestion.labels import read_labels
from chexspark.ingestion.sets import image_set
from chexspark.ingestion.split_by import by_date, check_known, patients_of_values, values_for_test
from chexspark.ingestion.views import is_view, of_views
from chexspark.storage import locate


@pytest.mark.parametrize(
    "text, date",
    [
        ("20140915", "2014-09-15"), ("20140915.0", "2014-09-15"), ("2014-9-5", "2014-09-05"),
        ("2014-09-15 10:20:30", "2014-09-15"), ("15.09.2014", "2014-09-15"), ("2014/12/31", "2014-12-31"),
        ("2014", "2014"), ("2014.0", "2014"), ("201409", None), ("03/04/2014", None), ("20141332", None),
        ("2014-02-30", None), ("2014-12/31", None), ("soon", None), ("²014", None), ("9" * 5000, None),
    ],
)  # fmt: skip
def test_dates(text, date):
    assert parse_date(text) == date


@pytest.mark.parametrize(
    "view, frontal, lateral",
    [
        ("PA", True, False), ("AP", True, False), ("ap supine", True, False), ("AP_horizontal", True, False),
        ("Frontal", True, False), ("LL", False, True), ("L", False, True), ("LATERAL", False, True),
        ("LAO", False, False), ("paediatric", False, False), ("", False, False), (None, False, False),
    ],
)  # fmt: skip
def test_views(view, frontal, lateral):
    assert (is_view(view, ["frontal"]), is_view(view, ["Lateral"])) == (frontal, lateral)
    assert is_view(view, ["lao"]) == (view == "LAO")


def test_views_that_no_image_has():
    rows = pd.DataFrame({"view_position": ["PA", "LL", None]}, dtype=object)
    assert of_views(rows, ["frontal"]).tolist() == [True, False, False]
    assert of_views(rows, ["frontal", "LL"]).tolist() == [True, True, False]
    with pytest.raises(
        UserError, match=r"--views AP: no image has this view .*views there: PA, LL"
    ):
        of_views(rows, ["AP"])
    with pytest.raises(UserError, match="in no image is it known"):
        of_views(pd.DataFrame({"view_position": [None]}, dtype=object), ["frontal"])


def rows_of(**facts):
    """Ten patients of two images each."""
    frame = pd.DataFrame({"patient_id": [str(i // 2) for i in range(20)], **facts}, dtype=object)
    return frame.assign(image_index=[f"{i}.png" for i in range(20)])


def test_a_split_by_hospital_keeps_the_hospitals_of_test_out_of_training():
    rows = rows_of(institution=["A"] * 8 + ["B"] * 4 + ["C"] * 4 + ["D", "A", None, None])
    for seed in range(20):
        values = values_for_test(rows, "institution", 0.2, seed)
        test = patients_of_values(rows, "institution", values)
        others = rows[~rows["patient_id"].isin(test)]
        assert values and not set(others["institution"].dropna()) & set(values)
        assert 1 <= len(test) <= 4 and None not in values
    assert values_for_test(rows, "institution", 0.2, 1) == values_for_test(
        rows[::-1], "institution", 0.2, 1
    )
    assert len({tuple(values_for_test(rows, "institution", 0.2, seed)) for seed in range(20)}) > 1
    two = rows_of(institution=["A"] * 18 + ["B"] * 2)
    assert all(values_for_test(two, "institution", 0.2, seed) == ["B"] for seed in range(5))
    with pytest.raises(UserError, match=r"known of no image.*--dicom-columns device"):
        check_known(rows_of(device=[None] * 20), "device")
    with pytest.raises(UserError, match="all images have the same, A"):
        check_known(rows_of(device=["A"] * 19 + [None]), "device")


def test_a_split_by_date_trains_on_the_past():
    rng = np.random.default_rng(0)
    days = [f"2014-{m:02}-{d:02}" for m in range(1, 11) for d in rng.integers(1, 29, 2)]
    rows = rows_of(study_date=days)
    splits = by_date(rows, (0.7, 0.1, 0.2))
    last = rows.groupby("patient_id")["study_date"].max()
    of = {s: [last[p] for p in splits if splits[p] == s] for s in ("train", "val", "test")}
    assert [len(of[s]) for s in ("train", "val", "test")] == [7, 1, 2]
    assert max(of["train"]) < min(of["val"]) <= max(of["val"]) < min(of["test"])
    unknown = by_date(rows.assign(study_date=[None, None, *days[2:]]), (0.7, 0.1, 0.2))
    assert unknown["0"] == "train"
    same = by_date(rows_of(study_date=["2014"] * 16 + ["2015"] * 4), (0.7, 0.1, 0.2))
    assert {splits for patient, splits in same.items() if patient in "89"} == {"test"}


def test_a_further_set_has_names_of_its_own():
    first = image_set(None, "NIH", None)
    assert (first.name, first.prefix) == ("NIH", "")
    before = SimpleNamespace(sources={"sets": {"NIH": ""}})
    assert (
        image_set(None, "NIH", before).prefix
        == ""
        == image_set("NIH", "a plain file", before).prefix
    )
    assert image_set(None, "a/b", before).prefix == "a-b/"


CHEXPERT = "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Atelectasis,Cardiomegaly,Consolidation,Edema,Pleural Effusion"  # fmt: skip


def chexpert(folder, split, patients):
    """A label file of two studies a patient, and two views in the first of them."""
    lines = [CHEXPERT]
    for patient in patients:
        path = f"CheXpert-v1.0-small/{split}/patient{patient:05}"
        lines += [f"{path}/study1/view1_frontal.jpg,Female,50,Frontal,PA,,1,0,-1,-1,",
                  f"{path}/study1/view2_lateral.jpg,Female,50,Lateral,,,1,0,-1,-1,",
                  f"{path}/study2/view1_frontal.jpg,Female,51,Frontal,AP,1,,,,,"]  # fmt: skip
    (folder / f"{split}.csv").write_text("\n".join(lines) + "\n")
    return locate(str(folder / f"{split}.csv"))


def test_chexpert_s_two_files_its_split_and_its_studies(tmp_path):
    places = [chexpert(tmp_path, "train", range(30)), chexpert(tmp_path, "valid", range(30, 34))]
    asked = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Effusion")
    found = read_labels(places, asked)
    assert len(found.rows) == 102 and found.rows["split"].value_counts().to_dict() == {
        "train": 90,
        "test": 12,
    }
    assert found.means() == {"CheXpert's five": asked}
    assert read_labels(places, asked[:4]).means() == {}
    one = found.rows.set_index("image_index").loc["patient00000/study1/view1_frontal.jpg"]
    assert one["study_id"] == "patient00000/study1" and one["labels"].tolist() == [1, 0, -1, 1, 0]
    other = locate(str(tmp_path / "other.csv"))
    (tmp_path / "other.csv").write_text(CHEXPERT.replace(",Edema", "") + "\n" + "a/patient1/study1/v.jpg,,,,,,1,,,\n")  # fmt: skip
    with pytest.raises(UserError, match=r"do not have the same columns \(Edema\): ingest one"):
        read_labels([places[0], other], asked[:3])
    bad = (tmp_path / "valid.csv").read_text().replace(",1,0,-1,-1,", ",7,0,-1,-1,", 1)
    (tmp_path / "valid.csv").write_text(bad)
    with pytest.raises(UserError, match=r"line 2 of valid.csv: Atelectasis is '7'"):
        read_labels(places, asked)


@pytest.mark.parametrize(
    "birth, date, years",
    [
        ("1950.0", "20140915", 64), ("22.01.1940", "07.01.2019", 78), ("07.01.1940", "07.01.2019", 79),
        ("1940-01-08", "20190107", 78), ("1940", "2019", 79), ("2050.0", "20100101", None),
        ("1880", "2014", None), ("soon", "2014", None), ("1950", "", None),
    ],
)  # fmt: skip
def test_the_age_on_a_date(birth, date, years):
    assert years_between(birth, date) == years
