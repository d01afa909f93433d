"""Several label files, several sets in one store, views, splits by what is known of patients."""

import tarfile
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from chexspark import ingest
from chexspark.errors import UserError
from chexspark.ingestion.job import check_known_patients
from chexspark.ingestion.label_facts import parse_date, years_between
from chexspark.ingestion.labels import read_labels
from chexspark.ingestion.sets import ImageSet, image_set
from chexspark.ingestion.split_by import by_date, check_known, patients_of_values, values_for_test
from chexspark.ingestion.task import Kept, Label
from chexspark.ingestion.views import is_view, of_views
from chexspark.phantom import draw_anatomy, draw_phantom, generator, png
from chexspark.storage import locate
from chexspark.store.manifest import SPLITS


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


def picture(place, number):
    """A phantom of its own."""
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(
        png(draw_phantom(32, (), generator(7, number), draw_anatomy(generator(8, number)))[0])
    )


@pytest.fixture
def clinic(spark, tmp_path, monkeypatch):
    """A function that adds images to a store; and the store of the first year, of 30 patients."""
    monkeypatch.chdir(tmp_path)
    numbers = {f"2018/P{i:02}/bild 1.png": i for i in range(30)}
    for name, number in numbers.items():
        picture(tmp_path / "images" / name, number)

    def add(names, images="images", **more):
        rows = [f"{name},{name.split('/')[-2]},{len(name) % 2}\n" for name in names]
        (tmp_path / "l.csv").write_text("image,patient,Mass\n" + "".join(rows))
        return ingest(spark, images=images, labels="l.csv", findings="Mass", out="store", size=32,
                      append=True, **more)  # fmt: skip

    add(numbers)
    return add, list(numbers), tmp_path


def stored_in(folder):
    parts = [pd.read_parquet(path) for path in sorted((folder / "store").glob("*/part-*.parquet")) if path.parent.name in SPLITS]  # fmt: skip
    return pd.concat(parts).set_index("image_index")


def test_a_later_batch_with_its_own_labels_alone_is_added(clinic):
    add, first, folder = clinic
    new = ["2023/P00/bild 1.png", "2023/P40/bild 1.png", "2023/P00/bild 2.png"]
    for i, name in enumerate(new):
        picture(folder / "later" / name, 100 + i)
    before = stored_in(folder)
    manifest = add(new, images="later")
    table = stored_in(folder)
    assert sum(split.images for split in manifest.splits.values()) == len(table) == 33
    # P00/bild 1.png is another image's, of the first year; that of the later one has its whole path.
    assert set(table.index) - set(before.index) == {
        "2023/P00/bild 1.png",
        "P40/bild 1.png",
        "bild 2.png",
    }
    digests = {len({*table["pixel_digest"]})}
    assert digests == {33} and table.loc["2023/P00/bild 1.png", "patient_id"] == "P00"
    (folder / "l.csv").touch()
    again = add(new, images="later", allow_missing="all")
    assert sum(split.images for split in again.splits.values()) == 33, "nothing is there twice"
    both = add([*first, *new], images=["images", "later"])
    assert sum(split.images for split in both.splits.values()) == 33
    assert both.fingerprint == manifest.fingerprint


def test_images_of_an_archive_are_told_from_others_of_their_name(clinic):
    add, first, folder = clinic
    picture(folder / "x.png", 200)
    with tarfile.open(folder / "later.tar", "w") as tar:
        tar.add(folder / "images" / first[3], first[3])  # is there
        tar.add(folder / "x.png", "2023/P03/bild 1.png")
    manifest = add([first[3], "2023/P03/bild 1.png"], images="later.tar")
    assert sum(split.images for split in manifest.splits.values()) == 31
    assert "2023/P03/bild 1.png" in stored_in(folder).index


def test_a_plain_name_of_another_patient_is_refused(clinic):
    _, _, folder = clinic
    picture(folder / "plain" / "scan.png", 300)
    (folder / "m.csv").write_text("image,patient,Mass\nscan.png,A,1\n")
    given = {"findings": "Mass", "out": "store", "size": 32, "append": True, "images": "plain"}
    ingest(None, labels="m.csv", **given)
    (folder / "m.csv").write_text("image,patient,Mass\nscan.png,B,1\n")
    with pytest.raises(
        UserError, match=r"scan.png is of another patient in the store than it would be now"
    ):
        ingest(None, labels="m.csv", **given)
    # Of the same patient, the pixels tell, also where the labels are the same.
    picture(folder / "plain" / "scan.png", 301)
    (folder / "m.csv").write_text("image,patient,Mass\nscan.png,A,0\n")
    manifest = ingest(None, labels="m.csv", **given, max_bad=1.0)
    assert manifest.quarantined == {"name taken": 1}
    (folder / "m.csv").write_text("image,patient,Mass\nscan.png,A,1\n")
    with pytest.raises(UserError, match=r"1 of 1 images were refused \(1 name taken\)"):
        ingest(None, labels="m.csv", **given)


def test_a_patient_of_the_store_with_other_zeros_is_refused():
    def added(patient, name="Clinic"):
        label = Label(f"{name}/{patient}", "train", b"\1", (None,) * 11)
        inputs = SimpleNamespace(image_set=ImageSet(name, f"{name}/"), labels={"b.png": label})
        check_known_patients([stored], inputs)

    stored = Kept(
        "Clinic/a.png", "Clinic/0012", "train", b"\1", "L", False, "", 1, (9, 9), "Clinic"
    )
    with pytest.raises(
        UserError, match="patients of the store and of what is added have one number"
    ):
        added("12")
    added("0012")
    added("112")
    added("12", "Other")


def test_a_store_that_is_split_by_date_says_why_it_takes_no_more(spark, tmp_path):
    rows = ["image,patient,Mass,date"]
    for i in range(30):
        picture(tmp_path / "images" / f"{i}.png", i)
        rows.append(f"{i}.png,{i},1,2014-01-{i + 1:02}")
    (tmp_path / "l.csv").write_text("\n".join(rows) + "\n")
    given = {"images": str(tmp_path / "images"), "labels": str(tmp_path / "l.csv"), "findings": "Mass",
             "out": str(tmp_path / "store"), "size": 32}  # fmt: skip
    ingest(spark, **given, split_by="date")
    with pytest.raises(
        UserError, match=r"--append: the store .* is split by date, and with more images"
    ):
        ingest(spark, **given, append=True)
    (tmp_path / "l.csv").write_text("\n".join(rows[:2]) + "\n")  # of one date
    with pytest.raises(UserError, match=r"--append: the store .* is split by date, and with more"):
        ingest(spark, **given, append=True)
    with pytest.raises(UserError, match="have the same, 2014-01-01: a store that is split by date"):
        ingest(spark, **given, append=True, split_by="date")
    given["out"] = str(tmp_path / "by-patient")
    (tmp_path / "l.csv").write_text("\n".join(rows) + "\n")
    ingest(spark, **given)
    with pytest.raises(UserError, match=r"--split-by.date: the store .* is split by patient"):
        ingest(spark, **given, append=True, split_by="date")
